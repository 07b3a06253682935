"""Progress of a run: jobs done and running, the live metric of each, time left."""

import json
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from heterodox.experiment.job import Done, running_folder

REFRESH_SECONDS = 0.5


class Display:
    """A context in which finished jobs are announced and running ones are watched.

    Args:
        console: a terminal gets bars; anything else one plain line a finished job.
        out: the folder of results, in which running jobs leave their heartbeats.
        total: how many jobs there are.
    """

    def __init__(self, console: Console, out: Path, total: int) -> None:
        self._console = console
        self._folder = running_folder(out)
        self._total = total
        self._count = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._rows: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[live]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._overall = self._progress.add_task("jobs", total=total, live="")

    def __enter__(self) -> "Display":
        self._progress.start()
        if self._console.is_terminal:
            self._thread.start()
        else:
            self._console.print(f"{self._total} job{'s' if self._total != 1 else ''} to run")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._progress.stop()

    def finished(self, done: Done) -> None:
        """Announces a job that has ended, well or badly."""
        self._count += 1
        self._progress.update(self._overall, completed=self._count)
        where = f"[{self._count}/{self._total}]"
        label = done.job.label
        if done.error:
            last = done.error.strip().splitlines()[-1]
            self._print(f"{where} {label}: broke: {last}")
            self._print(done.error.rstrip())
            return
        parts = []
        for record in done.records:
            for arm, measurement in record.measurements.items():
                value = "diverged" if measurement.diverged else f"{measurement.value:.4g}"
                parts.append(value if len(record.measurements) == 1 else f"{arm} {value}")
        seconds = sum(record.seconds for record in done.records)
        how = "found" if done.found else f"{seconds:.1f} s"
        self._print(f"{where} {label}: {', '.join(parts)} ({how})")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _watch(self) -> None:
        while not self._ended.wait(REFRESH_SECONDS):
            beats = dict(self._beats())
            for name in set(self._rows) - set(beats):
                self._progress.remove_task(self._rows.pop(name))
            for name, beat in beats.items():
                if name not in self._rows:
                    self._rows[name] = self._progress.add_task(beat["label"], live="")
                self._progress.update(
                    self._rows[name],
                    total=beat["total"] or None,
                    completed=beat["step"],
                    live=", ".join(f"{k} {float(v):.4g}" for k, v in beat["metrics"].items()),
                )
            parts = sum(beat["step"] / beat["total"] for beat in beats.values() if beat["total"])
            self._progress.update(self._overall, completed=min(self._total, self._count + parts))

    def _beats(self) -> list[tuple[str, dict[str, Any]]]:
        beats = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                beat = json.loads(path.read_text())
            except (OSError, ValueError):
                continue  # it ended between the listing and the reading
            if beat["host"] != socket.gethostname() or psutil.pid_exists(beat["pid"]):
                beats.append((path.stem, beat))
        return beats
