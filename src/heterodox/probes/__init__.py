"""Probes: what to measure while a network trains."""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.probes.grokking import (
        GrokkingMonitor,
        naive_loss_minimization,
        softmax_collapse,
    )

_EXPORTS = {
    "GrokkingMonitor": "heterodox.probes.grokking",
    "naive_loss_minimization": "heterodox.probes.grokking",
    "softmax_collapse": "heterodox.probes.grokking",
}

__all__ = ["GrokkingMonitor", "naive_loss_minimization", "softmax_collapse"]

__getattr__ = lazy_exports(__name__, _EXPORTS)
