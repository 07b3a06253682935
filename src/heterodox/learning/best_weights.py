"""Training of one loss with early stopping at the best validation score."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass
class LayerHistory:
    """How the training of a layer, or of layers together, went.

    Attributes:
        loss: of each epoch.
        validation: (epoch, score) of each check, higher is better; empty without validation data.
        best_epoch: whose weights were kept; the last one without validation data.
    """

    loss: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    best_epoch: int = 0

    @property
    def best(self) -> float:
        """The best validation score; NaN if there was none."""
        return max((score for _, score in self.validation), default=math.nan)


@dataclass(frozen=True)
class Schedule:
    """How long a layer is trained, and how.

    Args:
        epochs: at most.
        lr, weight_decay: of Adam.
        patience: checks without a new best before it stops.
        val_every: epochs between checks.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> Schedule(epochs=10).val_every
        2
    """

    epochs: int = 1000
    lr: float = 1e-3
    weight_decay: float = 5e-4
    patience: int = 100
    val_every: int = 2

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "val_every"):
            given = getattr(self, name)
            if given < 1:
                raise ValueError(f"{name}: {given} given, a positive number expected")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr: {self.lr} given, a positive number expected")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"weight_decay: {self.weight_decay} given, a number that is not negative expected"
            )

    def adam(self, module: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(module.parameters(), lr=self.lr, weight_decay=self.weight_decay)


def train_to_best(
    modules: Sequence[nn.Module],
    epoch: Callable[[], torch.Tensor],
    score: Callable[[], float] | None,
    schedule: Schedule,
) -> LayerHistory:
    """Runs epochs until the score has not improved for long, and puts the best weights back.

    Of weights with equal scores the last ones are kept: on few validation nodes equals are common,
    and the first of them have hardly learned.

    Args:
        modules: what is trained.
        epoch: trains once and returns the loss, without its gradient.
        score: on validation data, higher is better; None trains all epochs and keeps the last.
        schedule: see `Schedule`.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> schedule = Schedule(patience=3)
        >>> history = train_to_best([layer], lambda: torch.zeros(()), lambda: 1.0, schedule)
        >>> len(history.loss), history.best_epoch  # the second score was the first best
        (8, 8)
    """
    history, losses = LayerHistory(), []
    best, since, kept = -math.inf, 0, [copy.deepcopy(m.state_dict()) for m in modules]
    for number in range(1, schedule.epochs + 1):
        losses.append(epoch())
        last = number == schedule.epochs
        if score is None or (number % schedule.val_every and not last):
            continue
        value = score()
        history.validation.append((number, value))
        since = 0 if value > best else since + 1
        if value >= best:
            best, history.best_epoch = value, number
            kept = [copy.deepcopy(m.state_dict()) for m in modules]
        if since >= schedule.patience:
            break
    if score is None:
        history.best_epoch = len(losses)
    else:
        for module, state in zip(modules, kept, strict=True):
            module.load_state_dict(state)
    history.loss = torch.stack(losses).tolist()
    return history
