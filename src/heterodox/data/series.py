"""Series of one quantity in time: made up, downloaded, or a column of the user's own CSV file."""

import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from heterodox.data.download import fetch
from heterodox.data.registry import datasets, near

SEASONAL_LENGTH = 3000

# The column of a registered file that is meant where none is named.
TARGETS = {"etth1": "OT", "sunspots": "SUNACTIVITY", "co2": "co2"}


@dataclass(frozen=True)
class SeriesData:
    """A series in the order of time, at equal distances.

    Attributes:
        name: the dataset's name, or the path that was given.
        column: its name in the file.
        values: finite numbers.
        sha256: of the values.
    """

    name: str
    column: str
    values: Float64[Tensor, "time"]
    sha256: str


def load_series(data: str | Path, column: str = "") -> SeriesData:
    """A series by name, or a column of the user's own file.

    Args:
        data: "seasonal" (made up, needs no download), "etth1", "sunspots" or "co2" (downloaded), or
            the path of a CSV file in UTF-8, separated by commas, semicolons or tabs, whose rows are
            in the order of time. A name goes before a file of the same name.
        column: its name in the file's first row, or if that is a row of numbers, its number from 1
            on. "" takes the target of a dataset, and the last column of a file.

    Raises:
        ValueError: `data` is neither a name nor a file, is empty or not UTF-8; there is no such
            column; or a cell of it is empty or no finite number.
        DataError: a dataset cannot be had, see `heterodox.data.fetch`.

    Example:
        >>> load_series("seasonal").values.shape
        torch.Size([3000])
    """
    names = [entry.name for entry in datasets("series")]
    if data not in names:
        column, values = _column_of(_rows_of(Path(data)), column, str(data))
        return _series(str(data), column, values)
    name = str(data)
    if name == "seasonal":
        if column:
            raise ValueError(f"column: {column!r} given, but seasonal has one series, '' expected")
        return _series(name, name, _seasonal())
    (path,) = fetch(name).values()
    column, values = _column_of(
        _rows_of(path), column or TARGETS[name], name, missing_allowed=name == "co2"
    )
    return _series(name, column, values)


def _series(name: str, column: str, values: np.ndarray) -> SeriesData:
    values = np.ascontiguousarray(values, dtype=np.float64)
    return SeriesData(
        name, column, torch.from_numpy(values), hashlib.sha256(values.tobytes()).hexdigest()
    )


def _seasonal() -> np.ndarray:
    """Two cycles, and noise that remembers and is wilder by day."""
    generator = np.random.default_rng(0)
    t = np.arange(SEASONAL_LENGTH)
    day = np.sin(2 * np.pi * t / 24)
    shocks = generator.normal(size=SEASONAL_LENGTH) * (0.4 + 0.3 * (day > 0))
    noise = np.zeros(SEASONAL_LENGTH)
    for i in range(1, SEASONAL_LENGTH):
        noise[i] = 0.8 * noise[i - 1] + shocks[i]
    return 4 + 3 * day + 1.5 * np.sin(2 * np.pi * t / 168) + noise


def _rows_of(path: Path) -> list[list[str]]:
    """The cells of a CSV file, without blank lines."""
    if path.is_dir():
        raise ValueError(f"data: {str(path)!r} is a folder, a CSV file expected")
    if not path.exists():
        names = ", ".join(entry.name for entry in datasets("series"))
        raise ValueError(
            f"data: {str(path)!r} given, an existing file or one of {names} expected"
            f"{near(str(path), 'series')}"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(
            f"data: {str(path)!r} cannot be read ({error.strerror}), a CSV file expected"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data: {str(path)!r} is not UTF-8 (byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start}), a CSV file in UTF-8 expected"
        ) from error
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=separator) if any(row)]
    if not rows:
        raise ValueError(f"data: {str(path)!r} is empty, rows of numbers expected")
    return rows


def _column_of(
    rows: list[list[str]], column: str, name: str, missing_allowed: bool = False
) -> tuple[str, np.ndarray]:
    """The name and the numbers of a column; what is missing, if it may be, on a straight line."""
    header = [cell.strip() for cell in rows[0]]
    if all(_number(cell) is not None for cell in header):
        header = [str(place) for place in range(1, len(header) + 1)]
        first = 1
    else:
        rows, first = rows[1:], 2
    column = column or header[-1]
    if column not in header:
        raise ValueError(f"column: {column!r} given, one of {', '.join(header)} of {name} expected")
    place = header.index(column)
    values = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        cell = row[place].strip() if place < len(row) else ""
        number = _number(cell)
        if number is not None and np.isfinite(number):
            values[i] = number
        elif cell or not missing_allowed:
            raise ValueError(
                f"data: row {i + first} of {name} has {cell!r} in column {column!r}, a finite "
                "number expected"
            )
    if not len(values):
        raise ValueError(f"data: {name} has a first row only, rows of numbers expected")
    there = np.isfinite(values)
    t = np.arange(len(values))
    return column, np.interp(t, t[there], values[there])


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
