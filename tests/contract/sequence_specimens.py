"""Specimens of `heterodox.sequence`."""

from dataclasses import astuple, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from tests.contract.specimen import Bad, Draw, Specimen
from torch import Tensor

from heterodox.sequence import from_s6

SEQUENCE = "heterodox.sequence"
# Where the paper's names stand together.
FRAMEWORK = "heterodox.sequence.dynamical_system"

# In the gradient, what comes through the weights and through their sum cancels, and rounding stays.
CANCELS = {torch.bfloat16: 0.2}
NUMBERS = "returns counts and Python's numbers, which are no tensors"


def steps(draw: Draw, channels: int) -> Tensor:
    return draw.normal(draw.batch, draw.length, channels)


def system(draw: Draw) -> tuple[Tensor, ...]:
    """Λ, B and C of a system of 4 states, and inputs of 3 channels."""
    shape = (draw.batch, draw.length)
    return (
        draw.normal(*shape, 4),
        draw.normal(*shape, 4, 3),
        draw.normal(*shape, 2, 4),
        steps(draw, 3),
    )


def full_system(draw: Draw) -> tuple[Tensor, ...]:
    return 0.3 * draw.normal(draw.batch, draw.length, 4, 4), *system(draw)[1:]


def run(component: Any, *x: Tensor) -> Tensor:
    """The system that a component makes of all tensors but the last, run on the last."""
    return component(*x[:-1]).run(x[-1])


def heads(draw: Draw) -> tuple[Tensor, ...]:
    """Query, key, value matrix and inputs."""
    size = draw.head_dim
    return steps(draw, size), steps(draw, size), draw.normal(2, 3), steps(draw, 3)


def with_normalizer(draw: Draw) -> tuple[Tensor, ...]:
    *given, inputs = heads(draw)
    return *given, steps(draw, 1)[..., 0].exp(), inputs


def with_beta(draw: Draw) -> tuple[Tensor, ...]:
    query, key, weight, inputs = heads(draw)
    beta = steps(draw, 1)[..., 0].sigmoid()
    return query, F.normalize(key, dim=-1), beta, weight, inputs


def selective(draw: Draw) -> tuple[Tensor, ...]:
    """Δ, A, b, c, d and inputs of 3 channels of 2 states."""
    return (
        F.softplus(steps(draw, 3)),
        -draw.normal(3, 2).exp(),
        *(steps(draw, 2) for _ in range(2)),
        draw.normal(3),
        steps(draw, 3),
    )


def tied(draw: Draw) -> tuple[Tensor, ...]:
    delta, a, *rest = selective(draw)
    return delta, a[:, 0], *rest


def gates(draw: Draw) -> tuple[Tensor, ...]:
    return *(steps(draw, 3).sigmoid() for _ in range(3)), steps(draw, 3)


def numbers(component: Any, *x: Tensor) -> Tensor:
    (summary,) = component({"s6": from_s6(*x[:-1])}).values()
    return x[0].new_tensor(astuple(summary))


# What every head that becomes a system refuses.
BAD_HEAD: tuple[Bad, ...] = (
    ("query", lambda c, x: c(x[0][0, 0], *x[1:-1])),
    ("key", lambda c, x: c(x[0], x[1][..., :1], *x[2:-1])),
)

# What every attention mixer of a width of its own refuses.
BAD_MIXER: tuple[Bad, ...] = (
    ("dim", lambda c, x: c(9, 4, 2)),
    ("dim", lambda c, x: c(0)),
    ("state_dim", lambda c, x: c(8, 3, 2)),
    ("num_heads", lambda c, x: c(8, 4, 0)),
    ("x", lambda c, x: c(8)(x[0][0])),
    ("x", lambda c, x: c(8)(x[0][..., :5])),
)

