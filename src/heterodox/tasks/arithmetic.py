"""Arithmetic: an MLP learns a op b mod p from a part of all pairs of residues.

The task on which grokking was found: the rest of the table is learned long after the given part is
fitted, or never. Set-up of "Grokking at the Edge of Numerical Stability" (Prieto et al., ICLR 2025,
arXiv 2501.04697): all p² pairs, a random split, full-batch training of `PairMLP`.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from heterodox.experiment.measurement import Curve, Measurement
from heterodox.experiment.scale import Scale
from heterodox.losses import LOSSES
from heterodox.models.pair_mlp import PairMLP, Weights, pair_logits
from heterodox.optim import OPTIMIZERS, SCHEDULES
from heterodox.probes.grokking import GrokkingMonitor
from heterodox.tasks.task import chosen, described
from heterodox.training.checkpoint import load_checkpoint, save_checkpoint
from heterodox.training.progress import progress_bar, report
from heterodox.training.seeding import derived_seed, generator_for, seeded

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
}

GENERALISED = 0.95
"""The test accuracy at which the table counts as learned."""

ELEMENTWISE = (SGD, Adam, AdamW)
"""Optimizers whose step on stacked weights is each model's own step."""

REPORTED = ("train_loss", "train_accuracy", "test_accuracy")

# Multiply-adds of one model's forward pass below which several seeds are trained as one batched
# model. Above, the matrix products take the time, and the batch only leaves the cache sooner.
BATCHED_BELOW = 20_000_000


@dataclass(frozen=True)
class ArithmeticSettings:
    """The sizes of a run.

    Args:
        modulus: p.
        fraction: share of the p² pairs that is trained on; the others are the test set.
        hidden: width of the two hidden layers.
        epochs: full-batch steps.
        learning_rate, weight_decay: of the optimizer.
        loss_dtype: the logits are cast to it before the loss.
        dtype: of the weights.
        monitor_every: epochs between points of the curves.
    """

    modulus: int
    fraction: float
    hidden: int
    epochs: int
    learning_rate: float
    weight_decay: float = 0.0
    loss_dtype: Literal["float16", "float32", "float64"] = "float32"
    dtype: Literal["float32", "float64"] = "float32"
    monitor_every: int = 10

    def __post_init__(self) -> None:
        for name in ("modulus", "hidden", "epochs", "learning_rate", "monitor_every"):
            given = getattr(self, name)
            if not given > 0:
                raise ValueError(f"{name}: {given} given, a positive number expected")
        for name, types in {
            "loss_dtype": ("float16", "float32", "float64"),
            "dtype": ("float32", "float64"),
        }.items():
            if getattr(self, name) not in types:
                given = getattr(self, name)
                raise ValueError(f"{name}: {given!r} given, one of {', '.join(types)} expected")
        pairs = self.modulus**2
        if not 1 <= self.train_pairs < pairs:
            raise ValueError(
                f"fraction: {self.fraction} given, a part of the {pairs} pairs expected that "
                "leaves at least one for training and one for testing"
            )

    @property
    def train_pairs(self) -> int:
        return round(self.fraction * self.modulus**2)


SETTINGS: dict[Scale, ArithmeticSettings] = {
    Scale.SMOKE: ArithmeticSettings(
        modulus=13, fraction=0.6, hidden=32, epochs=300, learning_rate=1e-2, monitor_every=10
    ),
    Scale.LAPTOP: ArithmeticSettings(
        modulus=113, fraction=0.4, hidden=200, epochs=500, learning_rate=5e-3, monitor_every=5
    ),
    Scale.PAPER: ArithmeticSettings(
        modulus=113, fraction=0.4, hidden=200, epochs=80_000, learning_rate=1e-2, monitor_every=200
    ),
}


