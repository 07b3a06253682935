"""GBNN: a network with one hidden layer, grown a few units at a time by gradient boosting.

    F₀ = constant,   f_t = argmin Σ (r_t - f)²,   F_t = F_{t-1} + η ρ_t f_t,   t = 1 … T

with r_t the pseudo-residuals of the loss at F_{t-1}, f_t a network of J hidden units fitted to them
on a random part of the samples, and ρ_t one step along f_t on all samples. The T pieces are one
network of T·J hidden units: their weights side by side, the output weights times η ρ_t, and
F₀ + Σ η ρ_t c_t as its bias. Later pieces can be left out of it.

Emami and Martínez-Muñoz, "Sequential Training of Neural Networks with Gradient Boosting", IEEE
Access 11, 2023, arXiv 1909.12098, algorithm 1. The losses are in
`heterodox.learning.boosting_losses`, the fit of a piece is in `heterodox.learning.boosting_piece`.
Training takes T fits of O(n p J) an iteration, prediction one product of (n × p) and (p × T J).
"""

import copy
import math
import numbers
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from scipy.optimize import brentq
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits
from torch import nn

from heterodox.learning.boosting_losses import BinaryLoss, BoostingLoss, boosting_loss
from heterodox.learning.boosting_piece import ACTIVATIONS, Activation, Piece, fit_piece

__all__ = ["BoostedNetworkClassifier", "BoostedNetworkRegressor", "boosting_loss"]

Network = TypeVar("Network", bound="_BoostedNetwork")

MODULES = {"logistic": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}

# The largest step along a piece: separable classes have no finite best one.
LONGEST_STEP = 1e6

# Residuals that are rounding errors of the targets.
NEGLIGIBLE = 1e-13


