"""What the `ATTENTION` slot builds: every layer through one uniform call.

    factory(embed_dim, num_heads, *, sequence_length, position) -> nn.Module
    module.forward(x, attn_mask=None, is_causal=False), x (batch, length, embed_dim)

`sequence_length` is the training length (sigmoid attention fixes its bias there); `position` is
"rotary", "alibi" or None. A layer that cannot honour a position says so by a ValueError.
"""

from functools import partial

from torch import nn

from heterodox.attention.sigmoid import SigmoidAttention
from heterodox.attention.softmax import SoftmaxAttention
from heterodox.attention.softplus import SoftplusAttention, softplus_attention


def softmax(
    embed_dim: int, num_heads: int, *, sequence_length: int, position: str | None = None
) -> nn.Module:
    return SoftmaxAttention(embed_dim, num_heads, position=position)


def softmax_qk_log_n(
    embed_dim: int, num_heads: int, *, sequence_length: int, position: str | None = None
) -> nn.Module:
    """Softmax with QK-norm and a temperature of log n: what a fair test of long contexts needs."""
    return SoftmaxAttention(embed_dim, num_heads, position=position, qk_norm=True, log_n=True)


def sigmoid(
    embed_dim: int, num_heads: int, *, sequence_length: int, position: str | None = None
) -> nn.Module:
    return SigmoidAttention(
        embed_dim, num_heads, sequence_length=sequence_length, position=position
    )


def softplus(
    embed_dim: int, num_heads: int, *, sequence_length: int, position: str | None = None
) -> nn.Module:
    return SoftplusAttention(embed_dim, num_heads, position=position)


def softplus_lssa(
    embed_dim: int, num_heads: int, *, sequence_length: int, position: str | None = None
) -> nn.Module:
    return SoftplusAttention(embed_dim, num_heads, power=None, position=position)


softplus_attention_power_15 = partial(softplus_attention, power=15.0)
