"""Layers, and the slot of normalisation layers: `NORMS` maps a name to `(dim) -> Module`."""

from heterodox.slots import Slot

NORMS = Slot(
    "norm",
    {
        "layer": "heterodox.layers.norm:layer_norm",
        "rms": "heterodox.layers.norm:rms_norm",
    },
)

__all__ = ["NORMS"]
