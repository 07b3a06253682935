"""A benchmark from its name to a file: who takes part, what they cost, which targets are met."""

import datetime
import importlib.metadata
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import joblib
import torch
from torch.utils import benchmark

from heterodox.bench import BENCHES, COMPONENTS, PACKAGES, PEERS, SIZES
from heterodox.bench.contestants import chosen_peers, contestant
from heterodox.bench.memory import peak_above_inputs
from heterodox.bench.timing import Timing, interleaved, paired_ratio
from heterodox.bench.workload import Case, Target, Workload
from heterodox.experiment.environment import environment
from heterodox.experiment.store import slug, write_json
from heterodox.training.devices import fabric_on
from heterodox.training.progress import report

SCHEMA = 1

# Below this, pages and thread stacks count as much as tensors: no ratio is formed.
SMALLEST_MEMORY = 2**22


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        against: peers; None: all whose package is installed.
        sizes: as the slot writes them; None: its own in `SIZES`.
        device: "cpu", "cuda", ...
        threads: None: one a core.
        seconds: measured time that each contestant gets at least in each case.
        repeat: rounds at least; six are needed for an interval.
        limit: seconds after which a case begins no further round.
    """

    against: Sequence[str] | None = None
    sizes: Sequence[str] | None = None
    device: str = "cpu"
    threads: int | None = None
    seconds: float = 2.0
    repeat: int = 7
    limit: float = 300.0


def run_bench(slot: str, options: Options) -> dict[str, Any]:
    """Measures a slot's components and peers, and returns the tree that `write_bench` stores.

    A contestant that cannot do a case, or has not the memory for it, is left out of that case; its
    entry says why.

    Raises:
        ValueError: an option, the slot, a peer or a size is not as expected.

    Example:
        >>> options = Options(sizes=["2x8"], against=[], threads=1, seconds=0.0, repeat=1)
        >>> tree = run_bench("optimizer", options)
        >>> list(tree["cases"][0]["results"])
        ['adamw', 'perp-grad']
    """
    peers = chosen_peers(slot, options.against)
    names = [*COMPONENTS[slot], *peers]
    if options.seconds < 0:
        raise ValueError(f"seconds: {options.seconds} given, at least 0 expected")
    if options.repeat < 1:
        raise ValueError(f"repeat: {options.repeat} given, at least 1 expected")
    if options.limit < 0:
        raise ValueError(f"limit: {options.limit} given, at least 0 expected")
    threads = joblib.cpu_count() if options.threads is None else options.threads
    if threads < 1:
        raise ValueError(f"threads: {threads} given, at least 1 expected")
    workload: Workload = BENCHES[slot]()
    cases = workload.cases(SIZES[slot] if options.sizes is None else options.sizes)
    device = str(fabric_on(options.device).device)

    started = _now()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    steps = len(names) + options.repeat
    measured = []
    with benchmark.set_torch_threads(threads):
        for index, case in enumerate(cases):

            def progress(done: int, before: int = index * steps) -> None:
                report(before + min(done, steps), len(cases) * steps)

            results = _measure(slot, names, workload, case, device, threads, options, progress)
            measured.append({**asdict(case), "label": case.label, "results": results})
    default = COMPONENTS[slot].default
    return {
        "schema": SCHEMA,
        "slot": slot,
        "default": default,
        "contestants": {name: _described(slot, name) for name in names},
        "facts": dict(workload.facts),
        "settings": {"seconds": options.seconds, "repeat": options.repeat, "limit": options.limit},
        "device": device,
        "threads": threads,
        "load_average": load,
        "started": started,
        "finished": _now(),
        "environment": environment(device),
        "cases": measured,
        "targets": judged(workload.targets, measured, default, torch.device(device).type),
    }


def check_writable(out: Path) -> None:
    """Makes the folder and raises OSError if nothing can be written there."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass


def write_bench(tree: Mapping[str, Any], out: Path) -> Path:
    """Stores a benchmark as `<out>/<slot>-<processor or GPU>.json`, in place of an older one."""
    facts = tree["environment"]
    gpu = re.search(r"\((.*)\)$", facts["device"])
    machine = re.sub(r"\((R|TM|tm)\)", "", gpu[1] if gpu else facts["processor"])
    path = out / f"{tree['slot']}-{slug(machine).lower()}.json"
    write_json(path, tree)
    return path


