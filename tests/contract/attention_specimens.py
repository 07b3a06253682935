"""Specimens of `heterodox.attention` and `heterodox.layers`."""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from tests.contract.specimen import Bad, Draw, Specimen
from torch import Tensor, nn

from heterodox.attention.softplus import SoftplusAttention

SIGMOID = "heterodox.attention.sigmoid"
SOFTPLUS = "heterodox.attention.softplus"
SOFTMAX = "heterodox.attention.softmax"
DELTA = "heterodox.attention.delta"
SOFTMAX_FREE = "heterodox.attention.softmax_free"
LINEAR = "heterodox.attention.linear"
POSITION = "heterodox.attention.position"
NORM = "heterodox.layers.norm"
CONVOLUTION = "heterodox.layers.short_convolution"

TORCHS_OWN = {"shape types": "a layer of torch, which has no shape types"}
CHUNK_BREAKS = "a loop over as many chunks as the sequence has"
BLOCKED_BREAKS = "a custom autograd function that chooses its blocks by the sizes at hand"


def masked_heads(draw: Draw) -> tuple[Tensor, ...]:
    """Query, key, value and a padding mask under which every row sees a key."""
    mask = draw.below(2, draw.batch, 1, 1, draw.length).bool()
    mask[..., :1] = True
    return *draw.heads_of(3), mask


def grouped_heads(draw: Draw) -> tuple[Tensor, ...]:
    (query,), heads = draw.heads_of(1), draw.heads
    shape = (draw.batch, 1, draw.length + 2, draw.head_dim)
    return query.repeat(1, heads, 1, 1), draw.normal(*shape), draw.normal(*shape)


def pooled_heads(draw: Draw) -> tuple[Tensor, ...]:
    """Query, value and bottleneck tokens."""
    query, value = draw.heads_of(2)
    return query, value, draw.normal(draw.batch, draw.heads, 3, draw.head_dim)


def grid_of_tokens(draw: Draw) -> tuple[Tensor]:
    """(batch, 4 * 2 length, width): a grid of height 4, of which 2 x 2 patches can be made."""
    return (draw.normal(draw.batch, 8 * draw.length, draw.width),)


def delta_inputs(draw: Draw) -> tuple[Tensor, ...]:
    """Query, key, value, beta and a state, with keys of length 1 and a width of values apart."""
    query, key = draw.heads_of(2)
    value = draw.normal(draw.batch, draw.heads, draw.length, 3)
    beta = draw.normal(draw.batch, draw.heads, draw.length).sigmoid()
    state = draw.normal(draw.batch, draw.heads, draw.head_dim, 3)
    return query, F.normalize(key, dim=-1), value, beta, state


def delta_step_inputs(draw: Draw) -> tuple[Tensor, ...]:
    *sequences, state = delta_inputs(draw)
    return *(x[:, :, 0] for x in sequences), state


