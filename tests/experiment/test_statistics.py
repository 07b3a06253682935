import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from heterodox.experiment.statistics import combine, judge, paired_interval


def test_interval_is_that_of_scipys_one_sample_t_test():
    values = [0.3, -0.1, 0.25, 0.4, 0.05]
    ours = paired_interval(values)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", [0.01, 1.0])
def test_interval_covers_the_true_difference_at_its_nominal_rate(seeds, spread):
    generator = np.random.default_rng(0)
    trials = 4000
    covered = 0
    for values in generator.normal(0.2, spread, size=(trials, seeds)):
        interval = paired_interval(values)
        covered += interval.low <= 0.2 <= interval.high
    # four standard errors of a binomial proportion
    assert covered / trials == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / trials))


@pytest.mark.parametrize("seeds", [3, 5])
def test_no_effect_is_called_holds_at_most_one_time_in_forty(seeds):
    generator = np.random.default_rng(1)
    trials = 4000
    holds = sum(
        judge(paired_interval(values), "below", 0.0) == "holds"
        for values in generator.normal(0.0, 1.0, size=(trials, seeds))
    )
    assert holds / trials <= 0.025 + 4 * math.sqrt(0.025 * 0.975 / trials)


def test_no_effect_with_runs_that_diverge_is_called_holds_at_most_one_time_in_forty():
    generator = np.random.default_rng(2)
    trials = 4000
    holds = 0
    for _ in range(trials):
        arms = generator.normal(0.0, 1.0, size=(2, 3))
        arms[generator.random((2, 3)) < 0.5] = math.inf
        with np.errstate(invalid="ignore"):
            holds += judge(paired_interval(arms[0] - arms[1]), "below", 0.0) == "holds"
    assert holds / trials <= 0.025 + 4 * math.sqrt(0.025 * 0.975 / trials)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8),
    st.floats(-1e3, 1e3),
)
@settings(max_examples=60, deadline=None)
def test_verdict_turns_round_with_the_side(values, threshold):
    interval = paired_interval(values)
    opposite = {"holds": "fails", "fails": "holds", "inconclusive": "inconclusive"}
    assert judge(interval, "above", threshold) == opposite[judge(interval, "below", threshold)]


def test_interval_scales_and_shifts_with_the_values():
    values = np.array([0.1, 0.4, 0.2])
    plain, moved = paired_interval(values), paired_interval(10 * values - 3)
    assert moved.low == pytest.approx(10 * plain.low - 3)
    assert moved.high == pytest.approx(10 * plain.high - 3)


def test_a_single_seed_decides_nothing():
    assert judge(paired_interval([5.0]), "above", 0.0) == "inconclusive"


def test_equal_differences_make_a_point():
    interval = paired_interval([0.1 + 0.2, 0.3, 0.3])
    assert interval.low == interval.high
    assert judge(interval, "above", 0.0) == "holds"
    assert judge(paired_interval([0.0, 0.0, 0.0]), "above", 0.0) == "inconclusive"


def test_divergence_decides_only_if_every_seed_agrees():
    assert judge(paired_interval([math.inf] * 3), "above", 0.0) == "holds"
    assert judge(paired_interval([-math.inf] * 3), "above", 0.0) == "fails"
    assert judge(paired_interval([math.inf, 1.0, 1.0]), "above", 0.0) == "inconclusive"
    assert judge(paired_interval([math.nan] * 3), "above", 0.0) == "inconclusive"


def test_all_effects_must_hold():
    assert combine(["holds", "holds"]) == "holds"
    assert combine(["holds", "inconclusive"]) == "inconclusive"
    assert combine(["inconclusive", "fails"]) == "fails"
    assert combine([]) == "inconclusive"


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: paired_interval([]), "differences"),
        (lambda: paired_interval([1.0], confidence=1.0), "confidence"),
        (lambda: judge(paired_interval([1.0]), "left", 0.0), "side"),
    ],
)
def test_bad_input_names_the_argument(call, argument):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        call()
