"""One job: a measure, an arm and a seed (or several seeds computed together), run and stored.

A job is run by at most one process at a time, whichever program started it: it holds a lock file,
which the operating system gives back however the process ends. While it runs it leaves a heartbeat
beside the lock, from which any program can show how far it is.
"""

import contextlib
import datetime
import json
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import psutil
import torch

from heterodox.experiment.claim import Measure
from heterodox.experiment.environment import environment
from heterodox.experiment.measurement import Measurement, encode_number
from heterodox.experiment.memory import peak_memory, reset_peak_memory
from heterodox.experiment.store import DamagedResult, JobKey, Record, Store, write_text
from heterodox.training.progress import listening

HEARTBEAT_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """What a worker is given. Several keys differ in their seed only and are computed together."""

    measure: Measure
    keys: tuple[JobKey, ...]

    @property
    def label(self) -> str:
        if len(self.keys) == 1:
            return self.keys[0].label
        seeds = ", ".join(str(key.seed) for key in self.keys)
        return f"{self.keys[0].paper} {self.measure.name} {self.keys[0].arm} seeds {seeds}"

    @property
    def name(self) -> str:
        """A file name, unique among jobs."""
        return "-".join(self.keys[0].path.with_suffix("").parts[1:])


@dataclass(frozen=True)
class Done:
    """What a worker brings back: the records, or the traceback of what went wrong."""

    job: Job
    records: tuple[Record, ...] = ()
    error: str = ""
    found: bool = False
    """Whether another run had computed it meanwhile."""


@dataclass(frozen=True)
class Starter:
    """The process that hands out the jobs."""

    pid: int
    host: str

    @classmethod
    def here(cls) -> "Starter":
        return cls(os.getpid(), socket.gethostname())

    @property
    def is_this_process(self) -> bool:
        return self == Starter.here()

    @property
    def is_gone(self) -> bool:
        return self.host == socket.gethostname() and not psutil.pid_exists(self.pid)


def running_folder(root: Path) -> Path:
    return root / "running"


def execute(job: Job, root: Path, starter: Starter, fresh: bool) -> Done:
    """Runs `job` unless its result is there, writes the result and returns it. Never raises."""
    if starter.is_gone:
        return Done(job, error="stopped: the program that started this job has ended")
    if not starter.is_this_process and threading.current_thread() is threading.main_thread():
        # Ctrl-C reaches every process of the terminal; the starter decides when workers end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    store = Store(root)
    folder = running_folder(root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f"{job.name}.lock"):
            # While waiting for the lock another run may have done it.
            if not fresh and (records := _stored(store, job)):
                return Done(job, records, found=True)
            with _heartbeat(folder / f"{job.name}.json", job), _one_thread():
                records = _measure(job)
            for key, record in zip(job.keys, records, strict=True):
                store.write(key, record)
        return Done(job, records)
    except Exception:
        return Done(job, error=traceback.format_exc())


def _stored(store: Store, job: Job) -> tuple[Record, ...]:
    try:
        records = [store.read(key) for key in job.keys]
    except DamagedResult:
        return ()
    return tuple(r for r in records if r is not None) if all(records) else ()


def _measure(job: Job) -> tuple[Record, ...]:
    key = job.keys[0]
    reset_peak_memory()
    started, clock, cpu = _now(), time.perf_counter(), time.process_time()
    results: list[dict[str, Measurement]]
    if len(job.keys) > 1:
        assert key.arm is not None
        seeds = [key.seed for key in job.keys]
        results = job.measure.run_many(key.arm, seeds, key.scale, key.device)
    else:
        results = [job.measure.run(key.arm, key.seed, key.scale, key.device)]
    seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
    together = len(job.keys)
    return tuple(
        Record(
            measurements=measurements,
            seconds=seconds / together,
            cpu_seconds=cpu_seconds / together,
            peak_memory_bytes=peak_memory(),
            started=started,
            finished=_now(),
            environment=environment(key.device),
            settings=job.measure.settings,
            together=together,
        )
        for measurements in results
    )


@contextlib.contextmanager
def _heartbeat(path: Path, job: Job) -> Iterator[None]:
    beat: dict[str, Any] = {
        "label": job.label,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": _now(),
        "step": 0,
        "total": 0,
        "metrics": {},
    }
    last = 0.0

    def write(step: int, total: int, metrics: dict[str, float]) -> None:
        nonlocal last
        if time.monotonic() - last < HEARTBEAT_SECONDS:
            return
        last = time.monotonic()
        numbers = {name: encode_number(value) for name, value in metrics.items()}
        write_text(path, json.dumps(beat | {"step": step, "total": total, "metrics": numbers}))

    write(0, 0, {})
    try:
        with listening(write):
            yield
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Jobs share the cores by running side by side, one thread each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
