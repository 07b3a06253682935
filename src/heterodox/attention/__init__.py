"""Attention: softmax, the default, and what has been put in its place.

`ATTENTION` maps a name to a layer factory `(embed_dim, num_heads, *, sequence_length, position)`;
`ATTENTION_FUNCTIONS` maps it to a function with the signature of
`torch.nn.functional.scaled_dot_product_attention`.
"""

from typing import TYPE_CHECKING

from heterodox.slots import Slot, lazy_exports

if TYPE_CHECKING:
    from heterodox.attention.position import alibi_slopes, apply_rotary
    from heterodox.attention.sigmoid import (
        SigmoidAttention,
        sigmoid_attention,
        sigmoid_attention_lipschitz_bound,
    )
    from heterodox.attention.softmax import SoftmaxAttention
    from heterodox.attention.softplus import (
        SoftplusAttention,
        set_power,
        softplus_attention,
        softplus_attention_weights,
    )

ATTENTION = Slot(
    "attention",
    {
        "softmax": "heterodox.attention.slot:softmax",
        "softmax-qk-log-n": "heterodox.attention.slot:softmax_qk_log_n",
        "sigmoid": "heterodox.attention.slot:sigmoid",
        "softplus": "heterodox.attention.slot:softplus",
        "softplus-lssa": "heterodox.attention.slot:softplus_lssa",
    },
)

ATTENTION_FUNCTIONS = Slot(
    "attention",
    {
        "softmax": "torch.nn.functional:scaled_dot_product_attention",
        "sigmoid": "heterodox.attention.sigmoid:sigmoid_attention",
        "softplus": "heterodox.attention.slot:softplus_attention_power_15",
        "softplus-lssa": "heterodox.attention.softplus:softplus_attention",
    },
)

POSITIONS = ("rotary", "alibi", "learned", "none")

_EXPORTS = {
    "SigmoidAttention": "heterodox.attention.sigmoid",
    "SoftmaxAttention": "heterodox.attention.softmax",
    "SoftplusAttention": "heterodox.attention.softplus",
    "alibi_slopes": "heterodox.attention.position",
    "apply_rotary": "heterodox.attention.position",
    "set_power": "heterodox.attention.softplus",
    "sigmoid_attention": "heterodox.attention.sigmoid",
    "sigmoid_attention_lipschitz_bound": "heterodox.attention.sigmoid",
    "softplus_attention": "heterodox.attention.softplus",
    "softplus_attention_weights": "heterodox.attention.softplus",
}

__all__ = [
    "ATTENTION",
    "ATTENTION_FUNCTIONS",
    "POSITIONS",
    "SigmoidAttention",
    "SoftmaxAttention",
    "SoftplusAttention",
    "alibi_slopes",
    "apply_rotary",
    "set_power",
    "sigmoid_attention",
    "sigmoid_attention_lipschitz_bound",
    "softplus_attention",
    "softplus_attention_weights",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
