"""Tuning: every arm, the baseline too, picks its learning rate from one grid on a seed of its own.

Seed 0 is for tuning and decides no verdict. The best of the grid is then written into the claims
module, where a reader sees it; what was measured for each rate stays beside it as data.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from heterodox.experiment.claim import Measure
from heterodox.experiment.environment import environment
from heterodox.experiment.expectation import Better
from heterodox.experiment.measurement import Measurement, encode_number
from heterodox.experiment.runner import TUNING_SEED, Options, measure_once
from heterodox.experiment.scale import Scale
from heterodox.experiment.store import SCHEMA, slug, write_json


@dataclass(frozen=True)
class Tuning:
    """A choice that every arm of a measure made on the tuning seed.

    Args:
        name: of the measure that uses the choice.
        train: `(arm, seed, scale, rate, device)` -> an object with `measurement()`, or a
            Measurement.
        chosen: arm -> what stands in the claims module.
        grid: what was tried, the same for every arm.
        reads: which reading decides; None: the measurement's value.
        better: whether lower or higher is better.
        what: "learning rate", or what else is chosen.
    """

    name: str
    train: Callable[..., Any]
    chosen: Mapping[str, float]
    grid: Sequence[float]
    reads: str | None
    better: Better
    what: str = "learning rate"


def candidate(arm: str, rate: float) -> str:
    """The label of an arm with one value of the grid."""
    return f"{arm} @ {rate:g}"


def best_of(
    arms: Iterable[str], grid: Sequence[float], metric: Mapping[str, float], better: Better
) -> dict[str, float]:
    """arm -> the best value of the grid; one that diverged is never chosen over one that did not.

    Raises:
        ValueError: every value diverged for some arm.

    Example:
        >>> best_of(["a"], (1.0, 2.0), {"a @ 1": 0.3, "a @ 2": 0.2}, "lower")
        {'a': 2.0}
    """
    sign = 1 if better == "lower" else -1
    best = {}
    for arm in arms:
        scores = {
            rate: sign * metric[candidate(arm, rate)]
            for rate in grid
            if math.isfinite(metric[candidate(arm, rate)])
        }
        if not scores:
            tried = ", ".join(f"{rate:g}" for rate in grid)
            raise ValueError(f"learning-rate: {tried} given, but {arm} diverged with each")
        best[arm] = min(scores, key=lambda rate: scores[rate])
    return best


def tune(
    paper_id: str, tunings: Sequence[Tuning], options: Options, console: Console | None = None
) -> dict[str, Any]:
    """Tries every value for every arm and writes `<out>/tuning/<paper>.json`; returns its tree.

    Raises:
        RuntimeError: a run broke.
    """
    measures = {}
    for tuning in tunings:
        arms = tuple(candidate(arm, rate) for arm in tuning.chosen for rate in tuning.grid)
        function = partial(
            try_candidate, train=tuning.train, arms=tuple(tuning.chosen), grid=tuple(tuning.grid)
        )
        measured = measure_once(
            Measure(f"tune {tuning.name}", function, arms), paper_id, options, console
        )
        metric = {arm: measured[arm].read(tuning.reads) for arm in arms}
        measures[tuning.name] = {
            "what": tuning.what,
            "metric": tuning.reads or "value",
            "better": tuning.better,
            "best": best_of(tuning.chosen, tuning.grid, metric, tuning.better),
            "tried": {
                arm: {
                    f"{rate:g}": encode_number(metric[candidate(arm, rate)]) for rate in tuning.grid
                }
                for arm in tuning.chosen
            },
        }
    tree = {
        "schema": SCHEMA,
        "paper": paper_id,
        "scale": str(options.scale),
        "seed": TUNING_SEED,
        "environment": environment(options.device),
        "measures": measures,
    }
    write_json(tuning_path(options.out, paper_id), tree)
    return tree


def tuning_path(out: Path, paper_id: str) -> Path:
    return out / "tuning" / f"{slug(paper_id)}.json"


def try_candidate(
    *,
    arm: str,
    seed: int,
    scale: Scale,
    device: str,
    train: Callable[..., Any],
    arms: Sequence[str],
    grid: Sequence[float],
) -> Measurement:
    """One arm with one value of the grid."""
    known = {candidate(name, rate): (name, rate) for name in arms for rate in grid}
    name, rate = known[arm]
    result = train(name, seed, scale, rate, device)
    return result if isinstance(result, Measurement) else result.measurement()
