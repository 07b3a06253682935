"""How numbers and verdicts are put into words, the same on a terminal, a page and a picture."""

import math
from collections.abc import Mapping, Sequence

from heterodox.report.load import ClaimResult, Effect

PLURAL = {"holds": "hold", "fails": "fail", "inconclusive": "inconclusive"}
MARKS = {"holds": "✓", "fails": "✗", "inconclusive": "?"}


def number(value: float, digits: int = 4) -> str:
    """A number with `digits` significant digits and no idle zeros.

    Example:
        >>> number(0.02), number(-1234.5), number(3.2e-7), number(float("inf"))
        ('0.02', '−1234', '3.2e−7', '∞')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        text = _fixed(value, digits - 1 - _magnitude(value))
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}".replace("-", "−")


def numbers(values: Sequence[float], digits: int = 4) -> list[str]:
    """Numbers of one table or sentence, with the same count of decimals where their sizes allow it.

    Example:
        >>> numbers([1.62, 1.6153, float("nan")])
        ['1.620', '1.615', 'NaN']
    """
    sizes = [abs(value) for value in values if math.isfinite(value) and value != 0]
    if not sizes or max(sizes) >= 1e6 or max(sizes) < 1e-4 or max(sizes) / min(sizes) > 1e4:
        return [number(value, digits) for value in values]
    decimals = digits - 1 - _magnitude(max(sizes))
    if all(size == int(size) for size in sizes):
        decimals = 0
    return [_fixed(v, decimals) if math.isfinite(v) else number(v) for v in values]


def interval(effect: Effect) -> tuple[str, str, str]:
    """Mean, low and high end, to three digits of the interval's width.

    Example:
        >>> sloppy = Effect("a − b", {}, 0.010612, -0.0031, 0.0182, "below", 0.02, "", "holds")
        >>> interval(sloppy)
        ('0.0106', '−0.0031', '0.0182')
    """
    ends = (effect.mean, effect.low, effect.high)
    width = effect.high - effect.low
    if not 0 < width < math.inf or max(map(abs, ends)) >= 1e6 or width < 1e-6:
        mean, low, high = (number(end) for end in ends)
    else:
        mean, low, high = (_fixed(end, 2 - _magnitude(width)) for end in ends)
    return mean, low, high


def wanted(effect: Effect) -> str:
    """Where the interval has to lie: "below 0.02"."""
    return f"{effect.side} {number(effect.threshold)}"


def measured(effect: Effect) -> str:
    """An effect as one line: "a − b: 0.0106 [−0.0031, 0.0182], wanted below 0.02"."""
    mean, low, high = interval(effect)
    return f"{effect.label}: {mean} [{low}, {high}], wanted {wanted(effect)}"


def arm_means(claim: ClaimResult) -> list[tuple[str, str]]:
    """Each arm that was run, with the mean over its seeds."""
    means = claim.means
    return list(zip(means, numbers(list(means.values())), strict=True))


def tally(counts: Mapping[str, int]) -> str:
    """Counts of verdicts as words, those that occur.

    Example:
        >>> tally({"holds": 1, "fails": 2, "inconclusive": 0})
        '1 holds, 2 fail'
    """
    return ", ".join(
        f"{count} {verdict if count == 1 else PLURAL[verdict]}"
        for verdict, count in counts.items()
        if count
    )


def duration(seconds: float) -> str:
    """A span of time in the largest unit that keeps it above one: "2.1 min"."""
    if not math.isfinite(seconds):
        return "unknown time"
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{number(seconds / length, 2)} {unit}"
    return f"{number(seconds, 2)} s"


def _magnitude(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def _fixed(value: float, decimals: int) -> str:
    text = f"{value:.{max(0, decimals)}f}".replace("-", "−")
    return text.lstrip("−") if not text.strip("−0.") else text
