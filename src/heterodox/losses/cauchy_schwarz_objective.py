"""The Cauchy-Schwarz bottleneck: predict by the code t, and keep little else of x in it.

    D(p(y|x); p(ŷ|x)) + β I(x; t) / √(I(x; x) I(t; t))

with D and I of `cauchy_schwarz_divergences`. Yu et al., ICLR 2024, arXiv 2404.17951. The Gram
matrix of x is computed once for both terms, and so is that of t; the authors' code computes ten
matrices where five are needed, and a product of two of them for its trace.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.autocast import without_autocast
from heterodox.losses.cauchy_schwarz_divergences import (
    CONDITIONAL_PAIRS,
    CONDITIONAL_PRODUCTS,
    conditional_cauchy_schwarz_divergence,
    divergence_terms,
    estimates,
    information_terms,
    normalised,
)
from heterodox.losses.gaussian_kernels import (
    Bandwidth,
    as_rows,
    check_same_dim,
    check_same_rows,
    checked_bandwidth,
    median_distance,
    result_dtype,
    scaled,
)
from heterodox.losses.gaussian_row_sums import log_row_sums

# Of a larger batch the median distance is that of so many rows, evenly spaced.
MEDIAN_ROWS = 1024


def cauchy_schwarz_bottleneck(
    input: Float[Tensor, "rows y_dim"] | Float[Tensor, "rows"],
    target: Float[Tensor, "rows y_dim"] | Float[Tensor, "rows"],
    x: Float[Tensor, "rows x_dim"] | Float[Tensor, "rows"],
    t: Float[Tensor, "rows t_dim"] | Float[Tensor, "rows"],
    beta: int | float = 0.01,
    bandwidth_x: Bandwidth = 1.0,
    bandwidth_t: Bandwidth | Literal["median"] = 1.0,
    bandwidth_y: Bandwidth = 1.0,
    normalized: bool = True,
    *,
    information_bandwidth: Bandwidth | Literal["median"] | None = None,
    block_size: int | None = None,
) -> Float[Tensor, ""]:
    """The objective of the bottleneck, from a batch.

    Args:
        input, target: predictions and targets; (rows,) is (rows, 1). Targets should have a
            deviation near 1, as widths are absolute.
        x: standardised inputs of the network.
        t: its code, without noise.
        beta: weight of the information term; the authors try 0 to 1. With 0 it is not computed.
        bandwidth_x, bandwidth_y: widths of the prediction term, for `x` and for targets and
            predictions; 1 in the authors' code.
        bandwidth_t: width for `t`, or "median": the batch's median distance, of at most 1024 rows.
        normalized: whether the information is divided by √(I(x; x) I(t; t)), as in the authors'
            training.
        information_bandwidth: width for `x` in the information term, or "median"; None is
            `bandwidth_x`. With many features all rows are farther apart than 1, and the information
            of width 1 says nothing.
        block_size: rows handled at once; None stores whole matrices up to about a thousand rows.

    All widths are constants for autograd. Half precision is computed in float32, and sums of rows
    are added in float64.

    Raises:
        ValueError: fewer than two rows, numbers of rows or dims that differ, values that are not
            finite, a width or `block_size` that is not positive, or a negative `beta`.

    Example:
        >>> x = torch.linspace(-1, 1, 20)
        >>> code = torch.stack([x, x.square()], dim=1)
        >>> loss = cauchy_schwarz_bottleneck(x.sin(), x.sin(), x, code, beta=0.1)
        >>> 0 < loss < 0.11  # exact predictions: what is left is beta times the information
        tensor(True)
    """
    _check_beta(beta)
    if not beta:
        return conditional_cauchy_schwarz_divergence(
            x, target, input, bandwidth_x, bandwidth_y, block_size=block_size
        )
    divergence, information = bottleneck_terms(
        input,
        target,
        x,
        t,
        bandwidth_x,
        bandwidth_t,
        bandwidth_y,
        normalized,
        information_bandwidth=information_bandwidth,
        block_size=block_size,
    )
    return divergence + beta * information


def bottleneck_terms(
    input: Float[Tensor, "rows y_dim"] | Float[Tensor, "rows"],
    target: Float[Tensor, "rows y_dim"] | Float[Tensor, "rows"],
    x: Float[Tensor, "rows x_dim"] | Float[Tensor, "rows"],
    t: Float[Tensor, "rows t_dim"] | Float[Tensor, "rows"],
    bandwidth_x: Bandwidth = 1.0,
    bandwidth_t: Bandwidth | Literal["median"] = 1.0,
    bandwidth_y: Bandwidth = 1.0,
    normalized: bool = True,
    *,
    information_bandwidth: Bandwidth | Literal["median"] | None = None,
    block_size: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The two terms of `cauchy_schwarz_bottleneck`: divergence, and information without β."""
    named = {"input": input, "target": target, "x": x, "t": t}
    dtype = result_dtype(input)
    input, target, x, t = as_rows(named)
    check_same_rows(named)
    check_same_dim("input", input, target)
    width_x = checked_bandwidth("bandwidth_x", bandwidth_x)
    width_y = checked_bandwidth("bandwidth_y", bandwidth_y)
    width_t = _width("bandwidth_t", bandwidth_t, t)
    with without_autocast(input.device.type):
        points = [*scaled(width_x, x), *scaled(width_y, target, input), *scaled(width_t, t)]
        # Numbers of the Gram matrix of x in the information term, which is that of the prediction
        # term unless their widths differ, and of the Gram matrix of t.
        k, q, pairs = 0, 4, (*CONDITIONAL_PAIRS, (3, 3))
        products = CONDITIONAL_PRODUCTS
        if information_bandwidth is not None:
            points += scaled(_width("information_bandwidth", information_bandwidth, x), x)
            k, pairs, products = 5, (*pairs, (4, 4)), (*products, (5,))
        row_of_k = 0 if k == 0 else len(products) - 1
        first = len(products)
        products = (*products, (q,), (k, q), *(((k, k), (q, q)) if normalized else ()))
        sums = log_row_sums(points, pairs, products, block_size)
        divergence, *found = estimates(
            sums,
            divergence_terms(0, 1, 2, 3),
            *information_terms(row_of_k, *range(first, len(products))),
        )
        information = normalised(torch.stack(found)) if normalized else found[0]
        return divergence.to(dtype), information.to(dtype)


