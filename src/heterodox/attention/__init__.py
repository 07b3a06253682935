"""Attention: softmax, the default, and what has been put in its place.

`ATTENTION` maps a name to a layer factory `(embed_dim, num_heads, *, sequence_length, position)`;
`ATTENTION_LAYOUTS` maps a name to `(layers) -> names`, for models whose layers differ;
`ATTENTION_FUNCTIONS` maps it to a function with the signature of
`torch.nn.functional.scaled_dot_product_attention`.
"""

from typing import TYPE_CHECKING

from heterodox.slots import Slot, lazy_exports

if TYPE_CHECKING:
    from heterodox.attention.causal import CausalMixer
    from heterodox.attention.delta import (
        DeltaNet,
        delta_rule,
        delta_rule_attention_map,
        delta_rule_recurrent,
        delta_rule_step,
        wy_representation,
    )
    from heterodox.attention.linear import (
        LinearAttention,
        linear_attention,
        retention_decay,
    )
    from heterodox.attention.position import alibi_slopes, apply_rotary
    from heterodox.attention.sigmoid import (
        SigmoidAttention,
        sigmoid_attention,
        sigmoid_attention_lipschitz_bound,
    )
    from heterodox.attention.softmax import SoftmaxAttention
    from heterodox.attention.softmax_free import (
        SoftmaxFreeAttention,
        gaussian_kernel,
        newton_inverse,
        softmax_free_attention,
    )
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
        "soft": "heterodox.attention.slot:soft",
        "soft++": "heterodox.attention.slot:soft_plus_plus",
        "softmax-window": "heterodox.attention.slot:softmax_window",
        "linear": "heterodox.attention.slot:linear",
        "linear-decay": "heterodox.attention.slot:linear_decay",
        "delta": "heterodox.attention.slot:delta",
        "deltanet": "heterodox.attention.slot:deltanet",
        "normalized": "heterodox.sequence.slot:normalized",
        "qlstm": "heterodox.sequence.slot:qlstm",
        "qlstm-reversed": "heterodox.sequence.slot:qlstm_reversed",
    },
)

ATTENTION_LAYOUTS = Slot(
    "attention",
    {
        "deltanet-window": "heterodox.attention.slot:deltanet_window",
        "deltanet-global": "heterodox.attention.slot:deltanet_global",
    },
)

ATTENTION_FUNCTIONS = Slot(
    "attention",
    {
        "softmax": "torch.nn.functional:scaled_dot_product_attention",
        "sigmoid": "heterodox.attention.sigmoid:sigmoid_attention",
        "softplus": "heterodox.attention.slot:softplus_attention_power_15",
        "softplus-lssa": "heterodox.attention.softplus:softplus_attention",
        "linear": "heterodox.attention.linear:linear_attention",
    },
)

POSITIONS = ("rotary", "alibi", "learned", "none")

_EXPORTS = {
    "CausalMixer": "heterodox.attention.causal",
    "DeltaNet": "heterodox.attention.delta",
    "LinearAttention": "heterodox.attention.linear",
    "SigmoidAttention": "heterodox.attention.sigmoid",
    "SoftmaxAttention": "heterodox.attention.softmax",
    "SoftmaxFreeAttention": "heterodox.attention.softmax_free",
    "SoftplusAttention": "heterodox.attention.softplus",
    "alibi_slopes": "heterodox.attention.position",
    "apply_rotary": "heterodox.attention.position",
    "delta_rule": "heterodox.attention.delta",
    "delta_rule_attention_map": "heterodox.attention.delta",
    "delta_rule_recurrent": "heterodox.attention.delta",
    "delta_rule_step": "heterodox.attention.delta",
    "gaussian_kernel": "heterodox.attention.softmax_free",
    "linear_attention": "heterodox.attention.linear",
    "newton_inverse": "heterodox.attention.softmax_free",
    "retention_decay": "heterodox.attention.linear",
    "set_power": "heterodox.attention.softplus",
    "sigmoid_attention": "heterodox.attention.sigmoid",
    "sigmoid_attention_lipschitz_bound": "heterodox.attention.sigmoid",
    "softmax_free_attention": "heterodox.attention.softmax_free",
    "softplus_attention": "heterodox.attention.softplus",
    "softplus_attention_weights": "heterodox.attention.softplus",
    "wy_representation": "heterodox.attention.delta",
}

__all__ = [
    "ATTENTION",
    "ATTENTION_FUNCTIONS",
    "ATTENTION_LAYOUTS",
    "POSITIONS",
    "CausalMixer",
    "DeltaNet",
    "LinearAttention",
    "SigmoidAttention",
    "SoftmaxAttention",
    "SoftmaxFreeAttention",
    "SoftplusAttention",
    "alibi_slopes",
    "apply_rotary",
    "delta_rule",
    "delta_rule_attention_map",
    "delta_rule_recurrent",
    "delta_rule_step",
    "gaussian_kernel",
    "linear_attention",
    "newton_inverse",
    "retention_decay",
    "set_power",
    "sigmoid_attention",
    "sigmoid_attention_lipschitz_bound",
    "softmax_free_attention",
    "softplus_attention",
    "softplus_attention_weights",
    "wy_representation",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
