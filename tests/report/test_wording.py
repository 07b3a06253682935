import math

import pytest

from heterodox.report.load import Effect
from heterodox.report.wording import duration, interval, measured, number, numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (5.0, "5"),
        (100000.0, "100000"),
        (1234567.0, "1.235e6"),
        (-0.00012345, "−0.0001234"),
        (1e-300, "1e−300"),
        (99.99999, "100"),
        (-1e-9, "−1e−9"),
        (math.nan, "NaN"),
        (-math.inf, "−∞"),
    ],
)
def test_a_number_keeps_four_significant_digits(value, text):
    assert number(value) == text


def test_numbers_of_a_table_share_their_decimals():
    assert numbers([0.1, 12.25, -3.0]) == ["0.10", "12.25", "−3.00"]
    assert numbers([3.0, 14.0]) == ["3", "14"]
    assert numbers([1e-9, 1.0]) == ["1e−9", "1"]
    assert numbers([]) == []


def test_every_number_written_is_the_number_meant():
    values = [1.5e-7, 3.14159, -2.71828e5, 0.9999, 123456.7, 42.0]
    for value in values:
        assert float(number(value).replace("−", "-")) == pytest.approx(value, rel=1e-3)


def test_an_interval_is_written_to_three_digits_of_its_width():
    effect = Effect("a", {}, 98.23456, 98.1, 98.4, "above", 90.0, "", "holds")
    assert interval(effect) == ("98.235", "98.100", "98.400")
    point = Effect("a", {}, 2.0, 2.0, 2.0, "above", 1.0, "", "holds")
    assert interval(point) == ("2", "2", "2")
    unbounded = Effect("a − b", {}, 0.5, -math.inf, math.inf, "below", 0.02, "", "inconclusive")
    assert measured(unbounded) == "a − b: 0.5 [−∞, ∞], wanted below 0.02"


def test_a_duration_is_told_in_its_own_unit():
    assert [duration(s) for s in (0.0, 12.3, 90.0, 7200.0, math.nan)] == [
        "0 s",
        "12 s",
        "1.5 min",
        "2 h",
        "unknown time",
    ]
