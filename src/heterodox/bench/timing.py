"""Times that can be compared: contestants take turns, and are compared within each turn.

The speed of a machine drifts with heat, clocks and other programs. In every round each contestant
runs one block of calls, so that a drift reaches all of them; every other round runs backwards, so
that a steady drift within a round cancels. A ratio is taken within a round and summarised over
rounds by its median, which a few disturbed rounds do not move.
"""

import math
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch.utils import benchmark

# A block lasts at least this part of the time that a contestant gets.
BLOCK = 1 / 20
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Timing:
    """Seconds a call: one number a round, the mean over a block of `calls` calls.

    Example:
        >>> Timing((1.0, 2.0, 4.0), calls=10).quartiles
        (1.5, 2.0, 3.0)
    """

    rounds: tuple[float, ...]
    calls: int

    @property
    def quartiles(self) -> tuple[float, float, float]:
        low, median, high = np.quantile(self.rounds, (0.25, 0.5, 0.75)).tolist()
        return low, median, high


@dataclass(frozen=True)
class Ratio:
    """A median over rounds with its interval, None where there are too few rounds for one."""

    median: float
    low: float | None
    high: float | None


def paired_ratio(times: Sequence[float], reference: Sequence[float]) -> Ratio:
    """The median of `times` / `reference`, round by round, with its 95 % interval.

    The interval is that of the sign test: it runs from one order statistic to another, assumes
    nothing about the noise but that rounds are alike, and needs six of them.

    Raises:
        ValueError: the lengths differ, or there are no rounds.

    Example:
        >>> paired_ratio([2.0, 2.2, 4.4, 2.1, 2.0, 4.0], [1.0, 1.1, 2.0, 1.0, 1.0, 2.0])
        Ratio(median=2.0, low=2.0, high=2.2)
    """
    if len(times) != len(reference) or not times:
        raise ValueError(
            f"times: {len(times)} rounds given, as many as in reference ({len(reference)}) expected"
        )
    ratios = np.asarray(times) / np.asarray(reference)
    interval = stats.quantile_test(ratios, q=1.0, p=0.5).confidence_interval(CONFIDENCE)
    low, high = float(interval.low), float(interval.high)
    if math.isnan(low) or math.isnan(high):
        return Ratio(float(np.median(ratios)), None, None)
    return Ratio(float(np.median(ratios)), low, high)


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    repeat: int,
    limit: float = math.inf,
    clock: Callable[[], float] = benchmark.timer,
    after_round: Callable[[int], None] = lambda rounds: None,
) -> dict[str, Timing]:
    """Times every contestant, a block of calls in turn, until each has had its time.

    `torch.utils.benchmark.Timer` repeats one statement to the end before the next begins; taking
    turns, we keep its clock, which waits for an accelerator, and the `timeit.Timer` that it is made
    of, which holds the garbage collector.

    Args:
        calls: name -> what is timed, warmed up already.
        seconds: the measured time that each contestant gets at least.
        repeat: the rounds that there are at least, within the limit.
        limit: seconds after which no round is begun, but for the first.
        clock: time in seconds.
        after_round: called with the number of rounds that are done.

    Example:
        >>> timings = interleaved({"sum": lambda: sum(range(100))}, seconds=0.0, repeat=7)
        >>> len(timings["sum"].rounds)
        7
    """
    timers = {name: timeit.Timer(call, timer=clock) for name, call in calls.items()}
    blocks = {name: _block(timer, seconds * BLOCK) for name, timer in timers.items()}
    rounds: dict[str, list[float]] = {name: [] for name in timers}
    order = list(timers)
    done = 0
    began = clock()
    while True:
        for name in order if done % 2 == 0 else reversed(order):
            rounds[name].append(timers[name].timeit(blocks[name]) / blocks[name])
        done += 1
        after_round(done)
        had_its_time = all(sum(rounds[name]) * blocks[name] >= seconds for name in order)
        if (done >= repeat and had_its_time) or clock() - began >= limit:
            break
    return {name: Timing(tuple(rounds[name]), blocks[name]) for name in order}


def _block(timer: timeit.Timer, seconds: float) -> int:
    """How many calls, a power of two, take `seconds`."""
    calls = 1
    while timer.timeit(calls) < seconds:
        calls *= 2
    return calls