class _BoostedNetwork(BaseEstimator):
    """What both estimators do with pieces; `_loss` and the coding of y are theirs."""

    _loss: BoostingLoss
    _network: Piece

    def __init__(
        self,
        n_hidden: int = 200,
        *,
        hidden_per_step: int = 1,
        learning_rate: float = 1.0,
        subsample: float = 0.5,
        activation: Activation = "logistic",
        step_size: Literal["newton", "exact"] = "newton",
        alpha: float = 1e-4,
        max_iter: int = 200,
        random_state: Any = None,
    ) -> None:
        self.n_hidden = n_hidden
        self.hidden_per_step = hidden_per_step
        self.learning_rate = learning_rate
        self.subsample = subsample
        self.activation = activation
        self.step_size = step_size
        self.alpha = alpha
        self.max_iter = max_iter
        self.random_state = random_state

    def _boost(self: Network, X: np.ndarray, y: np.ndarray) -> Network:
        """Grows the pieces; y is in the coding of the loss."""
        random = check_random_state(self.random_state)
        loss, shape = self._loss, y.shape
        self.initial_prediction_ = loss.initial(y)
        F = np.broadcast_to(self.initial_prediction_, shape).astype(np.float64)
        self.estimators_: list[Piece] = []
        self.step_sizes_: list[float] = []
        self.train_losses_: list[float] = []
        self.n_iter_ = 1
        drawn = max(1, math.floor(self.subsample * len(X)))
        # Products this small are slower on several threads than on one.
        with threadpool_limits(limits=1, user_api="blas"):
            for _ in range(self.n_hidden // self.hidden_per_step):
                residual = loss.residual(y, F).reshape(len(X), -1)
                rows = slice(None) if drawn == len(X) else random.permutation(len(X))[:drawn]
                piece, iterations = fit_piece(
                    X[rows],
                    residual[rows],
                    self.hidden_per_step,
                    self.activation,
                    self.alpha,
                    self.max_iter,
                    random,
                )
                f = piece.predict(X, self.activation).reshape(shape)
                fitted = np.abs(residual).max() <= NEGLIGIBLE * (1 + np.abs(y).max())
                size = 0.0 if fitted else self._step(y, F, f)
                F += self.learning_rate * size * f
                self.estimators_.append(piece)
                self.step_sizes_.append(self.learning_rate * size)
                self.train_losses_.append(float(loss.loss(y, F).mean()))
                self.n_iter_ = max(self.n_iter_, iterations)
                if fitted or (size == 0 and self.step_size == "newton"):
                    break
        self.n_steps_ = len(self.estimators_)
        self._network = self._merged()
        return self

    def _step(self, y: np.ndarray, F: np.ndarray, f: np.ndarray) -> float:
        """ρ: the Newton step, or the minimum of the loss along f from 0 on."""
        if self.step_size == "newton":
            return self._loss.newton_step(y, F, f)

        def slope(size: float) -> float:
            return -float((f * self._loss.residual(y, F + size * f)).sum())

        if not slope(0.0) < 0:
            return 0.0
        end = 1.0
        while slope(end) < 0 and end < LONGEST_STEP:
            end *= 2
        return end if slope(end) < 0 else float(brentq(slope, 0.0, end))

    def _merged(self) -> Piece:
        """All pieces as one network."""
        scales = self.step_sizes_
        parts = list(zip(*self.estimators_, strict=True))
        constants = sum(s * c for s, c in zip(scales, parts[3], strict=True))
        return Piece(
            np.concatenate(parts[0], axis=1),
            np.concatenate(parts[1]),
            np.concatenate([s * V for s, V in zip(scales, parts[2], strict=True)]),
            np.ravel(self.initial_prediction_) + constants,
        )

    def _checked(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return validate_data(self, X, dtype=np.float64, reset=False)

    def _raw(self, X: Any) -> np.ndarray:
        """F of all pieces, shaped as y was."""
        X = self._checked(X)
        scores = self._network.predict(X, self.activation)
        return scores.reshape(len(X), *self.initial_prediction_.shape)

    def _staged_raw(self, X: Any) -> Iterator[np.ndarray]:
        """F after each step."""
        X = self._checked(X)
        F = np.zeros((len(X), self.initial_prediction_.size)) + self.initial_prediction_.ravel()
        for scale, piece in zip(self.step_sizes_, self.estimators_, strict=True):
            F = F + scale * piece.predict(X, self.activation)
            yield F.reshape(len(X), *self.initial_prediction_.shape)

    def truncate(self: Network, n_steps: int) -> Network:
        """A fitted copy that keeps the first `n_steps` pieces.

        Raises:
            ValueError: `n_steps` is not between 1 and the number of steps.
        """
        check_is_fitted(self)
        if not isinstance(n_steps, numbers.Integral) or not 1 <= n_steps <= self.n_steps_:
            raise ValueError(f"n_steps: {n_steps} given, 1 to {self.n_steps_} expected")
        short = copy.copy(self)
        short.estimators_ = self.estimators_[:n_steps]
        short.step_sizes_ = self.step_sizes_[:n_steps]
        short.train_losses_ = self.train_losses_[:n_steps]
        short.n_steps_ = n_steps
        short._network = short._merged()
        return short

    def to_torch(self) -> nn.Sequential:
        """Linear, activation, Linear in float64: the raw score, and twice that for two classes, so
        that a sigmoid or softmax of the output is the probability."""
        check_is_fitted(self)
        W, b, V, c = self._outputs()
        hidden = nn.Linear(W.shape[0], W.shape[1], dtype=torch.float64)
        out = nn.Linear(V.shape[0], V.shape[1], dtype=torch.float64)
        with torch.no_grad():
            for target, value in (
                (hidden.weight, W.T),
                (hidden.bias, b),
                (out.weight, V.T),
                (out.bias, c),
            ):
                target.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        return nn.Sequential(hidden, MODULES[self.activation](), out)

    def _outputs(self) -> Piece:
        """The merged network whose outputs are logits."""
        W, b, V, c = self._network
        factor = 2.0 if isinstance(self._loss, BinaryLoss) else 1.0
        return Piece(W, b, factor * V, factor * c)

    def _as_mlp(self, mlp: Any) -> Any:
        """Gives scikit-learn's `mlp` the merged weights."""
        W, b, V, c = self._outputs()
        mlp.set_params(
            hidden_layer_sizes=(W.shape[1],),
            activation=self.activation,
            solver="lbfgs",
            alpha=self.alpha,
            max_iter=self.max_iter,
        )
        mlp.coefs_, mlp.intercepts_ = [W, V], [b, c]
        mlp.n_layers_, mlp.n_outputs_, mlp.n_iter_ = 3, V.shape[1], self.n_iter_
        mlp.loss_, mlp.n_features_in_ = self.train_losses_[-1], self.n_features_in_
        if hasattr(self, "feature_names_in_"):
            mlp.feature_names_in_ = self.feature_names_in_
        return mlp

    def _check_parameters(self) -> None:
        for name in ("n_hidden", "hidden_per_step", "max_iter"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name}: {value} given, a positive whole number expected")
        if self.n_hidden < self.hidden_per_step:
            raise ValueError(
                f"n_hidden: {self.n_hidden} given, at least hidden_per_step = "
                f"{self.hidden_per_step} expected"
            )
        for name in ("learning_rate", "alpha"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)} given, 0 or more expected")
        if not 0 < self.subsample <= 1:
            raise ValueError(f"subsample: {self.subsample} given, a share in (0, 1] expected")
        for name, choices in (("activation", ACTIVATIONS), ("step_size", ("newton", "exact"))):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}: {getattr(self, name)!r} given, one of {', '.join(choices)} expected"
                )


