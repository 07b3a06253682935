"""The one training loop, and what it needs: batches, checkpoints, progress, seeds and devices."""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.training.batches import Indexed, RandomWindows, Shuffled
    from heterodox.training.checkpoint import load_checkpoint, save_checkpoint
    from heterodox.training.devices import fabric_on
    from heterodox.training.history import History
    from heterodox.training.loop import fit
    from heterodox.training.progress import listening, report
    from heterodox.training.seeding import seeded

_EXPORTS = {
    "History": "heterodox.training.history",
    "Indexed": "heterodox.training.batches",
    "RandomWindows": "heterodox.training.batches",
    "Shuffled": "heterodox.training.batches",
    "fabric_on": "heterodox.training.devices",
    "fit": "heterodox.training.loop",
    "listening": "heterodox.training.progress",
    "load_checkpoint": "heterodox.training.checkpoint",
    "report": "heterodox.training.progress",
    "save_checkpoint": "heterodox.training.checkpoint",
    "seeded": "heterodox.training.seeding",
}

__all__ = [
    "History",
    "Indexed",
    "RandomWindows",
    "Shuffled",
    "fabric_on",
    "fit",
    "listening",
    "load_checkpoint",
    "report",
    "save_checkpoint",
    "seeded",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
