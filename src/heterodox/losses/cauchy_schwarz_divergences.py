"""Cauchy-Schwarz divergences between samples, estimated with Gaussian kernels in closed form.

    D(p; q) = log ∫p² + log ∫q² − 2 log ∫pq
    two samples    ∫pq ≈ mean_ij k(x_i, y_j)
    conditional    ∫∫ p(y|x) q(y|x) ≈ Σ_j Σ_i K_ji M_ji / (Σ_i K_ji)²
    information    p = p(x, y), q = p(x) p(y):  ∫p² ≈ mean_ij K_ij Q_ij,
                   ∫q² ≈ mean K · mean Q,   ∫pq ≈ mean_i (mean_j K_ij) (mean_j Q_ij)

with K the Gram matrix of x, Q that of y, and M that of targets, of predictions, or between them.
Yu, Yu, Løkse, Jenssen, Principe, "Cauchy-Schwarz Divergence Information Bottleneck for Regression",
ICLR 2024, arXiv 2404.17951. Natural logarithms; the authors' code takes them to base 2.

Every estimate is a function of sums over the rows of Gram matrices, kept as logarithms. Time
O(n² dim); memory O(n (n + dim)) up to a thousand rows, beyond it O(n dim), see
`gaussian_row_sums`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from heterodox.autocast import without_autocast
from heterodox.losses.gaussian_kernels import (
    Bandwidth,
    as_rows,
    check_same_dim,
    check_same_rows,
    checked_bandwidth,
    result_dtype,
    scaled,
)
from heterodox.losses.gaussian_row_sums import Pairs, Products, log_row_sums

# Of x, target and input: K, L₁, L₂ and L₂₁; and the products K, K L₁, K L₂ and K L₂₁.
CONDITIONAL_PAIRS: Pairs = ((0, 0), (1, 1), (2, 2), (2, 1))
CONDITIONAL_PRODUCTS: Products = ((0,), (0, 1), (0, 2), (0, 3))

# c log Σ_j Π_p s_pj^a for sums s_p over rows j: the coefficient, and (p, a) for each factor.
Term = tuple[int, tuple[tuple[int, int], ...]]


def cauchy_schwarz_divergence(
    x: Float[Tensor, "rows dim"] | Float[Tensor, "rows"],
    y: Float[Tensor, "others dim"] | Float[Tensor, "others"],
    bandwidth: Bandwidth = 1.0,
    *,
    block_size: int | None = None,
) -> Float[Tensor, ""]:
    """D between two samples: log mean k(x, x) + log mean k(y, y) − 2 log mean k(x, y).

    It is exactly D between the kernel density estimates of width `bandwidth` / √2. Symmetric,
    at least 0, and 0 for equal samples; it stays finite, with a gradient, at any distance.

    Args:
        x, y: two samples, of any sizes, with vectors of one dim.
        bandwidth: s of the kernel exp(−|u − v|² / (2 s²)), a constant for autograd; 1 in the
            authors' code, for standardised data.
        block_size: rows handled at once; None stores whole matrices up to about a thousand rows.

    Raises:
        ValueError: fewer than two rows, dims that differ, values that are not finite, a
            `bandwidth` or `block_size` that is not positive.

    Example:
        >>> x = torch.linspace(-1, 1, 20)
        >>> cauchy_schwarz_divergence(x, x), cauchy_schwarz_divergence(x, x + 2) > 1
        (tensor(0.), tensor(True))
    """
    dtype = result_dtype(x)
    rows, others = as_rows({"x": x, "y": y})
    check_same_dim("y", others, rows)
    width = checked_bandwidth("bandwidth", bandwidth)
    with without_autocast(x.device.type):
        own, other, cross = (
            log_row_sums(pair, (between,), ((0,),), block_size).logsumexp(1)
            for pair, between in (
                (scaled(width, rows), (0, 0)),
                (scaled(width, others), (0, 0)),
                (scaled(width, rows, others), (0, 1)),
            )
        )
        return (own + other - 2 * cross).squeeze().to(dtype)


def conditional_cauchy_schwarz_divergence(
    x: Float[Tensor, "rows x_dim"] | Float[Tensor, "rows"],
    target: Float[Tensor, "rows y_dim"] | Float[Tensor, "rows"],
    input: Float[Tensor, "rows y_dim"] | Float[Tensor, "rows"],
    bandwidth_x: Bandwidth = 1.0,
    bandwidth_y: Bandwidth = 1.0,
    *,
    block_size: int | None = None,
) -> Float[Tensor, ""]:
    """D between p(target | x) and p(input | x): a loss for predictions `input`.

    log C(L₁) + log C(L₂) − 2 log C(L₂₁), where L₁ is the Gram matrix of the targets, L₂ that of the
    predictions, L₂₁ that between predictions (rows) and targets. Each row is divided by
    (Σ_i K_ji)², as the paper derives it; the authors' code divides by Σ_i K_ji².

    0 for exact predictions, but no distance: each prediction is compared with the targets of all
    rows near it in x, so that a `bandwidth_x` that is not small beside the scale on which targets
    change has its minimum, below 0, at predictions that are smoothed over that width. A small one
    makes it −2 log mean exp(−(y − ŷ)² / (2 s_y²)), Welsch's robust loss; a very large one compares
    the samples of targets and predictions only and does not see which belongs to which.

    Args:
        x: what the predictions were made from.
        target, input: targets and predictions; (rows,) is (rows, 1).
        bandwidth_x, bandwidth_y: widths for `x` and for targets and predictions, constants for
            autograd; 1 in the authors' code, for standardised data.
        block_size: rows handled at once; None stores whole matrices up to about a thousand rows.

    Raises:
        ValueError: fewer than two rows, numbers of rows or dims that differ, values that are not
            finite, a width or `block_size` that is not positive.

    Example:
        >>> x = torch.linspace(-1, 1, 20)
        >>> conditional_cauchy_schwarz_divergence(x, x.sin(), x.sin()).abs() < 1e-6
        tensor(True)
        >>> conditional_cauchy_schwarz_divergence(x, x.sin(), x.cos()) > 0.1
        tensor(True)
    """
    named = {"x": x, "target": target, "input": input}
    dtype = result_dtype(input)
    points = as_rows(named)
    check_same_rows(named)
    check_same_dim("input", points[2], points[1])
    width_x = checked_bandwidth("bandwidth_x", bandwidth_x)
    width_y = checked_bandwidth("bandwidth_y", bandwidth_y)
    with without_autocast(input.device.type):
        (x,) = scaled(width_x, points[0])
        target, input = scaled(width_y, points[1], points[2])
        sums = log_row_sums((x, target, input), CONDITIONAL_PAIRS, CONDITIONAL_PRODUCTS, block_size)
        return estimates(sums, divergence_terms(0, 1, 2, 3)).squeeze().to(dtype)


def cauchy_schwarz_mutual_information(
    x: Float[Tensor, "rows x_dim"] | Float[Tensor, "rows"],
    y: Float[Tensor, "rows y_dim"] | Float[Tensor, "rows"],
    bandwidth_x: Bandwidth = 1.0,
    bandwidth_y: Bandwidth = 1.0,
    normalized: bool = False,
    *,
    block_size: int | None = None,
) -> Float[Tensor, ""]:
    """I(x; y) = D between the joint density and the product of the marginals.

    Symmetric, at least 0, and 0 if one of them is constant. It depends on the widths: for x and y
    of many dims, or widths that are small, all rows are far from each other, and it says nothing.

    Args:
        x, y: paired vectors.
        bandwidth_x, bandwidth_y: widths, constants for autograd; see `median_bandwidth`.
        normalized: divide by √(I(x; x) I(y; y)), for a number between 0 and about 1, as in the
            authors' training; I(x; x) and I(y; y) take the widths of x and y.
        block_size: rows handled at once; None stores whole matrices up to about a thousand rows.

    Raises:
        ValueError: fewer than two rows, numbers of rows that differ, values that are not finite, a
            width or `block_size` that is not positive.

    Example:
        >>> x = torch.linspace(-2, 2, 50)
        >>> cauchy_schwarz_mutual_information(x, torch.ones(50)).abs() < 1e-6
        tensor(True)
        >>> cauchy_schwarz_mutual_information(x, 2 * x, normalized=True, bandwidth_y=2.0)
        tensor(1.)
    """
    named = {"x": x, "y": y}
    dtype = result_dtype(x)
    points = as_rows(named)
    check_same_rows(named)
    width_x = checked_bandwidth("bandwidth_x", bandwidth_x)
    width_y = checked_bandwidth("bandwidth_y", bandwidth_y)
    with without_autocast(x.device.type):
        (x,), (y,) = scaled(width_x, points[0]), scaled(width_y, points[1])
        products: Products = ((0,), (1,), (0, 1), (0, 0), (1, 1))
        kept = products if normalized else products[:3]
        sums = log_row_sums((x, y), ((0, 0), (1, 1)), kept, block_size)
        found = estimates(sums, *information_terms(*range(len(kept))))
        return (normalised(found) if normalized else found.squeeze()).to(dtype)


def divergence_terms(k: int, own: int, other: int, cross: int) -> list[Term]:
    """log C(L₁) + log C(L₂) − 2 log C(L₂₁), from the numbers of K, K L₁, K L₂ and K L₂₁."""
    return [
        (1, ((own, 1), (k, -2))),
        (1, ((other, 1), (k, -2))),
        (-2, ((cross, 1), (k, -2))),
    ]


def information_terms(x: int, y: int, *joint: int) -> list[list[Term]]:
    """I(x; y) from the numbers of K, Q and K Q, in which powers of n cancel; then I(x; x) and
    I(y; y) if those of K² and Q² follow."""
    return [
        [(1, ((both, 1),)), (1, ((a, 1),)), (1, ((b, 1),)), (-2, ((a, 1), (b, 1)))]
        for both, a, b in zip(joint, (x, x, y), (y, x, y), strict=False)
    ]


def estimates(
    log_sums: Float[Tensor, "products rows"], *tables: list[Term]
) -> Float[Tensor, "tables"]:
    """The sum of the terms of each table, all from one product with the sums."""
    terms = [term for table in tables for term in table]
    powers = [[0] * len(log_sums) for _ in terms]
    for row, (_, factors) in zip(powers, terms, strict=True):
        for product, power in factors:
            row[product] += power
    logarithms = (log_sums.new_tensor(powers) @ log_sums).logsumexp(1)
    weighted = logarithms * logarithms.new_tensor([coefficient for coefficient, _ in terms])
    return torch.stack([part.sum() for part in weighted.split([len(t) for t in tables])])


def normalised(information: Float[Tensor, "3"]) -> Float[Tensor, ""]:
    """I(x; y) / √(I(x; x) I(y; y))."""
    return information[0] * (information[1] * information[2]).clamp_min(1e-12).rsqrt()