@dataclass(frozen=True)
class TrainedArithmetic:
    """A trained model with its record.

    Attributes:
        model: on the device of training.
        train_pairs, test_pairs: (examples, 2).
        settings: of the run.
        curves: what `GrokkingMonitor` recorded, by name; "step" holds the epochs. Accuracies are
            shares, a record at epoch e is made before step e + 1.
    """

    model: PairMLP
    train_pairs: Tensor
    test_pairs: Tensor
    settings: ArithmeticSettings
    curves: dict[str, list[float]]

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.curves["train_loss"][-1])

    @property
    def test_accuracy(self) -> float:
        """At the end [%]; NaN if training diverged."""
        return self._percent(self.curves["test_accuracy"][-1])

    @property
    def train_accuracy(self) -> float:
        """At the end [%]; NaN if training diverged."""
        return self._percent(self.curves["train_accuracy"][-1])

    @property
    def best_test_accuracy(self) -> float:
        """The best of all records [%]; NaN if training diverged."""
        return self._percent(max(self.curves["test_accuracy"]))

    @property
    def epochs_to_generalise(self) -> float:
        """First recorded epoch with a test accuracy of at least 95 %; infinite if none."""
        return self._first_epoch("test_accuracy")

    @property
    def epochs_to_fit(self) -> float:
        """First recorded epoch with a training accuracy of at least 95 %; infinite if none."""
        return self._first_epoch("train_accuracy")

    @property
    def collapsed(self) -> float:
        """Share of training examples whose softmax has collapsed at the end, in `loss_dtype`."""
        return self.curves["collapse"][-1]

    def measurement(self) -> Measurement:
        """The metric, test accuracy at the end [%], and what else the run has shown.

        Readings: "best test accuracy" and "train accuracy" [%], "epochs to 95 %" (infinite if
        never), "epochs to fit", "collapsed", "collapsed on label", and "alignment" (the cosine
        between the descent direction and the weights), the last three as shares at the end.
        """
        readings = {
            "best test accuracy": self.best_test_accuracy,
            "train accuracy": self.train_accuracy,
            "epochs to 95 %": self.epochs_to_generalise,
            "epochs to fit": self.epochs_to_fit,
            "collapsed": self.collapsed,
            "collapsed on label": self.curves["collapse_on_label"][-1],
            "alignment": self.curves["alignment"][-1],
        }
        curves = {
            name.replace("_", " "): self._curve(name) for name in self.curves if name != "step"
        }
        return Measurement(self.test_accuracy, readings, curves)

    def _percent(self, share: float) -> float:
        return math.nan if self.diverged else 100 * share

    def _curve(self, name: str) -> Curve:
        return list(zip(self.curves["step"], self.curves[name], strict=True))

    def _first_epoch(self, name: str) -> float:
        reached = (epoch for epoch, share in self._curve(name) if share >= GENERALISED)
        return next(reached, math.inf)


def train(
    *,
    operation: str = "+",
    loss: str | Callable[..., Tensor] = "cross-entropy",
    optimizer: str | Callable[..., Optimizer] = "adamw",
    schedule: str | Callable[..., Any] = "constant",
    seed: int = 0,
    settings: ArithmeticSettings = SETTINGS[Scale.LAPTOP],
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: bool = False,
) -> TrainedArithmetic:
    """Trains one model.

    Args:
        operation: "+", "-" or "*".
        loss, optimizer, schedule: a name of the slot, or a callable with the call that the slot's
            module documents.
        seed: of the split and of the initialisation.
        settings: see `SETTINGS` for those of each scale.
        device: as `torch.device` names it.
        checkpoint: file to resume from if it exists, brought up to date every tenth of the run;
            removed by the caller.
        progress: show a bar on a terminal.

    With loss_dtype="float16", a CPU sums the softmax in float16 too, as the paper's definition of
    collapse has it; CUDA kernels sum in float32.

    Raises:
        ValueError: unknown names.

    Example:
        >>> from dataclasses import replace
        >>> run = train(settings=replace(SETTINGS[Scale.SMOKE], epochs=100))
        >>> run.train_accuracy
        100.0
    """
    with progress_bar("training") if progress else nullcontext():
        (trained,) = _train(
            (seed,), operation, loss, optimizer, schedule, settings, device, checkpoint
        )
    return trained


