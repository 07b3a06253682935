"""The Fourier head's density as a distribution of PyTorch, on [-1, 1].

    p(x) = 1/2 + Re Σ_{k≥1} (c_k / c_0) e^{iπkx}
    E x  = Σ_{k≥1} 2 (-1)^k Im(c_k / c_0) / (πk)
    E x² = 1/3 + Σ_{k≥1} 4 (-1)^k Re(c_k / c_0) / (πk)²

Gillman et al., ICLR 2025, arXiv 2410.22269: the continuous variant, trained by -log p(x). Moments
are ours, by integration term by term; samples are drawn by inversion.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.distributions import Distribution, constraints

from heterodox.layers.fourier_series import (
    bin_centres,
    check_coefficients,
    fourier_density,
    normalised,
)

# Halvings of [-1, 1]: the error is below 1e-7.
BISECTIONS = 25

POINTS_PER_FREQUENCY, LEAST_POINTS = 16, 1024


class FourierDistribution(Distribution):
    """The densities of rows of coefficients, c_0..c_N as `autocorrelation` returns them.

    Args:
        coefficients: not normalised. A row of zeros is the uniform density.
        validate_args: whether numbers are checked, which waits for a GPU; by default they are, as
            in all of `torch.distributions`.

    Raises:
        ValueError: `coefficients` are not complex (..., N + 1) with N from 1 on; or, if checked,
            they are not finite or no row of them is an autocorrelation: c_0 real and |c_k| ≤ c_0.

    Example:
        >>> from heterodox.layers import autocorrelation
        >>> density = FourierDistribution(autocorrelation(torch.tensor([[1 + 0j, 1j], [1, 0]])))
        >>> density.mean
        tensor([-0.3183,  0.0000])
        >>> density.log_prob(torch.tensor([-0.5, 0.5])).exp()
        tensor([1.0000, 0.5000])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.interval(-1.0, 1.0)

    def __init__(
        self,
        coefficients: Complex[Tensor, "*batch frequencies"],
        validate_args: bool | None = None,
    ) -> None:
        check_coefficients(coefficients)
        # torch.compile turns the checks of all distributions off, for the rest of the process.
        checked = not torch.compiler.is_compiling() if validate_args is None else validate_args
        super().__init__(coefficients.shape[:-1], validate_args=checked)
        if self._validate_args:
            _check_numbers(coefficients)
        self.coefficients = coefficients
        self._c = normalised(coefficients)

    def expand(
        self,
        batch_shape: torch.Size | list[int] | tuple[int, ...],
        _instance: "FourierDistribution | None" = None,
    ) -> "FourierDistribution":
        shape = (*batch_shape, self.coefficients.shape[-1])
        return FourierDistribution(self.coefficients.expand(shape), validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        k, sign = self._k_and_sign()
        return (2 * sign / (math.pi * k) * self._c.imag).sum(-1)

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        k, sign = self._k_and_sign()
        square = 1 / 3 + (4 * sign / (math.pi * k).square() * self._c.real).sum(-1)
        return square - self.mean.square()

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """log p(value), of shape sample_shape + batch_shape; its memory grows with N when gradients
        are recorded.

        Raises:
            ValueError: a value is outside [-1, 1] or no number, or values do not broadcast with the
                batch shape, if arguments are checked; unchecked the density is 0 outside.
        """
        self._check_within("value", value, -1.0, 1.0)
        density = 0.5 + _sum_of_waves(self._c, value)
        # Where p is 0, rounding may leave a negative number.
        log_density = density.clamp_min(torch.finfo(density.dtype).tiny).log()
        return torch.where(value.abs() > 1, -math.inf, log_density)

    def cdf(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """P(x ≤ value).

        Raises:
            ValueError: as `log_prob`; unchecked it is 0 below -1 and 1 above 1.
        """
        self._check_within("value", value, -1.0, 1.0)
        k, sign = self._k_and_sign()
        integrated = self._c / (1j * math.pi * k)
        x = value.clamp(-1, 1)
        rise = _sum_of_waves(integrated, x) - (sign * integrated.real).sum(-1)
        return ((x + 1) / 2 + rise).clamp(0, 1)

    @torch.no_grad()
    def icdf(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The x with P(≤ x) = value, to 1e-6, by bisection; without gradients.

        Raises:
            ValueError: a value is outside [0, 1] or no number, or values do not broadcast with the
                batch shape, if arguments are checked.
        """
        self._check_within("value", value, 0.0, 1.0)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        # Half precision could not tell the last halves of an interval apart.
        dtype = torch.promote_types(value.dtype, self.coefficients.real.dtype)
        low = value.new_full(shape, -1.0, dtype=dtype)
        high = value.new_full(shape, 1.0, dtype=dtype)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = self.cdf(middle) < value
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def sample(
        self,
        sample_shape: torch.Size | list[int] | tuple[int, ...] = (),
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*sample"]:
        """Draws by inversion, from `generator` or else, like all of torch, from the global one."""
        uniform = torch.rand(
            self._extended_shape(torch.Size(sample_shape)),
            generator=generator,
            dtype=self.coefficients.real.dtype,
            device=self.coefficients.device,
        )
        return self.icdf(uniform)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """-∫ p log p in nats, by the midpoint rule on a grid of at least 16 points a frequency."""
        count = max(LEAST_POINTS, POINTS_PER_FREQUENCY * self.coefficients.shape[-1])
        c = self.coefficients
        density = fourier_density(c, bin_centres(count, c.real.dtype, c.device))
        return 2 * torch.special.entr(density.clamp_min(0)).mean(-1)

    def _k_and_sign(self) -> tuple[Tensor, Tensor]:
        """k and (-1)^k for k = 1..N."""
        real = self.coefficients.real
        k = torch.arange(1, real.shape[-1], dtype=real.dtype, device=real.device)
        return k, 1 - 2 * (k % 2)

    def _check_within(self, name: str, value: Tensor, low: float, high: float) -> None:
        if not self._validate_args:
            return
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}: {type(value).__name__} given, a tensor expected")
        sizes = zip(reversed(value.shape), reversed(self.batch_shape), strict=False)
        if any(1 not in pair and pair[0] != pair[1] for pair in sizes):
            raise ValueError(
                f"{name}: shape {tuple(value.shape)} given, one that broadcasts with the batch "
                f"shape {tuple(self.batch_shape)} expected"
            )
        if not ((value >= low) & (value <= high)).all():
            raise ValueError(
                f"{name}: from {value.min().item():g} to {value.max().item():g} given, "
                f"numbers in [{low:g}, {high:g}] expected"
            )


def _sum_of_waves(
    c: Complex[Tensor, "*batch positive_frequencies"], x: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Re Σ_{k≥1} c_k e^{iπkx}, each x under its own row, by Horner's scheme: nothing of the size
    of x times N is stored without gradients."""
    angle = math.pi * x.to(c.real.dtype)
    wave = torch.complex(angle.cos(), angle.sin())
    total = torch.zeros_like(wave)
    for coefficient in reversed(c.unbind(-1)):
        total = (total + coefficient) * wave
    return total.real


def _check_numbers(c: Tensor) -> None:
    if not torch.isfinite(torch.view_as_real(c.resolve_conj())).all():
        raise ValueError("coefficients: numbers that are not finite given, finite ones expected")
    c0, rounding = c[..., 0], 1e3 * torch.finfo(c.dtype).eps
    largest = c.abs().amax(-1)
    if not ((c0.imag.abs() <= rounding * largest) & (largest * (1 - rounding) <= c0.real)).all():
        raise ValueError(
            "coefficients: rows given that are no autocorrelation, c_0 real and |c_k| ≤ c_0 for "
            "all k expected"
        )
