"""What the `HEADS` slot builds: layers from features to logits, called as
`(in_features, out_features, **options)`."""

import torch
from torch import nn

from heterodox.layers.fourier_head import FourierHead
from heterodox.layers.fourier_series import EPS
from heterodox.layers.gaussian_mixture_head import GaussianMixtureHead


def linear(
    in_features: int,
    out_features: int,
    *,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Linear:
    return nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)


def fourier(
    in_features: int,
    out_features: int,
    *,
    num_frequencies: int | None = None,
    bias: bool = True,
    regularization: float = 0.0,
    eps: float = EPS,
    weight_scale: float = 0.01,
    bias_scale: float = 0.01,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> FourierHead:
    """The Fourier head, by default with a quarter as many frequencies as bins: the paper's 12 for
    50. Choose them by validation."""
    if num_frequencies is None:
        num_frequencies = max(1, out_features // 4)
    return FourierHead(
        in_features,
        out_features,
        num_frequencies,
        bias=bias,
        regularization=regularization,
        eps=eps,
        weight_scale=weight_scale,
        bias_scale=bias_scale,
        device=device,
        dtype=dtype,
    )


def gaussian_mixture(
    in_features: int,
    out_features: int,
    *,
    components: int = 2,
    bias: bool = True,
    eps: float = EPS,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> GaussianMixtureHead:
    return GaussianMixtureHead(
        in_features, out_features, components, bias, eps, device=device, dtype=dtype
    )
