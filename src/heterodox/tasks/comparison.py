"""Comparisons: a grid of slot choices on a task and the user's data, judged like a paper's claims.

Every arm trains on the same data with the same seeds and budget. With several learning rates each
arm first picks its own, on seed 0, which no verdict uses.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from heterodox.catalog import PaperEntry
from heterodox.experiment.claim import Claim, Measure, Paper
from heterodox.experiment.expectation import Beats
from heterodox.experiment.measurement import Measurement
from heterodox.experiment.scale import Scale
from heterodox.experiment.store import slug
from heterodox.experiment.tuning import best_of, candidate
from heterodox.tasks.task import Task

Choice = dict[str, str]
"""slot -> name."""


def arms_of(task: Task, chosen: Mapping[str, Sequence[str]]) -> dict[str, Choice]:
    """Every combination of the names chosen for each slot, by a label that says what varies.

    Args:
        task: whose slots they are.
        chosen: slot -> names, the baseline first.

    Raises:
        ValueError: a slot that the task lacks, an unknown or repeated name, or fewer than two arms.

    Example:
        >>> from heterodox.tasks import TASKS
        >>> list(arms_of(TASKS["language"], {"attention": ["softmax", "sigmoid"]}))
        ['softmax', 'sigmoid']
    """
    for slot, names in chosen.items():
        if slot not in task.slots:
            raise ValueError(
                f"{slot}: not a slot of {task.name}, one of {', '.join(task.slots)} expected"
            )
        known = task.slots[slot]
        for name in names:
            if name not in known:
                if hasattr(known, "where"):
                    known.where(name)  # its message suggests the nearest
                raise ValueError(f"{slot}: {name!r} given, one of {', '.join(known)} expected")
        if len(set(names)) != len(names):
            raise ValueError(f"{slot}: {', '.join(names)} given, each name once expected")
    varying = [slot for slot, names in chosen.items() if len(names) > 1]
    arms = {}
    for combination in itertools.product(*chosen.values()):
        choice = dict(zip(chosen, combination, strict=True))
        arms[", ".join(choice[slot] for slot in varying)] = choice
    if len(arms) < 2:
        example = f"--{next(iter(task.slots))} A,B"
        raise ValueError(
            f"slots: nothing to compare, two names of a slot expected, as in {example}"
        )
    return arms


def comparison(
    task: Task,
    chosen: Mapping[str, Sequence[str]],
    *,
    scale: Scale,
    data: str | Path | None = None,
    rates: Sequence[float] = (),
    best_rates: Mapping[str, float] | None = None,
    changes: Mapping[str, str] | None = None,
    seeds: int = 3,
) -> Paper:
    """A comparison as the runner takes it: one claim an alternative, that it beats the first arm.

    Args:
        task: what is trained.
        chosen: see `arms_of`; the first arm is the baseline.
        scale: which of the task's settings are used.
        data: a dataset's name or a path; None: the task's default.
        rates: a single learning rate for all arms; none: the settings' own.
        best_rates: arm -> its learning rate, as `tuned_rates` finds them.
        changes: settings to change, as text: {"steps": "1000"}.
        seeds: paired seeds.

    Raises:
        ValueError: anything that does not fit, the data included, before any training.
    """
    arms = arms_of(task, chosen)
    settings = changed(task.load_settings()[scale], changes or {})
    data_id = _check(task, arms, data, settings)
    per_arm = dict(best_rates or dict.fromkeys(arms, rates[0] if rates else None))
    description = {
        "task": task.name,
        "arms": arms,
        "data": data_id,
        "rates": per_arm,
        "changes": dict(changes or {}),
    }
    measure = _measure(task, arms, settings, data, per_arm, description)
    paper = Paper(_entry(task, chosen, data, description), kind="comparison")
    baseline, *others = arms
    for arm in others:
        paper.add(
            Claim(
                name=slug(f"{arm} against {baseline}".replace("+", "-plus")),
                says=f"On {_data_name(task, data)}, {arm} is better than {baseline}.",
                reported="",
                metric=task.metric,
                better=task.better,
                expects=(Beats(baseline, arm=arm),),
                measure=measure,
                reads=None,
                arms=(baseline, arm),
                seeds=seeds,
            )
        )
    return paper


def tuning(
    task: Task,
    chosen: Mapping[str, Sequence[str]],
    *,
    scale: Scale,
    rates: Sequence[float],
    data: str | Path | None = None,
    changes: Mapping[str, str] | None = None,
) -> Measure:
    """The measure that trains every arm with every learning rate; its arms are "arm @ rate"."""
    arms = arms_of(task, chosen)
    settings = changed(task.load_settings()[scale], changes or {})
    data_id = _check(task, arms, data, settings)
    grid = {candidate(arm, rate): choice for arm, choice in arms.items() for rate in rates}
    per_arm = {candidate(arm, rate): rate for arm in arms for rate in rates}
    description = {
        "task": task.name,
        "arms": grid,
        "data": data_id,
        "rates": per_arm,
        "changes": dict(changes or {}),
    }
    return _measure(task, grid, settings, data, per_arm, description)


def tuned_rates(
    task: Task, arms: Sequence[str], rates: Sequence[float], measured: Mapping[str, Measurement]
) -> dict[str, float]:
    """arm -> the rate with the best metric on the tuning seed."""
    metric = {arm: measurement.value for arm, measurement in measured.items()}
    return best_of(arms, rates, metric, task.better)


def changed(settings: Any, changes: Mapping[str, str]) -> Any:
    """`settings` with some fields replaced by values given as text, of the field's own type.

    Example:
        >>> from heterodox.tasks.language import SETTINGS
        >>> changed(SETTINGS[Scale.SMOKE], {"steps": "7"}).steps
        7
    """
    known = {field.name: getattr(settings, field.name) for field in fields(settings)}
    values = {}
    for name, text in changes.items():
        if name not in known:
            raise ValueError(f"set: {name!r} given, one of {', '.join(known)} expected")
        values[name] = _like(name, known[name], text)
    return replace(settings, **values)


def _like(name: str, example: Any, text: str) -> Any:
    if isinstance(example, str):
        return text
    try:
        value = json.loads({"none": "null"}.get(text.lower(), text.lower()))
    except ValueError:
        value = text
    if isinstance(example, bool):
        fits = isinstance(value, bool)
    elif isinstance(example, int):
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(example, tuple):
        fits = isinstance(value, list)
        value = tuple(value) if fits else value
    else:  # a float, or an option that is off
        fits = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    if not fits:
        raise ValueError(f"set: {name}={text} given, a value like {name}={example} expected")
    return value


def _check(task: Task, arms: Mapping[str, Choice], data: str | Path | None, settings: Any) -> str:
    """Raises for what does not fit; returns what identifies the data."""
    check = task.load_check()
    extra = {} if task.data is None else {"data": data or task.data}
    if task.data is None and data is not None:
        raise ValueError(f"data: {data} given, but {task.name} takes none")
    identities = {check(**choice, **extra, settings=settings) for choice in arms.values()}
    (identity,) = identities
    return identity


def _measure(
    task: Task,
    arms: Mapping[str, Choice],
    settings: Any,
    data: str | Path | None,
    rates: Mapping[str, float | None],
    description: dict[str, Any],
) -> Measure:
    extra = {} if task.data is None else {"data": _absolute(data or task.data)}
    function = partial(
        train_arm,
        train=task.load_train(),
        arms=arms,
        rates=rates,
        settings=settings,
        extra=extra,
    )
    return Measure(task.name, function, tuple(arms), settings=description)


def train_arm(
    *,
    arm: str,
    seed: int,
    scale: Scale,
    device: str,
    train: Any,
    arms: Mapping[str, Choice],
    rates: Mapping[str, float | None],
    settings: Any,
    extra: Mapping[str, Any],
) -> Measurement:
    """Every arm trains on the same data with the same seeds and budget; what is not varied is the
    task's default."""
    rate = rates[arm]
    own = settings if rate is None else replace(settings, learning_rate=rate)
    run = train(**arms[arm], **extra, seed=seed, settings=own, device=device)
    return run.measurement()


def _entry(
    task: Task,
    chosen: Mapping[str, Sequence[str]],
    data: str | Path | None,
    description: dict[str, Any],
) -> PaperEntry:
    text = json.dumps(description, sort_keys=True, default=str)
    number = hashlib.sha256(text.encode()).hexdigest()[:8]
    grid = "; ".join(f"{slot} {', '.join(names)}" for slot, names in chosen.items())
    return PaperEntry(
        id=f"compare-{task.name}-{number}",
        title=f"{task.name}: {grid}",
        arxiv="",
        year=0,
        slot=next(iter(chosen)),
        summary=f"{grid} on {_data_name(task, data)}.",
        components=(),
    )


def _data_name(task: Task, data: str | Path | None) -> str:
    if task.data is None:
        return task.name
    given = str(data or task.data)
    return Path(given).name if Path(given).exists() else given


def _absolute(data: str | Path) -> str:
    """Workers may have another working folder."""
    return str(Path(data).absolute()) if Path(data).exists() else str(data)
