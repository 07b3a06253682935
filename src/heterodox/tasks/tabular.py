"""Tables: a model learns to predict a number, or a class, from the other columns of a row.

The model is a small network with a bottleneck (`heterodox.models.bottleneck`), a network of the
caller's own, or an estimator of scikit-learn; sizes stand in `SETTINGS`. Rows are cut at random
into training, validation and test part; what standardises them is learned from the training part.
"""

import hashlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import clone
from torch import Tensor, nn

from heterodox.data.tabular import TabularData, TabularSplit, load_tabular, split_table
from heterodox.experiment.measurement import Curve, Measurement
from heterodox.experiment.scale import Scale
from heterodox.learning.boosting import BoostedNetworkClassifier, BoostedNetworkRegressor
from heterodox.losses import LOSSES, REGRESSION_LOSSES
from heterodox.models.bottleneck import BottleneckMLP
from heterodox.optim import OPTIMIZERS, SCHEDULES
from heterodox.tasks.task import chosen, described
from heterodox.training.batches import Shuffled
from heterodox.training.devices import fabric_on
from heterodox.training.history import History
from heterodox.training.loop import fit
from heterodox.training.seeding import derived_seed, generator_for, seeded

ModelFactory = Callable[[int, int], nn.Module]
"""`(features, outputs) -> Module`; outputs are 1 for regression, else the number of classes."""

MODELS = ("mlp", "linear", "forest", "boosting", "gbnn")

EVALUATED_AT_ONCE = 4096


