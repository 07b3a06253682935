"""Specimens of `heterodox.losses`, `heterodox.optim` and `heterodox.probes`."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from tests.contract.specimen import Bad, Draw, Specimen
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

STABLEMAX = "heterodox.losses.stablemax"
Z_LOSS = "heterodox.losses.z_loss"
PERP_GRAD = "heterodox.optim.perp_grad"
GROKKING = "heterodox.probes.grokking"

CLASSES = 7


def logits(draw: Draw) -> tuple[Tensor]:
    return (3 * draw.normal(draw.batch, CLASSES),)


def logits_and_labels(draw: Draw) -> tuple[Tensor, ...]:
    return *logits(draw), draw.below(CLASSES, draw.batch)


def hidden_and_labels(draw: Draw) -> tuple[Tensor, ...]:
    return draw.normal(draw.batch, draw.width), draw.below(CLASSES, draw.batch)


def stacked_statistics(statistics: Any, x: Tensor, labels: Tensor) -> Tensor:
    return torch.stack(statistics(x, labels), -1)


def weight_and_gradient(draw: Draw) -> tuple[Tensor, ...]:
    return draw.normal(draw.length, draw.head_dim), draw.normal(draw.length, draw.head_dim)


def wide_and_confident(draw: Draw) -> tuple[Tensor, ...]:
    """Logits of which about half have collapsed in float32."""
    return 15 * draw.normal(draw.batch, CLASSES), draw.below(CLASSES, draw.batch)


def stepped(
    make: Callable[[Iterable[Tensor]], Optimizer], weight: Tensor, gradient: Tensor
) -> Tensor:
    """What two steps make of a weight."""
    parameter = nn.Parameter(weight.detach().clone())
    optimizer = make([parameter])
    for scale in (1.0, -0.5):
        parameter.grad = scale * gradient.detach()
        optimizer.step()
    return parameter.detach()


def around_sgd(wrapper: Any, parameters: Iterable[Tensor]) -> Optimizer:
    return wrapper(SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1))


def around_adamw(wrapper: Any, parameters: Iterable[Tensor]) -> Optimizer:
    return wrapper(AdamW(parameters, lr=0.1))


def of_parameters(probe: Any, weight: Tensor, gradient: Tensor) -> Tensor:
    parameter = nn.Parameter(weight.detach())
    parameter.grad = gradient.detach()
    return probe([parameter])


def recorded(monitor: Any, logits: Tensor, labels: Tensor) -> Tensor:
    """What a `GrokkingMonitor` has noted last."""
    parameter = nn.Parameter(torch.linspace(1, 2, 5, device=logits.device))
    parameter.grad = parameter.detach().cos()
    monitor.record(1, [parameter], logits, labels, logits, labels)
    return torch.tensor([values[-1] for values in monitor.history.values()], dtype=torch.float64)


PARAMETER_INSIDE = "the try makes its nn.Parameter inside what is compiled"
OPTIMIZER = {
    "backward": "a step is not differentiated",
    "shape types": "an optimizer takes parameters of any kind",
}
NO_GRADIENT = {"backward": "a measurement, not a term of a loss"}
FACTORED = {"bfloat16": "the factors need float32: hidden rows in bfloat16 are computed in it"}
OF_TARGETS: tuple[Bad, ...] = (
    ("input", lambda c, x: c(x[0].sum(), x[1])),
    ("target", lambda c, x: c(x[0], x[1][:1])),
    ("target", lambda c, x: c(x[0], x[1] + CLASSES)),
    ("target", lambda c, x: c(x[0], x[1] - CLASSES)),
    ("target", lambda c, x: c(x[0], x[1].double())),
)
OF_LOSS: tuple[Bad, ...] = (
    *OF_TARGETS,
    ("reduction", lambda c, x: c(*x, reduction="average")),
)

SPECIMENS = (
    Specimen(
        f"{Z_LOSS}:z_loss",
        logits_and_labels,
        make=lambda c, d: partial(c, a=0.7, b=1.5),
        batch="reduced",
        bad=(
            *OF_LOSS,
            ("input", lambda c, x: c(x[0][:, :1], 0 * x[1])),
            ("a", lambda c, x: c(*x, a=0.0)),
            ("b", lambda c, x: c(*x, b=torch.nan)),
            ("eps", lambda c, x: c(*x, eps=0.0)),
        ),
    ),
    Specimen(
        f"{Z_LOSS}:ZLoss",
        logits_and_labels,
        make=lambda c, d: c(0.3, 2.0, reduction="none"),
        bad=(("a", lambda c, x: c(-1.0)), ("target", lambda c, x: c()(x[0], x[1][:1]))),
    ),
    Specimen(f"{Z_LOSS}:taylor_softmax_loss", logits_and_labels, batch="reduced", bad=OF_LOSS),
    Specimen(
        f"{Z_LOSS}:spherical_softmax_loss",
        logits_and_labels,
        make=lambda c, d: partial(c, reduction="none"),
        bad=(*OF_LOSS, ("eps", lambda c, x: c(*x, eps=-1.0))),
    ),
    Specimen(f"{Z_LOSS}:spherical_squared_loss", logits_and_labels, batch="reduced", bad=OF_LOSS),
    Specimen(
        f"{Z_LOSS}:spherical_statistics",
        logits_and_labels,
        call=stacked_statistics,
        limits={"bfloat16": "sums over classes stay in float32"},
        bad=OF_TARGETS,
    ),
    Specimen(
        f"{Z_LOSS}:FactoredSphericalLinear",
        lambda d: hidden_and_labels(d)[:1],
        make=lambda c, d: c(d.width, CLASSES, 0.1, bias=True),
        limits=FACTORED,
        bad=(
            ("num_classes", lambda c, x: c(4, 1, 0.1)),
            ("learning_rate", lambda c, x: c(4, CLASSES, -1.0)),
            ("hidden", lambda c, x: c(5, CLASSES, 0.1)(x[0])),
        ),
    ),
    Specimen(
        f"{Z_LOSS}:FactoredSphericalLinear",
        hidden_and_labels,
        make=lambda c, d: c(d.width, CLASSES, 0.1),
        call=lambda layer, x, labels: stacked_statistics(layer.statistics, x, labels),
        case="statistics",
        graph_breaks="its backward pass leaves a record for the step",
        limits=FACTORED,
        bad=(("target", lambda c, x: c(x[0].shape[-1], CLASSES, 0.1).statistics(x[0], -1 - x[1])),),
    ),
    Specimen(f"{STABLEMAX}:stablemax", logits, make=lambda c, d: partial(c, dim=-1)),
    Specimen(f"{STABLEMAX}:log_stablemax", logits, make=lambda c, d: partial(c, dim=-1)),
    Specimen(
        f"{STABLEMAX}:stablemax_cross_entropy",
        logits_and_labels,
        batch="reduced",
        bad=(
            ("input", lambda c, x: c(x[0].sum(), x[1])),
            ("target", lambda c, x: c(x[0], x[1][:1])),
            ("target", lambda c, x: c(x[0], x[0][:, :2])),
            ("weight", lambda c, x: c(*x, weight=torch.ones(2))),
            ("reduction", lambda c, x: c(*x, reduction="average")),
            ("label_smoothing", lambda c, x: c(*x, label_smoothing=1.5)),
            ("compute_dtype", lambda c, x: c(*x, compute_dtype=torch.int64)),
        ),
    ),
    Specimen(
        f"{STABLEMAX}:stablemax_cross_entropy",
        lambda d: (*logits(d), d.normal(d.batch, CLASSES).softmax(-1)),
        make=lambda c, d: partial(c, reduction="none", label_smoothing=0.1),
        case="class probabilities",
    ),
    Specimen(
        f"{STABLEMAX}:StableMaxCrossEntropyLoss",
        logits_and_labels,
        make=lambda c, d: c(torch.linspace(0.5, 2, CLASSES), reduction="sum"),
        batch="reduced",
        bad=(
            ("target", lambda c, x: c()(x[0], x[1][:1])),
            ("weight", lambda c, x: c(torch.ones(2, dtype=torch.float64))(*x)),
            ("reduction", lambda c, x: c(reduction="average")(*x)),
        ),
    ),
    Specimen(
        f"{PERP_GRAD}:project_orthogonal",
        weight_and_gradient,
        batch="none",
        bad=(
            ("gradient", lambda c, x: c(x[0], x[1][:1])),
            ("gradient", lambda c, x: c(x[0], x[1].to_sparse())),
            ("gradient", lambda c, x: c(x[0], x[1].to(torch.complex128))),
        ),
    ),
    Specimen(
        f"{PERP_GRAD}:PerpGrad",
        weight_and_gradient,
        make=lambda c, d: partial(around_sgd, c),
        call=stepped,
        batch="none",
        graph_breaks=PARAMETER_INSIDE,
        limits=OPTIMIZER,
        bad=(
            ("base_optimizer", lambda c, x: c([x[0]])),
            ("eps", lambda c, x: c(SGD([x[0]], lr=0.1), eps=0.0)),
            ("gradient", lambda c, x: stepped(lambda p: c(SGD(p, lr=0.1)), x[0], x[1].to_sparse())),
        ),
    ),
    Specimen(
        f"{PERP_GRAD}:PerpGrad",
        weight_and_gradient,
        make=lambda c, d: partial(around_adamw, c),
        call=stepped,
        case="AdamW",
        batch="none",
        graph_breaks=PARAMETER_INSIDE,
        limits={**OPTIMIZER, "compile": "compiled, torch's AdamW corrects its bias in float32"},
    ),
    Specimen(
        f"{GROKKING}:softmax_collapse",
        wide_and_confident,
        make=lambda c, d: partial(c, dtype=torch.float32),
        call=lambda collapse, z, labels: collapse(z, labels=labels),
        batch="reduced",
        returns=torch.float32,
        limits=NO_GRADIENT,
        bad=(("labels", lambda c, x: c(x[0], labels=x[1][:1])),),
    ),
    Specimen(
        f"{GROKKING}:naive_loss_minimization",
        weight_and_gradient,
        call=of_parameters,
        batch="none",
        returns=torch.float32,
        tolerance={torch.float64: 1e-6},
        graph_breaks=PARAMETER_INSIDE,
        limits={**NO_GRADIENT, "shape types": "takes parameters of any kind"},
        bad=(("parameters", lambda c, x: c([x[0]])),),
    ),
    Specimen(
        f"{GROKKING}:GrokkingMonitor",
        logits_and_labels,
        make=lambda c, d: c(dtype=torch.float32),
        call=recorded,
        batch="reduced",
        returns=torch.float64,
        graph_breaks="numbers go to lists of Python",
        limits={**NO_GRADIENT, "other device": "numbers go to lists of Python"},
    ),
)
