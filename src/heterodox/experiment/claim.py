"""A paper's claims: sentences made measurable.

    paper = Paper.load("sigmoid-attention")

    @paper.claim(says=..., reported=..., metric=..., expects=NoWorseThan("softmax", margin=0.02))
    def matches_softmax(arm: Literal["softmax", "sigmoid"], seed: int, scale: Scale) -> float: ...

The function is a *measure*: pure in (arm, seed, scale), so that it can run in another process, be
cached and be resumed. Several claims may judge one measure (stack the decorator and say with
`reads` which reading each takes); its runs are then made once. A measure without an `arm` parameter
measures all arms in one run, which trains once what the arms share, and returns
`{arm: Measurement}`.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from heterodox.catalog import PaperEntry, find
from heterodox.experiment.expectation import Better, Expectation
from heterodox.experiment.measurement import Measurement
from heterodox.experiment.scale import Scale

DIFFERS = "Differs from the paper:"


@dataclass
class Measure:
    """A function of (arm, seed, scale) and the arms it knows.

    Args:
        name: unique within the paper.
        function: `(arm, seed, scale, device)`-like; the parameters `arm` and `device` may be
            absent.
        arms: every value that `arm` takes, the baseline first.
        settings: what else determines the result (the user's choices in a comparison).
        many: `(arm, seeds, scale) -> list`, one result a seed, for scales in `many_at`.
    """

    name: str
    function: Callable[..., Any]
    arms: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    many: Callable[..., Any] | None = None
    many_at: tuple[Scale, ...] = ()

    @property
    def joint(self) -> bool:
        """Whether one run measures all arms."""
        return "arm" not in inspect.signature(self.function).parameters

    def run(self, arm: str | None, seed: int, scale: Scale, device: str) -> dict[str, Measurement]:
        """arm -> measurement, of one seed."""
        extra = self._device(self.function, device)
        if arm is None:
            results = self.function(seed=seed, scale=scale, **extra)
            missing = sorted(set(self.arms) - set(results))
            if missing:
                raise RuntimeError(f"{self.name} returned no measurement of arm {missing[0]!r}")
            return {name: _as_measurement(results[name]) for name in self.arms}
        return {arm: _as_measurement(self.function(arm=arm, seed=seed, scale=scale, **extra))}

    def run_many(
        self, arm: str, seeds: Sequence[int], scale: Scale, device: str
    ) -> list[dict[str, Measurement]]:
        """What `run` returns, for each of `seeds`, computed together."""
        assert self.many is not None
        extra = self._device(self.many, device)
        results = self.many(arm=arm, seeds=list(seeds), scale=scale, **extra)
        if len(results) != len(seeds):
            raise RuntimeError(
                f"{self.name} returned {len(results)} results for {len(seeds)} seeds"
            )
        return [{arm: _as_measurement(result)} for result in results]

    @staticmethod
    def _device(function: Callable[..., Any], device: str) -> dict[str, str]:
        if "device" in inspect.signature(function).parameters:
            return {"device": device}
        if device != "cpu":
            name = getattr(function, "__name__", "this measure")
            raise ValueError(f"device: {device!r} given, but {name} runs on 'cpu' only")
        return {}


def _as_measurement(result: Any) -> Measurement:
    return result if isinstance(result, Measurement) else Measurement(float(result))


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper made measurable.

    Args:
        name: unique within the paper; what `--claim` takes.
        says: the paper's statement, in one sentence.
        reported: what the paper reports, with the place; "" if it gives no number.
        metric: name and unit of what is judged.
        better: whether a lower or a higher metric is better.
        expects: all of these must hold; written from the paper before the run.
        measure: where the numbers come from.
        reads: which reading of the measurement is judged; None: its value.
        arms: the arms of `measure` that this claim looks at.
        seeds: how many paired seeds decide, at least three.
    """

    name: str
    says: str
    reported: str
    metric: str
    better: Better
    expects: tuple[Expectation, ...]
    measure: Measure
    reads: str | None
    arms: tuple[str, ...]
    seeds: int

    @property
    def expectation(self) -> str:
        return "; ".join(expectation.describe(self.better) for expectation in self.expects)

    @property
    def set_up(self) -> str:
        """How it is measured: the measure's docstring, less the sentence on what differs."""
        return " ".join(p for p in self._paragraphs if not p.startswith(DIFFERS))

    @property
    def differs(self) -> str:
        """What differs from the paper's set-up."""
        lines = [p.removeprefix(DIFFERS).strip() for p in self._paragraphs if p.startswith(DIFFERS)]
        return " ".join(lines)

    @property
    def _paragraphs(self) -> list[str]:
        function = self.measure.function
        if isinstance(function, functools.partial):
            function = function.func
        doc = inspect.getdoc(function) or ""
        return [" ".join(paragraph.split()) for paragraph in doc.split("\n\n") if paragraph.strip()]


class Paper:
    """A source and its claims; also a comparison made by the user, which is judged the same way.

    Example:
        >>> Paper.load("sigmoid-attention").entry.arxiv
        '2409.04431'
    """

    def __init__(self, entry: PaperEntry, kind: str = "paper") -> None:
        self.entry = entry
        self.kind = kind
        self.claims: list[Claim] = []

    @classmethod
    def load(cls, paper_id: str) -> "Paper":
        """The paper of the catalogue with this id; ValueError if there is none."""
        return cls(find(paper_id))

    @property
    def id(self) -> str:
        return self.entry.id

    @property
    def measures(self) -> list[Measure]:
        return list({claim.measure.name: claim.measure for claim in self.claims}.values())

    def add(self, claim: Claim) -> None:
        if any(known.name == claim.name for known in self.claims):
            raise ValueError(f"name: {claim.name!r} given twice, a claim's own name expected")
        self.claims.append(claim)

    def claim(
        self,
        *,
        says: str,
        metric: str,
        expects: Expectation | tuple[Expectation, ...],
        reported: str = "",
        better: Better = "lower",
        name: str | None = None,
        reads: str | None = None,
        arms: tuple[str, ...] | None = None,
        seeds: int = 5,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Makes a function `(arm, seed, scale)` the measure behind a claim; see `Claim` for the
        words.

        Args:
            name: defaults to the function's name.
            arms: those of the measure that the claim looks at. Defaults to the values of the `arm`
                parameter's `Literal`; must be given for a measure without an `arm` parameter.

        Raises:
            ValueError: `seeds` below 3, unknown arms, no arms, or a name used before.
        """
        if seeds < 3:
            raise ValueError(f"seeds: {seeds} given, at least 3 expected")
        expectations = expects if isinstance(expects, tuple) else (expects,)

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            measure = getattr(function, "__measure__", None)
            if measure is None:
                measure = Measure(
                    function.__name__, function, _literal_arms(function) or arms or ()
                )
                function.__measure__ = measure  # type: ignore[attr-defined]
            chosen = arms or measure.arms
            if not chosen:
                raise ValueError(
                    f"arms: none given, and {function.__name__} has no parameter arm: Literal[...]"
                )
            if measure.joint:
                measure.arms = tuple(dict.fromkeys((*measure.arms, *chosen)))
            unknown = [arm for arm in chosen if arm not in measure.arms]
            if unknown:
                raise ValueError(f"arms: {unknown[0]!r} given, one of {measure.arms} expected")
            claim = Claim(
                name or function.__name__,
                says,
                reported,
                metric,
                better,
                expectations,
                measure,
                reads,
                chosen,
                seeds,
            )
            self.add(claim)
            # Decorators apply from the bottom up; claims are listed as they are read.
            siblings = [c for c in self.claims if c.measure is measure]
            first = self.claims.index(siblings[0])
            self.claims.remove(claim)
            self.claims.insert(first, claim)
            return function

        return decorate

    @staticmethod
    def many_seeds(
        measure_of: Callable[..., Any], *, at: tuple[Scale, ...]
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Makes a function `(arm, seeds, scale) -> list` compute all seeds of an arm in one job.

        Args:
            measure_of: the measure that it speeds up, and that it must agree with.
            at: the scales at which computing seeds together is faster.
        """

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            measure: Measure = measure_of.__measure__  # type: ignore[attr-defined]
            measure.many, measure.many_at = function, at
            return function

        return decorate


def _literal_arms(function: Callable[..., Any]) -> tuple[str, ...]:
    annotation = typing.get_type_hints(function).get("arm")
    return tuple(str(value) for value in typing.get_args(annotation))
