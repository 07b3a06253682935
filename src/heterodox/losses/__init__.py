"""Losses: cross-entropy, the default, and its alternatives. All take `(input, target, ...)`."""

from typing import TYPE_CHECKING

from heterodox.slots import Slot, lazy_exports

if TYPE_CHECKING:
    from heterodox.losses.stablemax import (
        StableMaxCrossEntropyLoss,
        log_stablemax,
        stablemax_cross_entropy,
    )

LOSSES = Slot(
    "loss",
    {
        "cross-entropy": "torch.nn.functional:cross_entropy",
        "stablemax": "heterodox.losses.stablemax:stablemax_cross_entropy",
    },
)

_EXPORTS = {
    "StableMaxCrossEntropyLoss": "heterodox.losses.stablemax",
    "log_stablemax": "heterodox.losses.stablemax",
    "stablemax_cross_entropy": "heterodox.losses.stablemax",
}

__all__ = [
    "LOSSES",
    "StableMaxCrossEntropyLoss",
    "log_stablemax",
    "stablemax_cross_entropy",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
