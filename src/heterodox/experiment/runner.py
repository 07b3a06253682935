"""The runner: which jobs a request needs, which are done already, and the rest in parallel.

Jobs run through joblib: local processes by default, or the workers of a Ray or Dask cluster. Each
worker stores its own result, so that whatever ends the program loses only the jobs in flight.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool
from rich.console import Console

from heterodox.experiment.claim import Claim, Measure, Paper
from heterodox.experiment.display import Display
from heterodox.experiment.fingerprint import fingerprint
from heterodox.experiment.job import Done, Job, Starter, execute, running_folder
from heterodox.experiment.measurement import Measurement
from heterodox.experiment.scale import Scale
from heterodox.experiment.store import DamagedResult, JobKey, Record, Store, write_text
from heterodox.experiment.summary import summarise, write_summary

ENGINES = ("local", "ray", "dask")

TUNING_SEED = 0
"""No verdict uses it."""

FIRST_SEED = 1

SMOKE_SEEDS = 3
"""A run that only shows that everything works needs no more."""

ATTEMPTS = 2
"""How often a job is started whose worker dies (killed, out of memory) before it is given up."""


@dataclass(frozen=True)
class Options:
    """How to run.

    Args:
        scale: see `Scale`.
        out: folder of results; created if absent.
        seeds: paired seeds of every claim; None: each claim's own number.
        jobs: processes at once; None: as many as cores, or 1 on a GPU.
        engine: "local", or "ray" / "dask" for a cluster.
        device: where tensors live, "cpu" or "cuda".
        fresh: measure again what is stored already.
    """

    scale: Scale = Scale.LAPTOP
    out: Path = Path("heterodox-results")
    seeds: int | None = None
    jobs: int | None = None
    engine: str = "local"
    device: str = "cpu"
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"seeds: {self.seeds} given, a positive number expected")
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"jobs: {self.jobs} given, a positive number expected")
        if self.engine not in ENGINES:
            raise ValueError(f"engine: {self.engine!r} given, one of {', '.join(ENGINES)} expected")


@dataclass
class Outcome:
    """What a run came to."""

    trees: list[dict[str, Any]] = field(default_factory=list)
    broken: list[Done] = field(default_factory=list)


def run(
    papers: Sequence[Paper], options: Options, console: Console, claims: Sequence[str] = ()
) -> Outcome:
    """Measures what `papers` claim, resuming from what `options.out` holds, and writes the
    summaries.

    Args:
        papers: papers or comparisons.
        options: how to run.
        console: where progress is shown; plain lines if it is not a terminal.
        claims: names of the claims to measure; none: all.

    Raises:
        ValueError: an unknown claim, or a folder that cannot be written.
        KeyboardInterrupt: after the workers have ended; finished jobs are stored.
    """
    _check_claims(papers, claims)
    _check_writable(options.out)
    store = Store(options.out)
    plans = {paper.id: _plan(paper, options, claims) for paper in papers}
    wanted = [job_key for paper in papers for job_key in plans[paper.id]]
    pending, found = [], 0
    for measure, key in wanted:
        if not options.fresh and _is_stored(store, key, console):
            found += 1
        else:
            pending.append((measure, key))
    jobs = _group(pending)
    if found:
        console.print(f"{found} of {len(wanted)} runs are in {options.out} already; resuming.")
    broken: list[Done] = []
    if jobs:
        broken = _run_jobs(jobs, options, store, console)
    outcome = Outcome(broken=broken)
    for paper in papers:
        tree = summarise(paper, options.scale, *_collect(store, paper, options, broken))
        write_summary(options.out, paper, options.scale, tree)
        outcome.trees.append(tree)
    return outcome


def measure_once(
    measure: Measure, name: str, options: Options, console: Console | None = None
) -> dict[str, Measurement]:
    """arm -> measurement with seed 0, which no verdict uses: for tuning. Stored and resumed like a
    run.

    Args:
        measure: whose arms are the candidates.
        name: under which the results are stored.
        options: how to run; the number of seeds does not matter.
        console: where progress is shown; None: standard error.

    Raises:
        RuntimeError: a run broke.
    """
    console = console or Console(stderr=True)
    _check_writable(options.out)
    store = Store(options.out)
    keys = {arm: _key(name, measure, arm, TUNING_SEED, options) for arm in measure.arms}
    pending = [(measure, key) for key in keys.values() if not _is_stored(store, key, console)]
    broken = _run_jobs(_group(pending), options, store, console) if pending else []
    if broken:
        raise RuntimeError(broken[0].error.strip().splitlines()[-1])
    records = {arm: store.read(key) for arm, key in keys.items()}
    return {arm: record.measurements[arm] for arm, record in records.items() if record}


def _check_claims(papers: Sequence[Paper], names: Sequence[str]) -> None:
    known = [claim.name for paper in papers for claim in paper.claims]
    for name in names:
        if name not in known:
            raise ValueError(f"claim: {name!r} given, one of {', '.join(known)} expected")


def _check_writable(out: Path) -> None:
    probe = running_folder(out) / f".probe-{os.getpid()}"
    try:
        write_text(probe, "")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"out: {out} given, a folder that can be written expected ({reason})"
        ) from None


def _plan(
    paper: Paper, options: Options, claims: Sequence[str] = ()
) -> list[tuple[Measure, JobKey]]:
    """Every run that the claims need: seeds outermost, so that pairs are complete early."""
    need: dict[str, tuple[Measure, dict[str | None, int]]] = {}
    for claim in paper.claims:
        if claims and claim.name not in claims:
            continue
        measure = claim.measure
        _, arms = need.setdefault(measure.name, (measure, {}))
        for arm in (None,) if measure.joint else claim.arms:
            arms[arm] = max(arms.get(arm, 0), _seeds(claim, options))
    plan = []
    for measure, arms in need.values():
        for number in range(max(arms.values())):
            for arm, seeds in arms.items():
                if number < seeds:
                    plan.append(
                        (measure, _key(paper.id, measure, arm, FIRST_SEED + number, options))
                    )
    return plan


def _seeds(claim: Claim, options: Options) -> int:
    if options.seeds is not None:
        return options.seeds
    return min(claim.seeds, SMOKE_SEEDS) if options.scale == Scale.SMOKE else claim.seeds


def _key(paper_id: str, measure: Measure, arm: str | None, seed: int, options: Options) -> JobKey:
    settings = {
        "paper": paper_id,
        "measure": measure.name,
        "arm": arm,
        "seed": seed,
        "scale": str(options.scale),
        "device": options.device,
        "settings": measure.settings,
    }
    return JobKey(
        paper=paper_id,
        measure=measure.name,
        arm=arm,
        seed=seed,
        scale=options.scale,
        device=options.device,
        fingerprint=fingerprint(measure.function, settings),
    )


def _is_stored(store: Store, key: JobKey, console: Console) -> bool:
    try:
        return store.read(key) is not None
    except DamagedResult as damage:
        aside = store.set_aside(key)
        console.print(
            f"damaged result: {damage}; kept as {aside.name}, measuring again", style="yellow"
        )
        return False


def _group(pending: Sequence[tuple[Measure, JobKey]]) -> list[Job]:
    """One job a run, but all seeds of an arm in one job where computing them together is faster."""
    groups: dict[Any, list[tuple[Measure, JobKey]]] = {}
    for measure, key in pending:
        together = measure.many is not None and key.scale in measure.many_at
        identity = (key.paper, measure.name, key.arm) if together else key
        groups.setdefault(identity, []).append((measure, key))
    return [Job(group[0][0], tuple(key for _, key in group)) for group in groups.values()]


def _run_jobs(jobs: list[Job], options: Options, store: Store, console: Console) -> list[Done]:
    """Runs all jobs; returns those that broke."""
    workers = options.jobs or (1 if options.device != "cpu" else os.cpu_count() or 1)
    broken: list[Done] = []
    attempts: dict[str, int] = {}
    left = {job.name: job for job in jobs}
    with Display(console, options.out, len(jobs)) as display:
        while left:
            try:
                for done in _parallel(list(left.values()), workers, options):
                    left.pop(done.job.name)
                    if done.error:
                        broken.append(done)
                    elif done.records:
                        _keep(store, done)
                    display.finished(done)
            except BrokenProcessPool:
                for job in _died(left, options.out, attempts):
                    done = Done(
                        left.pop(job.name), error="the worker died: killed, or out of memory"
                    )
                    broken.append(done)
                    display.finished(done)
            except KeyboardInterrupt:
                get_reusable_executor().shutdown(wait=False, kill_workers=True)
                raise
    return broken


def _died(left: dict[str, Job], out: Path, attempts: dict[str, int]) -> list[Job]:
    """Of the jobs in flight when a worker died, those that have had all their attempts."""
    heartbeats = {path.stem for path in running_folder(out).glob("*.json")}
    given_up = []
    for name, job in left.items():
        if name in heartbeats:
            (running_folder(out) / f"{name}.json").unlink(missing_ok=True)
            attempts[name] = attempts.get(name, 0) + 1
            if attempts[name] >= ATTEMPTS:
                given_up.append(job)
    if not given_up and not heartbeats:
        # Nobody had begun: starting again would end the same way.
        given_up = list(left.values())
    return given_up


def _keep(store: Store, done: Done) -> None:
    """Stores what a worker on another machine could only write to its own disk."""
    for key, record in zip(done.job.keys, done.records, strict=True):
        if not (store.root / key.path).exists():
            store.write(key, record)


def _parallel(jobs: list[Job], workers: int, options: Options) -> Iterator[Done]:
    starter = Starter.here()
    calls = [
        joblib.delayed(execute)(job, options.out.absolute(), starter, options.fresh) for job in jobs
    ]
    with _engine(options.engine, workers) as can_stream:
        if can_stream:
            yield from joblib.Parallel(
                n_jobs=workers, return_as="generator_unordered", batch_size=1, pre_dispatch=workers
            )(calls)
        else:
            yield from joblib.Parallel(n_jobs=-1, batch_size=1)(calls)


@contextlib.contextmanager
def _engine(engine: str, workers: int) -> Iterator[bool]:
    """Makes joblib use an engine; yields whether its results arrive one by one."""
    match engine:
        case "local":
            if workers == 1:
                with joblib.parallel_config(backend="sequential"):
                    yield True
            else:
                with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
                    yield True
        case "ray":
            with _missing_extra("ray"):
                from ray.util.joblib import register_ray
            register_ray()
            with joblib.parallel_config(backend="ray"):
                yield False
        case "dask":
            with _missing_extra("dask"):
                from dask.distributed import Client
            with Client(), joblib.parallel_config(backend="dask"):
                yield True


@contextlib.contextmanager
def _missing_extra(extra: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"engine: {extra!r} given, but {error.name} is missing: "
            f'pip install "heterodox[{extra}]"'
        ) from error


def _collect(
    store: Store, paper: Paper, options: Options, broken: Sequence[Done]
) -> tuple[dict[str, dict[tuple[str | None, int], Record]], dict[str, dict[Any, str]]]:
    """The stored runs of every claim of `paper`, and what broke."""
    runs: dict[str, dict[tuple[str | None, int], Record]] = {}
    for measure, key in _plan(paper, options):
        with contextlib.suppress(DamagedResult):
            if (record := store.read(key)) is not None:
                runs.setdefault(measure.name, {})[key.arm, key.seed] = record
    failures: dict[str, dict[Any, str]] = {}
    for done in broken:
        for key in done.job.keys:
            if key.paper == paper.id:
                error = done.error.strip().splitlines()[-1]
                failures.setdefault(key.measure, {})[key.arm, key.seed] = error
    return runs, failures
