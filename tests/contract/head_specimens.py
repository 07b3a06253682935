"""Specimens of output layers for ordered bins, and of the Fourier series that they stand on.

Complex numbers go in and out of a call as two real tensors, so that the contract can draw them.
"""

from functools import partial
from typing import Any

import torch
from tests.contract.specimen import Draw, Specimen
from torch import Tensor

from heterodox.layers.fourier_head import autocorrelation

HEAD = "heterodox.layers.fourier_head"
MIXTURE = "heterodox.layers.gaussian_mixture_head"

FREQUENCIES, BINS = 3, 9

# As many frequencies as an FFT takes over from.
MANY = {"num_frequencies": 64, "out_features": 70}


def complex_of(real: Tensor, imaginary: Tensor) -> Tensor:
    dtype = torch.promote_types(real.dtype, torch.float32)
    return torch.complex(real.to(dtype), imaginary.to(dtype))


def parts(draw: Draw) -> tuple[Tensor, ...]:
    """Real and imaginary parts of a, away from densities that vanish at a point."""
    shape = (draw.batch, 2, FREQUENCIES + 1)
    real, imaginary = 0.3 * draw.normal(*shape), 0.3 * draw.normal(*shape)
    return real + torch.eye(FREQUENCIES + 1, dtype=real.dtype, device=real.device)[0], imaginary


def points(draw: Draw) -> Tensor:
    return torch.linspace(-0.9, 0.8, 5, dtype=draw.dtype, device=draw.device)


def parts_and_points(draw: Draw) -> tuple[Tensor, ...]:
    real, imaginary = parts(draw)
    return real, imaginary, points(draw).expand(draw.batch, 5).clone()


def correlated(function: Any, real: Tensor, imaginary: Tensor) -> Tensor:
    c = function(complex_of(real, imaginary))
    return torch.cat((c.real, c.imag), -1).to(real.dtype)


def at_points(function: Any, real: Tensor, imaginary: Tensor, x: Tensor) -> Tensor:
    """Rows' own points would be another function; those of the first row serve all."""
    c = autocorrelation(complex_of(real, imaginary))
    if not len(x):
        return function(c, x.new_zeros(5)).to(real.dtype)
    return function(c, x[0]).to(real.dtype)


def penalty(function: Any, real: Tensor, imaginary: Tensor) -> Tensor:
    return function(autocorrelation(complex_of(real, imaginary))).to(real.dtype)


def likelihood(distribution: Any, real: Tensor, imaginary: Tensor, x: Tensor) -> Tensor:
    c = autocorrelation(complex_of(real, imaginary))[:, 0, None]
    density = distribution(c.expand(-1, 5, -1), validate_args=False)
    return density.log_prob(x).to(real.dtype)


def logits_and_penalty(head: Any, x: Tensor) -> Tensor:
    logits, regularization = head(x, return_penalty=True)
    return logits.sum() + regularization.to(logits.dtype)


def parameters(draw: Draw) -> tuple[Tensor]:
    return (torch.cat(parts(draw), -1),)


def pmf(draw: Draw) -> tuple[Tensor]:
    return (draw.normal(draw.batch, BINS).softmax(-1),)


NO_REAL = {"shape types": "makes its complex input from two real ones of any kind"}

SPECIMENS = (
    Specimen(
        f"{HEAD}:autocorrelation",
        parts,
        call=correlated,
        limits=NO_REAL,
        bad=(
            ("a", lambda c, x: c(x[0])),
            ("a", lambda c, x: c(complex_of(*x)[..., :0])),
        ),
    ),
    Specimen(
        f"{HEAD}:fourier_density",
        parts_and_points,
        call=at_points,
        bad=(
            ("coefficients", lambda c, x: c(x[0], x[2][0])),
            ("coefficients", lambda c, x: c(complex_of(*x[:2])[..., :1], x[2][0])),
            ("points", lambda c, x: c(complex_of(*x[:2]), x[2])),
        ),
    ),
    Specimen(
        f"{HEAD}:fourier_cdf",
        parts_and_points,
        call=at_points,
        bad=(
            ("coefficients", lambda c, x: c(x[0], x[2][0])),
            ("points", lambda c, x: c(complex_of(*x[:2]), x[2].long())),
        ),
    ),
    Specimen(
        f"{HEAD}:fourier_logits",
        parameters,
        make=lambda c, d: partial(c, num_bins=BINS),
        bad=(
            ("parameters", lambda c, x: c(x[0][..., :3], BINS)),
            ("num_bins", lambda c, x: c(x[0], 1)),
            ("eps", lambda c, x: c(x[0], BINS, eps=-1.0)),
        ),
    ),
    Specimen(
        f"{HEAD}:fourier_penalty",
        parts,
        call=penalty,
        batch="reduced",
        limits=NO_REAL,
        bad=(("coefficients", lambda c, x: c(x[0])),),
    ),
    Specimen(
        f"{HEAD}:smoothness",
        pmf,
        bad=(
            ("pmf", lambda c, x: c(x[0][..., :0])),
            ("max_sigma", lambda c, x: c(x[0], max_sigma=0)),
        ),
    ),
    Specimen(
        f"{HEAD}:FourierDistribution",
        parts_and_points,
        call=likelihood,
        bad=(
            ("coefficients", lambda c, x: c(x[0])),
            ("coefficients", lambda c, x: c(complex_of(*x[:2]) * torch.inf)),
            ("value", lambda c, x: c(autocorrelation(complex_of(*x[:2]))).log_prob(x[2][0, 0] + 9)),
        ),
    ),
    Specimen(
        f"{HEAD}:FourierHead",
        Draw.sequence,
        make=lambda c, d: c(d.width, BINS, FREQUENCIES),
        bad=(
            ("num_frequencies", lambda c, x: c(4, BINS, 0)),
            ("in_features", lambda c, x: c(0, BINS, 3)),
            ("out_features", lambda c, x: c(4, 1, 3)),
            ("regularization", lambda c, x: c(4, BINS, 3, regularization=-1e-6)),
            ("weight_scale", lambda c, x: c(4, BINS, 3, weight_scale=0.0)),
            ("input", lambda c, x: c(4, BINS, 3, dtype=x[0].dtype)(x[0][..., :3])),
        ),
    ),
    Specimen(
        f"{HEAD}:FourierHead",
        Draw.sequence,
        make=lambda c, d: c(d.width, **MANY),
        case="FFT",
        tolerance={torch.bfloat16: 0.1, torch.float32: 1e-4},
    ),
    Specimen(
        f"{HEAD}:FourierHead",
        Draw.sequence,
        make=lambda c, d: c(d.width, BINS, FREQUENCIES, regularization=0.1),
        call=logits_and_penalty,
        case="penalty",
        batch="reduced",
    ),
    Specimen(
        f"{MIXTURE}:GaussianMixtureHead",
        Draw.sequence,
        make=lambda c, d: c(d.width, BINS),
        bad=(
            ("in_features", lambda c, x: c(0, BINS)),
            ("out_features", lambda c, x: c(4, 1)),
            ("components", lambda c, x: c(4, BINS, components=0)),
            ("input", lambda c, x: c(4, BINS)(x[0][..., :3])),
        ),
    ),
)
