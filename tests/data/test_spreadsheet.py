"""Spreadsheets, and the sets of the acoustic cavity that are read from files."""

import zipfile

import pytest
import torch

from heterodox.data import availability, dataset, load_acoustic_cavity, load_tabular
from heterodox.data.spreadsheet import read_sheet

SPACE = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


def write(path, cells, texts=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "xl/worksheets/sheet1.xml",
            f"<worksheet {SPACE}><sheetData>{cells}</sheetData></worksheet>",
        )
        if texts:
            entries = "".join(f"<si>{text}</si>" for text in texts)
            archive.writestr("xl/sharedStrings.xml", f"<sst {SPACE}>{entries}</sst>")
    return path


def test_texts_numbers_and_gaps_are_read(tmp_path):
    path = write(
        tmp_path / "a.xlsx",
        '<row><c r="A1" t="s"><v>1</v></c><c r="C1"><v>2.5</v></c><c r="AB1"><v>1e3</v></c></row>'
        '<row><c r="A2" t="inlineStr"><is><t>in</t></is></c><c r="B2"/></row>'
        '<row><c t="str"><v>x</v></c><c><v>-4</v></c></row>',
        ["<t>first</t>", "<r><t>sec</t></r><r><t>ond</t></r>"],
    )
    first, second, third = read_sheet(path)
    assert first == ["second", None, 2.5, *[None] * 24, 1000.0]
    assert second == ["in"] and third == ["x", -4.0]


@pytest.mark.parametrize("content", [b"no zip", b""])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "a.xlsx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^path: .* expected"):
        read_sheet(path)


def here(name):
    return availability(dataset(name)) in ("local", "cached")


@pytest.mark.skipif(not here("vowel-formants"), reason="vowel-formants would be downloaded")
def test_vowels_have_twelve_formants_and_37_speakers():
    vowels = load_tabular("vowel-formants")
    assert vowels.class_names == ("ae", "ah", "aw", "er", "ih", "iy", "uw")
    counts = torch.from_numpy(vowels.target).bincount()
    assert counts.tolist() == [37] * 6 + [36]
    first = [column.values[0] for column in vowels.columns]
    assert first == [678, 2293, 2861, 681, 2295, 2868, 711, 2160, 2867, 705, 1968, 2906]


@pytest.mark.skipif(not here("acoustic-cavity"), reason="acoustic-cavity would be downloaded")
def test_a_linear_map_explains_most_of_the_cavity_and_not_all():
    sent, read = load_acoustic_cavity()
    assert sent.shape == read.shape == (10_000, 20)
    assert sent.min() >= 0 and sent.max() <= 1 and 1.9 < read.max() < 2
    known = torch.cat([sent, torch.ones(len(sent), 1)], 1)
    answer = torch.linalg.lstsq(known, read).solution
    unexplained = ((read - known @ answer).var() / read.var()).item()
    assert 0.005 < unexplained < 0.03
