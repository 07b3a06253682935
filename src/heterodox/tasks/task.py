"""What a task is, told without importing torch: enough for `--help` and for a table of tasks."""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from heterodox.experiment.scale import Scale
from heterodox.slots import Slot


@dataclass(frozen=True)
class Task:
    """A problem with real data, a model with open slots, a training procedure and a metric.

    Attributes:
        name: as on the command line.
        summary: one line.
        train: `"module:function"`; takes the slots, `data` where the task has data, `seed`,
            `settings`, `device` and `checkpoint` by keyword, and returns an object with
            `measurement()`.
        check: `"module:function"`; takes the slots, `data` and `settings`, raises ValueError for
            what `train` would refuse, and returns what identifies the data.
        settings: `"module:SETTINGS"`, a dict from `Scale` to the task's settings.
        slots: argument of `train` -> the slot that its names come from, or the names.
        data: the default dataset, or None where the task makes its data.
        accepts: what may stand in place of the default.
        metric: what `measurement().value` is, with its unit.
        better: whether a lower or a higher value is better.

    Example:
        >>> from heterodox.tasks import TASKS
        >>> TASKS["language"].metric
        'validation loss [nats/byte]'
        >>> "sigmoid" in TASKS["language"].slots["attention"]
        True
    """

    name: str
    summary: str
    train: str
    check: str
    settings: str
    slots: Mapping[str, Slot | tuple[str, ...]]
    data: str | None
    accepts: str
    metric: str
    better: Literal["lower", "higher"]

    def load_train(self) -> Callable[..., Any]:
        """The function behind `train`."""
        return pkgutil.resolve_name(self.train)

    def load_check(self) -> Callable[..., str]:
        """The function behind `check`."""
        return pkgutil.resolve_name(self.check)

    def load_settings(self) -> dict[Scale, Any]:
        """The table behind `settings`."""
        return pkgutil.resolve_name(self.settings)


def chosen(slot: Slot, given: str | Callable[..., Any]) -> Callable[..., Any]:
    """What a slot's name stands for, or the callable that was given in place of a name."""
    return slot[given] if isinstance(given, str) else given


def described(**slots: Any) -> str:
    """Names for a run's choices that are the same in the next process, as a repr may not be.

    Example:
        >>> described(seed=3, loss=max, optimizer=partial(min, default=0))
        "seed=3, loss=max, optimizer=min((), {'default': 0})"
    """
    return ", ".join(f"{key}={_named(value)}" for key, value in slots.items())


def _named(value: Any) -> str:
    if isinstance(value, partial):
        return f"{_named(value.func)}({value.args}, {value.keywords})"
    if isinstance(value, list | tuple):
        return ", ".join(map(_named, value)).join("()")
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return str(value)
