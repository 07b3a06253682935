"""From the numbers of a few paired seeds to an interval, and from an interval to a verdict.

Arms are compared seed by seed: the same seed gives both arms the same data order and the same
evaluation, so their difference varies less than either of them. The interval is Student's t on
those differences. It is exact for normal differences at any number of seeds, where the bootstrap of
three or five numbers is not: resampling three values covers about 80 % instead of 95 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Side = Literal["above", "below"]
VerdictWord = Literal["holds", "fails", "inconclusive"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its uncertainty; `method` says in words how it was made."""

    mean: float
    low: float
    high: float
    method: str


def paired_interval(differences: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The two-sided t interval of the mean of per-seed differences.

    Runs that diverged make differences infinite or undefined. No interval is computed from these:
    the result is a point at infinity if every seed diverged the same way, and unbounded otherwise.

    Args:
        differences: one number a seed.
        confidence: probability with which the interval covers the true mean.

    Raises:
        ValueError: `differences` is empty, or `confidence` is not strictly between 0 and 1.

    Example:
        >>> interval = paired_interval([0.9, 1.0, 1.1])
        >>> round(interval.low, 2), round(interval.high, 2)
        (0.75, 1.25)
    """
    values = np.asarray(list(differences), dtype=np.float64)
    if values.size == 0:
        raise ValueError("differences: none given, one number a seed expected")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence} given, a number between 0 and 1 expected")
    seeds = f"{values.size} paired seed" + ("s" if values.size > 1 else "")
    if not np.isfinite(values).all():
        if np.isinf(values).all() and (values == values[0]).all():
            point = float(values[0])
            return Interval(point, point, point, f"infinite in each of {seeds}")
        return Interval(
            math.nan, -math.inf, math.inf, f"no interval: not finite in some of {seeds}"
        )
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean, -math.inf, math.inf, "no interval: a single seed")
    spread = float(stats.sem(values))
    # Rounding of equal numbers leaves a spread of a few ulps, which means nothing.
    if spread <= 4 * np.finfo(np.float64).eps * max(1.0, abs(mean)):
        return Interval(mean, mean, mean, f"equal in each of {seeds}")
    low, high = stats.t.interval(confidence, values.size - 1, loc=mean, scale=spread)
    return Interval(mean, float(low), float(high), f"{confidence:.0%} t interval over {seeds}")


def judge(interval: Interval, side: Side, threshold: float) -> VerdictWord:
    """`holds` if the whole interval lies on `side` of `threshold`, `fails` if it lies on the other.

    With a 95 % interval an effect that is truly at the threshold is called `holds` in 2.5 % of
    cases.

    Example:
        >>> judge(Interval(0.5, 0.1, 0.9, ""), "above", 0.0)
        'holds'
        >>> judge(Interval(0.5, -0.1, 1.1, ""), "above", 0.0)
        'inconclusive'
    """
    if side not in ("above", "below"):
        raise ValueError(f"side: {side!r} given, 'above' or 'below' expected")
    above, below = interval.low > threshold, interval.high < threshold
    if not above and not below:
        return "inconclusive"
    return "holds" if above == (side == "above") else "fails"


def combine(verdicts: Sequence[VerdictWord]) -> VerdictWord:
    """The verdict on several effects that must all hold."""
    if not verdicts:
        return "inconclusive"
    if "fails" in verdicts:
        return "fails"
    return "holds" if all(verdict == "holds" for verdict in verdicts) else "inconclusive"
