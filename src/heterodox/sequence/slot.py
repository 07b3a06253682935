"""Sequence mixers in place of attention: see `heterodox.attention.slot` for the call."""

from torch import nn

from heterodox.attention.causal import CausalMixer
from heterodox.sequence.normalized import NormalizedAttention
from heterodox.sequence.qlstm import QLSTM


def normalized(
    embed_dim: int, num_heads: int, *, sequence_length: int, position: str | None = None
) -> nn.Module:
    """Normalised attention. It does not know the order of its inputs, and "rotary" is not applied:
    use learned positions."""
    layer = NormalizedAttention(embed_dim, num_heads=num_heads)
    return CausalMixer(layer, position=position)


def qlstm(
    embed_dim: int, num_heads: int, *, sequence_length: int, position: str | None = None
) -> nn.Module:
    """The qLSTM, which has no heads."""
    return CausalMixer(QLSTM(embed_dim), position=position)


def qlstm_reversed(
    embed_dim: int, num_heads: int, *, sequence_length: int, position: str | None = None
) -> nn.Module:
    """The qLSTM with the transition of S6."""
    return CausalMixer(QLSTM(embed_dim, reversed_sigmoid=True), position=position)
