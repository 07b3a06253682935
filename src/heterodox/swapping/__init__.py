"""Another attention or output layer in an existing model, swapped in place."""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.swapping.in_place import Replaced, Skipped, SwapReport, swap
    from heterodox.swapping.multihead import SwappedMultiheadAttention
    from heterodox.swapping.output_layer import head_penalties
    from heterodox.swapping.self_attention import SwappedSelfAttention

__all__ = [
    "Replaced",
    "Skipped",
    "SwapReport",
    "SwappedMultiheadAttention",
    "SwappedSelfAttention",
    "head_penalties",
    "swap",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "Replaced": "heterodox.swapping.in_place",
        "Skipped": "heterodox.swapping.in_place",
        "SwapReport": "heterodox.swapping.in_place",
        "SwappedMultiheadAttention": "heterodox.swapping.multihead",
        "SwappedSelfAttention": "heterodox.swapping.self_attention",
        "head_penalties": "heterodox.swapping.output_layer",
        "swap": "heterodox.swapping.in_place",
    },
)
