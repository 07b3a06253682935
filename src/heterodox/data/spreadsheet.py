"""The first sheet of a spreadsheet in Office Open XML (.xlsx), with the standard library alone.

It is a zip archive: `xl/worksheets/sheet1.xml` has the cells, and texts are numbers of entries in
`xl/sharedStrings.xml`. Formulas, dates and other sheets are not read.
"""

import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

SHEET, TEXTS = "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml"
SPACE = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"

Cell = str | float | None


def read_sheet(path: Path) -> list[list[Cell]]:
    """The rows: texts, numbers, and None for empty cells; trailing empty ones are left out.

    For files that are trusted, such as those of a known checksum.

    Raises:
        ValueError: `path` is no such file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sheet = ElementTree.fromstring(archive.read(SHEET))
            texts = []
            if TEXTS in archive.namelist():
                entries = ElementTree.fromstring(archive.read(TEXTS)).iter(f"{SPACE}si")
                texts = ["".join(e.text or "" for e in s.iter(f"{SPACE}t")) for s in entries]
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError) as error:
        raise ValueError(f"path: {str(path)!r} given, an .xlsx file expected") from error
    rows: list[list[Cell]] = []
    for row in sheet.iter(f"{SPACE}row"):
        cells: list[Cell] = []
        for cell in row.iter(f"{SPACE}c"):
            column = _column(cell.get("r", ""), len(cells))
            cells += [None] * (column - len(cells))
            cells.append(_value(cell, texts))
        while cells and cells[-1] is None:
            cells.pop()
        rows.append(cells)
    return rows


def _column(reference: str, following: int) -> int:
    """0 for "A7", 26 for "AA7"; cells without a reference follow one another."""
    letters = re.match("[A-Z]+", reference)
    if letters is None:
        return following
    number = 0
    for letter in letters[0]:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1


def _value(cell: ElementTree.Element, texts: list[str]) -> Cell:
    if cell.get("t") == "inlineStr":
        return "".join(element.text or "" for element in cell.iter(f"{SPACE}t"))
    value = cell.findtext(f"{SPACE}v")
    if value is None:
        return None
    if cell.get("t") == "s":
        return texts[int(value)]
    return value if cell.get("t") in ("str", "e") else float(value)
