"""Layers, and two slots of them.

`NORMS` maps a name to a normalisation layer `(dim) -> Module`; `HEADS` maps it to an output layer
`(in_features, out_features, **options) -> Module`, from features to logits.
"""

from typing import TYPE_CHECKING

from heterodox.slots import Slot, lazy_exports

if TYPE_CHECKING:
    from heterodox.layers.delays import (
        DelayedLinear,
        DelayedSNN,
        delay_kernel,
        delayed_linear,
        hard_delay_kernel,
        sigma_at,
        summed_softmax,
    )
    from heterodox.layers.fourier_head import (
        FourierDistribution,
        FourierHead,
        autocorrelation,
        fourier_cdf,
        fourier_density,
        fourier_logits,
        fourier_penalty,
        smoothness,
    )
    from heterodox.layers.gaussian_mixture_head import GaussianMixtureHead
    from heterodox.layers.polynomial import degree_for, polynomial_features
    from heterodox.layers.short_convolution import ShortConvolution
    from heterodox.layers.spiking import (
        DSRLIF,
        LIF,
        ATanSurrogate,
        OnlineLIF,
        SigmoidSurrogate,
        weighted_rate,
    )

NORMS = Slot(
    "norm",
    {
        "layer": "heterodox.layers.norm:layer_norm",
        "rms": "heterodox.layers.norm:rms_norm",
    },
)

HEADS = Slot(
    "head",
    {
        "linear": "heterodox.layers.heads:linear",
        "fourier": "heterodox.layers.heads:fourier",
        "gaussian-mixture": "heterodox.layers.heads:gaussian_mixture",
    },
)

_EXPORTS = {
    "ATanSurrogate": "heterodox.layers.spiking",
    "DSRLIF": "heterodox.layers.spiking",
    "DelayedLinear": "heterodox.layers.delays",
    "DelayedSNN": "heterodox.layers.delays",
    "FourierDistribution": "heterodox.layers.fourier_head",
    "FourierHead": "heterodox.layers.fourier_head",
    "GaussianMixtureHead": "heterodox.layers.gaussian_mixture_head",
    "LIF": "heterodox.layers.spiking",
    "OnlineLIF": "heterodox.layers.spiking",
    "ShortConvolution": "heterodox.layers.short_convolution",
    "SigmoidSurrogate": "heterodox.layers.spiking",
    "autocorrelation": "heterodox.layers.fourier_head",
    "degree_for": "heterodox.layers.polynomial",
    "delay_kernel": "heterodox.layers.delays",
    "delayed_linear": "heterodox.layers.delays",
    "fourier_cdf": "heterodox.layers.fourier_head",
    "fourier_density": "heterodox.layers.fourier_head",
    "fourier_logits": "heterodox.layers.fourier_head",
    "fourier_penalty": "heterodox.layers.fourier_head",
    "hard_delay_kernel": "heterodox.layers.delays",
    "polynomial_features": "heterodox.layers.polynomial",
    "sigma_at": "heterodox.layers.delays",
    "smoothness": "heterodox.layers.fourier_head",
    "summed_softmax": "heterodox.layers.delays",
    "weighted_rate": "heterodox.layers.spiking",
}

__all__ = [
    "DSRLIF",
    "HEADS",
    "LIF",
    "NORMS",
    "ATanSurrogate",
    "DelayedLinear",
    "DelayedSNN",
    "FourierDistribution",
    "FourierHead",
    "GaussianMixtureHead",
    "OnlineLIF",
    "ShortConvolution",
    "SigmoidSurrogate",
    "autocorrelation",
    "degree_for",
    "delay_kernel",
    "delayed_linear",
    "fourier_cdf",
    "fourier_density",
    "fourier_logits",
    "fourier_penalty",
    "hard_delay_kernel",
    "polynomial_features",
    "sigma_at",
    "smoothness",
    "summed_softmax",
    "weighted_rate",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
