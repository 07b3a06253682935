"""Linear attention with a state of any size, and the same with a normaliser that is learned freely.

    linear       o_i = Σ_{j≤i} φ(q_i)ᵀφ(k_j) v_j / η_i,   η_i = φ(q_i)ᵀ Σ_{j≤i} φ(k_j)
    normalised   o_i = Σ_{j≤i} q_iᵀk_j v_j / η_i,         η_i = exp(w_nᵀ u_i + b_n)

with φ = elu + 1. "Understanding the differences in Foundation Models", arXiv 2405.15731: linear
attention ties how the past fades, η_{i−1}/η_i, to the keys; the second form, proposed there, does
not. It has no feature map, and neither has a scale of the logits, as in the authors' code. Time
O(length · (chunk + state_dim) · dim), memory linear in length.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.attention.arguments import check_layer_input
from heterodox.attention.linear import elu_feature_map, linear_attention
from heterodox.sequence.conversions import separable
from heterodox.sequence.system import DynamicalSystem

NORMALIZERS = ("exp", "softplus", "sigmoid")

# Below this, log(softplus(x)) is x to the last digit of float64, and softplus(x) may round to 0.
SMALL = -40.0


class LinearAttention(nn.Module):
    """Causal linear attention whose queries and keys have a width of their own.

    Args:
        dim: channels of input and output, a multiple of `num_heads`.
        state_dim: channels of query and key, all heads together, a multiple of `num_heads`; None is
            `dim`. Each channel's state has state_dim / num_heads entries: the paper's n.
        num_heads: 1 in the paper's recall models.
        bias: whether the projections have one; True in the authors' code.

    Raises:
        ValueError: `num_heads` does not divide the widths.

    Example:
        >>> layer = LinearAttention(32, state_dim=8)
        >>> x = torch.randn(2, 10, 32)
        >>> layer(x).shape, layer.dynamical_system(x).state_size
        (torch.Size([2, 10, 32]), 256)
    """

    def __init__(
        self, dim: int, state_dim: int | None = None, num_heads: int = 1, *, bias: bool = True
    ) -> None:
        super().__init__()
        state_dim = dim if state_dim is None else state_dim
        _check_widths(dim, state_dim, num_heads)
        self.num_heads = num_heads
        self.query_key = nn.Linear(dim, 2 * state_dim, bias=bias)
        self.value = nn.Linear(dim, dim, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        query, key = _query_key(self.query_key, x, self.num_heads)
        value = self.value(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        output = linear_attention(query, key, value, is_causal=True)
        return self.proj(output.transpose(1, 2).flatten(2))

    def dynamical_system(self, x: Float[Tensor, "batch length dim"]) -> DynamicalSystem:
        """The system that the layer is at `x`: its `run(x)` is the layer's output."""
        query, key = map(elu_feature_map, _query_key(self.query_key, x, self.num_heads))
        log_normalizer = (query * key.cumsum(-2)).sum(-1).log()
        return _joined(query, key, log_normalizer, self.value, self.proj)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"