SPECIMENS = (
    Specimen(
        f"{SEQUENCE}.scan:linear_scan",
        lambda d: (steps(d, 4), steps(d, 4), d.normal(d.batch, 4)),
        bad=(
            ("inputs", lambda c, x: c(x[0], x[1][0, 0])),
            ("decay", lambda c, x: c(x[0][:, :-1], x[1])),
            ("initial_state", lambda c, x: c(x[0], x[1], x[2][:, :-1])),
        ),
    ),
    Specimen(
        f"{FRAMEWORK}:DynamicalSystem",
        system,
        call=run,
        bad=(
            ("transition", lambda c, x: c(x[0][..., :1], *x[1:3])),
            ("input_matrix", lambda c, x: c(x[0], x[1][0, 0], x[2])),
            ("output_matrix", lambda c, x: c(*x[:2], x[2][..., :1])),
            ("feedthrough", lambda c, x: c(*x[:3], x[2])),
            ("input_bias", lambda c, x: c(*x[:3], input_bias=x[3])),
            ("output_bias", lambda c, x: c(*x[:3], output_bias=x[3])),
            ("inputs", lambda c, x: c(*x[:3]).run(x[0])),
            ("initial_state", lambda c, x: c(*x[:3]).run(x[3], x[3])),
            ("i", lambda c, x: c(*x[:3]).memory(5)),
            (
                "return_state",
                lambda c, x: c(*(y[:, :0] for y in x[:3])).run(x[3][:, :0], return_state=True),
            ),
        ),
    ),
    Specimen(f"{FRAMEWORK}:DynamicalSystem", full_system, call=run, case="full transition"),
    Specimen(
        f"{FRAMEWORK}:DynamicalSystem",
        lambda d: full_system(d)[:3],
        call=lambda c, *x: c(*x).kernel(),
        case="kernel",
    ),
    Specimen(
        f"{FRAMEWORK}:DynamicalSystem",
        lambda d: system(d)[:3],
        # Half precision may not tell the kinks of the absolute value.
        call=lambda c, t, b, o: c(t.exp(), b, o).memory(b.shape[1] - 1),
        case="memory",
    ),
    Specimen(
        f"{FRAMEWORK}:from_linear_attention",
        heads,
        call=run,
        batch="none",
        tolerance=CANCELS,
        bad=BAD_HEAD,
    ),
    Specimen(
        f"{FRAMEWORK}:from_normalized_attention",
        with_normalizer,
        call=run,
        batch="none",
        bad=(*BAD_HEAD, ("normalizer", lambda c, x: c(*x[:3], x[3] * 0))),
    ),
    Specimen(
        f"{FRAMEWORK}:from_softmax_attention",
        heads,
        make=lambda c, d: partial(c, degree=2),
        call=run,
        batch="none",
        tolerance=CANCELS,
        bad=(
            ("degree", lambda c, x: c(*x[:3], degree=-1)),
            ("scale", lambda c, x: c(*x[:3], degree=1, scale=-1.0)),
        ),
    ),
    Specimen(
        f"{FRAMEWORK}:from_delta_rule",
        with_beta,
        call=run,
        batch="none",
        bad=(("beta", lambda c, x: c(x[0], x[1], x[2][:, 1:], x[3])),),
    ),
    Specimen(
        f"{FRAMEWORK}:from_s6",
        selective,
        call=run,
        batch="none",
        bad=(
            ("delta", lambda c, x: c(x[0][0, 0], *x[1:-1])),
            ("a", lambda c, x: c(x[0], x[1][:1], *x[2:-1])),
            ("b", lambda c, x: c(*x[:2], x[2][..., :1], *x[3:-1])),
            ("c", lambda c, x: c(*x[:3], x[3][..., :1])),
            ("d", lambda c, x: c(*x[:4], x[4][:1])),
        ),
    ),
    Specimen(
        f"{FRAMEWORK}:from_ssd",
        tied,
        call=run,
        batch="none",
        bad=(
            ("a", lambda c, x: c(x[0], x[1][:1], *x[2:4])),
            ("head_dim", lambda c, x: c(*x[:4], head_dim=0)),
        ),
    ),
    Specimen(
        f"{FRAMEWORK}:from_gated_rnn",
        gates,
        call=run,
        bad=(
            ("input_gate", lambda c, x: c(x[0], x[1][..., :1], x[2])),
            ("output_gate", lambda c, x: c(*x[:2], x[2][..., :1])),
        ),
    ),
    Specimen(
        f"{FRAMEWORK}:qlstm_transition",
        Draw.sequence,
        make=lambda c, d: partial(c, reversed_sigmoid=True, exponent=0.7),
    ),
    Specimen(
        f"{FRAMEWORK}:rg_lru_transition",
        lambda d: (steps(d, 4), d.normal(4)),
        batch="none",
    ),
    Specimen(
        f"{FRAMEWORK}:compare",
        lambda d: selective(replace(d, length=d.length + 1)),
        call=numbers,
        batch="none",
        graph_breaks=NUMBERS,
        limits={"backward": NUMBERS, "other device": NUMBERS},
    ),
    Specimen(
        f"{FRAMEWORK}:LinearAttention",
        Draw.sequence,
        make=lambda c, d: c(d.width, 4 * d.heads, d.heads),
        case="a state of its own width",
        bad=BAD_MIXER,
    ),
    Specimen(
        f"{FRAMEWORK}:NormalizedAttention",
        Draw.sequence,
        make=lambda c, d: c(d.width, 4 * d.heads, d.heads),
        bad=(*BAD_MIXER, ("normalizer", lambda c, x: c(8, normalizer="relu"))),
    ),
    Specimen(
        f"{FRAMEWORK}:NormalizedAttention",
        Draw.sequence,
        make=lambda c, d: c(d.width, normalizer="softplus", bias=False),
        case="softplus, no bias",
    ),
    Specimen(
        f"{FRAMEWORK}:QLSTM",
        Draw.sequence,
        make=lambda c, d: c(d.width, reversed_sigmoid=True),
        bad=(
            ("dim", lambda c, x: c(0)),
            ("expansion", lambda c, x: c(8, expansion=0)),
            ("kernel_size", lambda c, x: c(8, kernel_size=0)),
            ("x", lambda c, x: c(8)(x[0][0])),
        ),
    ),
    Specimen(
        f"{FRAMEWORK}:QLSTM",
        Draw.sequence,
        make=lambda c, d: c(d.width, expansion=1, kernel_size=2),
        call=lambda layer, x: layer.dynamical_system(x).run(x),
        case="as a system",
    ),
)
