"""Leaky integrate-and-fire neurons whose gradient is that of their weighted firing rate.

    v ← β v + (1 - β) I_t,   s_t = θ if v ≥ αθ, else 0,   v ← v - s_t,   β = e^{-Δt/τ}
    r(x) = Σ_t w_t x_t / Σ_t w_t,   w_t = e^{-Δt (T - t) / τ},   t = 1..T

The output is s_t / Δt. Its rate is close to r(I) / τ clipped to [0, θ/Δt], and the gradient is that
of the clip: with G = T r(∂L/∂output),

    ∂L/∂I_t = G / (τ T)   where 0 < r(I) < θτ/Δt, else 0;      ∂L/∂θ = Δt Σ G  over r(I) > θτ/Δt

Meng et al., "Training High-Performance Low-Latency Spiking Neural Networks by Differentiation on
Spike Representation", CVPR 2022, arXiv 2205.00459; as used in arXiv 2402.11984.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from heterodox.layers.surrogates import positive


def weighted_rate(
    x: Float[Tensor, "time ..."], tau: int | float = 1.0, delta_t: int | float = 0.05
) -> Float[Tensor, "..."]:
    """r(x): the mean over time in which late steps weigh more.

    Args:
        x: any sequence, time first.
        tau: time constant of the weights, in units of time.
        delta_t: length of a step, in the same units.

    Raises:
        ValueError: `x` has no step, or `tau` or `delta_t` is not positive.

    Example:
        >>> weighted_rate(torch.tensor([1.0, 1.0, 1.0])).item()
        1.0
    """
    positive("tau", tau), positive("delta_t", delta_t)
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"x: shape {tuple(x.shape)} given, at least one time step expected")
    # -Δt (T - t) / τ, in float64 on the CPU: the weights are few, and the same for all neurons.
    left = torch.arange(len(x) - 1, -1, -1, dtype=torch.float64)
    weights = (left * (-delta_t / tau)).exp()
    weights = (weights / weights.sum()).to(x)
    return torch.tensordot(weights, x, dims=1)


class RateDifferentiated(Function):
    """Spikes forward; the derivative of the clipped weighted rate backward."""

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, threshold: Tensor, tau: float, delta_t: float, alpha: float
    ) -> Tensor:
        beta = math.exp(-delta_t / tau)
        membrane = torch.zeros_like(current[0])
        spikes = torch.empty_like(current)
        for row, fired in zip(current.unbind(0), spikes.unbind(0), strict=True):
            membrane = torch.add(beta * membrane, row, alpha=1 - beta)
            fired.copy_(membrane >= alpha * threshold).mul_(threshold)
            membrane = membrane - fired
        ctx.save_for_backward(weighted_rate(current, tau, delta_t), threshold)
        ctx.constants = tau, delta_t
        return spikes.div_(delta_t)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rate, threshold = ctx.saved_tensors
        tau, delta_t = ctx.constants
        largest = threshold * (tau / delta_t)
        coded = weighted_rate(grad, tau, delta_t)
        free = ((rate > 0) & (rate < largest)).to(grad.dtype)
        grad_current = (coded * free / tau).expand_as(grad)
        saturated = (rate > largest).to(grad.dtype)
        grad_threshold = delta_t * len(grad) * (coded * saturated).sum()
        return grad_current, grad_threshold.to(threshold.dtype), None, None, None


class DSRLIF(nn.Module):
    """A layer of neurons trained by differentiation on spike representation (DSR).

    The output are spikes of height θ / Δt, so that their weighted rate is an amount of current. The
    threshold, one number, is learned. Half precision is computed in float32.

    Args:
        threshold: θ at the start.
        tau: membrane time constant, in units of time.
        delta_t: length of a step, in the same units.
        alpha: a neuron spikes at α θ.
        min_threshold: θ is kept above it in training. Defaults are those of the authors' code of
            arXiv 2402.11984.

    Raises:
        ValueError: an argument is not positive, or `threshold` is below `min_threshold`.

    Example:
        >>> neurons = DSRLIF()
        >>> spikes = neurons(torch.full((200, 1), 2.0))  # (time, batch)
        >>> round(weighted_rate(spikes).item(), 1)
        2.0
    """

    def __init__(
        self,
        threshold: int | float = 0.3,
        tau: int | float = 1.0,
        delta_t: int | float = 0.05,
        alpha: int | float = 0.3,
        min_threshold: int | float = 5e-4,
    ) -> None:
        super().__init__()
        self.tau, self.delta_t = positive("tau", tau), positive("delta_t", delta_t)
        self.alpha = positive("alpha", alpha)
        self.min_threshold = positive("min_threshold", min_threshold)
        if not min_threshold <= threshold < math.inf:
            raise ValueError(
                f"threshold: {threshold} given, at least min_threshold = {min_threshold} expected"
            )
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))

    def forward(self, current: Float[Tensor, "time ..."]) -> Float[Tensor, "time ..."]:
        """Spikes of height θ / Δt.

        Raises:
            ValueError: `current` has no axis of time, or no step.
        """
        if current.ndim == 0 or len(current) == 0:
            raise ValueError(
                f"current: shape {tuple(current.shape)} given, at least one time step expected"
            )
        if self.training:
            with torch.no_grad():
                self.threshold.clamp_(min=self.min_threshold)
        dtype = torch.promote_types(current.dtype, torch.float32)
        spikes = RateDifferentiated.apply(
            current.to(dtype), self.threshold.to(dtype), self.tau, self.delta_t, self.alpha
        )
        return spikes.to(current.dtype)

    def extra_repr(self) -> str:
        return f"tau={self.tau:g}, delta_t={self.delta_t:g}, alpha={self.alpha:g}"
