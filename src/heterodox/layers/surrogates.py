"""Steps with the derivative of something smooth: how gradients pass through a spike.

    s = 1 if u ≥ 0, else 0;   backward  ∂L/∂u = σ'(u) ∂L/∂s

with u the membrane's distance from the threshold. Neftci, Mostafa, Zenke, "Surrogate Gradient
Learning in Spiking Neural Networks", 2019, arXiv 1901.09948.
"""

import math
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable


@runtime_checkable
class Surrogate(Protocol):
    """A step with another derivative; `SigmoidSurrogate` and `ATanSurrogate` are two."""

    def __call__(self, u: Tensor) -> Tensor:
        """1 where u ≥ 0, else 0."""
        ...

    def derivative(self, u: Tensor) -> Tensor:
        """What stands for the derivative of the step at u."""
        ...


class Spike(Function):
    """The step, with the derivative of a surrogate."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return (u >= 0).to(u.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grad * ctx.surrogate.derivative(u), None


class SigmoidSurrogate(nn.Module):
    """A step whose derivative is that of a sigmoid, α σ(αu) (1 - σ(αu)).

    Args:
        alpha: steepness; 4 in arXiv 2402.11984.

    Raises:
        ValueError: `alpha` is not positive.

    Example:
        >>> u = torch.tensor([-0.5, 0.0, 0.5], requires_grad=True)
        >>> spikes = SigmoidSurrogate(4.0)(u)
        >>> spikes.sum().backward()
        >>> spikes.tolist(), [round(x, 2) for x in u.grad.tolist()]
        ([0.0, 1.0, 1.0], [0.42, 1.0, 0.42])
    """

    def __init__(self, alpha: int | float = 4.0) -> None:
        super().__init__()
        self.alpha = positive("alpha", alpha)

    def forward(self, u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """1 where u ≥ 0, else 0."""
        return Spike.apply(u, self)

    def derivative(self, u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What stands for the derivative of the step at u."""
        share = torch.sigmoid(self.alpha * u)
        return torch.addcmul(share, share, share, value=-1).mul_(self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}"


class ATanSurrogate(nn.Module):
    """A step whose derivative is that of an arctangent, (α/2) / (1 + (π α u / 2)²).

    Args:
        alpha: steepness; 5 in the authors' code of arXiv 2306.17670.

    Raises:
        ValueError: `alpha` is not positive.

    Example:
        >>> u = torch.tensor([-1.0, 0.0], requires_grad=True)
        >>> ATanSurrogate(2.0)(u).sum().backward()
        >>> [round(x, 3) for x in u.grad.tolist()]
        [0.092, 1.0]
    """

    def __init__(self, alpha: int | float = 5.0) -> None:
        super().__init__()
        self.alpha = positive("alpha", alpha)

    def forward(self, u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """1 where u ≥ 0, else 0."""
        return Spike.apply(u, self)

    def derivative(self, u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What stands for the derivative of the step at u."""
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * u).square())

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}"


def checked_surrogate(surrogate: Surrogate | None) -> Surrogate:
    """The argument `surrogate` of a neuron; None is the sigmoid's with α = 4."""
    if surrogate is None:
        return SigmoidSurrogate(4.0)
    if not hasattr(surrogate, "derivative"):
        raise ValueError(
            f"surrogate: {surrogate!r} given, one with a method derivative expected, "
            "such as SigmoidSurrogate(4.0)"
        )
    return surrogate


def positive(name: str, value: int | float) -> float:
    """The number, or the ValueError of an argument that must be positive and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: {value} given, a positive number expected")
    return float(value)
