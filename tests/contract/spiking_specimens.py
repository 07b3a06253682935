"""Specimens of spiking neurons and of synapses with delays; inputs have the batch first here."""

from typing import Any

import torch
from tests.contract.specimen import Bad, Draw, Specimen
from torch import Tensor

SPIKING = "heterodox.layers.spiking"
DELAYS = "heterodox.layers.delays"

LAGS = 5
SURROGATE = {"backward": "the derivative of a spike is that of a surrogate"}


def current(draw: Draw) -> tuple[Tensor]:
    return (2 * draw.normal(draw.batch, draw.length, draw.width),)


def over_time(component: Any, x: Tensor) -> Tensor:
    return component(x.transpose(0, 1)).transpose(0, 1)


def membrane(neurons: Any, x: Tensor) -> Tensor:
    return neurons(x.transpose(0, 1), return_membrane=True)[1].transpose(0, 1)


def stepped(neurons: Any, x: Tensor) -> Tensor:
    """Spikes and traces of three steps from rest."""
    neurons.reset_state()
    return torch.stack([torch.cat(neurons.step(x[:, 0]), -1) for _ in range(3)], 1)


def synapses(draw: Draw) -> tuple[Tensor, ...]:
    shape = (3, draw.width, 2)
    return draw.normal(*shape), (LAGS - 1) * draw.normal(*shape).sigmoid()


def steps_and_kernel(draw: Draw) -> tuple[Tensor, ...]:
    return draw.normal(draw.batch, draw.length, draw.width), draw.normal(3, draw.width, LAGS)


def with_kernel(convolve: Any, x: Tensor, kernel: Tensor) -> Tensor:
    return convolve(x.transpose(0, 1), kernel, extend=2).transpose(0, 1)


def scaled(schedule: Any, x: Tensor) -> Tensor:
    return x * schedule(3, initial=12.0, last_epoch=10)


OF_SYNAPSES: tuple[Bad, ...] = (
    ("max_delay", lambda c, x: c(8, 3, 0)),
    ("kernel_count", lambda c, x: c(8, 3, 5, kernel_count=0)),
    ("sigma", lambda c, x: c(8, 3, 5, sigma=-1.0)),
    ("extend", lambda c, x: c(8, 3, 5, extend=-1)),
    ("x", lambda c, x: c(x[0].shape[-1] + 1, 3, 5)(x[0])),
    ("x", lambda c, x: c(x[0].shape[-1], 3, 5)(x[0][0])),
)

SPECIMENS = (
    *(
        Specimen(
            f"{SPIKING}:{name}",
            current,
            make=lambda c, d: c(2.0),
            limits=SURROGATE,
            bad=(("alpha", lambda c, x: c(0.0)),),
        )
        for name in ("SigmoidSurrogate", "ATanSurrogate")
    ),
    Specimen(
        f"{SPIKING}:LIF",
        current,
        make=lambda c, d: c(2.0, decay_input=False),
        call=over_time,
        limits=SURROGATE,
        bad=(
            ("tau", lambda c, x: c(0.5)),
            ("threshold", lambda c, x: c(threshold=0.0)),
            ("reset", lambda c, x: c(reset="hard")),
            ("surrogate", lambda c, x: c(surrogate=torch.sigmoid)),
        ),
    ),
    Specimen(
        f"{SPIKING}:LIF",
        current,
        make=lambda c, d: c(2.5, reset="none"),
        call=membrane,
        case="membrane",
    ),
    Specimen(
        f"{SPIKING}:OnlineLIF",
        current,
        make=lambda c, d: c(2.0),
        call=stepped,
        graph_breaks="it keeps a state between its steps",
        limits=SURROGATE,
        bad=(("tau", lambda c, x: c(0.5)), ("threshold", lambda c, x: c(threshold=-1.0))),
    ),
    Specimen(
        f"{SPIKING}:DSRLIF",
        current,
        call=over_time,
        make=lambda c, d: c(0.3),
        limits=SURROGATE,
        bad=(
            ("tau", lambda c, x: c(tau=0.0)),
            ("threshold", lambda c, x: c(1e-5)),
            ("current", lambda c, x: c()(x[0][:0])),
        ),
    ),
    Specimen(
        f"{SPIKING}:weighted_rate",
        current,
        call=lambda c, x: c(x.transpose(0, 1)),
        bad=(("x", lambda c, x: c(x[0][:0])), ("tau", lambda c, x: c(x[0], tau=0.0))),
    ),
    Specimen(
        f"{DELAYS}:delay_kernel",
        synapses,
        call=lambda c, *x: c(*x, 0.7, LAGS),
        batch="none",
        bad=(
            ("weight", lambda c, x: c(x[0][0], x[1], 0.7, LAGS)),
            ("delay", lambda c, x: c(x[0], x[1][:1], 0.7, LAGS)),
            ("sigma", lambda c, x: c(*x, -0.7, LAGS)),
            ("max_delay", lambda c, x: c(*x, 0.7, 0)),
        ),
    ),
    Specimen(
        f"{DELAYS}:hard_delay_kernel",
        synapses,
        call=lambda c, *x: c(*x, LAGS),
        batch="none",
        bad=(
            ("delay", lambda c, x: c(x[0], x[1][:1], LAGS)),
            ("max_delay", lambda c, x: c(*x, 0)),
        ),
    ),
    Specimen(
        f"{DELAYS}:delayed_linear",
        steps_and_kernel,
        call=with_kernel,
        limits={"rows": "the kernel has no axis of the batch"},
        bad=(
            ("x", lambda c, x: c(x[0][0], x[1])),
            ("kernel", lambda c, x: c(x[0], x[1][0])),
            ("extend", lambda c, x: c(*x, extend=-1)),
            ("bias", lambda c, x: c(*x, bias=x[0][0, 0])),
        ),
    ),
    Specimen(
        f"{DELAYS}:DelayedLinear",
        Draw.sequence,
        make=lambda c, d: c(d.width, 3, LAGS, bias=True),
        call=over_time,
        bad=OF_SYNAPSES,
    ),
    Specimen(
        f"{DELAYS}:DelayedSNN",
        Draw.sequence,
        make=lambda c, d: c([d.width, 6, 3], LAGS),
        call=over_time,
        limits=SURROGATE,
        bad=(
            ("sizes", lambda c, x: c([4], LAGS)),
            ("dropout", lambda c, x: c([4, 3], LAGS, dropout=1.0)),
            ("tau", lambda c, x: c([4, 3], LAGS, tau=0.5)),
            ("x", lambda c, x: c([x[0].shape[-1] + 1, 3], LAGS)(x[0])),
        ),
    ),
    Specimen(
        f"{DELAYS}:summed_softmax",
        Draw.sequence,
        call=lambda c, x: c(x.transpose(0, 1)),
        bad=(("membrane", lambda c, x: c(x[0][0])),),
    ),
    Specimen(
        f"{DELAYS}:sigma_at",
        Draw.sequence,
        call=scaled,
        bad=(
            ("epoch", lambda c, x: c(-1, initial=1.0, last_epoch=2)),
            ("final", lambda c, x: c(1, initial=1.0, final=0.0, last_epoch=2)),
        ),
        limits={"shape types": "takes no tensor: the try multiplies one by its result"},
    ),
)
