"""What the `ATTENTION` slot builds: every layer through one uniform call.

    factory(embed_dim, num_heads, *, sequence_length, position) -> nn.Module
    module.forward(x, attn_mask=None, is_causal=False), x (batch, length, embed_dim)

`sequence_length` is the training length (sigmoid attention fixes its bias there); `position` is
"rotary", "alibi" or None. A layer that cannot honour a position says so by a ValueError.
"""

from functools import partial

from torch import nn

from heterodox.attention.causal import CausalMixer
from heterodox.attention.delta import DeltaNet
from heterodox.attention.linear import LinearAttention
from heterodox.attention.sigmoid import SigmoidAttention
from heterodox.attention.softmax import SoftmaxAttention
from heterodox.attention.softmax_free_grid import SquareGridAttention
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


def softmax_window(
    embed_dim: int, num_heads: int, *, sequence_length: int, position: str | None = None
) -> nn.Module:
    """Softmax over the last tokens, half as many as a training sequence has; causal only."""
    window = max(1, sequence_length // 2)
    return SoftmaxAttention(embed_dim, num_heads, position=position, window=window)


def linear(
    embed_dim: int, num_heads: int, *, sequence_length: int, position: str | None = None
) -> nn.Module:
    return LinearAttention(embed_dim, num_heads, position=position)


def linear_decay(
    embed_dim: int, num_heads: int, *, sequence_length: int, position: str | None = None
) -> nn.Module:
    """Linear attention whose keys fade at RetNet's rates; causal only."""
    return LinearAttention(embed_dim, num_heads, position=position, decay=True)


def delta(
    embed_dim: int, num_heads: int, *, sequence_length: int, position: str | None = None
) -> nn.Module:
    """The delta rule on projections as they are: no short convolutions and no feature map."""
    layer = DeltaNet(embed_dim, num_heads, use_short_conv=False, qk_activation="identity")
    return CausalMixer(layer, position=position)


def deltanet(
    embed_dim: int, num_heads: int, *, sequence_length: int, position: str | None = None
) -> nn.Module:
    return CausalMixer(DeltaNet(embed_dim, num_heads), position=position)


def deltanet_window(layers: int) -> list[str]:
    """DeltaNet with sliding-window softmax in every other layer (arXiv 2406.06484, section 4)."""
    return ["softmax-window" if index % 2 else "deltanet" for index in range(layers)]


def deltanet_global(layers: int) -> list[str]:
    """DeltaNet with full softmax in the second layer and in layer layers/2 + 1, counted from 1
    (arXiv 2406.06484, section 4)."""
    of_softmax = {2, layers // 2 + 1}
    return ["softmax" if number in of_softmax else "deltanet" for number in range(1, layers + 1)]


def soft(
    embed_dim: int,
    num_heads: int,
    *,
    sequence_length: int,
    position: str | None = None,
    normalize: bool = False,
) -> nn.Module:
    """Softmax-free attention (SOFT) on a square grid of tokens; neither causal nor masked."""
    if position is not None:
        raise ValueError(
            f"position: {position!r} given, None expected, as queries are the keys too and are "
            "compared by their distance"
        )
    return SquareGridAttention(
        embed_dim, num_heads, sequence_length=sequence_length, normalize=normalize
    )


soft_plus_plus = partial(soft, normalize=True)

softplus_attention_power_15 = partial(softplus_attention, power=15.0)
