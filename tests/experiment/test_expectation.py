import math

import numpy as np
import pytest

from heterodox.experiment.expectation import (
    AtLeast,
    AtMost,
    Beats,
    NoWorseThan,
    Ordering,
    RatioAtLeast,
    RatioAtMost,
    Slope,
    Within,
    expected_count,
)


def arm(centre, spread=0.01, seeds=5):
    noise = np.linspace(-spread, spread, seeds)
    return {seed: float(centre + noise[seed - 1]) for seed in range(1, seeds + 1)}


def verdicts(expectation, values, better="lower"):
    return [effect.verdict for effect in expectation.effects(values, better)]


def test_lower_is_better_turns_beats_round():
    values = {"base": arm(1.0), "new": {seed: v for seed, v in arm(0.5, 0.02).items()}}
    assert verdicts(Beats("base"), values, "lower") == ["holds"]
    assert verdicts(Beats("base"), values, "higher") == ["fails"]


def test_beats_by_more_than_there_is_fails():
    values = {"base": arm(1.0), "new": arm(0.5, 0.02)}
    assert verdicts(Beats("base", by=0.4), values) == ["holds"]
    assert verdicts(Beats("base", by=0.6), values) == ["fails"]


@pytest.mark.parametrize(("better", "sign"), [("lower", 1), ("higher", -1)])
def test_no_worse_than_allows_the_margin_and_no_more(better, sign):
    def values(gap):
        return {"base": arm(1.0), "new": arm(1.0 + sign * gap, 0.012)}

    assert verdicts(NoWorseThan("base", 0.02), values(0.01), better) == ["holds"]
    assert verdicts(NoWorseThan("base", 0.02), values(0.03), better) == ["fails"]
    assert verdicts(NoWorseThan("base", 0.02), values(-1.0), better) == ["holds"]


def test_differences_are_paired_by_seed():
    base = {1: 1.0, 2: 100.0, 3: -50.0}
    values = {"base": base, "new": {seed: v - 0.5 + 0.01 * seed for seed, v in base.items()}}
    (effect,) = Beats("base").effects(values, "lower")
    assert effect.verdict == "holds"
    assert effect.per_seed[2] == pytest.approx(-0.48)


def test_only_seeds_that_both_arms_have_count():
    values = {"base": {1: 1.0, 2: 1.0, 3: 1.0}, "new": {2: 0.5, 3: 0.4, 4: 0.1}}
    (effect,) = Beats("base").effects(values, "lower")
    assert set(effect.per_seed) == {2, 3}


def test_every_other_arm_must_pass_unless_one_is_named():
    values = {"base": arm(1.0), "good": arm(0.5, 0.02), "bad": arm(2.0, 0.02)}
    assert verdicts(Beats("base"), values) == ["holds", "fails"]
    assert verdicts(Beats("base", arm="good"), values) == ["holds"]


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_an_arm_that_diverges_every_time_loses(better):
    values = {"base": arm(1.0), "new": dict.fromkeys(range(1, 6), math.nan)}
    assert verdicts(NoWorseThan("base", 0.1), values, better) == ["fails"]
    assert verdicts(Beats("new", arm="base"), values, better) == ["holds"]


def test_two_arms_that_diverge_decide_nothing():
    both = dict.fromkeys(range(1, 4), math.nan)
    assert verdicts(Beats("base"), {"base": both, "new": both}) == ["inconclusive"]


def test_thresholds():
    values = {"x": arm(1.0)}
    assert verdicts(AtLeast("x", 0.9), values) == ["holds"]
    assert verdicts(AtLeast("x", 1.1), values) == ["fails"]
    assert verdicts(AtMost("x", 1.1), values) == ["holds"]
    assert verdicts(AtMost("x", 0.9), values) == ["fails"]
    assert verdicts(Within("x", 0.9, 1.1), values) == ["holds", "holds"]
    assert verdicts(Within("x", 1.1, 1.2), values) == ["fails", "holds"]
    assert verdicts(Within("x", -0.1, 0.1, of="y"), {"x": arm(1), "y": arm(1.05, 0.02)}) == [
        "holds",
        "holds",
    ]


def test_ratios_are_compared_with_their_limit():
    values = {"a": arm(4.0), "b": arm(2.0, 0.02)}
    assert verdicts(RatioAtLeast("a", "b", 1.9), values) == ["holds"]
    assert verdicts(RatioAtLeast("a", "b", 2.1), values) == ["fails"]
    assert verdicts(RatioAtMost("a", "b", 2.1), values) == ["holds"]
    assert verdicts(RatioAtMost("a", "b", 1.9), values) == ["fails"]


def test_a_negative_numerator_is_below_any_positive_limit():
    assert verdicts(RatioAtMost("a", "b", 0.5), {"a": arm(-1.0), "b": arm(1.0)}) == ["holds"]


def test_slope_finds_the_exponent_of_a_power_law():
    positions = {"n=64": 64.0, "n=256": 256.0, "n=1024": 1024.0}
    values = {
        name: {seed: (n / 2) ** 1.0 * (1 + 0.01 * seed * (-1) ** seed) for seed in range(1, 6)}
        for name, n in positions.items()
    }
    assert verdicts(Slope(positions, 0.9, 1.1, log=True), values) == ["holds", "holds"]
    assert verdicts(Slope(positions, 1.4, 1.6, log=True), values) == ["fails", "holds"]


def test_slope_is_linear_without_log():
    positions = {"0": 0.0, "1": 1.0, "2": 2.0}
    values = {name: {1: 3 * x, 2: 3 * x + 1, 3: 3.01 * x} for name, x in positions.items()}
    (above, below) = Slope(positions, 2.9, 3.1).effects(values, "lower")
    assert above.interval.mean == pytest.approx(3.0033, abs=1e-3)
    assert (above.verdict, below.verdict) == ("holds", "holds")


def test_ordering_compares_neighbours():
    values = {"16": arm(10.0), "32": arm(20.0, 0.02), "64": arm(30.0, 0.03)}
    assert verdicts(Ordering(("16", "32", "64")), values, "higher") == ["holds", "holds"]
    assert verdicts(Ordering(("32", "16", "64")), values, "higher") == ["fails", "holds"]


def test_a_missing_arm_leaves_out_its_effects():
    assert NoWorseThan("base", 0.1, arm="new").effects({"base": arm(1.0)}, "lower") == []
    expectations = (Beats("a"), Within("a", 0, 1))
    assert expected_count(expectations, ("a", "b", "c"), "lower") == 4


@pytest.mark.parametrize(
    "expectation",
    [
        Beats("base", by=0.1),
        NoWorseThan("base", 0.02, arm="new"),
        AtLeast("x", 1),
        AtMost("x", 1),
        Within("x", 0, 1),
        RatioAtLeast("a", "b", 2),
        RatioAtMost("a", "b", 2),
        Slope({"a": 1, "b": 2}, 0, 1),
        Ordering(("a", "b")),
    ],
)
def test_every_expectation_says_itself_in_words(expectation):
    words = expectation.describe("lower")
    assert words and "\n" not in words and "object at" not in words