class OnGrid(nn.Module):
    """A layer that is called with the height and width of its grid."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, 4, x.shape[1] // 4)


def with_power(set_power: Any, draw: Draw) -> nn.Module:
    layer = SoftplusAttention(draw.width, draw.heads, power=None)
    set_power(layer, 7.0)
    return layer


# What every attention function refuses.
BAD_HEADS: tuple[Bad, ...] = (
    ("query", lambda c, x: c(x[0][0], x[1], x[2])),
    ("key", lambda c, x: c(x[0], x[1][..., :1], x[2])),
    ("value", lambda c, x: c(x[0], x[1], x[2][:, :, :1])),
    ("attn_mask", lambda c, x: c(*x, torch.ones(3, 3, dtype=torch.bool))),
    ("attn_mask", lambda c, x: c(*x, torch.ones(5, 5, dtype=torch.int64))),
    ("dropout_p", lambda c, x: c(*x, dropout_p=1.0)),
    ("dropout_p", lambda c, x: c(*x, dropout_p=-0.1)),
)

# What the delta rule refuses, in chunks or not.
BAD_DELTA: tuple[Bad, ...] = (
    ("query", lambda c, x: c(x[0][0], *x[1:])),
    ("key", lambda c, x: c(x[0], x[1][..., :1], *x[2:])),
    ("value", lambda c, x: c(*x[:2], x[2][:, :, :1], *x[3:])),
    ("beta", lambda c, x: c(*x[:3], x[3][..., None], x[4])),
    ("beta", lambda c, x: c(*x[:3], x[3][:, :1], x[4])),
    ("initial_state", lambda c, x: c(*x[:4], x[4].mT)),
)

# What every attention layer refuses.
BAD_LAYER: tuple[Bad, ...] = (
    ("embed_dim", lambda c, x: c(9, 2)),
    ("embed_dim", lambda c, x: c(0, 2)),
    ("num_heads", lambda c, x: c(8, 0)),
    ("position", lambda c, x: c(8, 2, position="sinusoidal")),
    ("dropout", lambda c, x: c(8, 2, dropout=1.0)),
    ("x", lambda c, x: c(8, 2)(x[0][0])),
    ("x", lambda c, x: c(8, 2)(x[0][..., :5])),
    ("attn_mask", lambda c, x: c(8, 2).double()(x[0], torch.ones(3, 3, dtype=torch.bool))),
)

SPECIMENS = (
    Specimen(
        f"{SIGMOID}:sigmoid_attention",
        lambda d: d.heads_of(3),
        bad=(
            *BAD_HEADS,
            ("key", lambda c, x: c(x[0], x[1].float(), x[2])),
            ("value", lambda c, x: c(x[0], x[1], x[2].float())),
            ("alibi_slopes", lambda c, x: c(*x, alibi_slopes=torch.ones(5))),
        ),
    ),
    Specimen(
        f"{SIGMOID}:sigmoid_attention",
        masked_heads,
        make=lambda c, d: partial(c, is_causal=True, bias=-math.log(d.length)),
        case="causal, padded",
    ),
    Specimen(
        f"{SIGMOID}:sigmoid_attention",
        grouped_heads,
        make=lambda c, d: partial(c, enable_gqa=True, scale=0.5),
        case="grouped queries",
    ),
    Specimen(
        f"{SIGMOID}:sigmoid_attention_lipschitz_bound",
        lambda d: (
            d.normal(d.length, d.width),
            *(d.normal(d.head_dim, d.width) for _ in range(3)),
        ),
        batch="none",
        bad=(
            ("x", lambda c, x: c(x[0][0], *x[1:])),
            ("x", lambda c, x: c(x[0][:0], *x[1:])),
            ("weight_query", lambda c, x: c(x[0], x[1][:, :1], *x[2:])),
            ("weight_key", lambda c, x: c(*x[:2], x[2][:1], x[3])),
            ("weight_value", lambda c, x: c(*x[:3], x[3][:, :1])),
        ),
    ),
    Specimen(
        f"{SIGMOID}:SigmoidAttention",
        Draw.sequence,
        make=lambda c, d: c(d.width, d.heads, sequence_length=d.length, position="rotary"),
        bad=(
            *BAD_LAYER,
            ("position", lambda c, x: c(6, 2, position="rotary")),
            ("sequence_length", lambda c, x: c(8, 2, sequence_length=0)),
            ("attention_bias", lambda c, x: c(8, 2, sequence_length=4, attention_bias=0.0)),
            ("mha", lambda c, x: c.from_multihead(torch.nn.MultiheadAttention(8, 2, kdim=4))),
        ),
    ),
    Specimen(
        f"{SIGMOID}:SigmoidAttention",
        Draw.sequence,
        make=lambda c, d: c(d.width, d.heads, bias=True, qk_norm=True, position="alibi"),
        case="ALiBi, QK-norm",
    ),
    Specimen(
        f"{SIGMOID}:LayerScale",
        Draw.sequence,
        make=lambda c, d: c(d.width, 0.1),
    ),
    Specimen(
        f"{SOFTPLUS}:softplus_attention",
        lambda d: d.heads_of(3),
        bad=(
            *BAD_HEADS,
            ("query", lambda c, x: c(x[0][..., :1], x[1][..., :1], x[2])),
            ("attn_mask", lambda c, x: c(*x, torch.zeros(5, 5))),
            ("power", lambda c, x: c(*x, power=0.5)),
            ("offset", lambda c, x: c(*x, power=2.0, offset=-1.0)),
            ("scale", lambda c, x: c(*x, scale=0.0)),
        ),
        graph_breaks=BLOCKED_BREAKS,
    ),
    Specimen(
        f"{SOFTPLUS}:softplus_attention",
        masked_heads,
        make=lambda c, d: partial(c, is_causal=True, power=15.0),
        case="causal, padded, p = 15",
        graph_breaks=BLOCKED_BREAKS,
    ),
    Specimen(
        f"{SOFTPLUS}:softplus_attention_weights",
        lambda d: d.heads_of(2),
        make=lambda c, d: partial(c, is_causal=True, power=3.0),
        bad=(
            ("query", lambda c, x: c(x[0][0], x[1])),
            ("key", lambda c, x: c(x[0], x[1][..., :1])),
            ("attn_mask", lambda c, x: c(*x, torch.ones(3, 3, dtype=torch.bool))),
            ("power", lambda c, x: c(*x, power=0.5)),
            ("offset", lambda c, x: c(*x, offset=-1.0)),
            ("scale", lambda c, x: c(*x, scale=-1.0)),
        ),
    ),
    Specimen(
        f"{SOFTPLUS}:SoftplusAttention",
        Draw.sequence,
        make=lambda c, d: c(d.width, d.heads, power=3.0),
        bad=(
            *BAD_LAYER,
            ("embed_dim", lambda c, x: c(6, 2, position="rotary")),
            ("power", lambda c, x: c(8, 2, power=0.0)),
            ("mha", lambda c, x: c.from_multihead(torch.nn.MultiheadAttention(8, 2, kdim=4))),
        ),
        graph_breaks=BLOCKED_BREAKS,
    ),
    Specimen(
        f"{SOFTPLUS}:set_power",
        Draw.sequence,
        make=with_power,
        tolerance={torch.bfloat16: 6e-2},  # a power of 7 sharpens what bfloat16 rounds
        bad=(
            ("power", lambda c, x: c(torch.nn.Linear(2, 2), 0.5)),
            ("model", lambda c, x: c(torch.nn.Linear(2, 2), 3.0)),
        ),
        graph_breaks=BLOCKED_BREAKS,
    ),
    Specimen(
        f"{SOFTMAX}:SoftmaxAttention",
        Draw.sequence,
        make=lambda c, d: c(d.width, d.heads, position="rotary"),
        bad=(*BAD_LAYER, ("position", lambda c, x: c(6, 2, position="rotary"))),
    ),
    Specimen(
        f"{SOFTMAX}:SoftmaxAttention",
        lambda d: (*d.sequence(), masked_heads(d)[3]),
        make=lambda c, d: c(
            d.width, d.heads, position="alibi", qk_norm=True, log_n=True, bias=True
        ),
        case="ALiBi, QK-norm, log n, padded",
        bad=(("attn_mask", lambda c, x: c(8, 2, log_n=True).double()(x[0], torch.zeros(5, 5))),),
    ),
    Specimen(
        f"{SOFTMAX}:SoftmaxAttention",
        Draw.sequence,
        make=lambda c, d: c(d.width, d.heads, window=2),
        call=lambda layer, x: layer(x, is_causal=True),
        case="window",
        bad=(
            ("window", lambda c, x: c(8, 2, window=0)),
            ("is_causal", lambda c, x: c(8, 2, window=2).double()(x[0])),
        ),
    ),
    Specimen(
        f"{LINEAR}:linear_attention",
        lambda d: d.heads_of(3),
        bad=(
            *BAD_HEADS,
            ("attn_mask", lambda c, x: c(*x, torch.zeros(5, 5))),
            ("feature_map", lambda c, x: c(*x, feature_map="relu")),
            ("normalize", lambda c, x: c(*x, feature_map="identity")),
            ("chunk_size", lambda c, x: c(*x, chunk_size=0)),
            ("decay", lambda c, x: c(*x, decay=torch.ones(2))),
            ("decay", lambda c, x: c(*x, is_causal=True, decay=torch.ones(3))),
        ),
    ),
    Specimen(
        f"{LINEAR}:linear_attention",
        lambda d: d.heads_of(3),
        call=lambda c, q, k, v: c(
            *(q, k, v),
            is_causal=True,
            chunk_size=2,
            decay=torch.full(q.shape[1:2], 0.9, device=q.device),
        ),
        case="causal, decay",
    ),
    Specimen(
        f"{LINEAR}:linear_attention",
        masked_heads,
        make=lambda c, d: partial(c, is_causal=True),
        case="causal, padded",
    ),
    Specimen(
        f"{LINEAR}:LinearAttention",
        Draw.sequence,
        make=lambda c, d: c(d.width, d.heads, position="rotary", decay=True, bias=True),
        call=lambda layer, x: layer(x, is_causal=True),
        bad=(
            ("embed_dim", lambda c, x: c(9, 2)),
            ("num_heads", lambda c, x: c(8, 0)),
            ("position", lambda c, x: c(8, 2, position="alibi")),
            ("position", lambda c, x: c(6, 2, position="rotary")),
            ("x", lambda c, x: c(8, 2)(x[0][0])),
            ("decay", lambda c, x: c(8, 2, decay=True).double()(x[0])),
        ),
    ),
    Specimen(
        f"{SOFTMAX_FREE}:gaussian_kernel",
        lambda d: (d.normal(d.batch, d.length, 4), d.normal(d.batch, 3, 4)),
        bad=(
            ("query", lambda c, x: c(x[0][0, 0], x[1])),
            ("key", lambda c, x: c(x[0], x[1][..., :1])),
            ("key", lambda c, x: c(x[0], x[1][:1])),
        ),
    ),
    Specimen(
        f"{SOFTMAX_FREE}:newton_inverse",
        lambda d: (0.1 * d.normal(d.batch, 4, 4) + torch.eye(4).to(d.device, d.dtype),),
        make=lambda c, d: partial(c, iterations=20, ridge=0.1),
        bad=(
            ("matrix", lambda c, x: c(x[0][:, :3])),
            ("matrix", lambda c, x: c(x[0][:, :0, :0])),
            ("iterations", lambda c, x: c(x[0], iterations=0)),
            ("ridge", lambda c, x: c(x[0], ridge=-1.0)),
        ),
    ),
    Specimen(
        f"{SOFTMAX_FREE}:softmax_free_attention",
        pooled_heads,
        make=lambda c, d: partial(c, iterations=25, ridge=0.1),
        bad=(
            ("query", lambda c, x: c(x[0][0], x[1], x[2])),
            ("value", lambda c, x: c(x[0], x[1][:, :, :1], x[2])),
            ("value", lambda c, x: c(x[0], x[1].float(), x[2])),
            ("bottleneck", lambda c, x: c(x[0], x[1], x[2][:, :, :0])),
            ("bottleneck", lambda c, x: c(x[0], x[1], x[2].float())),
            ("iterations", lambda c, x: c(*x, iterations=0)),
            ("ridge", lambda c, x: c(*x, ridge=-1.0)),
            ("inverse", lambda c, x: c(*x, inverse="lu")),
        ),
    ),
    Specimen(
        f"{SOFTMAX_FREE}:softmax_free_attention",
        pooled_heads,
        make=lambda c, d: partial(c, ridge=0.1, normalize=True, inverse="cholesky"),
        case="SOFT++, Cholesky",
    ),
    Specimen(
        f"{SOFTMAX_FREE}:SoftmaxFreeAttention",
        grid_of_tokens,
        make=lambda c, d: OnGrid(c(d.width, d.heads, 2, conv_size=3, ridge=0.1, iterations=25)),
        bad=(
            ("embed_dim", lambda c, x: c(9, 2, 2)),
            ("num_heads", lambda c, x: c(8, 0, 2)),
            ("ratio", lambda c, x: c(8, 2, 0)),
            ("conv_size", lambda c, x: c(8, 2, 2, conv_size=4)),
            ("iterations", lambda c, x: c(8, 2, 2, iterations=0)),
            ("ridge", lambda c, x: c(8, 2, 2, ridge=-0.1)),
            ("inverse", lambda c, x: c(8, 2, 2, inverse="lu")),
            ("height", lambda c, x: c(8, 2, 2).double()(x[0], 4, 4)),
            ("height", lambda c, x: c(8, 2, 2).double()(x[0], 5, 8)),
            ("width", lambda c, x: c(8, 2, 2).double()(x[0], 8, 5)),
            ("x", lambda c, x: c(8, 2, 2).double()(x[0][0], 4, 10)),
        ),
    ),
    Specimen(
        f"{SOFTMAX_FREE}:SoftmaxFreeAttention",
        grid_of_tokens,
        make=lambda c, d: OnGrid(
            c(d.width, d.heads, 2, ridge=0.1, normalize=True, inverse="cholesky")
        ),
        tolerance={torch.bfloat16: 0.1},  # parameters are rounded too, and differences are squared
        case="SOFT++, Cholesky",
    ),
    Specimen(
        f"{DELTA}:delta_rule",
        delta_inputs,
        make=lambda c, d: partial(c, chunk_size=2),
        bad=(*BAD_DELTA, ("chunk_size", lambda c, x: c(*x, chunk_size=0))),
        graph_breaks=CHUNK_BREAKS,
    ),
    Specimen(
        f"{DELTA}:delta_rule",
        lambda d: delta_inputs(d)[:4],
        make=lambda c, d: partial(c, scale=0.7, return_state=True),
        call=lambda c, *x: torch.cat(c(*x), dim=2).to(x[2].dtype),
        case="with its state, from zeros",
        graph_breaks=CHUNK_BREAKS,
    ),
    Specimen(f"{DELTA}:delta_rule_recurrent", delta_inputs, bad=BAD_DELTA),
    Specimen(
        f"{DELTA}:delta_rule_step",
        delta_step_inputs,
        call=lambda c, *x: c(*x)[0],
        bad=(
            ("query", lambda c, x: c(x[0][0], *x[1:])),
            ("key", lambda c, x: c(x[0], x[1][..., :1], *x[2:])),
            ("state", lambda c, x: c(*x[:4], x[4].mT)),
        ),
    ),
    Specimen(
        f"{DELTA}:wy_representation",
        lambda d: delta_inputs(d)[1:4],
        call=lambda c, *x: torch.cat(c(*x), dim=-1),
        bad=(
            ("key", lambda c, x: c(x[0][0, 0, 0], *x[1:])),
            ("value", lambda c, x: c(x[0], x[1][:, :, :1], x[2])),
            ("beta", lambda c, x: c(*x[:2], x[2][..., None])),
        ),
    ),
    Specimen(
        f"{DELTA}:delta_rule_attention_map",
        lambda d: (*delta_inputs(d)[:2], delta_inputs(d)[3]),
        bad=(
            ("query", lambda c, x: c(x[0][0], *x[1:])),
            ("key", lambda c, x: c(x[0], x[1][..., :1], x[2])),
            ("beta", lambda c, x: c(*x[:2], x[2][..., None])),
        ),
    ),
    Specimen(
        f"{DELTA}:DeltaNet",
        Draw.sequence,
        make=lambda c, d: c(d.width, d.heads),
        tolerance={torch.bfloat16: 6e-2},  # rounded numbers are normalised twice
        bad=(
            ("hidden_size", lambda c, x: c(0, 2)),
            ("num_heads", lambda c, x: c(8, 0)),
            ("num_heads", lambda c, x: c(8, 3)),
            ("expand_k", lambda c, x: c(8, 2, expand_k=0.3)),
            ("expand_v", lambda c, x: c(8, 2, expand_v=0.0)),
            ("conv_size", lambda c, x: c(8, 2, conv_size=0)),
            ("qk_activation", lambda c, x: c(8, 2, qk_activation="gelu")),
            ("qk_norm", lambda c, x: c(8, 2, qk_norm="l1")),
            ("chunk_size", lambda c, x: c(8, 2, chunk_size=0)),
            ("x", lambda c, x: c(8, 2)(x[0][0])),
            ("x", lambda c, x: c(8, 2)(x[0][..., :5])),
        ),
        graph_breaks=CHUNK_BREAKS,
    ),
    Specimen(
        f"{DELTA}:DeltaNet",
        Draw.sequence,
        make=lambda c, d: c(
            d.width,
            d.heads,
            expand_k=0.5,
            expand_v=2.0,
            use_short_conv=False,
            use_gate=True,
            qk_activation="elu",
            qk_norm="sum",
            allow_neg_eigval=True,
        ),
        case="gate, elu, sum, no convolution",
        graph_breaks=CHUNK_BREAKS,
    ),
    Specimen(
        "heterodox.attention.causal:CausalMixer",
        Draw.sequence,
        make=lambda c, d: c(nn.SiLU(), position="rotary"),
        call=lambda mixer, x: mixer(x, is_causal=True),
        bad=(
            ("position", lambda c, x: c(nn.Identity(), position="alibi")),
            ("is_causal", lambda c, x: c(nn.Identity())(x[0])),
            ("attn_mask", lambda c, x: c(nn.Identity())(x[0], torch.ones(5, 5), is_causal=True)),
        ),
    ),
    Specimen(
        f"{CONVOLUTION}:ShortConvolution",
        Draw.sequence,
        make=lambda c, d: c(d.width, 3, activation="silu"),
        bad=(
            ("channels", lambda c, x: c(0)),
            ("kernel_size", lambda c, x: c(8, 0)),
            ("activation", lambda c, x: c(8, activation="relu")),
            ("x", lambda c, x: c(8)(x[0][0])),
            ("state", lambda c, x: c(8).double()(x[0], x[0])),
        ),
    ),
    Specimen(
        f"{POSITION}:apply_rotary",
        lambda d: d.heads_of(1),
        make=lambda c, d: partial(c, offset=3),
        bad=(("x", lambda c, x: c(x[0][..., :3])),),
    ),
    Specimen(f"{NORM}:layer_norm", Draw.sequence, make=lambda c, d: c(d.width), limits=TORCHS_OWN),
    Specimen(f"{NORM}:rms_norm", Draw.sequence, make=lambda c, d: c(d.width), limits=TORCHS_OWN),
)
