"""Positions inside attention: rotary embedding of queries and keys, and ALiBi's linear penalty.

Rotary:  the pair (x_2k, x_2k+1) at position p is turned by the angle p · base^(-2k/d)
ALiBi:   -slope_h · |i + n - n_q - j| is added to the logit of query i and key j

Su et al., "RoFormer", arXiv 2104.09864, equations 14-15 and 34; Press et al., "Train Short, Test
Long", arXiv 2108.12409, section 3. ALiBi is written with the absolute distance: functions that are
not invariant to a shift of a row's logits, such as the sigmoid, need the true offset, and the
distance gives queries without a causal mask the same penalty on both sides.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def apply_rotary(
    x: Float[Tensor, "*batch length head_dim"], offset: int = 0, base: float = 10000.0
) -> Float[Tensor, "*batch length head_dim"]:
    """Turns interleaved pairs of channels by an angle that grows with the position.

    The scalar product of two rotated vectors depends on their positions only through the
    difference. Sines and cosines are computed in float32 or better; the dtype of `x` is kept.

    Args:
        x: queries or keys, with position 0 first.
        offset: position of the first row; the length of the cache when decoding.
        base: the longest wavelength is 2π·base positions; 10000 in the RoFormer paper.

    Raises:
        ValueError: `head_dim` is odd.

    Example:
        >>> x = torch.randn(2, 4, 10, 8)
        >>> rotated = apply_rotary(x)
        >>> torch.allclose(rotated[:, :, 3:], apply_rotary(x[:, :, 3:], offset=3), atol=1e-6)
        True
    """
    length, head_dim = x.shape[-2:]
    if head_dim % 2:
        raise ValueError(f"x: last dimension {head_dim} given, an even number expected")
    # float32: a bfloat16 angle is off by whole turns after a few hundred positions.
    dtype = torch.promote_types(x.dtype, torch.float32)
    position = torch.arange(offset, offset + length, device=x.device, dtype=dtype)
    exponent = torch.arange(0, head_dim, 2, device=x.device, dtype=dtype) / head_dim
    angle = position[:, None] * base**-exponent
    cos, sin = angle.cos(), angle.sin()
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return pairs.flatten(-2).to(x.dtype)


def alibi_slopes(
    num_heads: int, device: torch.device | str | None = None
) -> Float[Tensor, " heads"]:
    """The slope of each head's penalty in float32, as the ALiBi paper fixes it.

    For a power of two, 2^(-8h/H) for h = 1..H. Otherwise the slopes of the next lower power of
    two, then every second slope of twice that power until there are `num_heads`.

    Raises:
        ValueError: `num_heads` is not positive.

    Example:
        >>> alibi_slopes(4)
        tensor([0.2500, 0.0625, 0.0156, 0.0039])
        >>> alibi_slopes(3)
        tensor([0.0625, 0.0039, 0.2500])
    """
    if num_heads < 1:
        raise ValueError(f"num_heads: {num_heads} given, a positive number expected")
    lower = 1 << (num_heads.bit_length() - 1)
    head = torch.arange(1, lower + 1, device=device, dtype=torch.float32)
    between = head[: num_heads - lower] - 0.5
    return torch.exp2(torch.cat((head, between)) * (-8 / lower))


def alibi_bias(
    slopes: Float[Tensor, " heads"], num_queries: int, num_keys: int
) -> Float[Tensor, "heads queries keys"]:
    """What ALiBi adds to the logits: -slope_h · |i + n - n_q - j|.

    The last query is aligned with the last key, so that the one query of a decoding step sees the
    distances that it would have had in a full pass.

    Example:
        >>> alibi_bias(torch.tensor([0.5]), 2, 3)
        tensor([[[-0.5000, -0.0000, -0.5000],
                 [-1.0000, -0.5000, -0.0000]]])
    """
    key_position = torch.arange(num_keys, device=slopes.device)
    query_position = torch.arange(num_keys - num_queries, num_keys, device=slopes.device)
    distance = (query_position[:, None] - key_position).abs()
    return -slopes[:, None, None] * distance


def check_position(position: str | None, head_dim: int) -> None:
    """Raises ValueError unless an attention layer can have this position."""
    if position not in ("rotary", "alibi", None):
        raise ValueError(f"position: {position!r} given, 'rotary', 'alibi' or None expected")
    if position == "rotary" and head_dim % 2:
        raise ValueError(
            f"position: 'rotary' given with {head_dim} channels a head, an even number expected"
        )
