"""Sigmoid attention: the softmax of a row replaced by a sigmoid of each logit.

    O = σ(scale · Q Kᵀ + b) V,     scale = 1/√d,     b = -log n

Ramapuram et al., "Theory, Analysis, and Best Practices for Sigmoid Self-Attention", 2024, arXiv
2409.04431, equation 3. For moderate logits σ(s - log n) is close to exp(s) / n, so with n the
length of the training sequences a row of weights sums to O(1); without the bias it sums to n / 2.
Time O(n_q · n · d), memory O((n_q + n) · d); small problems are computed in one piece.
"""

import importlib.util
import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from heterodox.attention.arguments import (
    check_attention,
    check_dropout,
    check_heads,
    check_layer_input,
)
from heterodox.attention.position import alibi_bias, alibi_slopes, apply_rotary, check_position
from heterodox.attention.sigmoid_blocked import Logits, blocked_sigmoid_attention

# Up to so many weights (16 MiB in float32) one large product is faster than a loop over tiles.
DENSE_LIMIT = 2**22


def sigmoid_attention(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch kv_heads keys head_dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"],
    attn_mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    enable_gqa: bool = False,
    bias: float | None = None,
    alibi_slopes: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Sigmoid attention, called like `torch.nn.functional.scaled_dot_product_attention`.

    Large problems run tile by tile, or in Triton kernels on a GPU, and are differentiable once. A
    small one, or one whose mask or slopes require a gradient, runs as `sigmoid_attention_reference`
    does, which stores the weights. Half precision is computed in float32.

    Args:
        query, key, value: as in torch.
        attn_mask: boolean, True where a query may attend, or floating, added to the logits;
            broadcasts to (batch, heads, queries, keys). A padding mask is
            `is_token[:, None, None, :]`.
        dropout_p: probability with which a weight is dropped; the rest is divided by 1 - dropout_p.
        is_causal: whether query i sees only keys up to i, counted from the first query and the
            first key as in torch. Together with `attn_mask`, both hold.
        scale: factor of the scalar products; 1/√head_dim by default.
        enable_gqa: whether each head of key and value serves several heads of the query.
        bias: b, added to every logit: a constant of the model, -log of the length of its training
            sequences. None takes the number of keys of this call, which is right only while that
            is the training length; give the number for decoding and for shorter batches.
        alibi_slopes: adds -slope · |i + keys - queries - j| to the logits, ALiBi's penalty.

    Returns:
        Rows whose keys are all hidden are zeros.

    Raises:
        ValueError: shapes, dtypes or devices disagree, the mask does not broadcast, or `dropout_p`
            is not in [0, 1).

    Example:
        >>> x = torch.randn(2, 4, 10, 8)
        >>> full = sigmoid_attention(x, x, x, is_causal=True, bias=-math.log(10))
        >>> step = sigmoid_attention(x[:, :, -1:], x, x, bias=-math.log(10))
        >>> torch.allclose(full[:, :, -1:], step, atol=1e-6)
        True
    """
    device = query.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        # As torch does for softmax attention: a query that left a norm in float32 meets the rest.
        dtype = torch.get_autocast_dtype(device)
        query, key, value = (
            x if x.dtype == torch.float64 else x.to(dtype) for x in (query, key, value)
        )
        with torch.autocast(device, enabled=False):
            return sigmoid_attention(
                query,
                key,
                value,
                attn_mask,
                dropout_p,
                is_causal,
                scale,
                enable_gqa=enable_gqa,
                bias=bias,
                alibi_slopes=alibi_slopes,
            )
    check_attention(query, key, value, attn_mask, dropout_p, enable_gqa)
    _check_slopes(alibi_slopes, query)
    num_weights = query.shape[:3].numel() * key.shape[2]
    learned = any(x is not None and x.requires_grad for x in (attn_mask, alibi_slopes))
    if num_weights <= DENSE_LIMIT or learned:
        return _dense(query, key, value, attn_mask, dropout_p, is_causal, scale, bias, alibi_slopes)
    logits = Logits(
        scale=_default_scale(query) if scale is None else scale,
        bias=_default_bias(key) if bias is None else bias,
        is_causal=is_causal,
        attn_mask=None if attn_mask is None else attn_mask[(None,) * (4 - attn_mask.ndim)],
        alibi_slopes=alibi_slopes,
        dropout_p=dropout_p,
        seed=int(torch.randint(2**62, ())) if dropout_p else 0,
    )
    if query.is_cuda and importlib.util.find_spec("triton"):
        from heterodox.attention import sigmoid_triton

        if sigmoid_triton.supports(query, value, logits):
            return sigmoid_triton.triton_sigmoid_attention(query, key, value, logits)
    return blocked_sigmoid_attention(query, *_repeat_heads(query, key, value), logits)


def sigmoid_attention_reference(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch kv_heads keys head_dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"],
    attn_mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    enable_gqa: bool = False,
    bias: float | None = None,
    alibi_slopes: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """`sigmoid_attention` as the equation is written, with all weights stored.

    Differentiable any number of times, in every argument that is a tensor, and by `torch.func`.

    Raises:
        ValueError: as `sigmoid_attention`.

    Example:
        >>> x = torch.randn(1, 1, 5, 8)
        >>> output = sigmoid_attention_reference(x, x, x, bias=0.0)
        >>> torch.allclose(output, torch.sigmoid(x @ x.mT / 8**0.5) @ x, atol=1e-6)
        True
    """
    check_attention(query, key, value, attn_mask, dropout_p, enable_gqa)
    _check_slopes(alibi_slopes, query)
    return _dense(query, key, value, attn_mask, dropout_p, is_causal, scale, bias, alibi_slopes)


def _dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    bias: float | None,
    slopes: Tensor | None,
) -> Tensor:
    scale = _default_scale(query) if scale is None else scale
    bias = _default_bias(key) if bias is None else bias
    key, value = _repeat_heads(query, key, value)
    dtype = torch.promote_types(query.dtype, torch.float32)
    logits = (query.to(dtype) * scale) @ key.to(dtype).mT + bias
    if slopes is not None:
        logits = logits + alibi_bias(slopes.to(dtype), *logits.shape[-2:])
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        logits = logits + attn_mask
    weights = logits.sigmoid()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        weights = weights.masked_fill(~attn_mask, 0.0)
    if is_causal:
        weights = weights.tril()
    return (F.dropout(weights, dropout_p) @ value.to(dtype)).to(query.dtype)


def _check_slopes(slopes: Tensor | None, query: Tensor) -> None:
    heads = query.shape[1]
    if slopes is not None and (slopes.shape != (heads,) or slopes.device != query.device):
        raise ValueError(
            f"alibi_slopes: shape {tuple(slopes.shape)} on {slopes.device} given, {(heads,)} on "
            f"{query.device} expected"
        )


def _default_scale(query: Tensor) -> float:
    return query.shape[3] ** -0.5 if query.shape[3] else 1.0


def _default_bias(key: Tensor) -> float:
    return -math.log(max(1, key.shape[2]))


def _repeat_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    if key.shape[1] == query.shape[1]:
        return key, value
    repeats = query.shape[1] // key.shape[1]
    return key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)


def sigmoid_attention_lipschitz_bound(
    x: Float[Tensor, "length dim"],
    weight_query: Float[Tensor, "head_dim dim"],
    weight_key: Float[Tensor, "head_dim dim"],
    weight_value: Float[Tensor, "value_dim dim"],
    *,
    scale: float | None = None,
    bias: float | None = None,
) -> Float[Tensor, ""]:
    """An upper bound on the spectral norm of the Jacobian of one head of sigmoid self-attention.

    With u_ij = scale · ⟨W_q x_i, W_k x_j⟩ + b, section 3.2 of the paper bounds the Jacobian of
    X -> σ(u) X W_vᵀ, a matrix of (length · value_dim) rows and (length · dim) columns, by

        ‖W_v‖ · n · (max σ(u) + 2 · max σ'(u) · scale · ‖W_qᵀ W_k‖ · (1/n) Σ_i ‖x_i‖²)

    It is quadratic in the norm of the inputs; the known bound for softmax is exponential. Half
    precision is computed in float32.

    Args:
        x: the sequence at which the bound is taken.
        scale, bias: as for `sigmoid_attention`.

    Raises:
        ValueError: the shapes disagree, or `x` is empty.

    Example:
        >>> weight = torch.eye(2)
        >>> sigmoid_attention_lipschitz_bound(torch.zeros(4, 2), weight, weight, weight)
        tensor(0.8000)
    """
    if x.ndim != 2 or x.shape[0] == 0:
        raise ValueError(f"x: shape {tuple(x.shape)} given, (length, dim) expected")
    length, dim = x.shape
    head_dim = weight_query.shape[0]
    for name, weight, rows in (
        ("weight_query", weight_query, head_dim),
        ("weight_key", weight_key, head_dim),
        ("weight_value", weight_value, weight_value.shape[0]),
    ):
        if weight.shape != (rows, dim):
            raise ValueError(f"{name}: shape {tuple(weight.shape)} given, {(rows, dim)} expected")
    scale = head_dim**-0.5 if scale is None else scale
    bias = -math.log(length) if bias is None else bias
    dtype = torch.promote_types(x.dtype, torch.float32)
    given, x = x.dtype, x.to(dtype)
    weight_query, weight_key, weight_value = (
        weight.to(dtype) for weight in (weight_query, weight_key, weight_value)
    )
    weights = torch.sigmoid(scale * (x @ weight_query.mT) @ (x @ weight_key.mT).mT + bias)
    slopes = weights * (1 - weights)
    interaction = abs(scale) * torch.linalg.matrix_norm(weight_query.mT @ weight_key, ord=2)
    mean_square = x.square().sum(dim=1).mean()
    bound = weights.max() + 2 * slopes.max() * interaction * mean_square
    return (torch.linalg.matrix_norm(weight_value, ord=2) * length * bound).to(given)


class SigmoidAttention(nn.Module):
    """Multi-head `sigmoid_attention` with its projections, for self-attention.

    Args:
        embed_dim: channels of input and output, a multiple of `num_heads`.
        num_heads: number of heads, each of embed_dim / num_heads channels.
        bias: whether the projections have one; the paper's language models do without.
        attention_bias: b, the constant added to the logits.
        sequence_length: length of the training sequences, which fixes b at -log(sequence_length).
            If neither is given, b follows the number of tokens of each call, and the layer computes
            another function at another length.
        qk_norm: whether query and key are normalised per head, by LayerNorm before any rotation.
        position: "rotary", "alibi" or None.
        dropout: probability with which a weight is dropped in training.

    Raises:
        ValueError: `embed_dim` is not a multiple of `num_heads`, or of an even number of channels
            with rotary position; both `attention_bias` and `sequence_length` are given; `position`
            is something else; `dropout` is not in [0, 1).

    Example:
        >>> layer = SigmoidAttention(32, num_heads=4, sequence_length=128, position="rotary")
        >>> layer(torch.randn(2, 10, 32), is_causal=True).shape
        torch.Size([2, 10, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        bias: bool = False,
        attention_bias: float | None = None,
        sequence_length: int | None = None,
        qk_norm: bool = False,
        position: str | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(embed_dim, num_heads)
        head_dim = embed_dim // num_heads
        check_position(position, head_dim)
        check_dropout("dropout", dropout)
        if sequence_length is not None:
            if attention_bias is not None:
                raise ValueError(
                    f"attention_bias: {attention_bias} given together with sequence_length = "
                    f"{sequence_length}, one of them expected"
                )
            if sequence_length < 1:
                raise ValueError(
                    f"sequence_length: {sequence_length} given, a positive number expected"
                )
            attention_bias = -math.log(sequence_length)
        self.num_heads = num_heads
        self.attention_bias = attention_bias
        self.position = position
        self.dropout = dropout
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=bias)
        self.proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.q_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()

    @classmethod
    def from_multihead(
        cls, mha: nn.MultiheadAttention, *, sequence_length: int | None = None
    ) -> "SigmoidAttention":
        """A layer with the weights, biases and dropout of `mha`, but its own calling convention.

        The weights were trained for softmax: the output differs until the model is trained again.

        Raises:
            ValueError: `mha` has keys or values of another width, or adds keys of its own.

        Example:
            >>> mha = torch.nn.MultiheadAttention(32, 4, batch_first=True)
            >>> layer = SigmoidAttention.from_multihead(mha, sequence_length=128)
            >>> torch.equal(layer.qkv.weight, mha.in_proj_weight)
            True
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
            bias=mha.in_proj_bias is not None,
            sequence_length=sequence_length,
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
        attn_mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "batch length embed_dim"]:
        """Masks as for `sigmoid_attention`; a padding mask is `is_token[:, None, None, :]`."""
        check_layer_input(x, self.qkv)
        query, key, value = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        query, key = self.q_norm(query), self.k_norm(key)
        if self.position == "rotary":
            query, key = apply_rotary(query), apply_rotary(key)
        slopes = alibi_slopes(self.num_heads, x.device) if self.position == "alibi" else None
        output = sigmoid_attention(
            query,
            key,
            value,
            attn_mask,
            self.dropout if self.training else 0.0,
            is_causal,
            bias=self.attention_bias,
            alibi_slopes=slopes,
        )
        return self.proj(output.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, attention_bias={self.attention_bias}, "
            f"position={self.position!r}"
        )


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor that starts small.

    Put on the residual branches; the paper needs it for vision transformers, not for language.
    Touvron et al., "Going deeper with Image Transformers", arXiv 2103.17239, equation 4.

    Args:
        dim: number of channels, the last axis.
        init: initial value of every factor; 1e-4 in the authors' code.

    Example:
        >>> LayerScale(3)(torch.ones(2, 3))[0]
        tensor([1.0000e-04, 1.0000e-04, 1.0000e-04], grad_fn=<SelectBackward0>)
    """

    def __init__(self, dim: int, init: float = 1e-4) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return x * self.gamma
