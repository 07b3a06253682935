"""Regression with the Cauchy-Schwarz bottleneck, as an estimator of scikit-learn.

Yu et al., "Cauchy-Schwarz Divergence Information Bottleneck for Regression", ICLR 2024, arXiv
2404.17951: a `BottleneckMLP` learns by `cauchy_schwarz_bottleneck` on standardised features and
targets.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    MultiOutputMixin,
    RegressorMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from heterodox.losses.cauchy_schwarz import CauchySchwarzBottleneckLoss
from heterodox.models.bottleneck import BottleneckMLP
from heterodox.training.seeding import derived_seed, generator_for, seeded


class CauchySchwarzBottleneckRegressor(
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    RegressorMixin,
    MultiOutputMixin,
    BaseEstimator,
):
    """Predicts numbers by a small network that keeps little of its input; transforms into its code.

    Features and targets are standardised by the training data inside, so that widths of 1 have a
    meaning; constant ones stay constant. Targets may have several columns. Training is in float32,
    prediction in float64. A batch has at least two rows: one that is left over joins the batch
    before it.

    Args:
        hidden, bottleneck: widths of the hidden layers and of the code; 128 in the authors' code.
        beta: weight of the information term; choose it on validation data, between 0 and 1.
        epochs, batch_size, lr: of Adam; 200, 128 and 1e-4 in the authors' code.
        final_lr: the share of `lr` that a cosine ends at. The authors multiply by 0.6 every ten
            epochs, which leaves data of few batches almost untrained.
        bandwidth_x, bandwidth_y: widths of the prediction term, for standardised features and
            targets.
        bandwidth_t: width for the code, a number or "median".
        information_bandwidth: width for the features in the information term, a number, "median",
            or None for `bandwidth_x`.
        normalized: whether the information is normalised; see `cauchy_schwarz_bottleneck`.
        random_state: seed of initialisation and order, as scikit-learn takes it.
        device: where the network is trained, as `torch.device` names it.

    Attributes:
        network_: the trained `BottleneckMLP`, in float64 on the CPU.
        loss_curve_: the mean loss of each epoch.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> X, y = load_diabetes(return_X_y=True)
        >>> model = CauchySchwarzBottleneckRegressor(epochs=20, lr=3e-3, random_state=0)
        >>> bool(model.fit(X, y).score(X, y) > 0.4), model.transform(X).shape
        (True, (442, 128))
    """

    def __init__(
        self,
        hidden: int = 128,
        bottleneck: int = 128,
        beta: float = 0.01,
        epochs: int = 200,
        batch_size: int = 128,
        lr: float = 1e-4,
        *,
        final_lr: float = 0.1,
        bandwidth_x: float = 1.0,
        bandwidth_t: float | Literal["median"] = 1.0,
        bandwidth_y: float = 1.0,
        information_bandwidth: float | Literal["median"] | None = None,
        normalized: bool = True,
        random_state: Any = None,
        device: str = "cpu",
    ) -> None:
        self.hidden = hidden
        self.bottleneck = bottleneck
        self.beta = beta
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.final_lr = final_lr
        self.bandwidth_x = bandwidth_x
        self.bandwidth_t = bandwidth_t
        self.bandwidth_y = bandwidth_y
        self.information_bandwidth = information_bandwidth
        self.normalized = normalized
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any) -> "CauchySchwarzBottleneckRegressor":
        """Trains on X, (samples, features), and y, (samples,) or (samples, targets).

        Raises:
            ValueError: fewer than two samples, values that are not finite, or a parameter out of
                range.
        """
        self._check_parameters()
        loss = CauchySchwarzBottleneckLoss(
            self.beta,
            self.bandwidth_x,
            self.bandwidth_t,
            self.bandwidth_y,
            self.normalized,
            information_bandwidth=self.information_bandwidth,
        )
        X, y = validate_data(
            self,
            X,
            y,
            dtype=np.float64,
            y_numeric=True,
            multi_output=True,
            ensure_min_samples=2,
        )
        self.targets_are_one_column_ = y.ndim == 1
        targets = y.reshape(len(y), -1).astype(np.float64)
        self.x_mean_, self.x_scale_ = _mean_and_scale(X)
        self.y_mean_, self.y_scale_ = _mean_and_scale(targets)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with seeded(derived_seed(seed, "initialisation")):
            network = BottleneckMLP(X.shape[1], targets.shape[1], self.hidden, self.bottleneck)
        x = torch.from_numpy((X - self.x_mean_) / self.x_scale_).float().to(self.device)
        target = torch.from_numpy((targets - self.y_mean_) / self.y_scale_).float().to(self.device)
        with torch.enable_grad():
            self.loss_curve_ = self._train(network.to(self.device), loss, x, target, seed)
        if not math.isfinite(self.loss_curve_[-1]):
            raise ValueError(f"lr: {self.lr} given, a smaller rate expected: training diverged")
        self.network_ = network.to("cpu", torch.float64).eval()
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predictions, shaped as the targets of `fit`."""
        prediction, _ = self._run(X)
        scaled = prediction * self.y_scale_ + self.y_mean_
        return scaled[:, 0] if self.targets_are_one_column_ else scaled

    def transform(self, X: Any) -> np.ndarray:
        """The code t, (samples, bottleneck)."""
        return self._run(X)[1]

    def _run(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        with torch.no_grad():
            x = torch.from_numpy((X - self.x_mean_) / self.x_scale_)
            prediction, code = self.network_(x, return_code=True)
        return prediction.numpy(), code.numpy()

    def _train(
        self,
        network: BottleneckMLP,
        loss: CauchySchwarzBottleneckLoss,
        x: Tensor,
        target: Tensor,
        seed: int,
    ) -> list[float]:
        """The mean loss of each epoch; NaN ends it."""
        order = generator_for(seed, "order")
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, self.epochs, eta_min=self.lr * self.final_lr
        )
        curve: list[float] = []
        for _ in range(self.epochs):
            total = 0.0
            for rows in batches_of(len(x), self.batch_size, order):
                rows = rows.to(x.device)
                prediction, code = network(x[rows], return_code=True)
                if not (prediction.isfinite().all() and code.isfinite().all()):
                    return [*curve, math.nan]
                value = loss(prediction, target[rows], x[rows], code)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                total += value.item() * len(rows)
            scheduler.step()
            curve.append(total / len(x))
        return curve

    def _check_parameters(self) -> None:
        for name in ("hidden", "bottleneck", "epochs", "lr"):
            given = getattr(self, name)
            if not given > 0:
                raise ValueError(f"{name}: {given} given, a positive number expected")
        if not self.batch_size >= 2:
            raise ValueError(f"batch_size: {self.batch_size} given, at least 2 expected")
        if not 0 <= self.final_lr <= 1:
            raise ValueError(f"final_lr: {self.final_lr} given, a share in [0, 1] expected")

    @property
    def _n_features_out(self) -> int:
        return self.network_.bottleneck


def batches_of(rows: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Numbers 0 to rows − 1 in random order, cut into batches; one left over joins the last.

    Example:
        >>> [len(batch) for batch in batches_of(9, 4, torch.Generator())]
        [4, 5]
    """
    batches = list(torch.randperm(rows, generator=generator).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        *batches, before, last = batches
        batches.append(torch.cat([before, last]))
    return batches


def _mean_and_scale(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By column; a constant one has scale 1."""
    scale = values.std(axis=0)
    constant = scale <= 10 * np.finfo(np.float64).eps * np.abs(values).max(axis=0)
    return values.mean(axis=0), np.where(constant, 1.0, scale)
