"""Polynomial features: the exponential of an inner product as an inner product of monomials.

    φ(x) · φ(y) = Σ_{t≤g} (x·y)ᵗ / t!,   φ_e(x) = x₁^e₁ ⋯ x_d^e_d / √(e₁! ⋯ e_d!),   |e| ≤ g

C(d + g, g) features of degree g in d coordinates, so that exp(x·y) is a matrix of low rank in x and
y while |x·y| is small. Aggarwal and Alman, "Optimal-Degree Polynomial Approximations for
Exponentials and Gaussian Kernel Density Estimation", 2022, arXiv 2205.06249; Alman and Song, "Fast
Attention Requires Bounded Entries", 2023, arXiv 2302.13214.
One product a feature and one with its coefficient.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import gammaln
from torch import Tensor

# Beyond it, logarithms of factorials lose the digits that decide on a degree.
LARGEST_BOUND = 1e9

# More monomials than this are no way to save time.
MOST_FEATURES = 2**24


def polynomial_features(
    x: Float[Tensor, "*batch count dim"], degree: int
) -> Float[Tensor, "*batch count features"]:
    """All distinct monomials of `x` up to a degree, scaled so that φ(x)·φ(y) = Σ_{t≤g} (x·y)ᵗ/t!.

    Monomials stand degree by degree; the first is the constant 1, the next `dim` are `x` itself.
    Half precision is computed in float32.

    Args:
        x: points, one a row.
        degree: g, at least 0.

    Returns:
        C(dim + degree, degree) features of every row.

    Raises:
        ValueError: `degree` is no whole number from 0 on, or makes more than 2²⁴ features; or `x`
            has fewer than two axes.

    Example:
        >>> polynomial_features(torch.tensor([[2.0, 3.0]]), 2)
        tensor([[1.0000, 2.0000, 3.0000, 2.8284, 6.0000, 6.3640]])
    """
    check_degree(degree)
    if x.ndim < 2:
        raise ValueError(f"x: shape {tuple(x.shape)} given, (..., count, dim) expected")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    monomials = monomials_of(x.shape[-1], degree)
    powers = [wide.new_ones(*wide.shape[:-1], 1)]
    for blocks in monomials.blocks:
        below = powers[-1]
        products = [wide[..., j : j + 1] * below[..., :stop] for stop, j in blocks]
        powers.append(torch.cat(products, dim=-1) if products else below[..., :0])
    scale = torch.as_tensor(monomials.inverse_factorials, device=x.device).sqrt()
    return (torch.cat(powers, dim=-1) * scale.to(wide.dtype)).to(x.dtype)


@dataclass(frozen=True)
class Monomials:
    """How the monomials of one degree come from those of the degree below.

    Monomials of a degree are ordered by their last variable, so that those whose last variable is
    at most j are the first ones: times x_j they are all monomials of the next degree that end in j.

    Attributes:
        blocks: for each degree from 1 on, a pair (stop, j) for each variable j: x_j times the first
            `stop` monomials of the degree below.
        inverse_factorials: 1 / (e₁! ⋯ e_d!) of every monomial.
    """

    blocks: tuple[tuple[tuple[int, int], ...], ...]
    inverse_factorials: np.ndarray

    @property
    def count(self) -> int:
        return len(self.inverse_factorials)


@lru_cache(maxsize=32)
def monomials_of(dim: int, degree: int) -> Monomials:
    """The monomials of `dim` variables up to `degree`; a ValueError if they are too many."""
    if (count := math.comb(dim + degree, degree)) > MOST_FEATURES:
        raise ValueError(
            f"degree: {degree} given, which makes {count:.2g} features of {dim} coordinates; "
            f"one that makes at most {MOST_FEATURES} expected"
        )
    blocks = []
    exponents = np.zeros((1, dim))  # of the current degree
    weights = np.ones(1)
    everything = [weights]
    for t in range(1, degree + 1):
        stops = [math.comb(t - 1 + j, j) for j in range(dim)]
        blocks.append(tuple((stop, j) for j, stop in enumerate(stops)))
        weights = np.concatenate(
            [weights[:0], *(weights[:stop] / (exponents[:stop, j] + 1) for stop, j in blocks[-1])]
        )
        raised = [exponents[:stop] + np.eye(dim)[j] for stop, j in blocks[-1]]
        exponents = np.concatenate([exponents[:0], *raised])
        everything.append(weights)
    return Monomials(tuple(blocks), np.concatenate(everything))


def degree_for(bound: int | float, tol: float) -> int:
    """The least degree of the Taylor polynomial T_g of exp that is right to `tol` on [-bound,
    bound], relative to exp.

    The worst point is -bound, where the relative error is

        E_g = 1/g! ∫₀ᵇ vᵍ eᵛ dv = Σ_m b^(g+1+m) / (g! m! (g+1+m)),

    a sum of positive terms, taken in logarithms: nothing cancels and nothing overflows.

    Args:
        bound: largest |s| at which exp(s) is needed.
        tol: largest |T_g(s) / exp(s) - 1|.

    Raises:
        ValueError: `bound` is negative or above 1e9, `tol` is not between 0 and 1.

    Example:
        >>> degree_for(1.0, 1e-3)
        6
    """
    if not 0 <= bound <= LARGEST_BOUND:
        raise ValueError(f"bound: {bound} given, a number from 0 to {LARGEST_BOUND:g} expected")
    if not 0 < tol < 1:
        raise ValueError(f"tol: {tol} given, a number between 0 and 1 expected")
    # Up to here E_g is above 1, or the degree is 0; from here on it falls.
    low = max(math.ceil(bound) - 1, 0)
    if _error(low, bound) <= tol:
        return low
    high = 2 * low + 1
    while _error(high, bound) > tol:
        low, high = high, 2 * high + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _error(middle, bound) <= tol else (middle, high)
    return high


def _error(degree: int, bound: float) -> float:
    """E_g; infinite where it leaves the range of a float."""
    if bound == 0:
        return 0.0
    # The terms have their maximum near m = bound and fall off as those of a Poisson distribution.
    width = 40 * math.sqrt(bound) + 40
    m = np.arange(max(math.floor(bound - width), 0), math.ceil(bound + width))
    power = degree + 1 + m
    terms = power * math.log(bound) - math.lgamma(degree + 1) - gammaln(m + 1) - np.log(power)
    largest = float(terms.max())
    return math.inf if largest > 700 else math.exp(largest) * float(np.exp(terms - largest).sum())


def check_degree(degree: int) -> None:
    if not isinstance(degree, int) or isinstance(degree, bool) or degree < 0:
        raise ValueError(f"degree: {degree} given, a whole number from 0 on expected")
