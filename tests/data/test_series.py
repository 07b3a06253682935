"""Series by name and from the user's files, and what is said of files that hold none."""

import numpy as np
import pytest
import torch

from heterodox.data import datasets, load_series
from heterodox.data import series as module


@pytest.fixture
def write(tmp_path):
    def write(text, name="my.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_the_made_up_series_is_the_same_each_time_and_has_its_cycles():
    first, second = load_series("seasonal"), load_series("seasonal")
    assert first.sha256 == second.sha256 and first.values.dtype == torch.float64
    by_hour = first.values.view(-1, 24).mean(0)
    assert by_hour[6] > by_hour[18] + 5


def test_a_named_column_is_read(write):
    path = write("date,load,temp\n2020,1.5,-3\n2021,2,4e1\n\n")
    series = load_series(path, "load")
    assert (series.column, series.values.tolist()) == ("load", [1.5, 2.0])
    assert load_series(path).column == "temp"
    assert load_series(path).values.tolist() == [-3.0, 40.0]
    assert series.sha256 != load_series(path).sha256


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_are_found(write, separator):
    path = write(f"a{separator}b\n1{separator}2\n3{separator}4\n")
    assert load_series(path, "a").values.tolist() == [1.0, 3.0]


def test_a_file_without_names_has_numbers_for_them(write):
    path = write("1,10\n2,20\n3,30\n")
    assert load_series(path, "1").values.tolist() == [1.0, 2.0, 3.0]
    assert load_series(path).values.tolist() == [10.0, 20.0, 30.0]


def test_a_mark_of_the_byte_order_is_no_part_of_a_name(write):
    assert load_series(write("\ufeffa\n1\n2\n"), "a").values.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        ("a,b\n1,2\n", "c", r"^column: 'c' given, one of a, b of .* expected"),
        ("1,2\n3,4\n", "3", r"^column: '3' given, one of 1, 2 of .* expected"),
        ("a\n1\nx\n", "", r"^data: row 3 of .* has 'x' in column 'a', .* expected"),
        ("a,b\n1,2\n3\n", "b", r"^data: row 3 of .* has '' in column 'b', .* expected"),
        ("a\n1\nnan\n", "", r"^data: row 3 of .* has 'nan' .* finite number expected"),
        ("a\n1\ninf\n", "", r"^data: row 3 of .* has 'inf' .* finite number expected"),
        ("", "", r"^data: .* is empty, .* expected"),
        ("\n \n", "", r"^data: .* first row only, .* expected"),
        ("a,b\n", "", r"^data: .* has a first row only, .* expected"),
        (b"a\n\xff\n", "", r"^data: .* is not UTF-8 \(byte 0xff at offset 2\), .* expected"),
    ],
)
def test_a_file_without_a_series_is_refused(write, content, column, message):
    with pytest.raises(ValueError, match=message):
        load_series(write(content), column)


def test_what_is_no_file_is_refused_with_the_names_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"^data: 'eth1' given, .*etth1, .* \(did you mean 'etth1"):
        load_series("eth1")
    with pytest.raises(ValueError, match=r"^data: .* is a folder"):
        load_series(tmp_path)
    with pytest.raises(ValueError, match=r"^column: 'x' given, but seasonal"):
        load_series("seasonal", "x")


def test_every_dataset_with_a_file_has_a_target():
    assert set(module.TARGETS) == {d.name for d in datasets("series") if not d.embedded}


def test_missing_weeks_of_a_dataset_lie_on_a_straight_line(write, monkeypatch):
    path = write("date,co2\n1,10\n2,\n3,\n4,16\n")
    monkeypatch.setattr(module, "fetch", lambda name: {"co2.csv": path})
    np.testing.assert_allclose(load_series("co2").values, [10, 12, 14, 16])
    monkeypatch.setitem(module.TARGETS, "sunspots", "co2")
    with pytest.raises(ValueError, match=r"^data: row 3 of sunspots has ''"):
        load_series("sunspots")
