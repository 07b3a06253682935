"""Slots: the defaults that a component can replace, each a mapping from a name to a factory.

A slot knows its names without importing what they stand for, so that `--help` can list them in
milliseconds; the factory is imported when it is looked up.
"""

import difflib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any


class Slot(Mapping[str, Callable[..., Any]]):
    """A read-only mapping from name to factory, each given as `"module:attribute"`.

    Args:
        name: what the slot is called in messages and on the command line, for example "attention".
        entries: name -> `"module:attribute"`; the first is the default that the others replace.

    Raises:
        ValueError: on looking up an unknown name; the message lists the names and the nearest.

    Example:
        >>> from heterodox.attention import ATTENTION
        >>> ATTENTION.default
        'softmax'
        >>> ATTENTION["sigmoid"].__module__
        'heterodox.attention.slot'
    """

    def __init__(self, name: str, entries: dict[str, str]) -> None:
        self.name = name
        self._entries = dict(entries)

    @property
    def default(self) -> str:
        return next(iter(self._entries))

    def where(self, name: str) -> str:
        """The `"module:attribute"` behind `name`."""
        if name not in self._entries:
            near = difflib.get_close_matches(str(name), self._entries, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            names = ", ".join(self._entries)
            raise ValueError(f"{self.name}: {name!r} given, one of {names} expected{hint}")
        return self._entries[name]

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return pkgutil.resolve_name(self.where(name))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __or__(self, other: "Slot") -> "Slot":
        """The names of both, called as this one is."""
        return Slot(self.name, self._entries | other._entries)

    def __repr__(self) -> str:
        return f"Slot({self.name!r}: {', '.join(self._entries)})"


def lazy_exports(package: str, names: dict[str, str]) -> Callable[[str], Any]:
    """A module `__getattr__` (PEP 562) that imports each public name of `package` on first use.

    Args:
        package: the package's `__name__`.
        names: public name -> module that defines it.
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return pkgutil.resolve_name(f"{names[name]}:{name}")

    return __getattr__
