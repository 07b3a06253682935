"""Specimens of `heterodox.losses.cauchy_schwarz`, its rivals, its network and attacks on it."""

from functools import partial
from typing import Any

import torch
from tests.contract.specimen import Draw, Specimen
from torch import Tensor

CAUCHY_SCHWARZ = "heterodox.losses.cauchy_schwarz"
PENALTIES = "heterodox.losses.information_penalties"
BOTTLENECK = "heterodox.models.bottleneck:BottleneckMLP"
ADVERSARIAL = "heterodox.probes.adversarial"

LOOKS = "looks at the numbers to refuse what is not finite"
NEEDS_NUMBERS = {"other device": LOOKS}
CONSTANT = {"backward": "a constant for autograd"}
ESTIMATOR = {
    "compile": "an estimator of scikit-learn works with NumPy",
    "backward": "an estimator of scikit-learn gives arrays",
    "other device": "an estimator of scikit-learn takes arrays",
    "shape types": "scikit-learn checks what it is given",
}


def two_samples(draw: Draw) -> tuple[Tensor, ...]:
    return draw.normal(draw.length + 2, 3), draw.normal(draw.length + 3, 3)


def one_sample(draw: Draw) -> tuple[Tensor]:
    return (draw.normal(draw.length + 2, 3),)


def features_and_targets(draw: Draw) -> tuple[Tensor, ...]:
    rows = draw.length + 2
    return draw.normal(rows, 3), draw.normal(rows, 2), draw.normal(rows, 2)


def paired(draw: Draw) -> tuple[Tensor, ...]:
    return draw.normal(draw.length + 2, 3), draw.normal(draw.length + 2, 4)


def objective_inputs(draw: Draw) -> tuple[Tensor, ...]:
    """Predictions, targets, features and code."""
    rows = draw.length + 2
    return (*(draw.normal(rows, 1) for _ in range(2)), draw.normal(rows, 3), draw.normal(rows, 4))


def mean_and_log_variance(draw: Draw) -> tuple[Tensor, ...]:
    return draw.normal(draw.length, 3), draw.normal(draw.length, 3)


def fitted(regressor: Any, x: Tensor, y: Tensor, more: Tensor) -> Tensor:
    """Predictions for the features that it was fitted to."""
    features, targets = (z.detach().cpu().double().numpy() for z in (x, y))
    return torch.from_numpy(regressor.fit(features, targets).predict(features)).to(x)


def gram_alone(gram: Any, x: Tensor) -> Tensor:
    return gram(x, bandwidth=0.8)


def attacked(attack: Any, x: Tensor, target: Tensor) -> Tensor:
    return attack(lambda z: z.sin().sum(1), x, target)


def too_few(c: Any, x: tuple[Tensor, ...]) -> Any:
    return c(*(z[:1] for z in x))


