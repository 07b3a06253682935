"""From stored runs to verdicts: what `results/<scale>/<paper>.json` holds."""

import datetime
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from heterodox.experiment.claim import Claim, Paper
from heterodox.experiment.expectation import Effect, expected_count
from heterodox.experiment.measurement import Measurement, encode_number
from heterodox.experiment.scale import Scale
from heterodox.experiment.statistics import combine
from heterodox.experiment.store import SCHEMA, Record, slug, write_json

CURVE_POINTS = 60
CURVE_DIGITS = 5

Runs = Mapping[str, Mapping[tuple[str | None, int], Record]]
"""measure name -> (arm, or None if joint; seed) -> record."""

Failures = Mapping[str, Mapping[tuple[str | None, int], str]]
"""measure name -> (arm, seed) -> last line of the error."""


def summarise(paper: Paper, scale: Scale, runs: Runs, failures: Failures) -> dict[str, Any]:
    """Every claim of `paper` whose arms have all been run, with its verdict, as a tree for JSON."""
    claims = [
        _summarise_claim(
            claim, runs.get(claim.measure.name, {}), failures.get(claim.measure.name, {})
        )
        for claim in paper.claims
        if _is_covered(
            claim, runs.get(claim.measure.name, {}), failures.get(claim.measure.name, {})
        )
    ]
    records = [record for of_measure in runs.values() for record in of_measure.values()]
    entry = paper.entry
    return {
        "schema": SCHEMA,
        "kind": paper.kind,
        "paper": {
            "id": entry.id,
            "title": entry.title,
            "arxiv": entry.arxiv,
            "year": entry.year,
            "slot": entry.slot,
            "summary": entry.summary,
        },
        "scale": str(scale),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": _environment(records),
        "seconds": round(sum(record.seconds for record in records), 1),
        "claims": claims,
    }


def summary_path(out: Path, paper: Paper, scale: Scale) -> Path:
    return out / scale / f"{slug(paper.id)}.json"


def write_summary(out: Path, paper: Paper, scale: Scale, tree: dict[str, Any]) -> Path:
    path = summary_path(out, paper, scale)
    write_json(path, tree)
    return path


def measurements_by_arm(
    claim: Claim, runs: Mapping[tuple[str | None, int], Record]
) -> dict[str, dict[int, Measurement]]:
    """arm -> seed -> measurement, arms in the claim's order."""
    found: dict[str, dict[int, Measurement]] = {arm: {} for arm in claim.arms}
    for (_, seed), record in sorted(runs.items(), key=lambda item: item[0][1]):
        for arm, measurement in record.measurements.items():
            if arm in found:
                found[arm][seed] = measurement
    return found


def _is_covered(
    claim: Claim,
    runs: Mapping[tuple[str | None, int], Record],
    failures: Mapping[tuple[str | None, int], str],
) -> bool:
    """Whether every arm of `claim` has been tried: another claim on its measure may want fewer."""
    tried = {arm for record in runs.values() for arm in record.measurements}
    tried |= {arm for arm, _ in failures if arm is not None}
    return set(claim.arms) <= tried or any(arm is None for arm, _ in failures)


def _summarise_claim(
    claim: Claim,
    runs: Mapping[tuple[str | None, int], Record],
    failures: Mapping[tuple[str | None, int], str],
) -> dict[str, Any]:
    found = measurements_by_arm(claim, runs)
    values = {
        arm: {seed: m.read(claim.reads) for seed, m in seeds.items()}
        for arm, seeds in found.items()
        if seeds
    }
    effects = [
        effect
        for expectation in claim.expects
        for effect in expectation.effects(values, claim.better)
    ]
    broken = {
        (arm, seed): error
        for (arm, seed), error in failures.items()
        if arm is None or arm in claim.arms
    }
    wanted = expected_count(claim.expects, claim.arms, claim.better)
    complete = len(effects) == wanted and not broken
    verdict = combine([effect.verdict for effect in effects]) if complete else "inconclusive"
    return {
        "name": claim.name,
        "says": claim.says,
        "reported": claim.reported,
        "metric": claim.metric,
        "better": claim.better,
        "set_up": claim.set_up,
        "differs": claim.differs,
        "expects": claim.expectation,
        "arms": list(claim.arms),
        "verdict": verdict,
        "reason": _reason(effects, len(broken), wanted),
        "effects": [_effect_tree(effect) for effect in effects],
        "values": {
            arm: {str(seed): encode_number(v) for seed, v in seeds.items()}
            for arm, seeds in values.items()
        },
        "readings": {
            arm: {
                str(seed): {name: encode_number(v) for name, v in m.readings.items()}
                for seed, m in seeds.items()
            }
            for arm, seeds in found.items()
        },
        "curves": {
            arm: {
                str(seed): {
                    name: [[_rounded(x), _rounded(y)] for x, y in _thin(points)]
                    for name, points in m.curves.items()
                }
                for seed, m in seeds.items()
            }
            for arm, seeds in found.items()
        },
        "failed": [
            {"arm": arm or "all arms", "seed": seed, "error": error}
            for (arm, seed), error in sorted(broken.items(), key=lambda item: str(item[0]))
        ],
        "seconds": round(
            sum(
                record.seconds
                for (arm, _), record in runs.items()
                if arm is None or arm in claim.arms
            ),
            1,
        ),
    }


def _reason(effects: list[Effect], broken: int, wanted: int) -> str:
    if broken:
        return f"{broken} run{'s' if broken > 1 else ''} broke, so nothing is concluded"
    if len(effects) < wanted:
        return "some arms have not been run"
    order = {"fails": 0, "inconclusive": 1, "holds": 2}
    decisive = min(effects, key=lambda effect: order[effect.verdict])
    interval = decisive.interval
    if math.isnan(interval.mean):
        return f"{decisive.label}: {interval.method}"
    if interval.low == interval.high:
        where = f"{interval.mean:.4g}"
    else:
        where = f"{interval.mean:.4g}, interval {interval.low:.4g} to {interval.high:.4g}"
    return (
        f"{decisive.label} is {where}; expected {decisive.side} {decisive.threshold:.4g} "
        f"({interval.method})"
    )


def _effect_tree(effect: Effect) -> dict[str, Any]:
    return {
        "label": effect.label,
        "per_seed": {str(seed): encode_number(v) for seed, v in effect.per_seed.items()},
        "mean": encode_number(effect.interval.mean),
        "low": encode_number(effect.interval.low),
        "high": encode_number(effect.interval.high),
        "side": effect.side,
        "threshold": encode_number(effect.threshold),
        "method": effect.interval.method,
        "verdict": effect.verdict,
    }


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about `CURVE_POINTS` points, the last one among them."""
    step = max(1, math.ceil(len(points) / CURVE_POINTS))
    kept = points[::step]
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def _rounded(number: float) -> float | str:
    """Curves are for looking at; the runs' own files hold every digit."""
    return encode_number(float(f"{number:.{CURVE_DIGITS}g}"))


def _environment(records: Iterable[Record]) -> dict[str, str]:
    """Of all runs; where they differ, every value."""
    merged: dict[str, dict[str, None]] = {}
    for record in records:
        for name, value in record.environment.items():
            merged.setdefault(name, {})[value] = None
    return {name: " / ".join(values) for name, values in merged.items()}
