"""Values as uniform bins, forecasts as quantiles of a distribution over bins, and their scores.

    bin(x)  = ⌊m (x / (s L) + 1) / 2⌋, clipped to 0..m-1,   s = mean |context|
    WQL     = Σ_q Σ_t 2 max(q e, (q - 1) e) / (|Q| Σ_t |x_t|),   e = x_t - x̂_t(q),   q = 0.1..0.9
    MASE    = Σ_t |x_t - x̂_t(1/2)| / n / mean |x_t - x_{t-1}| of the training part

The bins of Ansari et al., "Chronos", 2024, arXiv 2403.07815, section 3.1, with L = 15, and the
scores of its section 5.4, for forecasts of one step.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

LEVELS = tuple(q / 10 for q in range(1, 10))


@dataclass(frozen=True)
class Scores:
    """How good the forecasts of some windows are, each value by its one forecast.

    Attributes:
        wql, mase: as above; lower is better.
        smoothness: mean over forecasts of `heterodox.layers.smoothness`; lower is smoother.
        loss: mean negative log-likelihood of the bins [nats/value].
        clipped: share of the values that lie beyond the bins [%].
    """

    wql: float
    mase: float
    smoothness: float
    loss: float
    clipped: float


DIVERGED = Scores(math.nan, math.nan, math.nan, math.nan, math.nan)


def mean_scale(context: Float[Tensor, "*batch length"]) -> Float[Tensor, "*batch 1"]:
    """The mean absolute value of each row, 1 where that is 0.

    Example:
        >>> mean_scale(torch.tensor([[1.0, -3.0], [0.0, 0.0]]))
        tensor([[2.],
                [1.]])
    """
    scale = context.abs().mean(-1, keepdim=True)
    return torch.where(scale == 0, 1, scale)


def bins_of(scaled: Float[Tensor, "*batch"], bins: int, limit: float) -> Int[Tensor, "*batch"]:
    """The bin of each scaled value; the outer bins also hold what lies beyond ±`limit`.

    Example:
        >>> bins_of(torch.tensor([-9.0, -0.1, 0.1, 2.0]), bins=4, limit=2.0)
        tensor([0, 1, 2, 3])
    """
    return ((scaled / limit + 1) * (bins / 2)).floor().long().clamp(0, bins - 1)


def quantiles_of(
    pmf: Float[Tensor, "*batch bins"], limit: float, levels: tuple[float, ...] = LEVELS
) -> Float[Tensor, "*batch levels"]:
    """Quantiles of the density that is constant within each bin of [-limit, limit].

    Example:
        >>> quantiles_of(torch.tensor([0.5, 0.0, 0.0, 0.5]), limit=4.0, levels=(0.25, 0.75))
        tensor([-3.,  3.])
    """
    pmf = pmf / pmf.sum(-1, keepdim=True)
    cdf = pmf.cumsum(-1)
    wanted = torch.tensor(levels, dtype=pmf.dtype, device=pmf.device)
    wanted = wanted.expand(*pmf.shape[:-1], len(levels)).contiguous()
    place = torch.searchsorted(cdf, wanted).clamp(max=pmf.shape[-1] - 1)
    inside = pmf.gather(-1, place)
    before = cdf.gather(-1, place) - inside
    share = ((wanted - before) / torch.where(inside == 0, 1, inside)).clamp(0, 1)
    return ((place + share) * (2 / pmf.shape[-1]) - 1) * limit


def weighted_quantile_loss(
    truth: Float[Tensor, "count"],
    quantiles: Float[Tensor, "count levels"],
    levels: tuple[float, ...] = LEVELS,
) -> float:
    """WQL of forecasts; lower is better. Infinite where all of `truth` is 0.

    Example:
        >>> weighted_quantile_loss(torch.tensor([2.0]), torch.tensor([[1.0]]), levels=(0.5,))
        0.5
    """
    q = torch.tensor(levels, dtype=truth.dtype, device=truth.device)
    error = truth[:, None] - quantiles
    loss = 2 * torch.maximum(q * error, (q - 1) * error)
    return (loss.mean(1).sum() / truth.abs().sum()).item()


def mean_absolute_scaled_error(
    truth: Float[Tensor, "count"], median: Float[Tensor, "count"], training: Float[Tensor, "time"]
) -> float:
    """MASE of forecasts of one step; lower is better. Infinite where `training` is constant.

    Example:
        >>> mean_absolute_scaled_error(
        ...     torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.0, 2.0, 0.0])
        ... )
        0.5
    """
    return ((truth - median).abs().mean() / training.diff().abs().mean()).item()