def judged(
    targets: Sequence[Target], cases: Sequence[Mapping[str, Any]], default: str, device: str
) -> list[dict[str, Any]]:
    """Each target for `device` with what was measured, once for every variant of its case.

    `met` compares the median ratio with the limit; it is None where the case was not measured.
    """
    judgements = []
    for target in targets:
        if target.device != device:
            continue
        facts = {
            "says": target.says(default),
            "contestant": target.contestant,
            "quantity": target.quantity,
            "limit": target.limit,
        }
        found = [
            case for case in cases if (case["size"], case["passes"]) == (target.size, target.passes)
        ]
        for case in found:
            ratio = _ratio(case["results"].get(target.contestant, {}), target)
            median = None if ratio is None else ratio["median"]
            met = None if median is None else median <= target.limit
            judgements.append(facts | {"case": case["label"], "measured": ratio, "met": met})
        if not found:
            label = Case(target.size, target.passes).label
            judgements.append(facts | {"case": label, "measured": None, "met": None})
    return judgements


def _ratio(result: Mapping[str, Any], target: Target) -> dict[str, float | None] | None:
    if target.quantity == "time":
        ratio: dict[str, float | None] | None = result.get("time_ratio")
        return ratio
    if target.reference is not None:
        peak = result.get("peak_bytes")
        ratio_to = None if peak is None else peak / target.reference
    else:
        ratio_to = result.get("memory_ratio")
    return None if ratio_to is None else {"median": ratio_to, "low": None, "high": None}


def _measure(
    slot: str,
    names: Sequence[str],
    workload: Workload,
    case: Case,
    device: str,
    threads: int,
    options: Options,
    progress: Callable[[int], None],
) -> dict[str, dict[str, Any]]:
    torch.compiler.reset()  # what earlier cases compiled counts towards a limit
    calls: dict[str, Callable[[], object]] = {}
    peaks: dict[str, int | None] = {}
    skipped: dict[str, str] = {}
    for done, name in enumerate(names, start=1):
        try:
            peaks[name] = peak_above_inputs(slot, name, case, device, threads)
            calls[name] = workload.prepare(contestant(slot, name), case, device)
            calls[name]()  # warm-up
        except (MemoryError, ValueError, RuntimeError) as error:
            calls.pop(name, None)
            reason = (str(error).strip() or "no message").splitlines()[0]
            skipped[name] = f"{type(error).__name__}: {reason}"
        progress(done)
    timings = interleaved(
        calls,
        seconds=options.seconds,
        repeat=options.repeat,
        limit=options.limit,
        after_round=lambda rounds: progress(len(names) + rounds),
    )
    reference = COMPONENTS[slot].default
    return {
        name: {"skipped": skipped[name]}
        if name in skipped
        else _result(timings[name], peaks[name], timings.get(reference), peaks.get(reference))
        for name in names
    }


def _result(
    timing: Timing, peak: int | None, default: Timing | None, default_peak: int | None
) -> dict[str, Any]:
    low, median, high = timing.quartiles
    comparable = peak is not None and default_peak is not None and default_peak > SMALLEST_MEMORY
    return {
        "seconds": {"median": median, "lower_quartile": low, "upper_quartile": high},
        "rounds": list(timing.rounds),
        "calls_per_round": timing.calls,
        "time_ratio": None
        if default is None
        else asdict(paired_ratio(timing.rounds, default.rounds)),
        "peak_bytes": peak,
        "memory_ratio": peak / default_peak if comparable else None,  # type: ignore[operator]
    }


def _described(slot: str, name: str) -> dict[str, str]:
    if name in COMPONENTS[slot]:
        kind = "default" if name == COMPONENTS[slot].default else "component"
        return {"kind": kind, "where": COMPONENTS[slot].where(name)}
    facts = {"kind": "peer", "where": PEERS[slot].where(name)}
    if name in PACKAGES:
        package = importlib.metadata.packages_distributions()[PACKAGES[name]][0]
        facts["version"] = importlib.metadata.version(package)
    return facts


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
