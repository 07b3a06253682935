"""Layers, and the slot of normalisation layers: `NORMS` maps a name to `(dim) -> Module`."""

from typing import TYPE_CHECKING

from heterodox.slots import Slot, lazy_exports

if TYPE_CHECKING:
    from heterodox.layers.polynomial import degree_for, polynomial_features
    from heterodox.layers.short_convolution import ShortConvolution

NORMS = Slot(
    "norm",
    {
        "layer": "heterodox.layers.norm:layer_norm",
        "rms": "heterodox.layers.norm:rms_norm",
    },
)

_EXPORTS = {
    "ShortConvolution": "heterodox.layers.short_convolution",
    "degree_for": "heterodox.layers.polynomial",
    "polynomial_features": "heterodox.layers.polynomial",
}

__all__ = [
    "NORMS",
    "ShortConvolution",
    "degree_for",
    "polynomial_features",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
