"""What else holds a code t back from keeping all of x, each a penalty beside a squared error.

    variational   KL(N(μ, σ²) ‖ N(0, 1)), for t = μ(x) + σ(x) ε       Alemi et al. 2017, VIB
    nonlinear     −mean_i log mean_j exp(−|μ_i − μ_j|² / (2 σ²)),
                  for t = μ(x) + σ ε                                  Kolchinsky et al. 2019, NIB
    HSIC          tr(K H Q H) / √(tr(K H K H) tr(Q H Q H)),
                  H = 1 − 1/n                                         Gretton et al. 2005

The first two are upper bounds of I(x; t) in nats; the third, here normalised, is 0 for independent
x and t and 1 for equal Gram matrices. As penalties: arXiv 1612.00410, 1705.02436 and 1908.01580.
"""

import math

from jaxtyping import Float
from torch import Tensor

from heterodox.autocast import without_autocast
from heterodox.losses.gaussian_kernels import (
    Bandwidth,
    as_rows,
    check_same_rows,
    checked_bandwidth,
    half_distances,
    result_dtype,
    scaled,
)
from heterodox.losses.gaussian_row_sums import log_row_sums


def variational_information(
    mean: Float[Tensor, "rows dim"], log_variance: Float[Tensor, "rows dim"]
) -> Float[Tensor, ""]:
    """The bound of the variational bottleneck, with a standard normal as marginal of t: the mean
    over rows of ½ Σ (μ² + σ² − 1 − log σ²).

    Raises:
        ValueError: shapes differ, there are no rows, or values are not finite.

    Example:
        >>> import torch
        >>> variational_information(torch.ones(4, 2), torch.zeros(4, 2))
        tensor(1.)
    """
    dtype = result_dtype(mean)
    if log_variance.shape != mean.shape:
        raise ValueError(
            f"log_variance: shape {tuple(log_variance.shape)} given, {tuple(mean.shape)} expected"
        )
    mean, log_variance = as_rows({"mean": mean, "log_variance": log_variance}, least=1)
    each = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
    return each.sum(1).mean().to(dtype)


def nonlinear_information(
    mean: Float[Tensor, "rows dim"],
    noise: Bandwidth = 1.0,
    *,
    block_size: int | None = None,
) -> Float[Tensor, ""]:
    """The bound of the nonlinear bottleneck, for a code with noise of deviation `noise`: between 0,
    if all means are equal, and log n.

    Raises:
        ValueError: fewer than two rows, values that are not finite, `noise` or `block_size` that
            is not positive.

    Example:
        >>> import torch
        >>> nonlinear_information(torch.zeros(8, 2)), nonlinear_information(100 * torch.eye(8))
        (tensor(0.), tensor(2.0794))
    """
    dtype = result_dtype(mean)
    (rows,) = as_rows({"mean": mean})
    width = checked_bandwidth("noise", noise)
    with without_autocast(mean.device.type):
        sums = log_row_sums(scaled(width, rows), ((0, 0),), ((0,),), block_size)
        return (math.log(len(rows)) - sums.mean()).to(dtype)


def normalized_hsic(
    x: Float[Tensor, "rows x_dim"] | Float[Tensor, "rows"],
    y: Float[Tensor, "rows y_dim"] | Float[Tensor, "rows"],
    bandwidth_x: Bandwidth = 1.0,
    bandwidth_y: Bandwidth = 1.0,
) -> Float[Tensor, ""]:
    """The cosine between the centred Gram matrices of x and y: 0 if one of them is constant.

    Raises:
        ValueError: fewer than two rows, numbers of rows that differ, values that are not finite, a
            width that is not positive.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 20)
        >>> normalized_hsic(x, 3 * x, bandwidth_y=3.0), normalized_hsic(x, torch.ones(20))
        (tensor(1.), tensor(0.))
    """
    named = {"x": x, "y": y}
    dtype = result_dtype(x)
    points = as_rows(named)
    check_same_rows(named)
    width_x = checked_bandwidth("bandwidth_x", bandwidth_x)
    width_y = checked_bandwidth("bandwidth_y", bandwidth_y)
    with without_autocast(x.device.type):
        (x,), (y,) = scaled(width_x, points[0]), scaled(width_y, points[1])
        of_x, of_y = _centred(x), _centred(y)
        own = of_x.square().sum() * of_y.square().sum()
        return ((of_x * of_y).sum() * own.clamp_min(1e-12).rsqrt()).to(dtype)


def _centred(points: Tensor) -> Tensor:
    gram = half_distances(points, points).neg().exp()
    return gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