class BoostedNetworkClassifier(ClassifierMixin, _BoostedNetwork):
    """Classification by a boosted network, as an estimator of scikit-learn.

    Features should be standardised: put a `StandardScaler` before it in a pipeline.

    Args:
        n_hidden: hidden units in all, T·J; what `hidden_per_step` does not divide is left out.
            200 in the paper's experiments.
        hidden_per_step: J; 1 to 4 in the paper.
        learning_rate: η; 0.025 to 1 in the paper. 0 keeps the constant.
        subsample: share of the samples that each piece is fitted to; 0.25 to 1 in the paper.
        activation: "logistic", "tanh" or "relu".
        step_size: ρ: "newton", one Newton step as in the authors' code; or "exact", the minimum of
            the loss along the piece, the line search of the paper.
        alpha: weight of the penalty in the fit of a piece.
        max_iter: iterations of L-BFGS a piece, at most.
        random_state: seed of subsamples and initialisations, as scikit-learn takes it.

    Attributes:
        classes_: the labels, in order.
        estimators_: the pieces (W, b, V, c).
        step_sizes_: η ρ of each piece.
        initial_prediction_: F₀.
        train_losses_: mean loss over all training samples after each step.
        n_steps_: T; less than asked for where nothing was left to fit.
        n_iter_: the most iterations that a piece took.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> model = BoostedNetworkClassifier(20, random_state=0).fit(X, y)
        >>> bool(model.score(X, y) > 0.95), bool(model.truncate(10).score(X, y) > 0.9)
        (True, True)
    """

    def fit(self, X: Any, y: Any) -> "BoostedNetworkClassifier":
        """Grows the network on X, (samples, features), and labels y, (samples,).

        Raises:
            ValueError: a parameter is out of range, values are not finite, or there is only one
                class.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=np.float64, order="C", ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y: a single class given, at least two expected")
        if len(self.classes_) == 2:
            self._loss, target = boosting_loss("binary"), 2.0 * codes - 1
        else:
            self._loss, target = boosting_loss("multiclass"), np.eye(len(self.classes_))[codes]
        return self._boost(X, target)

    def decision_function(self, X: Any) -> np.ndarray:
        """F: (samples,) for two classes, half the logit of the second; else (samples, classes)."""
        return self._raw(X)

    def staged_decision_function(self, X: Any) -> Iterator[np.ndarray]:
        """`decision_function` after each step."""
        return self._staged_raw(X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """(samples, classes)."""
        return self._probabilities(self._raw(X))

    def staged_predict_proba(self, X: Any) -> Iterator[np.ndarray]:
        """`predict_proba` after each step."""
        return (self._probabilities(F) for F in self._staged_raw(X))

    def predict(self, X: Any) -> np.ndarray:
        """Labels, (samples,)."""
        return self._labels(self._raw(X))

    def staged_predict(self, X: Any) -> Iterator[np.ndarray]:
        """`predict` after each step."""
        return (self._labels(F) for F in self._staged_raw(X))

    def _probabilities(self, F: np.ndarray) -> np.ndarray:
        p = self._loss.probability(F)  # type: ignore[union-attr]
        return np.stack([1 - p, p], axis=1) if F.ndim == 1 else p

    def _labels(self, F: np.ndarray) -> np.ndarray:
        return self.classes_[(F > 0).astype(int) if F.ndim == 1 else F.argmax(axis=1)]

    def to_mlp(self) -> MLPClassifier:
        """The same network as scikit-learn's, fitted, with the same predictions."""
        check_is_fitted(self)
        mlp = self._as_mlp(MLPClassifier())
        mlp.classes_ = self.classes_
        mlp.out_activation_ = "logistic" if len(self.classes_) == 2 else "softmax"
        mlp._label_binarizer = LabelBinarizer().fit(self.classes_)
        return mlp


class BoostedNetworkRegressor(MultiOutputMixin, RegressorMixin, _BoostedNetwork):
    """Regression by a boosted network, of one target or several, as an estimator of scikit-learn.

    Arguments and attributes are those of `BoostedNetworkClassifier`, without classes. Features
    should be standardised, and the target at least roughly: the tolerance of L-BFGS and the penalty
    do not grow with it.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> X, y = load_diabetes(return_X_y=True)
        >>> model = BoostedNetworkRegressor(10, learning_rate=0.3, random_state=0)
        >>> bool(model.fit(X / X.std(0), y).score(X / X.std(0), y) > 0.4)
        True
    """

    def fit(self, X: Any, y: Any) -> "BoostedNetworkRegressor":
        """Grows the network on X, (samples, features), and y, (samples,) or (samples, targets).

        Raises:
            ValueError: a parameter is out of range, or values are not finite.
        """
        self._check_parameters()
        X, y = validate_data(
            self,
            X,
            y,
            dtype=np.float64,
            order="C",
            y_numeric=True,
            multi_output=True,
            ensure_min_samples=2,
        )
        self._loss = boosting_loss("squared")
        return self._boost(X, y.astype(np.float64))

    def predict(self, X: Any) -> np.ndarray:
        """Numbers, shaped as the targets were."""
        return self._raw(X)

    def staged_predict(self, X: Any) -> Iterator[np.ndarray]:
        """`predict` after each step."""
        return self._staged_raw(X)

    def to_mlp(self) -> MLPRegressor:
        """The same network as scikit-learn's, fitted, with the same predictions."""
        check_is_fitted(self)
        mlp = self._as_mlp(MLPRegressor())
        mlp.out_activation_ = "identity"
        return mlp
