"""The result store: one JSON file a run, written atomically, found again by what it depends on.

<root>/jobs/<scale>/<paper>/<measure>/<arm>-seed<seed>-<fingerprint>.json
"""

import contextlib
import json
import os
import re
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heterodox.experiment.measurement import Measurement
from heterodox.experiment.scale import Scale

SCHEMA = 1
DAMAGED = ".damaged"


@dataclass(frozen=True)
class JobKey:
    """What one run is of. `arm` is None when the run measures all arms."""

    paper: str
    measure: str
    arm: str | None
    seed: int
    scale: Scale
    device: str
    fingerprint: str

    @property
    def path(self) -> Path:
        """Relative to the store's root."""
        arm = "all" if self.arm is None else slug(self.arm)
        name = f"{arm}-seed{self.seed}-{self.fingerprint[:12]}.json"
        return Path("jobs", self.scale, slug(self.paper), slug(self.measure), name)

    @property
    def label(self) -> str:
        return " ".join(filter(None, (self.paper, self.measure, self.arm, f"seed {self.seed}")))


@dataclass(frozen=True)
class Record:
    """A finished run: the measurement of each arm, and how it was made."""

    measurements: dict[str, Measurement]
    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    started: str
    finished: str
    environment: dict[str, str]
    settings: dict[str, Any]
    together: int = 1
    """How many seeds were computed in the same run; the costs are a share of that run's."""


class DamagedResult(ValueError):
    """A result file that is not of the store's form."""


def slug(text: str) -> str:
    """A file name that says `text` and cannot leave its folder.

    Example:
        >>> slug("b = -log n"), slug("../x")
        ('b-log-n', 'x')
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.]+", "-", ascii_text).strip("-.") or "unnamed"


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader finds the old one or the new one, even after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
    )
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_json(path: Path, tree: Any) -> None:
    """`write_text` of strict JSON that a person can read: lists of numbers stand on one line."""
    text = json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False)
    flat = re.sub(
        r"\[\s+((?:-?[\d.eE+-]+|\"-?(?:NaN|Infinity)\")(?:,\s+(?:-?[\d.eE+-]+|\"-?(?:NaN|Infinity)\"))*)\s+\]",
        lambda match: "[" + re.sub(r",\s+", ", ", match[1]) + "]",
        text,
    )
    write_text(path, flat + "\n")


class Store:
    """Results under a root folder.

    Args:
        root: created when the first result is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, key: JobKey, record: Record) -> None:
        write_json(self.root / key.path, _tree(key, record))

    def read(self, key: JobKey) -> Record | None:
        """The result of `key`, or None if there is none.

        Raises:
            DamagedResult: the file is there but not of the store's form.
        """
        path = self.root / key.path
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise DamagedResult(f"{path}: not UTF-8") from error
        try:
            tree = json.loads(text)
            if tree["schema"] != SCHEMA:
                raise ValueError(f"schema {tree['schema']}")
            if tree["job"]["fingerprint"] != key.fingerprint:
                raise ValueError("another fingerprint")
            return Record(
                measurements={
                    str(arm): Measurement.from_json(m) for arm, m in tree["measurements"].items()
                },
                seconds=float(tree["seconds"]),
                cpu_seconds=float(tree["cpu_seconds"]),
                peak_memory_bytes=int(tree["peak_memory_bytes"]),
                started=str(tree["started"]),
                finished=str(tree["finished"]),
                environment=dict(tree["environment"]),
                settings=dict(tree["settings"]),
                together=int(tree["together"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedResult(f"{path}: not a result of this program ({error!r})") from error

    def set_aside(self, key: JobKey) -> Path:
        """Renames a damaged file so that it is kept but not read again."""
        path = self.root / key.path
        aside = path.with_name(path.name + DAMAGED)
        os.replace(path, aside)
        return aside


def _tree(key: JobKey, record: Record) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "job": {
            "paper": key.paper,
            "measure": key.measure,
            "arm": key.arm,
            "seed": key.seed,
            "scale": str(key.scale),
            "device": key.device,
            "fingerprint": key.fingerprint,
        },
        "settings": record.settings,
        "measurements": {arm: m.to_json() for arm, m in record.measurements.items()},
        "seconds": round(record.seconds, 3),
        "cpu_seconds": round(record.cpu_seconds, 3),
        "peak_memory_bytes": record.peak_memory_bytes,
        "together": record.together,
        "started": record.started,
        "finished": record.finished,
        "environment": record.environment,
    }