class NormalizedAttention(nn.Module):
    """Causal attention without softmax, divided by a learned positive function of the input.

    Args:
        dim, state_dim, num_heads, bias: as for `LinearAttention`.
        normalizer: η as a function of n_i = w_nᵀ u_i + b_n, one a head: "exp", the best in the
            paper, "softplus" or "sigmoid".

    Raises:
        ValueError: `num_heads` does not divide the widths, or an unknown normaliser.

    Example:
        >>> layer = NormalizedAttention(32, state_dim=16, num_heads=2)
        >>> x = torch.randn(2, 10, 32)
        >>> layer(x).shape, layer.dynamical_system(x).state_size
        (torch.Size([2, 10, 32]), 256)
    """

    def __init__(
        self,
        dim: int,
        state_dim: int | None = None,
        num_heads: int = 1,
        *,
        normalizer: str = "exp",
        bias: bool = True,
    ) -> None:
        super().__init__()
        state_dim = dim if state_dim is None else state_dim
        _check_widths(dim, state_dim, num_heads)
        if normalizer not in NORMALIZERS:
            raise ValueError(
                f"normalizer: {normalizer!r} given, one of {', '.join(NORMALIZERS)} expected"
            )
        self.num_heads = num_heads
        self.normalizer = normalizer
        self.query_key = nn.Linear(dim, 2 * state_dim, bias=bias)
        self.value = nn.Linear(dim, dim, bias=bias)
        self.norm = nn.Linear(dim, num_heads, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        query, key = _query_key(self.query_key, x, self.num_heads)
        value = self.value(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        # Divided before it is summed over the past, so that the sums keep to the range of numbers.
        inverse = (-self.log_normalizer(x)).exp()[..., None]
        dtype = inverse.dtype
        output = linear_attention(
            query.to(dtype) * inverse,
            key.to(dtype),
            value.to(dtype),
            is_causal=True,
            feature_map="identity",
            normalize=False,
        )
        return self.proj(output.to(value.dtype).transpose(1, 2).flatten(2))

    def log_normalizer(
        self, x: Float[Tensor, "batch length dim"]
    ) -> Float[Tensor, "batch heads length"]:
        """log η, in float32 or better: η itself may leave the range of numbers."""
        n = self.norm(x).mT
        n = n.to(torch.promote_types(n.dtype, torch.float32))
        if self.normalizer == "exp":
            return n
        if self.normalizer == "sigmoid":
            return F.logsigmoid(n)
        return torch.where(n < SMALL, n, F.softplus(n.clamp(min=SMALL)).log())

    def dynamical_system(self, x: Float[Tensor, "batch length dim"]) -> DynamicalSystem:
        """The system that the layer is at `x`: its `run(x)` is the layer's output."""
        query, key = _query_key(self.query_key, x, self.num_heads)
        return _joined(query, key, self.log_normalizer(x).to(x.dtype), self.value, self.proj)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, normalizer={self.normalizer!r}"


def _check_widths(dim: int, state_dim: int, num_heads: int) -> None:
    if num_heads < 1:
        raise ValueError(f"num_heads: {num_heads} given, a positive number expected")
    for name, width in {"dim": dim, "state_dim": state_dim}.items():
        if width < 1 or width % num_heads:
            raise ValueError(
                f"{name}: {width} given, a positive multiple of num_heads = {num_heads} expected"
            )


def _query_key(projection: nn.Linear, x: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """(batch, heads, length, state_dim / heads) each; first all heads' queries, then their keys."""
    check_layer_input(x, projection)
    query, key = projection(x).unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return query, key


def _joined(
    query: Tensor, key: Tensor, log_normalizer: Tensor, value: nn.Linear, proj: nn.Linear
) -> DynamicalSystem:
    """The heads side by side in one state, and their outputs through `proj`."""
    batch, num_heads, length, _ = query.shape
    weight = value.weight
    if value.bias is not None:  # one more channel, whose input is always 1
        weight = torch.cat((weight, value.bias[:, None]), dim=1)
    faded = torch.cat(
        (log_normalizer[..., :1] * 0, log_normalizer[..., :-1] - log_normalizer[..., 1:]), dim=-1
    )[..., :length]
    heads = separable(
        query,
        key,
        weight.unflatten(0, (num_heads, -1)),
        faded.exp(),
        (-log_normalizer).exp(),
    )
    read = proj.weight.unflatten(1, (num_heads, -1)).transpose(0, 1)[:, None] @ heads.output_matrix
    input_matrix = heads.input_matrix.transpose(1, 2).flatten(2, 3)
    return DynamicalSystem(
        heads.transition.transpose(1, 2).flatten(2),
        input_matrix[..., : value.in_features],
        read.permute(0, 2, 3, 1, 4).flatten(3),
        input_bias=None if value.bias is None else input_matrix[..., -1],
        output_bias=None if proj.bias is None else proj.bias.expand(batch, length, -1),
    )