class CauchySchwarzBottleneckLoss(nn.Module):
    """`cauchy_schwarz_bottleneck` as a module: `forward(input, target, x, t)`.

    Args:
        beta, bandwidth_x, bandwidth_t, bandwidth_y, normalized, information_bandwidth, block_size:
            see there.

    Raises:
        ValueError: `beta` is negative or a width is not positive; in `forward`, as there.

    Example:
        >>> loss = CauchySchwarzBottleneckLoss(beta=0.1)
        >>> x, t = torch.randn(16, 5), torch.randn(16, 3, requires_grad=True)
        >>> loss(t.sum(1), x[:, 0], x, t).backward()
    """

    def __init__(
        self,
        beta: int | float = 0.01,
        bandwidth_x: Bandwidth = 1.0,
        bandwidth_t: Bandwidth | Literal["median"] = 1.0,
        bandwidth_y: Bandwidth = 1.0,
        normalized: bool = True,
        *,
        information_bandwidth: Bandwidth | Literal["median"] | None = None,
        block_size: int | None = None,
    ) -> None:
        super().__init__()
        _check_beta(beta)
        checked_bandwidth("bandwidth_x", bandwidth_x)
        checked_bandwidth("bandwidth_y", bandwidth_y)
        _width("bandwidth_t", bandwidth_t, None)
        if information_bandwidth is not None:
            _width("information_bandwidth", information_bandwidth, None)
        self.beta = beta
        self.bandwidth_x = bandwidth_x
        self.bandwidth_t = bandwidth_t
        self.bandwidth_y = bandwidth_y
        self.normalized = normalized
        self.information_bandwidth = information_bandwidth
        self.block_size = block_size

    def forward(
        self,
        input: Float[Tensor, "rows y_dim"] | Float[Tensor, "rows"],
        target: Float[Tensor, "rows y_dim"] | Float[Tensor, "rows"],
        x: Float[Tensor, "rows x_dim"] | Float[Tensor, "rows"],
        t: Float[Tensor, "rows t_dim"] | Float[Tensor, "rows"],
    ) -> Float[Tensor, ""]:
        return cauchy_schwarz_bottleneck(
            input,
            target,
            x,
            t,
            self.beta,
            self.bandwidth_x,
            self.bandwidth_t,
            self.bandwidth_y,
            self.normalized,
            information_bandwidth=self.information_bandwidth,
            block_size=self.block_size,
        )

    def extra_repr(self) -> str:
        return (
            f"beta={self.beta}, bandwidth_x={self.bandwidth_x}, bandwidth_t={self.bandwidth_t}, "
            f"bandwidth_y={self.bandwidth_y}, normalized={self.normalized}"
        )


def _check_beta(beta: int | float) -> None:
    if not 0 <= beta < torch.inf:
        raise ValueError(f"beta: {beta} given, a number that is not negative expected")


def _width(name: str, bandwidth: Bandwidth | str, points: Tensor | None) -> float | Tensor:
    """A width that is given, or that of the points; 1 where their median distance is 0."""
    if not isinstance(bandwidth, str):
        return checked_bandwidth(name, bandwidth)
    if bandwidth != "median":
        raise ValueError(f"{name}: {bandwidth!r} given, a positive number or 'median' expected")
    if points is None:
        return 1.0
    step = -(-len(points) // MEDIAN_ROWS)
    median = median_distance(points[::step])
    return torch.where(median > 0, median, 1)
