"""How smooth a distribution over ordered bins is: its distance from itself, blurred.

    s(y) = Σ_{σ=1}^{100} 6 / (π²σ²) · ‖ y - g_σ * y ‖₂

with g_σ a Gaussian of integers up to m - 1 in size, of sum 1, and * the convolution on a circle of
m bins; the weights of all σ sum to 1. Gillman et al., ICLR 2025, arXiv 2410.22269, section 3, with
the truncation at 100 of the authors' code. By Parseval's equation, one FFT and one product with 100
columns a row: O(m log m + 100 m) time.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from heterodox.autocast import without_autocast
from heterodox.layers.fourier_series import widest_dtype


def smoothness(pmf: Float[Tensor, "*batch bins"], max_sigma: int = 100) -> Float[Tensor, "*batch"]:
    """The smoothness s of each row; lower is smoother, 0 is uniform.

    Half precision is computed in float32. Where a row is uniform, the gradient is 0.

    Args:
        pmf: probabilities; a single bin is uniform.
        max_sigma: the last σ; 100 in the authors' code, and part of the definition.

    Raises:
        ValueError: `pmf` has no bins or is not real, or `max_sigma` is no whole number from 1 on.

    Example:
        >>> smoothness(torch.tensor([[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0]])).round(decimals=4)
        tensor([0.0000, 0.7926])
    """
    if pmf.ndim == 0 or pmf.shape[-1] == 0:
        raise ValueError(f"pmf: shape {tuple(pmf.shape)} given, (..., bins) expected")
    if not pmf.is_floating_point():
        raise ValueError(f"pmf: {pmf.dtype} given, floating-point probabilities expected")
    if not isinstance(max_sigma, int) or max_sigma < 1:
        raise ValueError(f"max_sigma: {max_sigma} given, a positive whole number expected")
    if pmf.numel() == 0:
        return pmf.sum(-1)
    y = pmf.to(torch.promote_types(pmf.dtype, torch.float32))
    sigma = torch.arange(1, max_sigma + 1, dtype=widest_dtype(y.device), device=y.device)
    with without_autocast(y.device.type):
        power = torch.fft.rfft(y, norm="ortho").abs().square()
        squares = power @ _what_blurring_takes(sigma, y.shape[-1]).to(y.dtype)
        # The root has no finite slope at 0.
        distance = torch.where(squares == 0, 1, squares).sqrt() * (squares != 0)
        weights = 6 / (math.pi * sigma).square()
        return (distance @ weights.to(y.dtype)).to(pmf.dtype)


def _what_blurring_takes(
    sigma: Float[Tensor, "sigmas"], bins: int
) -> Float[Tensor, "half_spectrum sigmas"]:
    """(1 - ĝ_σ)² for the frequencies of a real FFT, each as often as in the whole spectrum."""
    x = torch.arange(bins, dtype=sigma.dtype, device=sigma.device)
    kernel = torch.exp(-0.5 * (x / sigma[:, None]).square())
    wrapped = kernel + kernel.flip(-1).roll(1, -1)  # x, and x - m of the other half
    wrapped[:, 0] = kernel[:, 0]
    wrapped = wrapped / wrapped.sum(-1, keepdim=True)
    taken = (1 - torch.fft.rfft(wrapped).real).square().T
    times = torch.full((len(taken), 1), 2.0, dtype=sigma.dtype, device=sigma.device)
    times[0] = 1
    if bins % 2 == 0:
        times[-1] = 1
    return taken * times
