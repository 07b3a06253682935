"""Softplus attention with re-weighting: softmax taken apart, its exponential replaced, sharpened.

    A_ij = a_ij / Σ_k a_ik,     a_ij = softplus(log d · log N_i · cos(q_i, k_j)) m_ij        (LSSA)
    W_ij = B_ijᵖ / Σ_k B_ikᵖ,   B_ij = ReLU(N_i A_ij - O_i),   O_i = 1, or 0 if N_i ≤ 3     (LSSAR)

with m the mask and N_i the number of keys that row i sees. Gao, Spratling, Gionfrida, "Softplus
Attention with Re-weighting Boosts Length Extrapolation in Large Language Models", 2025, arXiv
2501.13428: length scaled softplus attention and its re-weighting. The authors' code could not be
read; that both normalisations are applied, one after the other, is our reading of the paper.
Time O(n_q · n · d), memory O((n_q + n) · d).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from heterodox.attention.arguments import check_heads, check_layer_input
from heterodox.attention.position import apply_rotary
from heterodox.attention.softplus_blocks import SoftplusBlocks
from heterodox.autocast import without_autocast

# Above this logit exp overflows float32, and a slower softplus takes over.
LARGEST_EXPONENT = 80.0


def softplus_attention(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch kv_heads keys head_dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"],
    attn_mask: Bool[Tensor, "..."] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    power: int | float | None = None,
    offset: float = 1.0,
    enable_gqa: bool = False,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Softplus attention (LSSA), or with a `power` re-weighted softplus attention (LSSAR).

    Rows are computed in blocks, forward and backward, so that no (queries, keys) matrix is stored;
    second derivatives are those of `softplus_attention_weights`. Half precision is computed in
    float32. With `dropout_p` the weights are stored.

    Args:
        query, key, value: as for `torch.nn.functional.scaled_dot_product_attention`. Rotary
            embedding, a rotation, may come before.
        attn_mask: True where a key may be seen; broadcasts to (batch, heads, queries, keys). Padded
            keys, which it hides, do not count in N.
        dropout_p: probability with which a weight is dropped, as in softmax attention.
        is_causal: whether query i sees only keys up to i, counted from the first query and the
            first key as in torch, also if their numbers differ; together with `attn_mask`, both
            hold. A decoding step, one query that sees the whole cache, is not causal.
        scale: what stands before log N; log(head_dim) in the paper.
        power: p of the re-weighting, at least 1; 15 in the paper for contexts longer than those of
            training. None is the first stage alone.
        offset: O of the re-weighting for rows that see more than 3 keys: 1, which is the row's
            mean of N A, in the paper.
        enable_gqa: whether each head of key and value serves several heads of the query.

    Returns:
        Rows whose keys are all hidden are zeros; so are re-weighted rows of more than 3 keys whose
        visible keys are all at the same angle, of which none is above the average.

    Raises:
        ValueError: shapes disagree, the mask is not boolean or does not broadcast, `power` is below
            1, `scale` is not positive, `offset` is negative, `dropout_p` is not in [0, 1), or
            `head_dim` is 1, whose logarithm is 0.

    Example:
        >>> x = torch.randn(2, 4, 10, 8)
        >>> softplus_attention(x, x, x, is_causal=True, power=15).shape
        torch.Size([2, 4, 10, 8])
    """
    if enable_gqa and key.shape[1] and query.shape[1] % key.shape[1] == 0:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = _checked_scale(query, key, attn_mask, scale, power, offset)
    if value.ndim != 4 or value.shape[:3] != key.shape[:3]:
        raise ValueError(
            f"value: shape {tuple(value.shape)} given, {(*key.shape[:3], 'value_dim')} expected"
        )
    _check_dropout("dropout_p", dropout_p)
    dtype = torch.promote_types(query.dtype, torch.float32)
    with without_autocast(query.device.type):
        query, key = query.to(dtype), key.to(dtype)
        if dropout_p:
            weights = softplus_attention_weights(
                query, key, attn_mask, is_causal, scale, power=power, offset=offset
            )
            output = F.dropout(weights, dropout_p) @ value.to(dtype)
        elif query.numel() == 0 or key.numel() == 0:
            output = query @ key.mT @ value.to(dtype)
        else:
            count, visible = _visible_keys(query, key, attn_mask, is_causal)
            output = SoftplusBlocks.apply(
                F.normalize(query, dim=-1) * (scale * count.log()),
                F.normalize(key, dim=-1),
                value.to(dtype),
                visible,
                _offset(count, offset) / count,
                power,
                is_causal,
                scale * math.log(key.shape[2]) > LARGEST_EXPONENT,
            )
    return output.to(value.dtype)


