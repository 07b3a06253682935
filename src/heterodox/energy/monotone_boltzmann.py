"""Monotone deep Boltzmann machines: any connections, and mean-field inference that always ends.

    p(x) ∝ exp(½ xᵀ Φ x + bᵀ x),  x the one-hot states of all variables;  q_i = softmax((Φ q + b)_i)
    q ← prox_f^α((1 − α) q + α (Φ q + b)),   observed variables held at their values

Feng, Winston and Kolter, "Monotone deep Boltzmann machines", TMLR 2023, arXiv 2307.04990. I − Φ is
strongly monotone by construction, so that the mean field q of any observation is unique. With this
symmetric Φ the step is proximal gradient descent on a convex function, the free energy
−½ qᵀ Φ q − bᵀ q + Σ q log q, which ends for α < 2 / ‖I − Φ‖₂; the paper's bound 2 m / ‖I − Φ‖₂² is
for matrices that need not be symmetric. Cost of a step: one product with Φ and `prox_softmax`.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from heterodox.energy.completion_loss import focal_completion_loss
from heterodox.energy.couplings import check_monotonicity, monotone_couplings
from heterodox.energy.fixed_point import SolverInfo, check_solver, solve_fixed_point
from heterodox.energy.mean_field import Observation, check_observed, mean_field
from heterodox.energy.monotone_convolution import MonotoneConvBoltzmannMachine
from heterodox.energy.proximal_operator import check_alpha, prox_softmax
from heterodox.energy.state_groups import StateGroups

__all__ = [
    "MonotoneBoltzmannMachine",
    "MonotoneConvBoltzmannMachine",
    "SolverInfo",
    "focal_completion_loss",
    "monotone_couplings",
    "prox_softmax",
    "solve_fixed_point",
]


class MonotoneBoltzmannMachine(nn.Module):
    """A Boltzmann machine over discrete variables, every one coupled to every other.

    Which variables are visible and which hidden is said in each call. `info` is that of the last
    solution.

    Args:
        states: how many states each variable has; n is their sum. A variable with one state is
            constant.
        rank: rows of A; n by default, as many as can matter.
        monotonicity: m in (0, 1): the larger, the faster inference and the weaker the couplings.
        alpha: largest step, in (0, 1]; 0.125 in the authors' code. A smaller one is taken where
            this does not surely converge. The solution does not depend on it.
        tolerance: of the relative change by a step, for the solution and its gradient.
        max_iter: steps at most; a solution that ends there warns, and `info` says so.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> machine = MonotoneBoltzmannMachine([2, 2, 3])
        >>> seen = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
        >>> q = machine(seen, torch.tensor([[True, False, False]]))
        >>> q[0, :2].tolist(), round(q[0, 4:].sum().item(), 5)
        ([0.0, 1.0], 1.0)
    """

    def __init__(
        self,
        states: Sequence[int],
        *,
        rank: int | None = None,
        monotonicity: float = 0.1,
        alpha: float = 0.125,
        tolerance: float = 1e-4,
        max_iter: int = 100,
    ) -> None:
        super().__init__()
        groups = StateGroups(states)
        check_monotonicity(monotonicity)
        check_alpha(alpha)
        check_solver("anderson", tolerance, max_iter)
        size = sum(states)
        if rank is not None and rank < 1:
            raise ValueError(f"rank: {rank} given, a positive number or None expected")
        self.monotonicity = monotonicity
        self.alpha = alpha
        self.tolerance = tolerance
        self.max_iter = max_iter
        self.info: SolverInfo | None = None
        rows = size if rank is None else rank
        self.A = nn.Parameter(torch.randn(rows, size) / math.sqrt(rows))
        self.bias = nn.Parameter(torch.zeros(size))
        self.groups = groups

    def couplings(self) -> Float[Tensor, "total total"]:
        """Φ, see `monotone_couplings`."""
        return monotone_couplings(self.A, self.groups.states, self.monotonicity)

    def potentials(self, q: Float[Tensor, "*batch total"]) -> Float[Tensor, "*batch total"]:
        """u = Φ q + b: at the fixed point, q is the softmax of u over the states of each variable.

        Raises:
            ValueError: the last axis of `q` is not n.
        """
        self._check_size("q", q)
        return q @ self.couplings() + self.bias

    def energy(self, x: Float[Tensor, "*batch total"]) -> Float[Tensor, "*batch"]:
        """−½ xᵀ Φ x − bᵀ x, so that p(x) ∝ exp(−energy(x)) for one-hot x.

        Raises:
            ValueError: the last axis of `x` is not n.
        """
        self._check_size("x", x)
        return -(x * (0.5 * x @ self.couplings() + self.bias)).sum(-1)

    def forward(
        self,
        observed: Float[Tensor, "batch total"] | None = None,
        mask: Bool[Tensor, "batch _"] | Float[Tensor, "batch _"] | None = None,
    ) -> Float[Tensor, "batch total"]:
        """The mean field given what was observed, with its exact gradient.

        Args:
            observed: states of the variables, one-hot or any distribution; what the mask hides may
                be anything. None: nothing is known, and the batch is 1.
            mask: where they were observed: a flag for every variable, or for every state. None:
                everywhere.

        Raises:
            ValueError: shapes disagree, or what was observed is no distribution.
        """
        dtype = torch.promote_types(self.A.dtype, torch.float32)
        with torch.autocast(self.A.device.type, enabled=False):
            observation = self._observation(observed, mask, dtype)
            phi = self.couplings().to(dtype)
            fixed = phi.detach()
            q, self.info = mean_field(
                self.groups,
                observation,
                self.bias.to(dtype),
                lambda q: q @ phi,
                lambda q: q @ fixed,
                alpha=self.alpha,
                tolerance=self.tolerance,
                max_iter=self.max_iter,
            )
        return q.to(self.A.dtype)

    def _check_size(self, name: str, x: Tensor) -> None:
        if x.ndim < 1 or x.shape[-1] != len(self.bias):
            raise ValueError(
                f"{name}: shape {tuple(x.shape)} given, (..., {len(self.bias)}) expected"
            )

    def _observation(
        self, observed: Tensor | None, mask: Tensor | None, dtype: torch.dtype
    ) -> Observation:
        if observed is None:
            if mask is not None:
                raise ValueError("mask: given without values, something observed expected")
            return Observation()
        self._check_size("observed", observed)
        batch, variables = len(observed), len(self.groups.states)
        if observed.ndim != 2:
            raise ValueError(
                f"observed: shape {tuple(observed.shape)} given, (batch, {len(self.bias)}) expected"
            )
        if mask is None:
            held = torch.ones_like(observed, dtype=torch.bool)
        elif mask.shape == (batch, variables):
            held = (mask != 0)[:, self.groups.variable]
        elif mask.shape == observed.shape:
            held = mask != 0
        else:
            raise ValueError(
                f"mask: shape {tuple(mask.shape)} given, {(batch, variables)} or "
                f"{tuple(observed.shape)} expected"
            )
        for values, flags in zip(self.groups.split(observed), self.groups.split(held), strict=True):
            check_observed(values, flags)
        return Observation(observed.to(dtype), held)
