"""The datasets that are known by name, read from `datasets.toml`. Imports nothing heavy."""

import difflib
import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath


@dataclass(frozen=True)
class DataFile:
    """One file of a dataset.

    Attributes:
        path: relative, with forward slashes; where the cache keeps the file.
        bytes: its exact size.
        sha256: its checksum, in hexadecimal.
        urls: addresses in the order in which they are tried; empty if there is none.
    """

    path: str
    bytes: int
    sha256: str
    urls: tuple[str, ...]

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Dataset:
    """An entry of the registry; `datasets.toml` says what each field means."""

    name: str
    title: str
    task: str
    splits: str
    licence: str
    terms: str
    citation: str
    by_hand: str
    files: tuple[DataFile, ...]

    @property
    def bytes(self) -> int:
        """The size of all its files together; 0 for a set that comes with a package."""
        return sum(file.bytes for file in self.files)

    @property
    def embedded(self) -> bool:
        """Whether the set comes with an installed package, without files of its own."""
        return not self.files


@functools.cache
def _registry() -> dict[str, Dataset]:
    source = resources.files("heterodox.data").joinpath("datasets.toml")
    tables = tomllib.loads(source.read_text(encoding="utf-8"))
    return {name: _dataset(name, table) for name, table in tables.items()}


def _dataset(name: str, table: dict) -> Dataset:
    mirrors = table.pop("mirrors", [])
    files = tuple(
        DataFile(
            path=file["path"],
            bytes=file["bytes"],
            sha256=file["sha256"],
            urls=tuple(
                file.get("urls")
                or [mirror.format(file=PurePosixPath(file["path"]).name) for mirror in mirrors]
            ),
        )
        for file in table.pop("files", [])
    )
    return Dataset(name=name, by_hand=table.pop("by_hand", ""), files=files, **table)


def datasets(task: str | None = None) -> tuple[Dataset, ...]:
    """All registered datasets, or those of one task, for example "text" or "series".

    Example:
        >>> [dataset.name for dataset in datasets("text")]
        ['python-docs', 'python-stdlib', 'tinyshakespeare', 'ptb']
    """
    return tuple(entry for entry in _registry().values() if task in (None, entry.task))


def dataset(name: str) -> Dataset:
    """The registered dataset called `name`.

    Raises:
        ValueError: there is none; the message lists the names and the nearest.

    Example:
        >>> dataset("fashion-mnist").licence
        'MIT'
    """
    if name not in _registry():
        raise ValueError(
            f"name: {name!r} given, one of {', '.join(_registry())} expected{near(name)}"
        )
    return _registry()[name]


def near(name: str, task: str | None = None) -> str:
    """ " (did you mean ...?)" for a name that is close to a registered one, else ""."""
    names = [entry.name for entry in datasets(task)]
    close = difflib.get_close_matches(str(name), names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
