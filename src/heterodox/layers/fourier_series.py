"""Densities on [-1, 1] as non-negative Fourier series, and their values in bins.

    c_k  = Σ_l a_{l+k} conj(a_l),   k = 0..N                       (autocorrelation of a ∈ ℂ^{N+1})
    p(x) = 1/2 + Re Σ_{k≥1} (c_k / c_0) e^{iπkx} = |Σ_l a_l e^{iπlx}|² / (2 Σ_l |a_l|²)
    y_j  = p(b_j) / Σ_i p(b_i),   logit_j = log(y_j + ε),   b_j = (2j + 1)/m - 1
    R    = 2 · mean over the batch of Σ_k 2π²k² |c_k|²

By the theorem of Fejér and Riesz, every trigonometric polynomial that is not negative arises so.
Gillman et al., "Fourier Head: Helping Large Language Models Learn Complex Probability
Distributions", ICLR 2025, arXiv 2410.22269, section 2, and the authors' code. (The paper conjugates
the other factor of c_k, which mirrors the density; their code does what stands here.)

The squares are made by one real product, O(N m) a row, or for many frequencies by one FFT over the
bins, O(m log m). No tensor of size (batch, m, N) is stored.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from heterodox.autocast import without_autocast

EPS = 1e-5

# From so many frequencies on, an FFT over the bins is faster than a product with all waves.
FFT_FROM = 64


def autocorrelation(
    a: Complex[Tensor, "*batch frequencies"],
) -> Complex[Tensor, "*batch frequencies"]:
    """c_k = Σ_l a_{l+k} conj(a_l) for k = 0..N, by FFT.

    Args:
        a: N + 1 complex numbers a row; complex half precision is computed in complex64.

    Raises:
        ValueError: `a` is not complex, or has no last axis of at least 1.

    Example:
        >>> autocorrelation(torch.tensor([1 + 0j, 2j]))
        tensor([5.+0.j, 0.+2.j])
    """
    if not a.is_complex() or a.ndim == 0 or a.shape[-1] == 0:
        raise ValueError(
            f"a: {a.dtype} of shape {tuple(a.shape)} given, complex (..., N + 1) expected"
        )
    wide = a.to(torch.promote_types(a.dtype, torch.complex64))
    if wide.numel() == 0:
        return wide.to(a.dtype)
    count = wide.shape[-1]
    # At least 2N + 1, so that what wraps around is zero; a power of two, which is quick.
    length = 2 ** (2 * count - 1).bit_length()
    spectrum = torch.fft.fft(wide, n=length)
    power = spectrum.real.square() + spectrum.imag.square()
    c = torch.fft.ifft(power.to(wide.dtype))[..., :count]
    return c.to(a.dtype)


def fourier_density(
    coefficients: Complex[Tensor, "*batch frequencies"], points: Float[Tensor, "points"]
) -> Float[Tensor, "*batch points"]:
    """p(x) = 1/2 + Re Σ_{k≥1} (c_k / c_0) e^{iπkx}, for every row at every point.

    Args:
        coefficients: c_0..c_N as `autocorrelation` returns them, not normalised.
        points: where; outside [-1, 1] the density is 0.

    Returns:
        Densities of the real dtype that belongs to `coefficients`. Where p is 0, rounding may leave
        a small negative number. Rows of zeros are uniform.

    Raises:
        ValueError: `coefficients` are not complex (..., N + 1) with N from 1 on, or `points` are
            not real with one axis.

    Example:
        >>> c = autocorrelation(torch.tensor([1 + 0j, 1 + 0j]))
        >>> fourier_density(c, torch.tensor([-1.0, 0.0, 1.0]))
        tensor([0., 1., 0.])
    """
    check_coefficients(coefficients)
    _check_points(points)
    with without_autocast(points.device.type):
        c, x = normalised(coefficients), points.to(coefficients.real.dtype)
        angle = _angles(c, x)
        density = 0.5 + c.real @ angle.cos() - c.imag @ angle.sin()
    return torch.where(x.abs() > 1, 0, density)


def fourier_cdf(
    coefficients: Complex[Tensor, "*batch frequencies"], points: Float[Tensor, "points"]
) -> Float[Tensor, "*batch points"]:
    """F(x) = (x + 1)/2 + Re Σ_{k≥1} (c_k / c_0) (e^{iπkx} - (-1)^k) / (iπk).

    Args:
        coefficients, points: as for `fourier_density`; F is 0 below -1 and 1 above 1.

    Raises:
        ValueError: as `fourier_density`.

    Example:
        >>> c = autocorrelation(torch.tensor([1 + 0j, 1 + 0j]))
        >>> fourier_cdf(c, torch.tensor([-0.5, 0.0, 1.0]))
        tensor([0.0908, 0.5000, 1.0000])
    """
    check_coefficients(coefficients)
    _check_points(points)
    with without_autocast(points.device.type):
        c, x = normalised(coefficients), points.to(coefficients.real.dtype)
        angle = _angles(c, x)
        k = torch.arange(1, c.shape[-1] + 1, dtype=x.dtype, device=x.device)[:, None]
        c, change = c / (math.pi * k[:, 0]), angle.cos() - (math.pi * k).cos()
        cdf = (x + 1) / 2 + c.real @ angle.sin() + c.imag @ change
    return torch.where(x < -1, 0, torch.where(x > 1, 1, cdf))


def fourier_logits(
    parameters: Float[Tensor, "*batch twice_frequencies"], num_bins: int, eps: float = EPS
) -> Float[Tensor, "*batch bins"]:
    """log(y_j + ε) with y the density's values at the bins' centres, divided by their sum.

    softmax of them is (y + ε) / (1 + mε). Half precision is computed in float32. `FourierHead` is
    the same behind a linear layer, and keeps the waves, which are made anew here.

    Args:
        parameters: the N + 1 real parts of a, then its N + 1 imaginary parts. Any factor common to
            a row, also a complex one, leaves the result as it is; a row of zeros is uniform.
        num_bins: m, uniform bins of [-1, 1], at least 2.
        eps: ε, which bounds the logits; 1e-5 in the authors' code.

    Raises:
        ValueError: the last axis of `parameters` is not 2 (N + 1) with N from 1 on, `num_bins` is
            below 2, or `eps` is not positive.

    Example:
        >>> fourier_logits(torch.tensor([1.0, 1.0, 0.0, 0.0]), 4).exp()
        tensor([0.0732, 0.4268, 0.4268, 0.0732])
    """
    if parameters.ndim == 0 or parameters.shape[-1] < 4 or parameters.shape[-1] % 2:
        raise ValueError(
            f"parameters: shape {tuple(parameters.shape)} given, (..., 2 (N + 1)) with N from 1 on "
            "expected"
        )
    check_bins("num_bins", num_bins)
    check_eps(eps)
    wide = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
    num_frequencies = parameters.shape[-1] // 2 - 1
    basis = waves(num_frequencies, num_bins, wide.dtype, wide.device)
    return logits_of_waves(wide, basis, num_bins, eps).to(parameters.dtype)


def fourier_penalty(coefficients: Complex[Tensor, "*batch frequencies"]) -> Float[Tensor, ""]:
    """R = 2 · mean over all rows of Σ_k 2π²k² |c_k|², of coefficients that are not normalised.

    Add γ R to the loss; γ is 1e-6 in the paper. The factor 2 is that of the authors' code; the
    formula in the paper does not have it.

    Returns:
        A scalar, which is 0 where there are no rows.

    Raises:
        ValueError: `coefficients` are not complex (..., N + 1) with N from 1 on.

    Example:
        >>> round(fourier_penalty(torch.tensor([[5 + 0j, 2j]])).item() / torch.pi**2, 3)
        16.0
    """
    check_coefficients(coefficients)
    k = torch.arange(coefficients.shape[-1], device=coefficients.device)
    energy = coefficients.real.square() + coefficients.imag.square()
    rows = max(1, energy.shape[:-1].numel())
    return (4 * math.pi**2) * (k.square() * energy).sum() / rows


def waves(
    num_frequencies: int, num_bins: int, dtype: torch.dtype, device: torch.device | str
) -> Float[Tensor, "..."]:
    """What `logits_of_waves` needs to know of the bins, computed in float64 where there is one.

    By FFT, (2, N + 1): cosine and sine of πl (1/m - 1), the place of the first bin. Otherwise all
    waves at all bins, (2 (N + 1), 2 m), so that one product with the parameters gives the real
    parts and the imaginary parts of Σ_l a_l e^{iπl b_j}.
    """
    wide = widest_dtype(device)
    l = torch.arange(num_frequencies + 1, dtype=wide, device=device)
    if uses_fft(num_frequencies, num_bins):
        angle = math.pi * (1 / num_bins - 1) * l
        return torch.stack((angle.cos(), angle.sin())).to(dtype)
    angle = math.pi * l[:, None] * bin_centres(num_bins, wide, device)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((torch.cat((cos, sin), 1), torch.cat((-sin, cos), 1))).to(dtype)


def logits_of_waves(
    parameters: Float[Tensor, "*batch twice_frequencies"],
    basis: Float[Tensor, "..."],
    num_bins: int,
    eps: float,
) -> Float[Tensor, "*batch bins"]:
    """`fourier_logits` with the `waves` of its bins, in the dtype of both."""
    if parameters.numel() == 0:
        return parameters.sum(-1, keepdim=True).expand(*parameters.shape[:-1], num_bins)
    # A factor of the row cancels in y, and so does its derivative: no square leaves the range.
    largest = parameters.detach().abs().amax(-1, keepdim=True)
    r = parameters / torch.where(largest == 0, 1, largest)
    with without_autocast(r.device.type):
        if uses_fft(r.shape[-1] // 2 - 1, num_bins):
            a = torch.complex(*r.chunk(2, dim=-1)) * torch.complex(basis[0], basis[1])
            sums = torch.view_as_real(torch.fft.ifft(a, n=num_bins, norm="forward"))
            squares = sums.square().sum(-1)
        else:
            squares = (r @ basis).unflatten(-1, (2, num_bins)).square().sum(-2)
    total = squares.sum(-1, keepdim=True)
    # Not total > 0, which would pass off what is not a number as a uniform density.
    empty = total == 0
    y = torch.where(empty, 1 / num_bins, squares / torch.where(empty, 1, total))
    return (y + eps).log()


def uses_fft(num_frequencies: int, num_bins: int) -> bool:
    """Whether logits are made by FFT; it needs as many bins as coefficients."""
    return num_frequencies >= FFT_FROM and num_bins > num_frequencies


def bin_centres(
    num_bins: int, dtype: torch.dtype, device: torch.device | str
) -> Float[Tensor, "bins"]:
    """The middles of m uniform bins of [-1, 1]."""
    return (2 * torch.arange(num_bins, dtype=dtype, device=device) + 1) / num_bins - 1


def widest_dtype(device: torch.device | str) -> torch.dtype:
    """float64, which Apple's GPUs do not have."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def normalised(
    coefficients: Complex[Tensor, "*batch frequencies"],
) -> Complex[Tensor, "*batch positive_frequencies"]:
    """c_k / c_0 for k from 1 on; 0 where c_0 is."""
    c0 = coefficients[..., :1].real
    return coefficients[..., 1:] / torch.where(c0 == 0, 1, c0)


def check_bins(name: str, bins: int) -> None:
    if not isinstance(bins, int) or bins < 2:
        raise ValueError(f"{name}: {bins} given, a whole number of at least 2 bins expected")


def check_eps(eps: float) -> None:
    if not 0 < eps < math.inf:
        raise ValueError(f"eps: {eps} given, a positive number expected")


def _angles(c: Tensor, points: Tensor) -> Float[Tensor, "positive_frequencies points"]:
    k = torch.arange(1, c.shape[-1] + 1, dtype=points.dtype, device=points.device)
    return math.pi * k[:, None] * points


def check_coefficients(c: Tensor) -> None:
    if not c.is_complex() or c.ndim == 0 or c.shape[-1] < 2:
        raise ValueError(
            f"coefficients: {c.dtype} of shape {tuple(c.shape)} given, complex (..., N + 1) with N "
            "from 1 on expected"
        )


def _check_points(points: Tensor) -> None:
    if points.ndim != 1 or not points.is_floating_point():
        raise ValueError(
            f"points: {points.dtype} of shape {tuple(points.shape)} given, real (points,) expected"
        )
