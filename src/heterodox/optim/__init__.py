"""Optimizers and learning-rate schedules.

`OPTIMIZERS` maps a name to `(params, lr, weight_decay=0.0) -> Optimizer`;
`SCHEDULES` maps a name to `(optimizer, total_steps, warmup_steps=0) -> LRScheduler`.
"""

from typing import TYPE_CHECKING

from heterodox.slots import Slot, lazy_exports

if TYPE_CHECKING:
    from heterodox.optim.perp_grad import PerpGrad, project_orthogonal

OPTIMIZERS = Slot(
    "optimizer",
    {
        "adamw": "heterodox.optim.slot:adamw",
        "sgd": "heterodox.optim.slot:sgd",
        "perp-grad": "heterodox.optim.slot:perp_grad",
    },
)

SCHEDULES = Slot(
    "schedule",
    {
        "cosine": "heterodox.optim.slot:cosine",
        "constant": "heterodox.optim.slot:constant",
    },
)

_EXPORTS = {
    "PerpGrad": "heterodox.optim.perp_grad",
    "project_orthogonal": "heterodox.optim.perp_grad",
}

__all__ = ["OPTIMIZERS", "SCHEDULES", "PerpGrad", "project_orthogonal"]

__getattr__ = lazy_exports(__name__, _EXPORTS)
