"""Tables from files: CSV with a header, ARFF, and whitespace-separated numbers.

A table is read as columns of text or of numbers, without a guess at what they are for.
"""

import csv
import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import arff

from heterodox.data.errors import DataError

MISSING = frozenset(("", "?", "na", "n/a", "nan", "null", "none"))


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: from the header.
        values: float64 with NaN for what is missing, or an array of str with None for it.
    """

    name: str
    values: np.ndarray

    @property
    def is_numeric(self) -> bool:
        return self.values.dtype == np.float64


def read_csv(path: Path) -> list[Column]:
    """The columns of a user's CSV file: a header, then rows, cut by comma, semicolon or tab.

    Empty cells and the usual words for them, such as NA, are missing values. A column is numeric if
    all that is not missing are numbers.

    Raises:
        ValueError: `data` is empty, not UTF-8, has no header, repeats a name, has a row of another
            length, or an infinite number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data: byte {error.start} of {str(path)!r} is not UTF-8, a text file expected"
        ) from error
    header, *lines = _rows(text) or [[]]
    if not lines:
        raise ValueError(f"data: {str(path)!r} has {len(lines)} rows, a header and rows expected")
    names = [name.strip() for name in header]
    if all(_number(name) is not None for name in names):
        raise ValueError(
            f"data: {str(path)!r} begins with numbers, a line with the names of the columns "
            "expected"
        )
    if len(set(names)) != len(names):
        again = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"data: column {again!r} is in {str(path)!r} twice, once expected")
    for number, line in enumerate(lines, start=1):
        if len(line) != len(names):
            raise ValueError(
                f"data: row {number} of {str(path)!r} has {len(line)} cells, {len(names)} expected"
            )
    cells = zip(*lines, strict=True)
    return [_column(name, column, str(path)) for name, column in zip(names, cells, strict=True)]


def _rows(text: str) -> list[list[str]]:
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    return [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row]


def _column(name: str, cells: Sequence[str], where: str) -> Column:
    stripped = [cell.strip() for cell in cells]
    present = [cell.lower() not in MISSING for cell in stripped]
    numbers = [
        _number(cell) if known else math.nan for cell, known in zip(stripped, present, strict=True)
    ]
    if any(number is None for number in numbers):
        words = [cell if known else None for cell, known in zip(stripped, present, strict=True)]
        return Column(name, np.array(words, dtype=object))
    values = np.array(numbers, dtype=np.float64)
    if np.isinf(values).any():
        row = int(np.isinf(values).argmax()) + 1
        raise ValueError(
            f"data: row {row} of column {name!r} in {where!r} is infinite, finite numbers expected"
        )
    return Column(name, values)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def read_numbers(path: Path, names: Sequence[str], delimiter: str | None = None) -> list[Column]:
    """The columns of a file of numbers without a header.

    Raises:
        DataError: the file is not a table of `len(names)` columns of numbers.
    """
    try:
        table = np.loadtxt(path, delimiter=delimiter, ndmin=2)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not a table of numbers ({error})") from error
    if table.shape[1] != len(names):
        raise DataError(f"{path}: {table.shape[1]} columns, {len(names)} expected")
    return [Column(name, table[:, n].copy()) for n, name in enumerate(names)]


def read_arff(archive: Path, member: str) -> list[Column]:
    """The columns of an ARFF file in a zip archive.

    Raises:
        DataError: there is no such member, or it is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            text = file.read(member).decode("utf-8", errors="replace")
        table, _ = arff.loadarff(io.StringIO(text))
    except (KeyError, OSError, zipfile.BadZipFile, arff.ArffError, ValueError) as error:
        raise DataError(f"{archive}: {member} cannot be read ({error})") from error
    return [_arff_column(name, table[name]) for name in table.dtype.names]


def _arff_column(name: str, values: np.ndarray) -> Column:
    if values.dtype.kind == "f":
        return Column(name, values.astype(np.float64))
    words = [word.decode().strip() for word in values]
    return Column(name, np.array([None if w == "?" else w for w in words], dtype=object))
