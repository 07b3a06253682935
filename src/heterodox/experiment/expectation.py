"""Expectations: what a claim says must come out, written before the run.

An expectation turns the metric of each arm and seed into *effects*: numbers per seed that must lie
on one side of a threshold. A run that diverged counts as the worst possible value of its metric.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from heterodox.experiment.statistics import Interval, Side, VerdictWord, judge, paired_interval

Values = Mapping[str, Mapping[int, float]]
"""arm -> seed -> metric."""

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Effect:
    """One number per seed that must lie on `side` of `threshold`, and whether it does."""

    label: str
    per_seed: dict[int, float]
    side: Side
    threshold: float
    interval: Interval
    verdict: VerdictWord


@runtime_checkable
class Expectation(Protocol):
    """What every expectation offers."""

    def effects(self, values: Values, better: Better) -> list[Effect]:
        """The effects that can be computed from `values`; arms without runs give none."""
        ...

    def describe(self, better: Better) -> str:
        """The expectation in words."""
        ...


def _effect(label: str, per_seed: dict[int, float], side: Side, threshold: float) -> Effect:
    interval = paired_interval(list(per_seed.values()))
    return Effect(label, per_seed, side, threshold, interval, judge(interval, side, threshold))


def _worst(better: Better) -> float:
    return math.inf if better == "lower" else -math.inf


def _paired(
    values: Values, arms: tuple[str, ...], better: Better, combine: Callable[..., float]
) -> dict[int, float]:
    """`combine(*metrics of arms)` for each seed that every arm has."""
    if any(arm not in values for arm in arms):
        return {}
    seeds = sorted(set.intersection(*(set(values[arm]) for arm in arms)))
    result = {}
    for seed in seeds:
        numbers = [values[arm][seed] for arm in arms]
        finite = [x if math.isfinite(x) else _worst(better) for x in numbers]
        result[seed] = float(combine(*finite))
    return result


def _difference(a: float, b: float) -> float:
    return math.nan if math.isinf(a) and a == b else a - b


def _others(values: Values, arm: str | None, baseline: str) -> list[str]:
    return [arm] if arm is not None else [name for name in values if name != baseline]


def _number(number: float) -> str:
    return f"{number:.4g}"


@dataclass(frozen=True)
class Beats:
    """`arm` is better than `baseline`, by more than `by`.

    Args:
        baseline: the arm to beat.
        by: least improvement, in the metric's unit.
        arm: which arm must do so; None: every other arm.

    Example:
        >>> Beats("softmax", by=0.1).describe("lower")
        'every other arm lower than softmax by more than 0.1'
    """

    baseline: str
    by: float = 0.0
    arm: str | None = None

    def effects(self, values: Values, better: Better) -> list[Effect]:
        side: Side = "below" if better == "lower" else "above"
        threshold = 0.0 - self.by if better == "lower" else self.by
        return [
            _effect(f"{arm} − {self.baseline}", per_seed, side, threshold)
            for arm in _others(values, self.arm, self.baseline)
            if (per_seed := _paired(values, (arm, self.baseline), better, _difference))
        ]

    def describe(self, better: Better) -> str:
        by = f" by more than {_number(self.by)}" if self.by else ""
        return f"{self.arm or 'every other arm'} {better} than {self.baseline}{by}"


@dataclass(frozen=True)
class NoWorseThan:
    """`arm` is worse than `baseline` by less than `margin`.

    Args:
        baseline: the arm to match.
        margin: what counts as no difference, in the metric's unit.
        arm: which arm must do so; None: every other arm.

    Example:
        >>> NoWorseThan("softmax", margin=0.02).describe("lower")
        'every other arm no worse than softmax + 0.02'
    """

    baseline: str
    margin: float
    arm: str | None = None

    def effects(self, values: Values, better: Better) -> list[Effect]:
        side: Side = "below" if better == "lower" else "above"
        threshold = self.margin if better == "lower" else -self.margin
        return [
            _effect(f"{arm} − {self.baseline}", per_seed, side, threshold)
            for arm in _others(values, self.arm, self.baseline)
            if (per_seed := _paired(values, (arm, self.baseline), better, _difference))
        ]

    def describe(self, better: Better) -> str:
        sign = "+" if better == "lower" else "−"
        who = self.arm or "every other arm"
        return f"{who} no worse than {self.baseline} {sign} {_number(self.margin)}"


@dataclass(frozen=True)
class AtLeast:
    """The metric of `arm` is above `threshold`.

    Example:
        >>> AtLeast("sigmoid", 95).describe("higher")
        'sigmoid above 95'
    """

    arm: str
    threshold: float

    def effects(self, values: Values, better: Better) -> list[Effect]:
        per_seed = _paired(values, (self.arm,), better, lambda x: x)
        return [_effect(self.arm, per_seed, "above", self.threshold)] if per_seed else []

    def describe(self, better: Better) -> str:
        return f"{self.arm} above {_number(self.threshold)}"


@dataclass(frozen=True)
class AtMost:
    """The metric of `arm` is below `threshold`.

    Example:
        >>> AtMost("sigmoid", 0.25).describe("lower")
        'sigmoid below 0.25'
    """

    arm: str
    threshold: float

    def effects(self, values: Values, better: Better) -> list[Effect]:
        per_seed = _paired(values, (self.arm,), better, lambda x: x)
        return [_effect(self.arm, per_seed, "below", self.threshold)] if per_seed else []

    def describe(self, better: Better) -> str:
        return f"{self.arm} below {_number(self.threshold)}"


@dataclass(frozen=True)
class Within:
    """The metric of `arm`, or given `of` its difference from that of `of`, is in (low, high).

    Example:
        >>> Within("sigmoid", -0.1, 0.1, of="softmax").describe("lower")
        'sigmoid − softmax between -0.1 and 0.1'
    """

    arm: str
    low: float
    high: float
    of: str | None = None

    def effects(self, values: Values, better: Better) -> list[Effect]:
        if self.of is None:
            label = self.arm
            per_seed = _paired(values, (self.arm,), better, lambda x: x)
        else:
            label = f"{self.arm} − {self.of}"
            per_seed = _paired(values, (self.arm, self.of), better, _difference)
        if not per_seed:
            return []
        return [
            _effect(label, per_seed, "above", self.low),
            _effect(label, per_seed, "below", self.high),
        ]

    def describe(self, better: Better) -> str:
        what = self.arm if self.of is None else f"{self.arm} − {self.of}"
        return f"{what} between {_number(self.low)} and {_number(self.high)}"


def _excess(
    values: Values, numerator: str, denominator: str, limit: float, better: Better
) -> tuple[str, dict[int, float]]:
    """numerator − limit · denominator, whose sign says on which side of the limit the ratio lies.

    Unlike the ratio itself it is close to normal and stays defined when the denominator is near 0.
    """
    label = f"{numerator} − {limit:g} × {denominator}"
    per_seed = _paired(
        values, (numerator, denominator), better, lambda a, b: _difference(a, limit * b)
    )
    return label, per_seed


@dataclass(frozen=True)
class RatioAtLeast:
    """`numerator` is more than `limit` times `denominator`. For metrics that are positive.

    Example:
        >>> RatioAtLeast("dense", "sparse", 2).describe("lower")
        'dense more than 2 times sparse'
    """

    numerator: str
    denominator: str
    limit: float

    def effects(self, values: Values, better: Better) -> list[Effect]:
        label, per_seed = _excess(values, self.numerator, self.denominator, self.limit, better)
        return [_effect(label, per_seed, "above", 0.0)] if per_seed else []

    def describe(self, better: Better) -> str:
        return f"{self.numerator} more than {_number(self.limit)} times {self.denominator}"


@dataclass(frozen=True)
class RatioAtMost:
    """`numerator` is less than `limit` times `denominator`. For a positive denominator.

    Example:
        >>> RatioAtMost("sparse", "dense", 0.5).describe("lower")
        'sparse less than 0.5 times dense'
    """

    numerator: str
    denominator: str
    limit: float

    def effects(self, values: Values, better: Better) -> list[Effect]:
        label, per_seed = _excess(values, self.numerator, self.denominator, self.limit, better)
        return [_effect(label, per_seed, "below", 0.0)] if per_seed else []

    def describe(self, better: Better) -> str:
        return f"{self.numerator} less than {_number(self.limit)} times {self.denominator}"


@dataclass(frozen=True)
class Slope:
    """The least-squares slope of the metric over `positions` lies between `low` and `high`.

    Args:
        positions: arm -> its place on the horizontal axis.
        low, high: bounds of the slope.
        log: take logarithms of both axes, so that the slope is the exponent of a power law.

    Example:
        >>> Slope({"short": 1, "long": 4}, 0.9, 1.1, log=True).describe("lower")
        'exponent over short, long between 0.9 and 1.1'
    """

    positions: Mapping[str, float]
    low: float
    high: float
    log: bool = False

    def effects(self, values: Values, better: Better) -> list[Effect]:
        arms = tuple(self.positions)
        x = np.asarray([self.positions[arm] for arm in arms], dtype=np.float64)
        x = np.log(x) if self.log else x

        def slope(*metrics: float) -> float:
            y = np.asarray(metrics)
            if not np.isfinite(y).all() or (self.log and (y <= 0).any()):
                return math.nan
            return float(np.polyfit(x, np.log(y) if self.log else y, 1)[0])

        per_seed = _paired(values, arms, better, slope)
        if not per_seed:
            return []
        label = "exponent" if self.log else "slope"
        return [
            _effect(label, per_seed, "above", self.low),
            _effect(label, per_seed, "below", self.high),
        ]

    def describe(self, better: Better) -> str:
        what = "exponent" if self.log else "slope"
        return f"{what} over {', '.join(self.positions)} between {self.low:g} and {self.high:g}"


@dataclass(frozen=True)
class Ordering:
    """Each arm is better than the one before it.

    Example:
        >>> Ordering(("float16", "float32")).describe("higher")
        'each higher than the one before it: float16, float32'
    """

    arms: tuple[str, ...]

    def effects(self, values: Values, better: Better) -> list[Effect]:
        return [
            effect
            for worse, good in zip(self.arms, self.arms[1:], strict=False)
            for effect in Beats(worse, arm=good).effects(values, better)
        ]

    def describe(self, better: Better) -> str:
        return f"each {better} than the one before it: {', '.join(self.arms)}"


def expected_count(
    expectations: tuple[Expectation, ...], arms: tuple[str, ...], better: Better
) -> int:
    """How many effects there are when every arm has been run."""
    everything = {arm: {1: 1.0} for arm in arms}
    return sum(len(expectation.effects(everything, better)) for expectation in expectations)
