"""Softmax attention, the default, in the layout of its alternatives.

    O = softmax(Q Kᵀ / √d + mask) V

Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, equation 1, computed by
`torch.nn.functional.scaled_dot_product_attention`. QK-norm and the log n temperature are there so
that a comparison can give the baseline what its competitor has.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from heterodox.attention.arguments import (
    check_dropout,
    check_heads,
    check_layer_input,
    check_mask,
)
from heterodox.attention.position import alibi_bias, alibi_slopes, apply_rotary, check_position


class SoftmaxAttention(nn.Module):
    """Multi-head softmax attention with its projections, for self-attention.

    Args:
        embed_dim: channels of input and output, a multiple of `num_heads`.
        num_heads: number of heads, each of embed_dim / num_heads channels.
        position: "rotary", "alibi" or None.
        qk_norm: whether query and key are normalised per head, by LayerNorm before any rotation.
        log_n: whether a query is multiplied by the logarithm of the number of keys that it sees,
            so that attention does not flatten over a longer context; meant for use with `qk_norm`.
        window: how many keys, its own included, a query sees at most; None: all. Causal only.
        bias: whether the projections have one.
        dropout: probability with which a weight is dropped in training.

    Raises:
        ValueError: `embed_dim` is not a multiple of `num_heads`, or of an even number of channels
            with rotary position; `position` is something else; `window` is not positive; or
            `dropout` is not in [0, 1).

    Example:
        >>> layer = SoftmaxAttention(32, num_heads=4, position="rotary")
        >>> layer(torch.randn(2, 10, 32), is_causal=True).shape
        torch.Size([2, 10, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        position: str | None = None,
        qk_norm: bool = False,
        log_n: bool = False,
        window: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(embed_dim, num_heads)
        head_dim = embed_dim // num_heads
        check_position(position, head_dim)
        if window is not None and window < 1:
            raise ValueError(f"window: {window} given, a positive number or None expected")
        check_dropout("dropout", dropout)
        self.num_heads = num_heads
        self.position = position
        self.log_n = log_n
        self.window = window
        self.dropout = dropout
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=bias)
        self.proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.q_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch length embed_dim"],
        attn_mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "batch length embed_dim"]:
        """A boolean mask is True where a token may attend, a floating one is added to the logits;
        together with `is_causal`, both hold. A padding mask is `is_token[:, None, None, :]`.

        Raises:
            ValueError: `x` has another shape, the mask does not broadcast to (batch, heads, length,
                length), or is floating with `log_n`, which needs the number of keys that are seen;
                or there is a window and `is_causal` is not set.
        """
        check_layer_input(x, self.qkv)
        if self.window is not None and not is_causal:
            raise ValueError("is_causal: False given, True expected with a window")
        batch, length, _ = x.shape
        if attn_mask is not None:
            check_mask(attn_mask, (batch, self.num_heads, length, length), x.device)
            attn_mask = attn_mask[(None,) * (4 - attn_mask.ndim)]
        if self.window is not None and self.window < length:
            attn_mask = _hide_keys_before(attn_mask, length, self.window, x.device)
        query, key, value = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        query, key = self.q_norm(query), self.k_norm(key)
        if self.log_n:
            query = query * _log_visible_keys(x, attn_mask, is_causal).to(query.dtype)
        if self.position == "rotary":
            query, key = apply_rotary(query), apply_rotary(key)
        elif self.position == "alibi":
            penalty = alibi_bias(alibi_slopes(self.num_heads, x.device), length, length)
            attn_mask = _add_penalty(penalty, attn_mask)
        if is_causal and attn_mask is not None:
            attn_mask, is_causal = _hide_later_keys(attn_mask, length), False
        if attn_mask is not None and attn_mask.dtype != torch.bool:
            attn_mask = attn_mask.to(query.dtype)
        dropout = self.dropout if self.training else 0.0
        output = F.scaled_dot_product_attention(query, key, value, attn_mask, dropout, is_causal)
        return self.proj(output.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, position={self.position!r}, log_n={self.log_n}" + (
            "" if self.window is None else f", window={self.window}"
        )


def _log_visible_keys(
    x: Float[Tensor, "batch length embed_dim"], attn_mask: Tensor | None, is_causal: bool
) -> Float[Tensor, "*batch_heads length 1"]:
    """log of the number of keys that each row sees; 0 for a row that sees none."""
    length = x.shape[1]
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        raise ValueError(
            f"attn_mask: {attn_mask.dtype} given, boolean expected with log_n, which needs the "
            "number of keys that are seen"
        )
    visible = torch.ones(length, length, dtype=torch.bool, device=x.device)
    visible = visible if attn_mask is None else visible & attn_mask
    visible = visible.tril() if is_causal else visible
    return visible.sum(-1, keepdim=True).clamp(min=1).log()


def _add_penalty(
    penalty: Float[Tensor, "heads length length"], attn_mask: Tensor | None
) -> Float[Tensor, "*batch heads length length"]:
    if attn_mask is None:
        return penalty
    if attn_mask.dtype == torch.bool:
        return penalty.masked_fill(~attn_mask, -torch.inf)
    return penalty + attn_mask


def _hide_keys_before(
    attn_mask: Tensor | None, length: int, window: int, device: torch.device
) -> Tensor:
    near = torch.ones(length, length, dtype=torch.bool, device=device).triu(1 - window)
    if attn_mask is None:
        return near[None, None]
    if attn_mask.dtype == torch.bool:
        return attn_mask & near
    return attn_mask.masked_fill(~near, -torch.inf)


def _hide_later_keys(attn_mask: Tensor, length: int) -> Tensor:
    earlier = torch.ones(length, length, dtype=torch.bool, device=attn_mask.device).tril()
    if attn_mask.dtype == torch.bool:
        return attn_mask & earlier
    return attn_mask.masked_fill(~earlier, -torch.inf)
