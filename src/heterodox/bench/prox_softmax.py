"""The softmax with a step size: one Newton iteration for everything, and nested loops."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from heterodox.bench.workload import Case, Target, Workload, check_sizes

ALPHA, TOLERANCE = 0.125, 1e-5
TARGETS = (Target("prox-softmax", "time", "128x20x28x28", "forward", 0.1),)


def workload() -> Workload:
    return Workload(
        facts={
            "alpha": f"{ALPHA:g}",
            "dtype": "float32",
            "accuracy": "1e-6 or better of prox-softmax; the nested loops stop at 1e-5",
            "size": "batch x states x height x width",
        },
        cases=cases,
        prepare=prepare,
        targets=TARGETS,
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """Forward, and with backward.

    Raises:
        ValueError: a size is not of the form 128x20x28x28.
    """
    check_sizes(sizes, "batch x states x height x width", "128x20x28x28")
    return [Case(size, passes) for size in sizes for passes in ("forward", "forward and backward")]


def prepare(function: Callable[..., Tensor], case: Case, device: str) -> Callable[[], object]:
    """A call of `function(x, ALPHA, dim=1)` on normal numbers."""
    shape = tuple(map(int, case.size.split("x")))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    if case.passes == "forward":
        return lambda: function(x, ALPHA, dim=1)
    weights = torch.linspace(0, 1, shape[1], device=device).view(1, -1, 1, 1)
    learned = x.requires_grad_()
    return lambda: torch.autograd.grad((function(learned, ALPHA, dim=1) * weights).sum(), learned)


class Nested(torch.autograd.Function):
    """Newton steps on λ, around Halley steps on l that run until the worst of all numbers is there;
    written from the paper's description."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float, dim: int) -> Tensor:
        lam = 1 - x.amax(dim, keepdim=True)
        while True:
            y = x + lam - alpha
            l = torch.minimum(y / alpha, y - (1 - alpha))
            while True:
                e = (1 - alpha) * l.exp()
                h, slope = alpha * l + e - y, alpha + e
                step = 2 * h * slope / (2 * slope.square() - h * e)
                l = l - step
                if float(step.abs().max()) < TOLERANCE:
                    break
            z = l.exp()
            d = z / (alpha + (1 - alpha) * z)
            excess = z.sum(dim, keepdim=True) - 1
            if float(excess.abs().max()) < TOLERANCE:
                break
            lam = lam - excess / d.sum(dim, keepdim=True)
        ctx.save_for_backward(d)
        ctx.dim = dim
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (d,) = ctx.saved_tensors
        moved = gradients[0] * d
        mean = moved.sum(ctx.dim, keepdim=True) / d.sum(ctx.dim, keepdim=True)
        return moved - d * mean, None, None


def nested(x: Float[Tensor, "*shape"], alpha: float, dim: int = -1) -> Float[Tensor, "*shape"]:
    return Nested.apply(x, alpha, dim)


def softmax(x: Float[Tensor, "*shape"], alpha: float, dim: int = -1) -> Float[Tensor, "*shape"]:
    """For scale: what a step without a step size would cost."""
    return x.softmax(dim)
