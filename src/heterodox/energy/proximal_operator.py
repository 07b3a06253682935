"""A softmax with a step size: the proximal operator of negative entropy less half a square.

    prox_f^α(x) = argmin_z ½ ‖z − x‖² + α f(z),   f(z) = Σ z log z − ½ ‖z‖²  on the simplex
    (1 − α) z_s + α log z_s = x_s + λ − α,   λ such that Σ z = 1;   α = 1: softmax(x)

Feng, Winston and Kolter, "Monotone deep Boltzmann machines", TMLR 2023, arXiv 2307.04990, where z
is written with Lambert's W function, and found by Newton steps on λ around Halley steps on z. Here
l = log z and λ are unknowns of one Newton iteration, which needs one exponential a step and no W,
whose argument overflows. Cost: an exponential, about ten cheap operations and three sums a step;
5 to 9 steps for α ≥ 1/8.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

# What one block of numbers may hold on a CPU: with its few temporaries it stays in the cache.
CPU_BLOCK = 65_536

# Below this, relative to the largest, a state has probability zero for every step size that is used
# and a number that is not finite would spoil the sums.
LOWEST = -1e30


def prox_softmax(
    x: Float[Tensor, "*shape"], alpha: float, dim: int = -1
) -> Float[Tensor, "*shape"]:
    """The point z of the simplex with (1 − α) z + α log z − x constant along `dim`.

    Invariant to a shift of x, like softmax, and equal to it at α = 1; as α goes to 0 it becomes the
    Euclidean projection onto the simplex. Σ z is 1 to rounding, and z is right to about 1e-6 in
    float32 and 1e-12 in float64. float16 and bfloat16 are computed in float32. An entry of −inf
    gets exactly 0, unless all are −inf, which gives NaN. There are no second derivatives.

    Args:
        x: any shape.
        alpha: step size α in (0, 1]. Newton needs the more steps the smaller it is: for 20 states
            in float32, 7 at 1/8 and 10 at 1/1000.
        dim: the dimension of a variable's states, which sums to 1.

    Raises:
        ValueError: `alpha` is not in (0, 1], or `x` has no dimension `dim` or no states there.

    Example:
        >>> x = torch.tensor([2.0, 0.0, -1.0])
        >>> prox_softmax(x, 1.0), x.softmax(-1)
        (tensor([0.8438, 0.1142, 0.0420]), tensor([0.8438, 0.1142, 0.0420]))
        >>> prox_softmax(x, 0.125)
        tensor([9.9988e-01, 1.2318e-04, 4.1359e-08])
    """
    check_alpha(alpha)
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim: {dim} given, a dimension of the {x.ndim} of x expected")
    if x.shape[dim] == 0:
        raise ValueError(f"x: shape {tuple(x.shape)} given, at least one state in {dim} expected")
    working = x.to(torch.promote_types(x.dtype, torch.float32))
    z = working.softmax(dim) if alpha == 1 else _ProxSoftmax.apply(working, alpha, dim)
    return z.to(x.dtype)


def check_alpha(alpha: float) -> None:
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha: {alpha} given, a number in (0, 1] expected")


class _ProxSoftmax(torch.autograd.Function):
    """`_solved`, with the derivative that follows from the equation it solves."""

    @staticmethod
    def forward(x: Tensor, alpha: float, dim: int) -> Tensor:
        columns = x.movedim(dim, 0).contiguous()
        flat = columns.view(len(columns), -1)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            width = max(1, CPU_BLOCK // len(flat))
            solved = torch.cat([_solved(part, alpha) for part in flat.split(width, dim=1)], dim=1)
        else:
            solved = _solved(flat, alpha)
        return solved.view(columns.shape).movedim(0, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, int], output: Tensor) -> None:
        ctx.alpha, ctx.dim = inputs[1:]
        ctx.save_for_backward(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        return pull_back(z, gradient, ctx.alpha, ctx.dim), None, None


def pull_back(
    z: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], alpha: float, dim: int
) -> Float[Tensor, "*shape"]:
    """The gradient in x of what has `gradient` in z = prox_softmax(x, alpha, dim).

    With D = z / (α + (1 − α) z) it is g D − D (Σ g D) / Σ D.
    """
    slope = z / (alpha + (1 - alpha) * z)
    moved = gradient * slope
    return moved - slope * (moved.sum(dim, keepdim=True) / slope.sum(dim, keepdim=True))


def _solved(
    x: Float[Tensor, "states variables"], alpha: float
) -> Float[Tensor, "states variables"]:
    """Newton's method on (l, λ) together, each column by itself.

    It starts at the largest λ possible, where the largest z is 1, and above every l. λ is held in
    its bracket, whose lower end belongs to equal states. Steps that begin where z is nearly linear
    may overshoot: l is held below its bounds while that matters, longer for a small α.
    """
    states = len(x)
    lowest = (1 - alpha) / states - alpha * math.log(states)
    u = (x - x.amax(0)).clamp_(min=LOWEST)
    lam = torch.full_like(u[0], 1 - alpha)  # λ − α, counted from the largest x
    l = _above(u + lam, alpha)
    for step in range(_steps(alpha, states, x.dtype)):
        z = l.exp()
        linear = z * (1 - alpha)
        missing = (u + lam).sub_(linear).sub_(l, alpha=alpha)
        slope = linear.add_(alpha).reciprocal_()
        tilt = z * slope
        total = tilt.sum(0)
        change = (1 - z.sum(0) - tilt.mul_(missing).sum(0)) / total
        before, lam = lam, (lam + change).clamp_(lowest, 1 - alpha)
        l.addcmul_(slope, missing.add_(lam - before))
        if step < 3 or alpha < 0.1:
            l = torch.minimum(l, _above(u + lam, alpha))
    z = l.exp_()
    return z / z.sum(0)


def _above(y: Tensor, alpha: float) -> Tensor:
    """An upper bound of l where α l + (1 − α) e^l = y, from e^l ≥ 0 and e^l ≥ 1 + l."""
    return torch.minimum(y / alpha, y - (1 - alpha))


def _steps(alpha: float, states: int, dtype: torch.dtype) -> int:
    """Enough for 1e-7, and with two more for 1e-12; fitted to what a search found."""
    single = 4.5 + 1.8 * math.log10(states / 2) + 1.5 * math.log10(0.125 / alpha)
    return max(4, math.ceil(single)) + 2 * (dtype == torch.float64)
