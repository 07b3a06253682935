"""Specimens of `heterodox.attention` and `heterodox.layers`."""

import math
from functools import partial
from typing import Any

import torch
from tests.contract.specimen import Bad, Draw, Specimen
from torch import Tensor, nn

from heterodox.attention.softplus import SoftplusAttention

SIGMOID = "heterodox.attention.sigmoid"
SOFTPLUS = "heterodox.attention.softplus"
SOFTMAX = "heterodox.attention.softmax"
POSITION = "heterodox.attention.position"
NORM = "heterodox.layers.norm"

TORCHS_OWN = {"shape types": "a layer of torch, which has no shape types"}
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
        f"{POSITION}:apply_rotary",
        lambda d: d.heads_of(1),
        make=lambda c, d: partial(c, offset=3),
        bad=(("x", lambda c, x: c(x[0][..., :3])),),
    ),
    Specimen(f"{NORM}:layer_norm", Draw.sequence, make=lambda c, d: c(d.width), limits=TORCHS_OWN),
    Specimen(f"{NORM}:rms_norm", Draw.sequence, make=lambda c, d: c(d.width), limits=TORCHS_OWN),
)
