"""DeltaNet: a sequence mixer whose state is corrected by the delta rule.

    q, k = l2norm(SiLU(conv(x W_q))), l2norm(SiLU(conv(x W_k))),   v = SiLU(conv(x W_v))
    β = σ(x W_β),   y = RMSNorm(delta_rule(q, k, v, β)) W_o

Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", NeurIPS
2024, arXiv 2406.06484, section 3.3 and figure 2; details as in the authors' code, fla-org's
flash-linear-attention, whose checkpoints load. The rule itself, as functions, is in
`heterodox.attention.delta_recurrence`. Time linear in the length; decoding from a state of fixed
size.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.attention.arguments import check_layer_input
from heterodox.attention.delta_recurrence import (
    delta_rule,
    delta_rule_attention_map,
    delta_rule_recurrent,
    delta_rule_step,
    wy_representation,
)
from heterodox.layers.short_convolution import ShortConvolution

__all__ = [
    "DeltaNet",
    "DeltaNetState",
    "delta_rule",
    "delta_rule_attention_map",
    "delta_rule_recurrent",
    "delta_rule_step",
    "wy_representation",
]

ACTIVATIONS = ("silu", "relu", "elu", "identity")
NORMALISATIONS = ("l2", "sum")


class DeltaNetState(NamedTuple):
    """What a `DeltaNet` has to remember of the sequence so far.

    Attributes:
        recurrent: S of each head, (batch, heads, key_dim, value_dim).
        convolutions: the last conv_size - 1 inputs of the convolutions of query, key and value,
            (batch, conv_size - 1, channels) each; none without short convolution.
    """

    recurrent: Tensor
    convolutions: tuple[Tensor, ...] = ()


class DeltaNet(nn.Module):
    """Multi-head `delta_rule` with its projections and short convolutions. Always causal.

    Parameters have the names and shapes of the authors' code, so that `load_state_dict` takes a
    layer of one of its checkpoints. `heterodox.attention.causal.CausalMixer` puts the layer where
    attention stood.

    Args:
        hidden_size: channels of input and output.
        num_heads: number of heads; divides the channels of keys and of values.
        expand_k, expand_v: channels of all keys, and of all values, as multiples of `hidden_size`.
        conv_size: inputs that a short convolution reads.
        use_short_conv: whether query, key and value pass through short convolutions.
        use_beta: whether β depends on the input; otherwise it is 1.
        use_gate: whether the normalised output is multiplied by SiLU of a projection of the input.
        allow_neg_eigval: whether β is doubled, so that I - β k kᵀ can have eigenvalues down to -1
            (Grazzi et al., arXiv 2411.12537).
        qk_activation: feature map of query and key: "silu", "relu", "elu" (elu + 1) or "identity".
        qk_norm: "l2", or "sum" for a sum of 1 of the absolute values. "elu" and "sum" are those of
            the first DeltaNet (Schlag et al., arXiv 2102.11174).
        norm_eps: of the RMSNorm on the output.
        chunk_size: see `delta_rule`.

    Raises:
        ValueError: sizes do not fit, or an option is none of the above.

    Example:
        >>> layer = DeltaNet(32, num_heads=4)
        >>> x = torch.randn(2, 10, 32)
        >>> start, state = layer(x[:, :9], return_state=True)
        >>> end = layer(x[:, 9:], state)
        >>> torch.allclose(torch.cat((start, end), dim=1), layer(x), atol=1e-5)
        True
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        conv_size: int = 4,
        use_short_conv: bool = True,
        use_beta: bool = True,
        use_gate: bool = False,
        allow_neg_eigval: bool = False,
        qk_activation: str = "silu",
        qk_norm: str = "l2",
        norm_eps: float = 1e-5,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("hidden_size", hidden_size), ("num_heads", num_heads)):
            if size < 1:
                raise ValueError(f"{name}: {size} given, a positive number expected")
        key_dim = _expanded("expand_k", expand_k, hidden_size, num_heads)
        value_dim = _expanded("expand_v", expand_v, hidden_size, num_heads)
        if qk_activation not in ACTIVATIONS:
            raise ValueError(
                f"qk_activation: {qk_activation!r} given, one of {', '.join(ACTIVATIONS)} expected"
            )
        if qk_norm not in NORMALISATIONS:
            raise ValueError(
                f"qk_norm: {qk_norm!r} given, one of {', '.join(NORMALISATIONS)} expected"
            )
        if conv_size < 1:
            raise ValueError(f"conv_size: {conv_size} given, a positive number expected")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size: {chunk_size} given, a positive number expected")
        self.num_heads = num_heads
        self.allow_neg_eigval = allow_neg_eigval
        self.qk_activation = qk_activation
        self.qk_norm = qk_norm
        self.chunk_size = chunk_size
        self.q_proj = nn.Linear(hidden_size, key_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, key_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, value_dim, bias=False)
        self.b_proj = nn.Linear(hidden_size, num_heads, bias=False) if use_beta else None
        self.g_proj = nn.Linear(hidden_size, value_dim, bias=False) if use_gate else None
        self.q_conv1d = self.k_conv1d = self.v_conv1d = None
        if use_short_conv:
            of_qk = "silu" if qk_activation == "silu" else None
            self.q_conv1d = ShortConvolution(key_dim, conv_size, activation=of_qk)
            self.k_conv1d = ShortConvolution(key_dim, conv_size, activation=of_qk)
            self.v_conv1d = ShortConvolution(value_dim, conv_size, activation="silu")
        self.o_norm = nn.RMSNorm(value_dim // num_heads, eps=norm_eps)
        self.o_proj = nn.Linear(value_dim, hidden_size, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch length hidden_size"],
        state: DeltaNetState | None = None,
        return_state: bool = False,
    ) -> (
        Float[Tensor, "batch length hidden_size"]
        | tuple[Float[Tensor, "batch length hidden_size"], DeltaNetState]
    ):
        """Mixes `x` over its length; given the `state` of an earlier part, goes on from there.

        Raises:
            ValueError: `x` or a part of `state` has another shape.
        """
        check_layer_input(x, self.q_proj)
        query, key, value, convolutions = self._convolved(x, state)
        query, key, value = (
            y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in (query, key, value)
        )
        query, key = self._features(query), self._features(key)
        beta = value.new_ones(value.shape[:3])
        if self.b_proj is not None:
            beta = self.b_proj(x).sigmoid().transpose(1, 2)
        beta = 2 * beta if self.allow_neg_eigval else beta
        output, recurrent = self._mixed(query, key, value, beta, state)
        output = self.o_norm(output.transpose(1, 2))
        if self.g_proj is not None:
            output = output * F.silu(self.g_proj(x)).view_as(output)
        output = self.o_proj(output.flatten(2))
        return (output, DeltaNetState(recurrent, convolutions)) if return_state else output

    def _convolved(
        self, x: Tensor, state: DeltaNetState | None
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Query, key and value before they are split, and the inputs to be carried over."""
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.q_conv1d is None or self.k_conv1d is None or self.v_conv1d is None:
            if self.qk_activation == "silu":
                query, key = F.silu(query), F.silu(key)
            return query, key, F.silu(value), ()
        layers = (self.q_conv1d, self.k_conv1d, self.v_conv1d)
        past = (None,) * 3 if state is None else state.convolutions
        if len(past) != len(layers):
            raise ValueError(f"state: {len(past)} inputs of convolutions given, 3 expected")
        parts = [
            cast(tuple[Tensor, Tensor], layer(y, inputs, return_state=True))
            for layer, y, inputs in zip(layers, (query, key, value), past, strict=True)
        ]
        (query, *_), (key, *_), (value, *_) = parts
        return query, key, value, tuple(inputs for _, inputs in parts)

    def _features(self, x: Tensor) -> Tensor:
        """Feature map, unless the convolution has applied it, and normalisation of each head."""
        if self.qk_activation == "relu":
            x = x.relu()
        elif self.qk_activation == "elu":
            x = F.elu(x) + 1
        # float32: in half precision, a norm is off by what it is to guarantee.
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.qk_norm == "sum":
            return F.normalize(x, p=1.0, dim=-1, eps=1e-6)
        return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()

    def _mixed(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        beta: Tensor,
        state: DeltaNetState | None,
    ) -> tuple[Tensor, Tensor]:
        """The delta rule from a state; one position, as in decoding, without chunks."""
        recurrent = None if state is None else state.recurrent
        expected = (*key.shape[:2], key.shape[3], value.shape[3])
        if recurrent is not None and recurrent.shape != expected:
            raise ValueError(
                f"state: recurrent part of shape {tuple(recurrent.shape)} given, "
                f"{expected} expected"
            )
        if recurrent is not None and query.shape[2] == 1:
            q, k, v, b = (x.squeeze(2) for x in (query, key, value, beta))
            output, recurrent = delta_rule_step(q, k, v, b, recurrent)
            return output.unsqueeze(2), recurrent
        both = delta_rule(
            query, key, value, beta, recurrent, chunk_size=self.chunk_size, return_state=True
        )
        return cast(tuple[Tensor, Tensor], both)

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, qk_activation={self.qk_activation!r}, "
            f"qk_norm={self.qk_norm!r}, allow_neg_eigval={self.allow_neg_eigval}"
        )


def _expanded(name: str, factor: float, hidden_size: int, num_heads: int) -> int:
    """The channels of all keys, or of all values."""
    channels = round(factor * hidden_size)
    if channels < 1 or abs(channels - factor * hidden_size) > 1e-6:
        raise ValueError(
            f"{name}: {factor} given, a whole positive number expected of its product with "
            f"hidden_size = {hidden_size}"
        )
    if channels % num_heads:
        raise ValueError(
            f"num_heads: {num_heads} given, a divisor expected of the {channels} channels that "
            f"{name} makes"
        )
    return channels
