"""Interleaving and ratios, on a clock that only the contestants move."""

import itertools

import numpy as np
import pytest

from heterodox.bench.timing import Timing, interleaved, paired_ratio


class Clock:
    """Time that passes only while a contestant runs, `pace` times slower than it should."""

    def __init__(self):
        self.now = 0.0
        self.pace = 1.0
        self.log = []

    def __call__(self):
        return self.now

    def contestant(self, name, seconds):
        def call():
            self.log.append(name)
            self.now += seconds * self.pace

        return call


def blocks(log):
    """The order of the blocks: runs of one name."""
    return [name for name, _ in itertools.groupby(log)]


def test_contestants_take_turns_and_every_other_round_runs_backwards():
    clock = Clock()
    calls = {name: clock.contestant(name, 1.0) for name in "abc"}
    interleaved(calls, seconds=0.0, repeat=3, clock=clock)
    assert "".join(clock.log[3:]) == "abccbaabc"  # the first three choose the blocks


def test_times_are_seconds_a_call_whatever_the_size_of_a_block():
    clock = Clock()
    calls = {"slow": clock.contestant("slow", 0.5), "fast": clock.contestant("fast", 0.001)}
    timings = interleaved(calls, seconds=2.0, repeat=5, clock=clock)
    assert timings["slow"].calls == 1
    assert timings["fast"].calls == 128  # the first power of two that takes a twentieth of 2 s
    assert timings["slow"].rounds == pytest.approx([0.5] * len(timings["slow"].rounds))
    assert timings["fast"].quartiles == pytest.approx((0.001, 0.001, 0.001))


def test_everyone_gets_its_time_and_its_rounds():
    clock = Clock()
    calls = {"slow": clock.contestant("slow", 1.0), "fast": clock.contestant("fast", 0.001)}
    timings = interleaved(calls, seconds=0.5, repeat=7, clock=clock)
    assert len(timings["slow"].rounds) == len(timings["fast"].rounds) >= 7
    for timing in timings.values():
        assert sum(timing.rounds) * timing.calls >= 0.5


def test_no_round_begins_after_the_limit_but_the_first():
    clock = Clock()
    calls = {"a": clock.contestant("a", 2.0), "b": clock.contestant("b", 3.0)}
    assert len(interleaved(calls, seconds=0, repeat=9, limit=11, clock=clock)["a"].rounds) == 3
    assert len(interleaved(calls, seconds=9, repeat=1, limit=0, clock=clock)["a"].rounds) == 1


def test_a_drift_of_the_machine_does_not_reach_the_ratio():
    clock = Clock()
    calls = {"base": clock.contestant("base", 1.0), "other": clock.contestant("other", 3.0)}

    def slower(rounds):
        clock.pace = 1.0 + rounds

    timings = interleaved(calls, seconds=0.0, repeat=9, clock=clock, after_round=slower)
    assert timings["base"].rounds[-1] == 9 * timings["base"].rounds[0]
    ratio = paired_ratio(timings["other"].rounds, timings["base"].rounds)
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((3.0, 3.0, 3.0))


def test_after_round_counts_the_rounds():
    seen = []
    interleaved({"a": lambda: None}, seconds=0.0, repeat=4, after_round=seen.append)
    assert seen == [1, 2, 3, 4]


def test_quartiles_are_those_of_the_rounds():
    assert Timing((4.0, 1.0, 3.0, 2.0, 5.0), calls=1).quartiles == (2.0, 3.0, 4.0)


def test_a_disturbed_round_does_not_move_the_ratio():
    reference = [1.0] * 9
    times = [2.0] * 8 + [200.0]
    assert paired_ratio(times, reference).median == 2.0


@pytest.mark.parametrize("rounds", [1, 5])
def test_five_rounds_are_too_few_for_an_interval(rounds):
    ratio = paired_ratio([2.0] * rounds, [1.0] * rounds)
    assert (ratio.median, ratio.low, ratio.high) == (2.0, None, None)


def test_the_interval_covers_the_true_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        noise = 2.0 * np.exp(rng.standard_normal(9))  # skewed, of median 2
        ratio = paired_ratio(noise.tolist(), [1.0] * 9)
        covered += ratio.low <= 2.0 <= ratio.high
    # 9 rounds: from the second to the eighth, which binomial(9, 1/2) puts at 96.1 %.
    assert 0.93 < covered / 300 < 0.99


@pytest.mark.parametrize(("times", "reference"), [([], []), ([1.0, 2.0], [1.0])])
def test_rounds_that_do_not_pair_are_refused(times, reference):
    with pytest.raises(ValueError, match=r"^times: "):
        paired_ratio(times, reference)
