"""Specimens of Hebbian learning and test-time adaptation."""

from functools import partial
from typing import Any

import torch
from tests.contract.specimen import Draw, Specimen
from torch import Tensor, nn

HEBBIAN = "heterodox.learning.hebbian"
TEST_TIME = "heterodox.learning.test_time"

CHANNELS, FILTERS = 2, 3


def rows_and_weight(draw: Draw) -> tuple[Tensor, ...]:
    return draw.normal(draw.batch, draw.width), draw.normal(FILTERS, draw.width)


def images(draw: Draw) -> tuple[Tensor]:
    return (draw.normal(draw.batch, CHANNELS, 5, 6),)


def images_and_filters(draw: Draw) -> tuple[Tensor, ...]:
    return *images(draw), draw.normal(FILTERS, CHANNELS, 3, 2)


def classifier() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(CHANNELS, FILTERS, 3, padding=1, bias=False),
        nn.BatchNorm2d(FILTERS),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(FILTERS * 30, 4),
    )


def from_the_source_on(adapter: Any, x: Tensor) -> Tensor:
    """What a batch is answered after a reset, so that tries do not depend on earlier ones."""
    adapter.reset()
    return adapter(x)


LOCAL = {"backward": "a local rule, outside of autograd"}
OF_BATCH = {
    "backward": "adapts outside of the caller's autograd",
    "rows": "a row is normalised with the others of its batch",
    "empty batch": "a batch of nothing has no statistics, and is refused",
}
ADAPTER = {
    **OF_BATCH,
    "bfloat16": "small steps are lost in half precision, which is refused",
    "compile": "an optimizer steps inside of the forward pass",
}

SPECIMENS = (
    Specimen(
        f"{HEBBIAN}:soft_hebbian_update",
        rows_and_weight,
        make=lambda c, d: partial(c, temperature=0.7),
        batch="none",
        limits=LOCAL,
        bad=(
            ("x", lambda c, x: c(x[0][:, :1], x[1])),
            ("temperature", lambda c, x: c(*x, temperature=0.0)),
        ),
    ),
    Specimen(
        f"{HEBBIAN}:soft_hebbian_conv2d_update",
        images_and_filters,
        make=lambda c, d: partial(c, padding=(1, 0), stride=(1, 2)),
        batch="none",
        limits=LOCAL,
        bad=(
            ("x", lambda c, x: c(x[0][:, :1], x[1])),
            ("padding", lambda c, x: c(*x, padding="full")),
            ("temperature", lambda c, x: c(*x, temperature=-1.0)),
        ),
    ),
    Specimen(
        f"{HEBBIAN}:SoftHebbianConv2d",
        images,
        make=lambda c, d: c(CHANNELS, FILTERS, 3, padding=1),
        limits={"shape types": "its forward pass is that of nn.Conv2d, without shapes"},
        bad=(
            ("groups", lambda c, x: c(4, 4, 3, groups=2)),
            ("lr", lambda c, x: c(CHANNELS, 3, 3).double().hebbian_step_(x[0], -1.0)),
            ("x", lambda c, x: c(CHANNELS, 3, 3).double().hebbian_step_(x[0][:0], 0.1)),
        ),
    ),
    Specimen(
        f"{HEBBIAN}:ChannelAffine",
        images,
        make=lambda c, d: c(CHANNELS),
        bad=(("channels", lambda c, x: c(0)), ("x", lambda c, x: c(CHANNELS + 1).double()(x[0]))),
    ),
    Specimen(
        f"{TEST_TIME}:softmax_entropy",
        lambda d: (3 * d.normal(d.batch, 5),),
        bad=(("logits", lambda c, x: c(x[0][:, :0])),),
    ),
    Specimen(
        f"{TEST_TIME}:BatchNormAdapter",
        images,
        make=lambda c, d: c(classifier(), source_weight=0.25),
        graph_breaks="inference mode is left inside",
        limits=OF_BATCH,
        bad=(
            ("source_weight", lambda c, x: c(classifier(), source_weight=-0.5)),
            ("model", lambda c, x: c(nn.Linear(2, 2))),
        ),
    ),
    Specimen(
        f"{TEST_TIME}:TentAdapter",
        images,
        make=lambda c, d: c(classifier(), lr=0.01, predict="after"),
        call=from_the_source_on,
        limits=ADAPTER,
        bad=(
            ("lr", lambda c, x: c(classifier(), lr=-0.5)),
            ("predict", lambda c, x: c(classifier(), predict="never")),
            ("model", lambda c, x: c(nn.Linear(2, 2))),
        ),
    ),
    Specimen(
        f"{TEST_TIME}:NeuroModulatedAdapter",
        images,
        make=lambda c, d: c(classifier(), hebbian_lr=0.01, modulator_lr=0.01),
        call=from_the_source_on,
        limits=ADAPTER,
        bad=(
            ("hebbian_lr", lambda c, x: c(classifier(), hebbian_lr=-0.5)),
            ("hebbian_layer", lambda c, x: c(classifier(), hebbian_layer="readout")),
            ("modulator", lambda c, x: c(nn.Linear(2, 2))),
            ("x", lambda c, x: c(classifier())(torch.zeros(0, CHANNELS, 5, 6))),
        ),
    ),
)