@dataclass(frozen=True)
class TabularSettings:
    """The sizes of a run.

    Args:
        epochs: passes over the training rows.
        batch_size: rows a step; all rows if they are fewer.
        learning_rate, warmup_steps: peak of the schedule, and the steps to reach it.
        weight_decay: of the optimizer.
        clip: largest norm of the gradient; None does not clip.
        hidden, bottleneck: widths of "mlp".
        rows: at most so many rows of the table are used, drawn anew by each seed; None for all.
        test_share, validation_share: of the rows.
        target: for a user's file, the column to predict; "" is the last one.
        kind: "regression" or "classification"; "auto" looks at the target.
        evaluations: how often validation and test part are evaluated during training.
        precision: as for `lightning_fabric.Fabric`.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip: float | None = 1.0
    hidden: int = 64
    bottleneck: int = 64
    rows: int | None = None
    test_share: float = 0.2
    validation_share: float = 0.16
    target: str = ""
    kind: str = "auto"
    evaluations: int = 5
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "hidden", "bottleneck"):
            given = getattr(self, name)
            if not given > 0:
                raise ValueError(f"{name}: {given} given, a positive number expected")
        if not self.evaluations > 0:
            raise ValueError(f"evaluations: {self.evaluations} given, a positive number expected")
        if self.kind not in ("auto", "regression", "classification"):
            raise ValueError(
                f"kind: {self.kind!r} given, 'auto', 'regression' or 'classification' expected"
            )


SETTINGS: dict[Scale, TabularSettings] = {
    Scale.SMOKE: TabularSettings(
        epochs=15,
        batch_size=32,
        learning_rate=3e-3,
        hidden=32,
        bottleneck=16,
        rows=500,
        evaluations=2,
    ),
    Scale.LAPTOP: TabularSettings(
        epochs=60, batch_size=128, learning_rate=2e-3, warmup_steps=20, rows=5000
    ),
    # All rows, and the network and batches of the Cauchy-Schwarz bottleneck's authors.
    Scale.PAPER: TabularSettings(
        epochs=200,
        batch_size=128,
        learning_rate=1e-3,
        warmup_steps=100,
        hidden=128,
        bottleneck=128,
        evaluations=20,
    ),
}


@dataclass(frozen=True)
class TrainedTable:
    """A trained model with its record.

    Attributes:
        model: a network in evaluation mode, on the device of training, or a fitted estimator.
        split: the rows it was trained and evaluated on.
        settings: of the run.
        history: of a network: curves of the training loss, and of validation and test error. An
            estimator has the errors at the end only.
    """

    model: Any
    split: TabularSplit
    settings: TabularSettings
    history: History

    @property
    def test_error(self) -> float:
        """At the end: root mean squared error in deviations of the training targets, or the share
        of wrong classes [%]; NaN if training diverged."""
        return self.history.last("test error")

    @property
    def validation_error(self) -> float:
        """The same on the validation part, for choosing settings."""
        return self.history.last("validation error")

    def measurement(self) -> Measurement:
        """The metric, test error at the end.

        Readings: "validation error"; for numbers "test RMSE in the target's unit", for classes
        "test accuracy" [%].
        """
        readings = {"validation error": self.validation_error}
        if self.split.kind == "regression":
            readings["test RMSE in the target's unit"] = self.test_error * self.split.target_scale
        else:
            readings["test accuracy"] = 100 - self.test_error
        curves: dict[str, Curve] = {
            name: self.history.evaluations.get(name, [])
            for name in ("test error", "validation error")
        }
        if self.history.loss:
            curves["training loss"] = self.history.loss
        return Measurement(self.test_error, readings, curves)


def train(
    *,
    model: str | ModelFactory | Any = "mlp",
    loss: str | Callable[..., Tensor] = "default",
    optimizer: str | Callable[..., Any] = "adamw",
    schedule: str | Callable[..., Any] = "cosine",
    data: str | Path | TabularData | TabularSplit = "diabetes",
    seed: int = 0,
    settings: TabularSettings = SETTINGS[Scale.LAPTOP],
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: bool = False,
) -> TrainedTable:
    """Trains a model on a table and evaluates it on rows that it has not seen.

    Args:
        model: "mlp"; one of scikit-learn's "linear", "forest" and "boosting"; "gbnn", the boosted
            network of `heterodox.learning`; a callable `(features, outputs) -> Module`; or an
            estimator with `fit` and `predict`, which is cloned.
        loss: a name of the slot, or a callable `(input, target)`; "default" is the mean squared
            error for numbers and cross-entropy for classes. A callable that has parameters `x` and
            `t` is also given the features and the code, for which a model of the caller's own must
            take `return_code=True`, as `BottleneckMLP` does.
        optimizer, schedule: a name of the slot, or a callable with the call that the slot's module
            documents.
        data: see `heterodox.data.load_tabular`; or a table already loaded, or already cut.
        seed: of the cut, the order of rows and initialisation. Two runs with the same seed see the
            same batches, whatever is in their slots.
        settings: see `SETTINGS` for those of each scale.
        device: see `heterodox.training.fabric_on`.
        checkpoint: see `heterodox.training.fit`; removed by the caller. Estimators have none.
        progress: show a bar on a terminal.

    Raises:
        ValueError: unknown names, a loss of the other kind, a loss for a model without any, or data
            that does not fit.

    Example:
        >>> run = train(data="iris", settings=SETTINGS[Scale.SMOKE])
        >>> run.measurement().read("test accuracy") > 80
        True
    """
    choices = {"loss": loss, "optimizer": optimizer, "schedule": schedule}
    identity = check(model=model, data=data, settings=settings, **choices)
    split = _split(data, seed, settings)
    if isinstance(model, str) and model != "mlp":
        model = _estimator(model, split.kind, seed)
    if _is_estimator(model):
        return _fitted(model, split, settings)
    fabric = fabric_on(device, settings.precision)
    size = min(settings.batch_size, len(split.train_x))
    batches = Shuffled((split.train_x, split.train_y), size, generator_for(seed, "order"))
    with seeded(derived_seed(seed, "initialisation")):
        network = _build(model, split, settings)
    descent = chosen(OPTIMIZERS, optimizer)(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    steps = settings.epochs * len(batches)
    history = fit(
        network,
        descent,
        batches,
        _objective(loss, split.kind),
        steps=steps,
        scheduler=chosen(SCHEDULES, schedule)(descent, steps, settings.warmup_steps),
        clip=settings.clip,
        evaluate=lambda network: errors(
            lambda x: torch.cat(
                [network(rows.to(fabric.device)).cpu() for rows in x.split(EVALUATED_AT_ONCE)]
            ),
            split,
        ),
        evaluate_every=max(1, steps // settings.evaluations),
        checkpoint=checkpoint,
        identity=described(
            task="tabular", model=model, data=identity, seed=seed, settings=settings, **choices
        ),
        fabric=fabric,
        seed=derived_seed(seed, "noise"),
        progress=progress,
    )
    return TrainedTable(network.eval(), split, settings, history)


def check(
    *,
    model: str | ModelFactory | Any = "mlp",
    loss: str | Callable[..., Tensor] = "default",
    optimizer: str | Callable[..., Any] = "adamw",
    schedule: str | Callable[..., Any] = "cosine",
    data: str | Path | TabularData | TabularSplit = "diabetes",
    settings: TabularSettings = SETTINGS[Scale.LAPTOP],
) -> str:
    """Raises what `train` would raise for these arguments; returns the sha256 of the table."""
    if isinstance(model, str) and model not in MODELS:
        raise ValueError(f"model: {model!r} given, one of {', '.join(MODELS)} expected")
    if not isinstance(model, str) and not callable(model) and not _is_estimator(model):
        raise ValueError(
            f"model: {model!r} given, a name, a callable or an estimator with fit and predict "
            "expected"
        )
    chosen(OPTIMIZERS, optimizer), chosen(SCHEDULES, schedule)
    source = data if isinstance(data, TabularSplit) else _loaded(data, settings)
    _check_loss(loss, source.kind, source.name)
    split = _split(source, 0, settings)
    if (isinstance(model, str) and model != "mlp") or _is_estimator(model):
        for slot, given, default in (
            ("loss", loss, "default"),
            ("optimizer", optimizer, OPTIMIZERS.default),
            ("schedule", schedule, SCHEDULES.default),
        ):
            if given != default:
                raise ValueError(
                    f"{slot}: {given!r} given, but an estimator such as {model!r} trains in its "
                    f"own way, {default!r} expected"
                )
    else:
        # Sizes that do not fit, and a model without the code that a loss needs, show in a trial.
        with seeded(0), torch.no_grad():
            network = _build(model, split, settings)
            if takes_code(_criterion(loss, split.kind)) and not _returns_code(network):
                raise ValueError(
                    f"model: {type(network).__name__} given, but the loss needs the code, a model "
                    "that takes return_code expected"
                )
            rows = slice(0, min(8, len(split.train_x)))
            _objective(loss, split.kind)(network, (split.train_x[rows], split.train_y[rows]))
    return _digest(source)


def errors(predict: Callable[[Tensor], Tensor], split: TabularSplit) -> dict[str, float]:
    """The errors of predictions, (rows, outputs), on validation and test part; NaN if they are not
    finite."""
    found = {}
    for part in ("validation", "test"):
        x, y = getattr(split, f"{part}_x"), getattr(split, f"{part}_y")
        output = predict(x).double()
        if not output.isfinite().all():
            found[f"{part} error"] = math.nan
        elif split.kind == "regression":
            found[f"{part} error"] = F.mse_loss(output, y.double()).sqrt().item()
        else:
            found[f"{part} error"] = 100 * (output.argmax(-1) != y).double().mean().item()
    return found


def _check_loss(loss: str | Callable[..., Tensor], kind: str, name: str) -> None:
    if callable(loss) or loss == "default":
        return
    slot, other = LOSSES, REGRESSION_LOSSES
    target = "classes"
    if kind == "regression":
        slot, other, target = other, slot, "numbers"
    if loss in other and loss not in slot:
        raise ValueError(
            f"loss: {loss!r} given, but the target of {name!r} is {target}; one of "
            f"{', '.join(('default', *slot))} expected"
        )
    slot.where(loss)


def _objective(
    loss: str | Callable[..., Tensor], kind: str
) -> Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]:
    criterion = _criterion(loss, kind)
    if not takes_code(criterion):
        return lambda network, batch: criterion(network(batch[0]), batch[1])

    def objective(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        prediction, code = network(x, return_code=True)
        if not (prediction.isfinite().all() and code.isfinite().all()):
            return prediction.sum() + code.sum()  # has diverged, which `fit` will notice
        return criterion(prediction, y, x=x, t=code)

    return objective


def _criterion(loss: str | Callable[..., Tensor], kind: str) -> Callable[..., Tensor]:
    if kind == "regression":
        return chosen(REGRESSION_LOSSES, "mse" if loss == "default" else loss)
    return chosen(LOSSES, "cross-entropy" if loss == "default" else loss)


def _returns_code(network: nn.Module) -> bool:
    return "return_code" in inspect.signature(network.forward).parameters


def takes_code(loss: Callable[..., Tensor]) -> bool:
    """Whether a loss has parameters `x` and `t`, for features and code.

    Example:
        >>> takes_code(F.mse_loss), takes_code(REGRESSION_LOSSES["cauchy-schwarz"])
        (False, True)
    """
    function = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        return {"x", "t"} <= set(inspect.signature(function).parameters)
    except ValueError:  # a builtin without a signature
        return False


def _loaded(data: str | Path | TabularData, settings: TabularSettings) -> TabularData:
    if isinstance(data, TabularData):
        return data
    kind: Any = None if settings.kind == "auto" else settings.kind
    return load_tabular(data, target=settings.target or None, kind=kind)


def _split(
    data: str | Path | TabularData | TabularSplit, seed: int, settings: TabularSettings
) -> TabularSplit:
    if isinstance(data, TabularSplit):
        return data
    return split_table(
        _loaded(data, settings),
        derived_seed(seed, "split") % 2**32,
        test_share=settings.test_share,
        validation_share=settings.validation_share,
        rows=settings.rows,
    )


def _build(model: str | ModelFactory, split: TabularSplit, settings: TabularSettings) -> nn.Module:
    features, outputs = split.train_x.shape[1], max(1, len(split.class_names))
    if not isinstance(model, str):
        return model(features, outputs)
    return BottleneckMLP(features, outputs, settings.hidden, settings.bottleneck)


def _is_estimator(model: Any) -> bool:
    return not isinstance(model, type) and hasattr(model, "fit") and hasattr(model, "predict")


def _estimator(name: str, kind: str, seed: int) -> Any:
    from sklearn import ensemble, linear_model

    made: dict[tuple[str, str], Callable[..., Any]] = {
        ("linear", "regression"): linear_model.LinearRegression,
        ("linear", "classification"): partial(linear_model.LogisticRegression, max_iter=1000),
        ("forest", "regression"): partial(ensemble.RandomForestRegressor, random_state=seed),
        ("forest", "classification"): partial(ensemble.RandomForestClassifier, random_state=seed),
        ("boosting", "regression"): partial(
            ensemble.HistGradientBoostingRegressor, random_state=seed
        ),
        ("boosting", "classification"): partial(
            ensemble.HistGradientBoostingClassifier, random_state=seed
        ),
        ("gbnn", "regression"): partial(BoostedNetworkRegressor, random_state=seed),
        ("gbnn", "classification"): partial(BoostedNetworkClassifier, random_state=seed),
    }
    return made[name, kind]()


def _fitted(model: Any, split: TabularSplit, settings: TabularSettings) -> TrainedTable:
    """What an estimator learns from the training part; it sees targets as one column of numbers, in
    deviations, or as class indices."""
    estimator = clone(model)
    estimator.fit(split.train_x.numpy(), split.train_y.numpy().reshape(-1))
    classes = len(split.class_names)

    def predict(x: Tensor) -> Tensor:
        predicted = np.asarray(estimator.predict(x.numpy()))
        if classes:
            return F.one_hot(torch.from_numpy(predicted).long(), classes)
        return torch.from_numpy(predicted).double().reshape(-1, 1)

    found = {name: [(0.0, value)] for name, value in errors(predict, split).items()}
    return TrainedTable(estimator, split, settings, History(evaluations=found))


def _digest(source: TabularData | TabularSplit) -> str:
    digest = hashlib.sha256()
    if isinstance(source, TabularSplit):
        for part in ("train", "validation", "test"):
            for letter in "xy":
                digest.update(getattr(source, f"{part}_{letter}").numpy().tobytes())
        return digest.hexdigest()
    for column in source.columns:
        numbers = column.is_numeric
        digest.update(column.values.tobytes() if numbers else repr(list(column.values)).encode())
    digest.update(source.target.tobytes())
    return digest.hexdigest()
