"""Specimens of `heterodox.models`."""

from typing import Any

import torch
from tests.contract.specimen import Draw, Specimen
from torch import Tensor, nn

from heterodox.attention import SigmoidAttention
from heterodox.models.transformer import feed_forward

TRANSFORMER = "heterodox.models.transformer"
VISION = "heterodox.models.vision"

VOCABULARY = 11


def block(component: Any, draw: Draw) -> nn.Module:
    attention = SigmoidAttention(draw.width, draw.heads, sequence_length=draw.length)
    mlp = feed_forward(draw.width)
    return component(draw.width, attention, mlp, nn.LayerNorm, layer_scale=0.1, hybrid_norm=True)


def decoder(component: Any, draw: Draw) -> nn.Module:
    return component(VOCABULARY, width=draw.width, layers=1, heads=draw.heads, length=draw.length)


def images(draw: Draw) -> tuple[Tensor]:
    return (draw.normal(draw.batch, 2, 8, 12),)


IMAGE_SHAPE = (2, 8, 12)

SOFT_SIZES = (16, 2, (8, 8), (1, 1), (2, 2), (2,), 5)

# Rounding moves some inputs across the kinks of ReLU and max pooling, where gradients jump.
RELU_JUMPS = {torch.bfloat16: 0.5}

SPECIMENS = (
    Specimen(f"{TRANSFORMER}:Block", Draw.sequence, make=block),
    Specimen(f"{TRANSFORMER}:SwiGLU", Draw.sequence, make=lambda c, d: c(d.width)),
    Specimen(
        f"{TRANSFORMER}:DecoderLM",
        lambda d: (d.below(VOCABULARY, d.batch, d.length),),
        make=decoder,
        bad=(
            ("vocabulary", lambda c, x: c(0, 8, 1, 2, 4)),
            ("width", lambda c, x: c(11, 0, 1, 2, 4)),
            ("layers", lambda c, x: c(11, 8, 0, 2, 4)),
            ("heads", lambda c, x: c(11, 8, 1, 3, 4)),
            ("heads", lambda c, x: c(11, 6, 1, 2, 4)),
            ("length", lambda c, x: c(11, 8, 1, 2, 0)),
            ("attention", lambda c, x: c(11, 8, 1, 2, 4, attention="sofmax")),
            ("attention", lambda c, x: c(11, 8, 1, 2, 4, attention=["softmax"] * 2)),
            ("norm", lambda c, x: c(11, 8, 1, 2, 4, norm="batch")),
            ("mlp", lambda c, x: c(11, 8, 1, 2, 4, mlp="relu")),
            ("position", lambda c, x: c(11, 8, 1, 2, 4, position="sinus")),
            ("tokens", lambda c, x: c(11, 8, 1, 2, 4, position="learned")(x[0])),
        ),
    ),
    Specimen(
        "heterodox.models.delta:delta_net_language_model",
        lambda d: (d.below(VOCABULARY, d.batch, d.length),),
        # In a plain module, as what is saved and loaded is the class that it returns.
        make=lambda c, d: nn.Sequential(
            c(VOCABULARY, d.width, 2, d.heads, d.length, hybrid=[1], window=3)
        ),
        tolerance={torch.bfloat16: 6e-2},  # two layers of rounded numbers, normalised twice each
        graph_breaks="the delta rule's loop over chunks",
        bad=(
            ("vocabulary", lambda c, x: c(0, 8, 1, 2, 4)),
            ("heads", lambda c, x: c(11, 8, 1, 3, 4)),
            ("hybrid", lambda c, x: c(11, 8, 2, 2, 4, hybrid=[2])),
            ("hybrid", lambda c, x: c(11, 8, 2, 2, 4, hybrid=[1, 1])),
            ("window", lambda c, x: c(11, 8, 2, 2, 4, hybrid=[1], window=0)),
        ),
    ),
    Specimen(
        f"{VISION}:ViT",
        images,
        make=lambda c, d: c(IMAGE_SHAPE, 4, 5, d.width, 1, d.heads, layer_scale=0.1),
        bad=(
            ("image_shape", lambda c, x: c((2, 8), 4, 5, 8, 1, 2)),
            ("patch", lambda c, x: c(IMAGE_SHAPE, 5, 5, 8, 1, 2)),
            ("patch", lambda c, x: c(IMAGE_SHAPE, 0, 5, 8, 1, 2)),
            ("classes", lambda c, x: c(IMAGE_SHAPE, 4, 0, 8, 1, 2)),
            ("width", lambda c, x: c(IMAGE_SHAPE, 4, 5, 0, 1, 2)),
            ("layers", lambda c, x: c(IMAGE_SHAPE, 4, 5, 8, 0, 2)),
            ("heads", lambda c, x: c(IMAGE_SHAPE, 4, 5, 8, 1, 3)),
            ("attention", lambda c, x: c(IMAGE_SHAPE, 4, 5, 8, 1, 2, attention="sofmax")),
            ("norm", lambda c, x: c(IMAGE_SHAPE, 4, 5, 8, 1, 2, norm="batch")),
            ("images", lambda c, x: c(IMAGE_SHAPE, 4, 5, 8, 1, 2)(x[0][..., :8])),
            ("images", lambda c, x: c(IMAGE_SHAPE, 4, 5, 8, 1, 2)(x[0][0])),
        ),
    ),
    Specimen(
        f"{VISION}:ConvNet",
        images,
        make=lambda c, d: c(IMAGE_SHAPE, 5, widths=(d.heads, d.length)),
        tolerance=RELU_JUMPS,
        bad=(
            ("image_shape", lambda c, x: c((0, 8, 8), 5)),
            ("classes", lambda c, x: c(IMAGE_SHAPE, 0)),
            ("widths", lambda c, x: c(IMAGE_SHAPE, 5, widths=())),
            ("images", lambda c, x: c((1, 8, 12), 5)(x[0])),
        ),
    ),
    Specimen(
        f"{VISION}:MLP",
        images,
        make=lambda c, d: c(IMAGE_SHAPE, 5, widths=(d.width,)),
        tolerance=RELU_JUMPS,
        bad=(
            ("image_shape", lambda c, x: c((2, 8), 5)),
            ("classes", lambda c, x: c(IMAGE_SHAPE, 0)),
            ("widths", lambda c, x: c(IMAGE_SHAPE, 5, widths=(0,))),
            ("images", lambda c, x: c((2, 8, 8), 5)(x[0])),
        ),
    ),
    Specimen(
        "heterodox.models.pair_mlp:PairMLP",
        lambda d: (d.below(7, d.batch, 2),),
        make=lambda c, d: c(7, d.width),
        tolerance=RELU_JUMPS,
        bad=(
            ("symbols", lambda c, x: c(0, 8)),
            ("hidden", lambda c, x: c(7, 0)),
            ("pairs", lambda c, x: c(7, 8)(x[0][:, :1])),
        ),
    ),
    Specimen(
        "heterodox.models.soft:SoftVisionTransformer",
        lambda d: (d.normal(d.batch, 3, 16, 16),),
        make=lambda c, d: c(*SOFT_SIZES, ridge=0.1, iterations=25),
        tolerance=RELU_JUMPS,
        bad=(
            ("image_size", lambda c, x: c(18, *SOFT_SIZES[1:])),
            ("widths", lambda c, x: c(16, 2, (8,), (1,), (2,), (), 5)),
            ("depths", lambda c, x: c(16, 2, (8, 8), (1,), (2, 2), (2,), 5)),
            ("heads", lambda c, x: c(16, 2, (8, 8), (1, 1), (3, 2), (2,), 5)),
            ("ratios", lambda c, x: c(16, 2, (8, 8), (1, 1), (2, 2), (0,), 5)),
            ("num_classes", lambda c, x: c(*SOFT_SIZES[:-1], 0)),
            ("images", lambda c, x: c(*SOFT_SIZES)(x[0][:, :1])),
            ("images", lambda c, x: c(*SOFT_SIZES)(x[0][..., :15])),
        ),
    ),
)
