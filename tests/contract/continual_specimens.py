"""Specimens of `heterodox.continual`."""

from typing import Any

import torch
from tests.contract.specimen import Bad, Draw, Specimen
from torch import Tensor, nn

from heterodox.continual.orthogonal_projection import HebbianSubspace, ProjectedLinear

PROJECTION = "heterodox.continual.orthogonal_projection"

SHARED = {"rows": "the bank has no axis of the batch"}
PROJECTED = {"backward": "the weight's gradient is projected, which is the point"}
UNITS = 2


def inputs(draw: Draw) -> tuple[Tensor]:
    return (draw.normal(draw.batch, draw.width),)


def images(draw: Draw) -> tuple[Tensor]:
    return (draw.normal(draw.batch, 2, 5, 5),)


def inputs_and_bank(draw: Draw) -> tuple[Tensor, ...]:
    return *inputs(draw), 0.3 * draw.normal(UNITS, draw.width)


def bank_and_inputs(draw: Draw) -> tuple[Tensor, ...]:
    return 0.3 * draw.normal(UNITS, draw.width), draw.normal(4, draw.width)


def learned(update: Any, weight: Tensor, x: Tensor) -> Tensor:
    return update(weight, x, lr=0.1, num_frozen=1)[0]


def bank(component: type[HebbianSubspace], draw: Draw) -> HebbianSubspace:
    made = component(draw.width)
    made.grow(UNITS)
    made.freeze()
    return made


def projecting(layer: Any) -> Any:
    layer.subspace.grow(UNITS)
    layer.subspace.freeze()
    layer.projecting = True
    return layer


def after_a_task(component: Any, draw: Draw) -> nn.Module:
    """The model of a learner, here a layer, in its second task."""
    model = ProjectedLinear(draw.width, 3)
    learner = component(model)
    learner.begin_task(UNITS)
    learner.end_task()
    learner.begin_task(0)
    learner.end_task()
    return model


def projector(basis: Any, activations: Tensor) -> Tensor:
    rows = basis(activations, 0.9)
    return rows.T @ rows


OF_PROJECTION: tuple[Bad, ...] = (
    ("x", lambda c, x: c(x[0][:, :1], x[1])),
    ("weight", lambda c, x: c(x[0], x[1][0])),
    ("quantization", lambda c, x: c(*x, quantization=(0.0, 40))),
    ("quantization", lambda c, x: c(*x, quantization=(20.0, -1))),
)

SPECIMENS = (
    Specimen(
        f"{PROJECTION}:hebbian_subspace_update",
        bank_and_inputs,
        call=learned,
        batch="none",
        limits={"backward": "a local rule, outside of autograd"},
        bad=(
            ("x", lambda c, x: c(x[0], x[1][:, :1], lr=0.1)),
            ("lr", lambda c, x: c(*x, lr=0.0)),
            ("momentum", lambda c, x: c(*x, lr=0.1, momentum=1.0)),
            ("velocity", lambda c, x: c(*x, lr=0.1, velocity=x[1])),
            ("num_frozen", lambda c, x: c(*x, lr=0.1, num_frozen=3)),
            ("clamp", lambda c, x: c(*x, lr=0.1, clamp=0.0)),
        ),
    ),
    Specimen(f"{PROJECTION}:project", inputs_and_bank, limits=SHARED, bad=OF_PROJECTION),
    Specimen(f"{PROJECTION}:project_out", inputs_and_bank, limits=SHARED, bad=OF_PROJECTION),
    Specimen(
        f"{PROJECTION}:HebbianSubspace",
        inputs,
        make=bank,
        bad=(
            ("in_features", lambda c, x: c(0)),
            ("units", lambda c, x: c(4).grow(-1)),
            ("units", lambda c, x: c(4).grow(5)),
            ("rows", lambda c, x: c(4).add_frozen(torch.zeros(1, 5))),
            ("x", lambda c, x: c(x[0].shape[1] + 1).learn(x[0])),
        ),
    ),
    Specimen(
        f"{PROJECTION}:ProjectedLinear",
        inputs,
        make=lambda c, d: c(d.width, 3, True),
        bad=(
            ("x", lambda c, x: c(x[0].shape[1] + 1, 3)(x[0])),
            ("subspace", lambda c, x: c(4, 3, subspace=HebbianSubspace(5))),
            ("trace", lambda c, x: c(x[0].shape[1], 3)(x[0], x[0][:1])),
        ),
    ),
    Specimen(
        f"{PROJECTION}:ProjectedLinear",
        inputs,
        make=lambda c, d: projecting(c(d.width, 3)),
        case="projecting",
        limits=PROJECTED,
    ),
    Specimen(
        f"{PROJECTION}:ProjectedLinear",
        inputs,
        make=lambda c, d: projecting(c(d.width, 3)),
        call=lambda layer, x: layer(x, 2 * x.detach()),
        case="trace",
        limits=PROJECTED,
    ),
    Specimen(
        f"{PROJECTION}:ProjectedConv2d",
        images,
        make=lambda c, d: projecting(c(2, 3, 3, padding=1)),
        limits=PROJECTED,
        bad=(
            ("groups", lambda c, x: c(2, 2, 3, groups=2)),
            ("padding_mode", lambda c, x: c(2, 2, 3, padding_mode="circular")),
            ("x", lambda c, x: c(3, 2, 3)(x[0])),
        ),
    ),
    Specimen(
        f"{PROJECTION}:OrthogonalProjection",
        inputs,
        make=after_a_task,
        limits=PROJECTED,
        bad=(
            ("model", lambda c, x: c(nn.Linear(3, 2))),
            ("units", lambda c, x: c(ProjectedLinear(3, 2)).begin_task([1, 2])),
            ("units", lambda c, x: c(ProjectedLinear(3, 2)).begin_task(4)),
        ),
    ),
    Specimen(
        f"{PROJECTION}:gradient_projection_basis",
        inputs,
        call=projector,
        batch="reduced",
        graph_breaks="how many rows there are depends on the numbers",
        limits={
            "backward": "a basis is found without a gradient",
            "other device": "how many rows there are depends on the numbers",
        },
        bad=(
            ("activations", lambda c, x: c(x[0][0])),
            ("energy", lambda c, x: c(x[0], 1.5)),
            ("known", lambda c, x: c(x[0], known=x[0][:, :1])),
        ),
    ),
)