def train_many(
    seeds: Sequence[int],
    *,
    operation: str = "+",
    loss: str | Callable[..., Tensor] = "cross-entropy",
    optimizer: str | Callable[..., Optimizer] = "adamw",
    schedule: str | Callable[..., Any] = "constant",
    settings: ArithmeticSettings = SETTINGS[Scale.LAPTOP],
    device: str = "cpu",
) -> list[TrainedArithmetic]:
    """Trains a model for each seed, as `train` would one after the other.

    Small models with an elementwise optimizer are trained as one batched model, which costs little
    more than a single one; their weights agree with those of `train` up to rounding.

    Raises:
        ValueError: no seeds, or what `train` refuses.
    """
    if not seeds:
        raise ValueError("seeds: none given, at least one expected")
    choices = (operation, loss, optimizer, schedule, settings, device, None)
    if together(optimizer, settings):
        return _train(tuple(seeds), *choices)
    return [run for seed in seeds for run in _train((seed,), *choices)]


def together(optimizer: str | Callable[..., Optimizer], settings: ArithmeticSettings) -> bool:
    """Whether `train_many` trains all seeds as one batched model."""
    built = chosen(OPTIMIZERS, optimizer)([nn.Parameter(torch.zeros(2))], lr=1.0)
    hidden, p = settings.hidden, settings.modulus
    work = settings.train_pairs * (2 * hidden + hidden**2 + hidden * p)
    return type(built) in ELEMENTWISE and work < BATCHED_BELOW


def check(
    *,
    operation: str = "+",
    loss: str | Callable[..., Tensor] = "cross-entropy",
    optimizer: str | Callable[..., Optimizer] = "adamw",
    schedule: str | Callable[..., Any] = "constant",
    settings: ArithmeticSettings = SETTINGS[Scale.LAPTOP],
) -> str:
    """Raises what `train` would raise for these arguments; returns what the data is."""
    if operation not in OPERATIONS:
        raise ValueError(f"operation: {operation!r} given, one of {', '.join(OPERATIONS)} expected")
    chosen(LOSSES, loss), chosen(OPTIMIZERS, optimizer), chosen(SCHEDULES, schedule)
    return f"all pairs modulo {settings.modulus}"


def table(operation: str, modulus: int) -> tuple[Tensor, Tensor]:
    """All pairs (p², 2) in lexicographic order, and their results (p²,).

    Example:
        >>> pairs, results = table("-", 3)
        >>> pairs[1].tolist(), results[1].item()
        ([0, 1], 2)
    """
    residues = torch.arange(modulus)
    pairs = torch.cartesian_prod(residues, residues)
    return pairs, OPERATIONS[operation](pairs[:, 0], pairs[:, 1]) % modulus


