"""Compression: fewer numbers for the same network, and what a low rank saves."""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.compression.adapter_gradients import full_lora_gradients, lora_gradients
    from heterodox.compression.factored_attention import low_rank_attention
    from heterodox.compression.head_norms import audit, efficiency_norms
    from heterodox.compression.lora import LoRALinear
    from heterodox.compression.low_rank import low_rank_softmax

_EXPORTS = {
    "LoRALinear": "heterodox.compression.lora",
    "audit": "heterodox.compression.head_norms",
    "efficiency_norms": "heterodox.compression.head_norms",
    "full_lora_gradients": "heterodox.compression.adapter_gradients",
    "lora_gradients": "heterodox.compression.adapter_gradients",
    "low_rank_attention": "heterodox.compression.factored_attention",
    "low_rank_softmax": "heterodox.compression.low_rank",
}

__all__ = [
    "LoRALinear",
    "audit",
    "efficiency_norms",
    "full_lora_gradients",
    "lora_gradients",
    "low_rank_attention",
    "low_rank_softmax",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
