"""How far a loop has come: loops report, whoever started them may listen."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm import tqdm

Listener = Callable[[int, int, dict[str, float]], None]
"""Called with (steps done, steps in all, metrics by name)."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def report(step: int, total: int, **metrics: float) -> None:
    """Tells the listener, if there is one, that `step` of `total` steps are done."""
    listener = _listener.get()
    if listener is not None:
        listener(step, total, metrics)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Sends every report made inside the `with` block to `listener`.

    Example:
        >>> with listening(lambda step, total, metrics: print(step, total, metrics)):
        ...     report(3, 10, loss=0.5)
        3 10 {'loss': 0.5}
        >>> report(4, 10)
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def progress_bar(description: str) -> Iterator[None]:
    """Shows the reports made inside as a bar on a terminal; nothing when somebody already listens,
    or when standard error is a pipe or a file."""
    if _listener.get() is not None or not sys.stderr.isatty():
        yield
        return
    with tqdm(desc=description, leave=False, file=sys.stderr) as bar:

        def show(step: int, total: int, metrics: dict[str, float]) -> None:
            bar.total, bar.n = total, step
            bar.set_postfix({name: f"{value:.4g}" for name, value in metrics.items()})

        with listening(show):
            yield
