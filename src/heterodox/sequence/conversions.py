"""Attention, state-space models and gated RNNs as `DynamicalSystem`s.

    attention     Λ_i = (η_{i−1}/η_i) I          B_i = W_V ⊗ ψ(k_i) / η_i   C_i = I ⊗ φ(q_i)ᵀ
    S6 (Mamba)    Λ_i = diag(exp(Δ_i,c A_c,s))   B_i = diag(Δ_i) ⊗ b_i      C_i = I ⊗ c_iᵀ
    gated RNN     Λ_i = diag(λ_i)                B_i = diag(g_i)            C_i = diag(o_i)
    delta rule    Λ_i = I ⊗ (I − β_i k_i k_iᵀ)   B_i = W_V ⊗ β_i k_i        C_i = I ⊗ s q_iᵀ

"Understanding the differences in Foundation Models", arXiv 2405.15731. The value matrix W_V is part
of B, as the inputs are those of the layer. Softmax has no finite system: its exponential is a
series, which is cut. The delta rule is not in the paper, and its Λ is not diagonal. Time and memory
O(length · states · channels), or O(length · states²) for the delta rule.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from heterodox.attention.linear import elu_feature_map
from heterodox.layers.polynomial import polynomial_features
from heterodox.sequence.system import DynamicalSystem


def from_linear_attention(
    query: Float[Tensor, "*batch length head_dim"],
    key: Float[Tensor, "*batch length head_dim"],
    value_weight: Float[Tensor, "outputs channels"],
    feature_map: Callable[[Tensor], Tensor] = elu_feature_map,
    normalize: bool = True,
) -> DynamicalSystem:
    """Causal linear attention of one head, as a system from the layer's inputs to its outputs.

    Λ_i = η_{i−1}/η_i with η_i = φ(q_i)ᵀ Σ_{j≤i} φ(k_j): how fast the past fades is decided by the
    normaliser, and it may grow.

    Args:
        query, key: of every position.
        value_weight: W_V, so that the values are `inputs @ value_weight.T`.
        feature_map: φ; elu + 1 as in Katharopoulos et al., 2020.
        normalize: whether to divide by η; if not, Λ = I.

    Raises:
        ValueError: shapes disagree.

    Example:
        >>> x = torch.randn(6, 4)
        >>> from_linear_attention(x, x, torch.eye(4)).state_size
        16
    """
    _check_heads(query, key, value_weight)
    query, key = feature_map(query), feature_map(key)
    if not normalize:
        one = torch.ones_like(query[..., 0])
        return separable(query, key, value_weight, one, one)
    normalizer = (query * key.cumsum(-2)).sum(-1)
    return separable(query, key, value_weight, _ratio(normalizer), 1 / normalizer)


def from_normalized_attention(
    query: Float[Tensor, "*batch length head_dim"],
    key: Float[Tensor, "*batch length head_dim"],
    value_weight: Float[Tensor, "outputs channels"],
    normalizer: Float[Tensor, "*batch length"],
) -> DynamicalSystem:
    """Causal attention with weights q_iᵀ k_j / η_i, as a system; see `NormalizedAttention`.

    Args:
        query, key, value_weight: as for `from_linear_attention`.
        normalizer: η.

    Raises:
        ValueError: shapes disagree, or the normaliser has a 0 (looked for on the CPU only).

    Example:
        >>> x = torch.randn(6, 4)
        >>> from_normalized_attention(x, x, torch.eye(4), x[:, 0].exp()).state_size
        16
    """
    _check_heads(query, key, value_weight)
    if normalizer.shape != query.shape[:-1]:
        raise ValueError(
            f"normalizer: shape {tuple(normalizer.shape)} given, {tuple(query.shape[:-1])} expected"
        )
    seen = normalizer.device.type == "cpu" and not torch.compiler.is_compiling()
    if seen and bool((normalizer == 0).any()):
        raise ValueError("normalizer: 0 given, numbers other than 0 expected")
    return separable(query, key, value_weight, _ratio(normalizer), 1 / normalizer)


def from_softmax_attention(
    query: Float[Tensor, "*batch length head_dim"],
    key: Float[Tensor, "*batch length head_dim"],
    value_weight: Float[Tensor, "outputs channels"],
    degree: int,
    scale: float | None = None,
) -> DynamicalSystem:
    """Causal softmax attention with its exponential cut after `degree` terms of its series.

    The features are all monomials up to that degree, so that the state has
    outputs · C(head_dim + degree, degree) entries: softmax itself would need infinitely many.

    Args:
        query, key, value_weight: as for `from_linear_attention`.
        degree: of the polynomial, from 0 on. The normaliser is that of the cut weights; odd degrees
            are negative somewhere below a logit of −1.
        scale: of the logits; 1/√head_dim by default.

    Raises:
        ValueError: shapes disagree, `degree` is negative or no whole number, or `scale` is negative
            or not finite.

    Example:
        >>> x = torch.randn(6, 4)
        >>> from_softmax_attention(x, x, torch.eye(4), degree=2).state_size
        60
    """
    _check_heads(query, key, value_weight)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale: {scale} given, a number from 0 on expected")
    query, key = (polynomial_features(x * math.sqrt(scale), degree) for x in (query, key))
    normalizer = (query * key.cumsum(-2)).sum(-1)
    return separable(query, key, value_weight, _ratio(normalizer), 1 / normalizer)


def separable(
    query: Float[Tensor, "*batch length features"],
    key: Float[Tensor, "*batch length features"],
    value_weight: Float[Tensor, "*heads outputs channels"],
    ratio: Float[Tensor, "*batch length"],
    inverse: Float[Tensor, "*batch length"],
) -> DynamicalSystem:
    """Attention with weights φ(q_i)ᵀ ψ(k_j) / η_i from its features, η_{i−1}/η_i and 1/η_i.

    `value_weight` may differ between heads, which are then the last of the leading axes.
    """
    outputs, features = value_weight.shape[-2], query.shape[-1]
    weight = value_weight.unsqueeze(-3)  # the same at every position
    written = weight[..., :, None, :] * (key * inverse[..., None])[..., None, :, None]
    return DynamicalSystem(
        ratio[..., None].expand(*ratio.shape, outputs * features),
        written.flatten(-3, -2),
        _for_each_channel(query, outputs),
    )


def from_s6(
    delta: Float[Tensor, "*batch length channels"],
    a: Float[Tensor, "channels states"],
    b: Float[Tensor, "*batch length states"],
    c: Float[Tensor, "*batch length states"],
    d: Float[Tensor, " channels"] | None = None,
) -> DynamicalSystem:
    """The selective scan of Mamba: A discretised exactly and B by Euler's rule, as in its kernel.

    Λ and B depend on the same Δ, which plays the part of attention's normaliser.

    Args:
        delta: Δ, after the softplus.
        a: A, negative where the state is to fade.
        b, c: what reads the input into the state, and the state into the output.
        d: the skip connection; None is 0.

    Raises:
        ValueError: shapes disagree.

    Example:
        >>> x = torch.rand(6, 4)
        >>> from_s6(x, -torch.ones(4, 3), x[:, :3], x[:, :3]).state_size
        12
    """
    if delta.ndim < 2:
        raise ValueError(
            f"delta: shape {tuple(delta.shape)} given, (..., length, channels) expected"
        )
    channels = delta.shape[-1]
    if a.ndim != 2 or a.shape[0] != channels:
        raise ValueError(f"a: shape {tuple(a.shape)} given, ({channels}, states) expected")
    _check_shape("b", b, (*delta.shape[:-1], a.shape[1]))
    _check_shape("c", c, (*delta.shape[:-1], a.shape[1]))
    _check_shape("d", d, (channels,))
    read = (delta[..., :, None] * b[..., None, :])[..., None] * _identity(delta)[:, None, :]
    return DynamicalSystem(
        (delta[..., None] * a).exp().flatten(-2),
        read.flatten(-3, -2),
        _for_each_channel(c, channels),
        None if d is None else torch.diag(d).expand(*delta.shape[:-1], -1, -1),
    )


def from_ssd(
    delta: Float[Tensor, "*batch length heads"],
    a: Float[Tensor, " heads"],
    b: Float[Tensor, "*batch length states"],
    c: Float[Tensor, "*batch length states"],
    d: Float[Tensor, " channels"] | None = None,
    *,
    head_dim: int = 1,
) -> DynamicalSystem:
    """Mamba-2, which is S6 with one Δ and one A for all channels and states of a head.

    Args:
        delta: Δ of each head, after the softplus.
        a: A of each head.
        b, c: as for `from_s6`, the same for all heads.
        d: the skip connection of each channel; None is 0.
        head_dim: channels of a head; there are heads · head_dim of them.

    Raises:
        ValueError: shapes disagree, or `head_dim` is not positive.

    Example:
        >>> x = torch.rand(6, 4)
        >>> from_ssd(x[:, :2], -torch.ones(2), x[:, :3], x[:, :3], head_dim=5).state_size
        30
    """
    if head_dim < 1:
        raise ValueError(f"head_dim: {head_dim} given, a positive number expected")
    if delta.ndim < 2:
        raise ValueError(f"delta: shape {tuple(delta.shape)} given, (..., length, heads) expected")
    _check_shape("a", a, delta.shape[-1:])
    states = b.shape[-1] if b.ndim else 0
    return from_s6(
        delta.repeat_interleave(head_dim, dim=-1),
        a.repeat_interleave(head_dim)[:, None].expand(-1, states),
        b,
        c,
        d,
    )


def from_gated_rnn(
    transition: Float[Tensor, "*batch length channels"],
    input_gate: Float[Tensor, "*batch length channels"],
    output_gate: Float[Tensor, "*batch length channels"],
) -> DynamicalSystem:
    """An RNN of one state a channel, h_i = λ_i h_{i−1} + g_i u_i and y_i = o_i h_i.

    The qLSTM has a sigmoid for each (see `qlstm_transition`), the RG-LRU of Griffin λ = a of
    `rg_lru_transition`, g = √(1 − a²) σ(i) and o = 1.

    Args:
        transition, input_gate, output_gate: λ, g and o.

    Raises:
        ValueError: shapes disagree.

    Example:
        >>> gate = torch.rand(6, 4)
        >>> from_gated_rnn(gate, 1 - gate, torch.ones(6, 4)).state_size
        4
    """
    if transition.ndim < 2:
        raise ValueError(
            f"transition: shape {tuple(transition.shape)} given, (..., length, channels) expected"
        )
    _check_shape("input_gate", input_gate, transition.shape)
    _check_shape("output_gate", output_gate, transition.shape)
    return DynamicalSystem(transition, torch.diag_embed(input_gate), torch.diag_embed(output_gate))


def qlstm_transition(
    x: Float[Tensor, "*shape"], reversed_sigmoid: bool = False, exponent: float | Tensor = 1.0
) -> Float[Tensor, "*shape"]:
    """Λ of the qLSTM, σ(x), or of its S6-like variant, σ(−x)^relu(α) = exp(−relu(α) softplus(x)).

    Args:
        x: what the forget gate computes.
        reversed_sigmoid: which of the two.
        exponent: α, used by the second.

    Example:
        >>> qlstm_transition(torch.zeros(2), reversed_sigmoid=True, exponent=2.0)
        tensor([0.2500, 0.2500])
    """
    if not reversed_sigmoid:
        return torch.sigmoid(x)
    alpha = F.relu(torch.as_tensor(exponent, dtype=x.dtype, device=x.device))
    return (-alpha * F.softplus(x)).exp()


def rg_lru_transition(
    gate: Float[Tensor, "*batch channels"], decay: Float[Tensor, "*shape"], c: float = 8.0
) -> Float[Tensor, "*batch channels"]:
    """Λ of the RG-LRU of Griffin, exp(−c softplus(decay) σ(gate)).

    Args:
        gate: what the recurrence gate computes, before its sigmoid.
        decay: one parameter a channel.
        c: 8 in De et al., "Griffin", 2024, arXiv 2402.19427.

    Example:
        >>> rg_lru_transition(torch.zeros(2), torch.full((2,), -3.0))
        tensor([0.8234, 0.8234])
    """
    return (-c * F.softplus(decay) * torch.sigmoid(gate)).exp()


def from_delta_rule(
    query: Float[Tensor, "*batch length head_dim"],
    key: Float[Tensor, "*batch length head_dim"],
    beta: Float[Tensor, "*batch length"],
    value_weight: Float[Tensor, "outputs channels"],
    scale: float | None = None,
) -> DynamicalSystem:
    """The delta rule of one head, as in DeltaNet, Yang et al., 2024, arXiv 2406.06484.

        S_i = (I − β_i k_i k_iᵀ) S_{i−1} + β_i k_i v_iᵀ,     y_i = s S_iᵀ q_i

    The paper's systems are diagonal. This one is not: an old value is removed along its key before
    the new one is written.

    Args:
        query, key, value_weight: as for `from_linear_attention`.
        beta: β, how much of the old value is replaced.
        scale: s; 1/√head_dim by default.

    Raises:
        ValueError: shapes disagree.

    Example:
        >>> x = torch.randn(6, 4)
        >>> from_delta_rule(x, x, torch.ones(6), torch.eye(4)).transition.shape
        torch.Size([6, 16, 16])
    """
    _check_heads(query, key, value_weight)
    _check_shape("beta", beta, query.shape[:-1])
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    outputs, one = value_weight.shape[0], torch.ones_like(beta)
    kept = _identity(key) - beta[..., None, None] * key[..., :, None] * key[..., None, :]
    system = separable(scale * query, beta[..., None] * key, value_weight, one, one)
    return DynamicalSystem(
        _block_diagonal(kept, outputs), system.input_matrix, system.output_matrix
    )


def _ratio(normalizer: Tensor) -> Tensor:
    """η_{i−1}/η_i, and 1 at the first position, where there is no state yet."""
    one = torch.ones_like(normalizer[..., :1])
    return torch.cat((one, normalizer[..., :-1] / normalizer[..., 1:]), dim=-1)[
        ..., : normalizer.shape[-1]
    ]


def _identity(x: Tensor) -> Tensor:
    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)


def _block_diagonal(matrix: Tensor, blocks: int) -> Tensor:
    """I ⊗ matrix."""
    one = torch.eye(blocks, dtype=matrix.dtype, device=matrix.device)
    return (one[:, None, :, None] * matrix[..., None, :, None, :]).flatten(-2).flatten(-3, -2)


def _for_each_channel(row: Tensor, channels: int) -> Tensor:
    """I ⊗ rowᵀ, (..., channels, channels · features)."""
    return _block_diagonal(row.unsqueeze(-2), channels)


def _check_heads(query: Tensor, key: Tensor, value_weight: Tensor) -> None:
    if query.ndim < 2:
        raise ValueError(
            f"query: shape {tuple(query.shape)} given, (..., length, head_dim) expected"
        )
    _check_shape("key", key, query.shape)
    if value_weight.ndim != 2:
        raise ValueError(
            f"value_weight: shape {tuple(value_weight.shape)} given, (outputs, channels) expected"
        )


def _check_shape(name: str, given: Tensor | None, shape: tuple[int, ...]) -> None:
    if given is not None and given.shape != shape:
        raise ValueError(f"{name}: shape {tuple(given.shape)} given, {tuple(shape)} expected")
