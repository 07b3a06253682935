"""Linear attention: the exponential of softmax replaced by a positive feature map.

    o_i = φ(q_i)ᵀ S_i / φ(q_i)ᵀ z_i,   S_i = Σ_j λ^(i−j) φ(k_j) v_jᵀ,   z_i = Σ_j λ^(i−j) φ(k_j)

φ(x) = elu(x) + 1, sums over the keys that query i sees, λ = 1 unless there is a decay.
Katharopoulos et al., "Transformers are RNNs", 2020, arXiv 2006.16236, equations 4-12; the decay of
a head is that of Sun et al., "Retentive Network", 2023, arXiv 2307.08621, section 2.1. Time
O(length · chunk · (head_dim + value_dim) + length · head_dim · value_dim), memory linear in length.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from heterodox.attention.arguments import (
    check_attention,
    check_heads,
    check_layer_input,
)
from heterodox.attention.position import apply_rotary, check_position

FEATURE_MAPS = ("elu", "identity")


def linear_attention(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch kv_heads keys head_dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"],
    attn_mask: Bool[Tensor, "..."] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    feature_map: str = "elu",
    normalize: bool = True,
    decay: Float[Tensor, " heads"] | None = None,
    chunk_size: int = 64,
    enable_gqa: bool = False,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Linear attention with the arguments of `scaled_dot_product_attention`.

    A query that sees no key gets 0. Sums run in float32 or better, and the result has the dtype of
    `query`. Time and memory are linear in the length with no mask, with `is_causal` and with a
    mask of keys; another mask, or dropout of weights, needs the matrix of all weights.

    Args:
        query, key, value: as for `torch.nn.functional.scaled_dot_product_attention`.
        attn_mask: boolean, True where a query may attend; together with `is_causal`, both hold. A
            mask of keys has one row: (..., 1, keys).
        dropout_p: probability with which a weight is dropped.
        is_causal: whether query i sees only keys up to i.
        feature_map: "elu" for elu(x) + 1 (equation 7), or "identity".
        normalize: whether to divide by the sum of the weights (equation 4).
        decay: λ of each head in (0, 1], which makes a key fade by λ with each later query.
        chunk_size: positions handled at once when causal; changes speed and memory, not the result.
        enable_gqa: whether a head of key and value may serve several heads of query.

    Raises:
        ValueError: shapes, dtypes or devices disagree; the mask is not boolean; there is a decay
            without `is_causal`; weights that may be negative are to be normalised; or an option is
            none of the above.

    Example:
        >>> x = torch.randn(2, 4, 10, 8)
        >>> linear_attention(x, x, x, is_causal=True).shape
        torch.Size([2, 4, 10, 8])
    """
    check_attention(query, key, value, attn_mask, dropout_p, enable_gqa)
    _check_options(query, attn_mask, is_causal, feature_map, normalize, decay, chunk_size)
    if enable_gqa:
        groups = query.shape[1] // max(key.shape[1], 1)
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    dtype = torch.promote_types(query.dtype, torch.float32)
    features, keys = (_features(x.to(dtype), feature_map) for x in (query, key))
    if decay is not None:
        decay = decay.to(dtype)
    if attn_mask is not None and attn_mask.ndim < 2:
        attn_mask = attn_mask.expand(1, key.shape[2])
    of_keys = attn_mask is None or attn_mask.shape[-2] == 1
    if dropout_p > 0 or not of_keys:
        weights = _weights(features, keys, attn_mask, is_causal, decay)
        total = weights.sum(-1, keepdim=True)
        output = F.dropout(weights, dropout_p) @ value.to(dtype)
        return (_ratio(output, total) if normalize else output).to(query.dtype)
    if attn_mask is not None:
        keys = keys * attn_mask.transpose(-1, -2)
    values = value.to(dtype)
    if normalize:  # one more channel of ones: its output is the sum of the weights
        values = F.pad(values, (0, 1), value=1.0)
    if is_causal:
        output = _causal(features, keys, values, decay, chunk_size)
    else:
        output = features @ (keys.transpose(-1, -2) @ values)
    if normalize:
        output = _ratio(output[..., :-1], output[..., -1:])
    return output.to(query.dtype)


