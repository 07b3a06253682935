"""Softmax-free attention where only a sequence is given: its tokens are those of a square image."""

import math

from jaxtyping import Bool, Float
from torch import Tensor, nn

from heterodox.attention.softmax_free import SoftmaxFreeAttention


class SquareGridAttention(nn.Module):
    """A `SoftmaxFreeAttention` that is called like other attention layers, on a square grid.

    Without a local term, and with the smallest ratio there is: the smallest divisor above 1 of the
    grid's side, so that there are as many bottleneck tokens as possible but for the full kernel.

    Args:
        embed_dim, num_heads, normalize: see `SoftmaxFreeAttention`.
        sequence_length: tokens of a training image, a square number above 1. Larger and smaller
            square grids work too if the ratio divides their side.

    Raises:
        ValueError: `sequence_length` is no square number above 1, or as `SoftmaxFreeAttention`.

    Example:
        >>> import torch
        >>> layer = SquareGridAttention(32, 4, sequence_length=49 * 4)
        >>> layer(torch.randn(2, 196, 32)).shape, layer.attention.ratio
        (torch.Size([2, 196, 32]), 2)
    """

    def __init__(
        self, embed_dim: int, num_heads: int, *, sequence_length: int, normalize: bool = False
    ) -> None:
        super().__init__()
        side = math.isqrt(max(sequence_length, 0))
        if side < 2 or side**2 != sequence_length:
            raise ValueError(
                f"sequence_length: {sequence_length} given, a square number above 1 expected, as "
                "softmax-free attention works on a grid"
            )
        ratio = next(r for r in range(2, side + 1) if side % r == 0)
        self.attention = SoftmaxFreeAttention(embed_dim, num_heads, ratio, normalize=normalize)

    def forward(
        self,
        x: Float[Tensor, "batch length embed_dim"],
        attn_mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "batch length embed_dim"]:
        """Tokens of a square grid in reading order.

        Raises:
            ValueError: a mask or a causal call, which this attention cannot honour, or `x` is no
                square grid whose side the ratio divides.
        """
        if is_causal:
            raise ValueError(
                "is_causal: True given, False expected, as bottleneck tokens see whole patches"
            )
        if attn_mask is not None:
            raise ValueError(
                f"attn_mask: shape {tuple(attn_mask.shape)} given, None expected, as bottleneck "
                "tokens see whole patches"
            )
        side = math.isqrt(x.shape[-2]) if x.ndim == 3 else 0
        if x.ndim == 3 and side**2 != x.shape[1]:
            raise ValueError(f"x: length {x.shape[1]} given, a square number expected")
        return self.attention(x, side, side)