SPECIMENS = (
    Specimen(
        f"{CAUCHY_SCHWARZ}:gaussian_gram",
        two_samples,
        batch="none",
        graph_breaks=LOOKS,
        limits=NEEDS_NUMBERS,
        bad=(
            ("x", lambda c, x: c(x[0] / 0)),
            ("y", lambda c, x: c(x[0], x[1][:, :2])),
            ("bandwidth", lambda c, x: c(*x, bandwidth=0)),
        ),
    ),
    Specimen(
        f"{CAUCHY_SCHWARZ}:gaussian_gram",
        one_sample,
        call=gram_alone,
        case="of one sample",
        batch="none",
        graph_breaks=LOOKS,
        limits=NEEDS_NUMBERS,
    ),
    Specimen(
        f"{CAUCHY_SCHWARZ}:median_bandwidth",
        one_sample,
        batch="none",
        graph_breaks=LOOKS,
        limits={**NEEDS_NUMBERS, **CONSTANT},
        bad=(("x", too_few),),
    ),
    Specimen(
        f"{CAUCHY_SCHWARZ}:cauchy_schwarz_divergence",
        two_samples,
        batch="none",
        graph_breaks=LOOKS,
        limits=NEEDS_NUMBERS,
        bad=(
            ("x", too_few),
            ("y", lambda c, x: c(x[0], x[1] * torch.nan)),
            ("bandwidth", lambda c, x: c(*x, -1.0)),
            ("block_size", lambda c, x: c(*x, block_size=0)),
        ),
    ),
    Specimen(
        f"{CAUCHY_SCHWARZ}:conditional_cauchy_schwarz_divergence",
        features_and_targets,
        batch="none",
        graph_breaks=LOOKS,
        limits=NEEDS_NUMBERS,
        bad=(
            ("x", too_few),
            ("input", lambda c, x: c(x[0], x[1], x[2][:, :1])),
            ("target", lambda c, x: c(x[0], x[1][1:], x[2])),
            ("bandwidth_x", lambda c, x: c(*x, 0)),
            ("bandwidth_y", lambda c, x: c(*x, 1, 0)),
        ),
    ),
    Specimen(
        f"{CAUCHY_SCHWARZ}:cauchy_schwarz_mutual_information",
        paired,
        batch="none",
        graph_breaks=LOOKS,
        limits=NEEDS_NUMBERS,
        bad=(("x", too_few), ("y", lambda c, x: c(x[0], x[1][1:]))),
    ),
    Specimen(
        f"{CAUCHY_SCHWARZ}:cauchy_schwarz_mutual_information",
        paired,
        make=lambda c, d: partial(c, normalized=True, block_size=2),
        case="normalised, in blocks",
        batch="none",
        graph_breaks=LOOKS,
        limits=NEEDS_NUMBERS,
    ),
    Specimen(
        f"{CAUCHY_SCHWARZ}:cauchy_schwarz_bottleneck",
        objective_inputs,
        make=lambda c, d: partial(c, beta=0.5),
        batch="none",
        graph_breaks=LOOKS,
        limits=NEEDS_NUMBERS,
        bad=(
            ("input", too_few),
            ("beta", lambda c, x: c(*x, beta=-1)),
            ("bandwidth_t", lambda c, x: c(*x, bandwidth_t="mean")),
        ),
    ),
    Specimen(
        f"{CAUCHY_SCHWARZ}:CauchySchwarzBottleneckLoss",
        objective_inputs,
        make=lambda c, d: c(0.5, information_bandwidth=2.0),
        batch="none",
        graph_breaks=LOOKS,
        limits=NEEDS_NUMBERS,
        bad=(
            ("beta", lambda c, x: c(beta=-1)),
            ("bandwidth_y", lambda c, x: c(bandwidth_y=0)),
            ("t", lambda c, x: c()(*x[:3], x[3][1:])),
        ),
    ),
    Specimen(
        "heterodox.learning.cauchy_schwarz_regressor:CauchySchwarzBottleneckRegressor",
        features_and_targets,
        make=lambda c, d: c(hidden=4, bottleneck=2, epochs=3, random_state=0),
        call=fitted,
        batch="none",
        graph_breaks="scikit-learn works with NumPy",
        tolerance={torch.float32: 1e-3, torch.float64: 1e-6},
        limits=ESTIMATOR,
        bad=(("lr", lambda c, x: c(lr=0).fit(x[0].numpy(), x[1].numpy())),),
    ),
    Specimen(
        f"{PENALTIES}:variational_information",
        mean_and_log_variance,
        batch="none",
        graph_breaks=LOOKS,
        limits=NEEDS_NUMBERS,
        bad=(("log_variance", lambda c, x: c(x[0], x[1][:, :2])),),
    ),
    Specimen(
        f"{PENALTIES}:nonlinear_information",
        one_sample,
        batch="none",
        graph_breaks=LOOKS,
        limits=NEEDS_NUMBERS,
        bad=(("noise", lambda c, x: c(*x, 0)), ("mean", too_few)),
    ),
    Specimen(
        f"{PENALTIES}:normalized_hsic",
        paired,
        batch="none",
        graph_breaks=LOOKS,
        limits=NEEDS_NUMBERS,
        bad=(("y", lambda c, x: c(x[0], x[1][1:])), ("bandwidth_y", lambda c, x: c(*x, 1, -1))),
    ),
    *(
        Specimen(
            BOTTLENECK,
            lambda d: (d.normal(d.batch, 3),),
            make=lambda c, d, noise=noise: c(3, 2, hidden=5, bottleneck=4, noise=noise),
            case=f"noise {noise}",
            bad=(("bottleneck", lambda c, x: c(3, 2, bottleneck=0)),),
        )
        for noise in ("none", "fixed", "learned")
    ),
    *(
        Specimen(
            f"{ADVERSARIAL}:{name}",
            lambda d: (d.normal(d.batch, 3), d.normal(d.batch)),
            make=lambda c, d: partial(c, eps=0.25),
            call=attacked,
            graph_breaks="an attack takes gradients of its own",
            limits={**NEEDS_NUMBERS, "backward": "a sign has no gradient"},
            bad=(("eps", lambda c, x: c(torch.sin, *x, eps=-1.0)),),
        )
        for name in ("fgsm", "pgd")
    ),
)