def _causal(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys value_dim"],
    decay: Float[Tensor, " heads"] | None,
    chunk_size: int,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Weighted sums over the past: dense within a chunk, through the state before it."""
    queries = query.shape[-2]
    chunk = max(1, min(chunk_size, queries))
    length = math.ceil(queries / chunk) * chunk
    query, key, value = (  # keys after the last query are seen by none
        F.pad(x[..., :queries, :], (0, 0, 0, length - min(x.shape[-2], queries))).unflatten(
            -2, (-1, chunk)
        )
        for x in (query, key, value)
    )
    within = (query @ key.transpose(-1, -2)).tril()
    if decay is None:
        written = key.transpose(-1, -2) @ value
        before = written.cumsum(-3) - written
    else:
        log_decay = decay.log()[:, None]
        place = torch.arange(chunk, device=query.device, dtype=query.dtype)
        within = (
            within
            * torch.exp(log_decay[..., None] * (place[:, None] - place).clamp(min=0))[:, None]
        )
        to_the_end = torch.exp(log_decay * (chunk - 1 - place))[:, None, :, None]
        written = (key * to_the_end).transpose(-1, -2) @ value
        query = query * torch.exp(log_decay * (place + 1))[:, None, :, None]
        before = _fading_sum(written, (decay**chunk)[:, None, None])
    return (within @ value + query @ before).flatten(-3, -2)[..., :queries, :]


def _fading_sum(
    written: Float[Tensor, "batch heads chunks head_dim value_dim"],
    fade: Float[Tensor, "heads 1 1"],
) -> Float[Tensor, "batch heads chunks head_dim value_dim"]:
    """The state before each chunk, which is 0 before the first."""
    states = []
    state = torch.zeros_like(written[:, :, :1]).squeeze(2)
    for of_chunk in written.unbind(2):
        states.append(state)
        state = fade * state + of_chunk
    return torch.stack(states, dim=2) if states else written


def _weights(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    attn_mask: Bool[Tensor, "..."] | None,
    is_causal: bool,
    decay: Float[Tensor, " heads"] | None,
) -> Float[Tensor, "batch heads queries keys"]:
    """All weights, before they are normalised."""
    weights = query @ key.transpose(-1, -2)
    if attn_mask is not None:
        weights = weights * attn_mask
    if decay is not None:
        rows, columns = (torch.arange(n, device=query.device) for n in weights.shape[-2:])
        weights = weights * decay[:, None, None] ** (rows[:, None] - columns).clamp(min=0)
    return weights.tril() if is_causal else weights


def elu_feature_map(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """elu(x) + 1, written so that it does not round to 0 for very negative x.

    Example:
        >>> elu_feature_map(torch.tensor([-50.0, 0.0, 2.0]))
        tensor([1.9287e-22, 1.0000e+00, 3.0000e+00])
    """
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def _features(x: Float[Tensor, "*shape"], feature_map: str) -> Float[Tensor, "*shape"]:
    return elu_feature_map(x) if feature_map == "elu" else x


def _ratio(
    output: Float[Tensor, "*batch queries value_dim"], total: Float[Tensor, "*batch queries 1"]
) -> Float[Tensor, "*batch queries value_dim"]:
    return output / total.masked_fill(total == 0, 1.0)


def _check_options(
    query: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    feature_map: str,
    normalize: bool,
    decay: Tensor | None,
    chunk_size: int,
) -> None:
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        raise ValueError(
            f"attn_mask: {attn_mask.dtype} given, boolean expected, because linear attention has "
            "no logits that a mask could be added to"
        )
    if feature_map not in FEATURE_MAPS:
        raise ValueError(
            f"feature_map: {feature_map!r} given, one of {', '.join(FEATURE_MAPS)} expected"
        )
    if normalize and feature_map == "identity":
        raise ValueError(
            "normalize: True given, False expected with the identity as feature map, whose weights "
            "may sum to 0"
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size: {chunk_size} given, a positive number expected")
    if decay is None:
        return
    if not is_causal:
        raise ValueError(
            "decay: given with is_causal=False, which has no past; is_causal=True expected"
        )
    if decay.shape != query.shape[1:2] or decay.device != query.device:
        raise ValueError(
            f"decay: shape {tuple(decay.shape)} on {decay.device} given, ({query.shape[1]},) on "
            f"{query.device} expected"
        )


def retention_decay(
    num_heads: int, device: torch.device | str | None = None
) -> Float[Tensor, " heads"]:
    """The decay of each head in float32, 1 − 2^(−5−h) for h = 0, 1, ... (RetNet, equation 8).

    Raises:
        ValueError: `num_heads` is not positive.

    Example:
        >>> retention_decay(2)
        tensor([0.9688, 0.9844])
    """
    if num_heads < 1:
        raise ValueError(f"num_heads: {num_heads} given, a positive number expected")
    return 1 - 2.0 ** (-5 - torch.arange(num_heads, device=device, dtype=torch.float32))


class LinearAttention(nn.Module):
    """Multi-head linear attention with its projections, for self-attention.

    Args:
        embed_dim: channels of input and output, a multiple of `num_heads`.
        num_heads: number of heads, each of embed_dim / num_heads channels.
        position: "rotary", which turns query and key before the feature map, or None. Weights stay
            positive that way, but no longer depend on the distance alone.
        decay: whether keys fade, at the rates of `retention_decay`; causal only.
        bias: whether the projections have one.

    Raises:
        ValueError: `embed_dim` is not a multiple of `num_heads`, or of an even number of channels
            with rotary position; `position` is something else.

    Example:
        >>> layer = LinearAttention(32, num_heads=4)
        >>> layer(torch.randn(2, 10, 32), is_causal=True).shape
        torch.Size([2, 10, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        position: str | None = None,
        decay: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        check_heads(embed_dim, num_heads)
        check_position(position, embed_dim // num_heads)
        if position == "alibi":
            raise ValueError(
                "position: 'alibi' given, 'rotary' or None expected, because linear attention has "
                "no logits that a penalty could be added to"
            )
        self.num_heads = num_heads
        self.position = position
        self.decay = decay
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=bias)
        self.proj = nn.Linear(embed_dim, embed_dim, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "batch length embed_dim"],
        attn_mask: Bool[Tensor, "..."] | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "batch length embed_dim"]:
        """A boolean mask is True where a token may attend; together with `is_causal`, both hold. A
        padding mask is `is_token[:, None, None, :]`.

        Raises:
            ValueError: `x` has another shape; the mask is not boolean or does not broadcast to
                (batch, heads, length, length); or the layer decays and `is_causal` is not set.
        """
        check_layer_input(x, self.qkv)
        query, key, value = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        if self.position == "rotary":
            query, key = apply_rotary(query), apply_rotary(key)
        rates = retention_decay(self.num_heads, x.device) if self.decay else None
        output = linear_attention(query, key, value, attn_mask, 0.0, is_causal, decay=rates)
        return self.proj(output.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, position={self.position!r}, decay={self.decay}"
