"""The mean field of a monotone machine, dense or convolutional, over one flat vector a sample.

    q ← prox_f^α((1 − α) q + α (Φ q + b)),   Jᵀ g = (1 − α) h + α Φ h,  h = the prox pulled back

with observed entries held before and after; they have no gradient.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from heterodox.energy.fixed_point import SolverInfo, implicit_fixed_point
from heterodox.energy.proximal_operator import prox_softmax, pull_back

POWER_ITERATIONS = 12


@runtime_checkable
class Layout(Protocol):
    """Where in the flat vector the states of a variable are.

    Attributes:
        dim: the axis of the states in what `split` returns.
    """

    dim: int

    def split(self, x: Tensor) -> list[Tensor]: ...

    def join(self, parts: Sequence[Tensor]) -> Tensor: ...

    def uniform(self, like: Tensor) -> Tensor: ...


class Observation:
    """What was observed; nothing, if there are no values."""

    def __init__(
        self,
        values: Float[Tensor, "batch size"] | None = None,
        held: Bool[Tensor, "batch size"] | None = None,
    ) -> None:
        self.values, self.held = values, held
        self.batch = 1 if values is None else len(values)

    def hold(self, q: Float[Tensor, "batch size"]) -> Float[Tensor, "batch size"]:
        """q with observed entries at their values."""
        if self.values is None or self.held is None:
            return q
        return torch.where(self.held, self.values, q)

    def free(self, gradient: Float[Tensor, "batch size"]) -> Float[Tensor, "batch size"]:
        """The part of a gradient that is not in observed entries."""
        return gradient if self.held is None else gradient.masked_fill(self.held, 0.0)


def mean_field(
    layout: Layout,
    observation: Observation,
    bias: Float[Tensor, "size"],
    couple: Callable[[Tensor], Tensor],
    couple_fixed: Callable[[Tensor], Tensor],
    *,
    alpha: float,
    tolerance: float,
    max_iter: int,
) -> tuple[Float[Tensor, "batch size"], SolverInfo]:
    """The fixed point, with its gradient in the bias and in whatever `couple` depends on.

    Args:
        layout: of the states.
        observation: what is held.
        bias: b.
        couple: the product with Φ, for the last step.
        couple_fixed: the same without a gradient, for all others.
        alpha: step at most; see `safe_step`.
        tolerance, max_iter: of the solver.
    """
    start = observation.hold(layout.uniform(bias).expand(observation.batch, -1))
    alpha = safe_step(alpha, couple_fixed, start[:1])

    def step(q: Tensor) -> Tensor:
        product = couple if torch.is_grad_enabled() else couple_fixed
        q = observation.hold(q)
        moved = (1 - alpha) * q + alpha * (product(q) + bias)
        parts = [prox_softmax(part, alpha, layout.dim) for part in layout.split(moved)]
        return observation.hold(layout.join(parts))

    def adjoint(q: Tensor, gradient: Tensor) -> Tensor:
        parts = zip(layout.split(q), layout.split(observation.free(gradient)), strict=True)
        back = layout.join([pull_back(z, g, alpha, layout.dim) for z, g in parts])
        return observation.free((1 - alpha) * back + alpha * couple_fixed(back))

    return implicit_fixed_point(
        step, start, adjoint=adjoint, tolerance=tolerance, max_iter=max_iter
    )


def safe_step(
    alpha: float, couple: Callable[[Tensor], Tensor], like: Float[Tensor, "_ size"]
) -> float:
    """α, or 1 / (1 + ‖Φ‖₂) if that is less: plain iteration converges up to twice as much.

    The norm is estimated by power iteration, from below; the factor of two is its margin.

    Args:
        alpha: as wished.
        couple: the product with Φ, which is symmetric.
        like: for its size, device and dtype.
    """
    with torch.no_grad():
        # Any start with a part along the largest eigenvector will do.
        v = torch.arange(1, like.shape[1] + 1, device=like.device).mul(1.7).cos().to(like)[None]
        norm = v.norm()
        for _ in range(POWER_ITERATIONS):
            v = couple(v / norm.clamp(min=torch.finfo(like.dtype).tiny))
            norm = v.norm()
        largest = 1 / (1 + float(norm))
    # Weights that are not finite are left to show in the result.
    return min(alpha, largest) if largest > 0 else alpha


def check_observed(
    values: Float[Tensor, "batch variables states *pixels"],
    held: Bool[Tensor, "batch variables states *pixels"],
) -> None:
    """Raises ValueError unless every variable is observed as a whole or not at all, and what was
    observed is a distribution over its states."""
    observed = held.any(2)
    if not torch.equal(held.all(2), observed):
        raise ValueError("mask: some states of a variable given as observed, all or none expected")
    eps = torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0
    error = max(1e-4, 4 * eps)
    sums = values.sum(2)
    # Written so that NaN fails.
    fine = ((sums - 1).abs() <= error) & (values >= -error).all(2)
    if not bool((fine | ~observed).all()):
        wrong = sums[observed & ~fine]
        raise ValueError(
            f"observed: states that sum to {float(wrong[0]):.4g} or are negative given, "
            "a distribution over the states of every observed variable expected"
        )