def _train(
    seeds: tuple[int, ...],
    operation: str,
    loss: str | Callable[..., Tensor],
    optimizer: str | Callable[..., Optimizer],
    schedule: str | Callable[..., Any],
    settings: ArithmeticSettings,
    device: str,
    checkpoint: Path | None,
) -> list[TrainedArithmetic]:
    """Trains the models of all seeds in step; every tensor has them as its first axis."""
    check(operation=operation, loss=loss, optimizer=optimizer, schedule=schedule, settings=settings)
    pairs, results = table(operation, settings.modulus)
    orders = torch.stack(
        [torch.randperm(len(pairs), generator=generator_for(seed, "split")) for seed in seeds]
    )
    train_order, test_order = orders.tensor_split([settings.train_pairs], dim=1)
    train_pairs, test_pairs = pairs[train_order].to(device), pairs[test_order].to(device)
    train_results, test_results = results[train_order].to(device), results[test_order].to(device)

    models = []
    for seed in seeds:
        with seeded(derived_seed(seed, "initialisation")):
            models.append(PairMLP(settings.modulus, settings.hidden))
    dtype, loss_dtype = getattr(torch, settings.dtype), getattr(torch, settings.loss_dtype)
    first, second, third = (
        nn.Parameter(torch.stack(weights).detach().to(device, dtype))
        for weights in zip(*(model.weights for model in models), strict=True)
    )
    weights: Weights = (first, second, third)
    criterion = chosen(LOSSES, loss)
    descent = chosen(OPTIMIZERS, optimizer)(
        weights, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    scheduler = chosen(SCHEDULES, schedule)(descent, settings.epochs)
    monitors = [GrokkingMonitor(loss=criterion, dtype=loss_dtype) for _ in seeds]

    def record(epoch: int, train_logits: Tensor) -> None:
        with torch.no_grad():
            test_logits = pair_logits(weights, test_pairs).to(loss_dtype)
        for index, monitor in enumerate(monitors):
            monitor.record(
                epoch,
                [_slice(weight, index) for weight in weights],
                train_logits[index],
                train_results[index],
                test_logits[index],
                test_results[index],
            )
        history = monitors[0].history
        report(epoch, settings.epochs, **{name: history[name][-1] for name in REPORTED})

    choices = described(
        task="arithmetic",
        seeds=seeds,
        operation=operation,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        settings=settings,
    )
    start = 0
    if checkpoint is not None and checkpoint.exists():
        start = _resume(checkpoint, choices, weights, descent, scheduler, monitors)
    save_every = max(1, settings.epochs // 10)
    for epoch in range(start, settings.epochs + 1):
        if checkpoint is not None and epoch > start and epoch % save_every == 0:
            state = {"identity": choices, "epoch": epoch, "weights": [w.data for w in weights]}
            state |= {"optimizer": descent.state_dict(), "scheduler": scheduler.state_dict()}
            save_checkpoint(checkpoint, state | {"history": [m.history for m in monitors]})
        logits = pair_logits(weights, train_pairs).to(loss_dtype)
        losses = [criterion(z, y) for z, y in zip(logits, train_results, strict=True)]
        total = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
        total.backward()
        last = epoch == settings.epochs
        if last or epoch % settings.monitor_every == 0:
            record(epoch, logits.detach())
            if not any(math.isfinite(m.history["train_loss"][-1]) for m in monitors):
                break
        if not last:
            descent.step()
            scheduler.step()
        descent.zero_grad()

    for index, model in enumerate(models):
        model.to(device, dtype)
        for own, stacked in zip(model.weights, weights, strict=True):
            own.data.copy_(stacked.data[index])
    rows = zip(models, train_pairs, test_pairs, monitors, strict=True)
    return [
        TrainedArithmetic(
            model,
            trained_on,
            tested_on,
            settings,
            {name: [float(y) for y in values] for name, values in monitor.history.items()},
        )
        for model, trained_on, tested_on, monitor in rows
    ]


def _slice(weight: Tensor, index: int) -> Tensor:
    """One model's part of stacked weights, with its part of the gradient."""
    part = weight.detach()[index]
    part.grad = None if weight.grad is None else weight.grad[index]
    return part


def _resume(
    path: Path,
    choices: str,
    weights: Weights,
    optimizer: Optimizer,
    scheduler: Any,
    monitors: list[GrokkingMonitor],
) -> int:
    """Puts the run back where the checkpoint was written; returns the epochs done."""
    state = load_checkpoint(path, weights[0].device)
    if state.get("identity") != choices:
        raise ValueError(
            f"checkpoint: {path} is of another run: {state.get('identity')!r} found, "
            f"{choices!r} expected"
        )
    for weight, saved in zip(weights, state["weights"], strict=True):
        weight.data.copy_(saved)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    for monitor, history in zip(monitors, state["history"], strict=True):
        monitor.history = history
    return state["epoch"]