def softplus_attention_weights(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    attn_mask: Bool[Tensor, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    power: int | float | None = None,
    offset: float = 1.0,
) -> Float[Tensor, "batch heads queries keys"]:
    """The weights A, or W with a `power`, as the paper's equations state them.

    Arguments as for `softplus_attention`, which is `softplus_attention_weights(...) @ value` in
    less memory and time. Rows are non-negative and sum to 1, or are zero.

    Raises:
        ValueError: as `softplus_attention`.

    Example:
        >>> x = torch.randn(1, 1, 5, 8)
        >>> weights = softplus_attention_weights(x, x, is_causal=True, power=3)
        >>> torch.allclose(weights.sum(-1), torch.ones(1, 1, 5))
        True
    """
    scale = _checked_scale(query, key, attn_mask, scale, power, offset)
    dtype = torch.promote_types(query.dtype, torch.float32)
    with without_autocast(query.device.type):
        cosine = F.normalize(query.to(dtype), dim=-1) @ F.normalize(key.to(dtype), dim=-1).mT
        if cosine.numel() == 0:
            return cosine.to(query.dtype)
        count, visible = _visible_keys(query, key, attn_mask, is_causal)
        a = F.softplus(scale * count.log() * cosine, threshold=40.0)
        a = a.tril() if is_causal else a
        a = a if visible is None else a * visible
        weights = _divide(a, a.sum(-1, keepdim=True))
        if power is not None:
            b = F.relu(count * weights - _offset(count, offset))
            # The maximum goes first, because Nᵖ overflows; a maximum of rounding errors is none.
            peak = b.detach().amax(-1, keepdim=True)
            b = _divide(b, torch.where(peak > 16 * torch.finfo(dtype).eps, peak, 0)) ** power
            weights = _divide(b, b.sum(-1, keepdim=True))
    return weights.to(query.dtype)


def _divide(x: Tensor, total: Tensor) -> Tensor:
    """x / total, and 0 where the total is 0."""
    return torch.where(total > 0, x / torch.where(total > 0, total, 1), 0)


def _offset(count: Tensor, offset: float) -> Tensor:
    """O: none for rows of up to three keys, where the paper found a cut to be unstable."""
    return torch.where(count > 3, offset, 0.0)


def _visible_keys(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, is_causal: bool
) -> tuple[Tensor, Tensor | None]:
    """N of each row (1 for a row without keys), and the mask without its causal part.

    Both have the axes (batch, heads, queries, keys), of size 1 where they broadcast.
    """
    rows, keys = query.shape[2], key.shape[2]
    dtype = torch.promote_types(query.dtype, torch.float32)
    if attn_mask is None:
        count = torch.full((1, 1), keys, device=query.device)
        if is_causal:
            count = torch.arange(1, rows + 1, device=query.device)[:, None].clamp(max=keys)
        return count[None, None].to(dtype), None
    visible = attn_mask[(None,) * (4 - attn_mask.ndim)]
    visible = visible.expand(*visible.shape[:3], keys)
    if is_causal and visible.shape[2] == 1:
        last = torch.arange(rows, device=query.device).clamp(max=keys - 1)
        count = visible.cumsum(-1)[..., last].mT
    else:
        count = (visible.tril() if is_causal else visible).sum(-1, keepdim=True)
    return count.clamp(min=1).to(dtype), visible


def _checked_scale(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None,
    scale: float | None,
    power: int | float | None,
    offset: float,
) -> float:
    """The factor before log N, after a check of everything that decides on the weights."""
    if query.ndim != 4:
        raise ValueError(
            f"query: shape {tuple(query.shape)} given, (batch, heads, queries, head_dim) expected"
        )
    batch, heads, rows, head_dim = query.shape
    if key.ndim != 4 or key.shape != (batch, heads, key.shape[2], head_dim):
        raise ValueError(
            f"key: shape {tuple(key.shape)} given, {(batch, heads, 'keys', head_dim)} expected"
        )
    if attn_mask is not None:
        _check_mask(attn_mask, (batch, heads, rows, key.shape[2]))
    _check_power(power)
    if not 0 <= offset < math.inf:
        raise ValueError(f"offset: {offset} given, a number that is not negative expected")
    if scale is None:
        if head_dim == 1:
            raise ValueError("query: head_dim 1 given, at least 2 expected, as log 1 is no scale")
        return math.log(head_dim)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale: {scale} given, a positive number expected")
    return scale


def _check_mask(attn_mask: Tensor, shape: tuple[int, ...]) -> None:
    if attn_mask.dtype != torch.bool:
        raise ValueError(
            f"attn_mask: {attn_mask.dtype} given, torch.bool expected, "
            "as N is the number of keys that a row sees"
        )
    try:
        fits = torch.broadcast_shapes(attn_mask.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"attn_mask: shape {tuple(attn_mask.shape)} given, "
            f"one that broadcasts to {shape} expected"
        )


def _check_power(power: int | float | None) -> None:
    if power is not None and not 1 <= power < math.inf:
        raise ValueError(f"power: {power} given, None or a number of at least 1 expected")


def _check_dropout(name: str, dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"{name}: {dropout} given, a number in [0, 1) expected")


class SoftplusAttention(nn.Module):
    """Multi-head `softplus_attention` with its projections, for self-attention.

    Set `power` at any time: it is no parameter and is not part of the state dict. A layer trained
    with one power, or with None, can be evaluated with another.

    Args:
        embed_dim: channels of input and output, a multiple of `num_heads`.
        num_heads: number of heads, each of embed_dim / num_heads channels.
        power: sharpness p of the re-weighting; 15 in the paper. None leaves it out.
        position: "rotary", as in the paper's models, or None. A distance that is added to the
            logits, as in ALiBi, has no counterpart here: logits are bounded by the cosine, and
            softplus is not invariant to a shift.
        bias: whether the projections have one.
        dropout: probability with which a weight is dropped in training.

    Raises:
        ValueError: `embed_dim` is not a multiple of `num_heads`, a head has 1 channel, or an odd
            number with rotary position; `power` is below 1; `position` is something else; `dropout`
            is not in [0, 1).

    Example:
        >>> layer = SoftplusAttention(32, num_heads=4)
        >>> layer(torch.randn(2, 10, 32), is_causal=True).shape
        torch.Size([2, 10, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        power: int | float | None = 15.0,
        position: str | None = "rotary",
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(embed_dim, num_heads)
        head_dim = embed_dim // num_heads
        if position not in ("rotary", None):
            raise ValueError(f"position: {position!r} given, 'rotary' or None expected")
        if head_dim == 1 or (position == "rotary" and head_dim % 2):
            kind = "an even number" if position == "rotary" else "at least 2"
            raise ValueError(
                f"embed_dim: {embed_dim} given, {kind} for each of num_heads = {num_heads} heads "
                "expected"
            )
        _check_power(power)
        _check_dropout("dropout", dropout)
        self.num_heads = num_heads
        self.power = power
        self.position = position
        self.dropout = dropout
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=bias)
        self.proj = nn.Linear(embed_dim, embed_dim, bias=bias)

    @classmethod
    def from_multihead(
        cls,
        mha: nn.MultiheadAttention,
        *,
        power: int | float | None = 15.0,
        position: str | None = None,
    ) -> "SoftplusAttention":
        """A layer with the weights, bias and dropout of `mha`, which itself knows no positions.

        Raises:
            ValueError: `mha` has keys or values of another width, or adds keys of its own.

        Example:
            >>> mha = torch.nn.MultiheadAttention(32, 4, batch_first=True)
            >>> SoftplusAttention.from_multihead(mha).proj.weight is mha.out_proj.weight
            False
        """
        if mha.in_proj_weight is None:
            raise ValueError(
                f"mha: kdim {mha.kdim} and vdim {mha.vdim} given, embed_dim = {mha.embed_dim} "
                "for both expected"
            )
        if mha.bias_k is not None or mha.add_zero_attn:
            raise ValueError("mha: keys of its own given, no add_bias_kv or add_zero_attn expected")
        layer = cls(
            mha.embed_dim,
            mha.num_heads,
            power=power,
            position=position,
            bias=mha.in_proj_bias is not None,
            dropout=mha.dropout,
        )
        layer.to(mha.in_proj_weight).train(mha.training)
        with torch.no_grad():
            layer.qkv.weight.copy_(mha.in_proj_weight)
            layer.proj.weight.copy_(mha.out_proj.weight)
            if mha.in_proj_bias is not None:
                layer.qkv.bias.copy_(mha.in_proj_bias)
                layer.proj.bias.copy_(mha.out_proj.bias)
        return layer

    def forward(
        self,
        x: Float[Tensor, "batch length embed_dim"],
        attn_mask: Bool[Tensor, "..."] | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "batch length embed_dim"]:
        """Arguments as for `softplus_attention`; a padding mask is `is_token[:, None, None, :]`."""
        check_layer_input(x, self.qkv)
        query, key, value = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        if self.position == "rotary":
            query, key = apply_rotary(query), apply_rotary(key)
        output = softplus_attention(
            query,
            key,
            value,
            attn_mask,
            self.dropout if self.training else 0.0,
            is_causal,
            power=self.power,
        )
        return self.proj(output.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, power={self.power}, position={self.position!r}"


def set_power(model: nn.Module, power: int | float | None) -> None:
    """Sets the power of every `SoftplusAttention` in a model, before or after training.

    Raises:
        ValueError: `power` is below 1, or the model has no such layer.

    Example:
        >>> model = torch.nn.Sequential(SoftplusAttention(32, 4, power=None))
        >>> set_power(model, 7)
        >>> model[0].power
        7
    """
    _check_power(power)
    layers = [module for module in model.modules() if isinstance(module, SoftplusAttention)]
    if not layers:
        raise ValueError(
            f"model: {type(model).__name__} without a SoftplusAttention given, one expected"
        )
    for layer in layers:
        layer.power = power
