"""The restricted Boltzmann machine over discrete visible variables: what monotone machines replace.

    p(v, h) ∝ exp(vᵀ W h + aᵀ v + cᵀ h),   v one-hot states of each variable,  h in {0, 1}
    F(v) = −aᵀ v − Σ_j log(1 + exp((vᵀ W + c)_j)),   loss F(v_data) − F(v_chain)

Salakhutdinov, Mnih and Hinton, ICML 2007 (softmax visible units); Tieleman, ICML 2008 (persistent
chains). Mean-field inference of missing variables alternates between the two layers; it may have
several fixed points, and which one is found depends on the start.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from heterodox.energy.fixed_point import SolverInfo, check_solver, solve_fixed_point
from heterodox.energy.mean_field import Observation, check_observed
from heterodox.energy.sampling import sample_spins, sample_states
from heterodox.energy.state_groups import StateGroups


class RestrictedBoltzmannMachine(nn.Module):
    """Visible variables with states of their own number, binary hidden units, no other couplings.

    Args:
        states: how many states each visible variable has; n is their sum.
        hidden: number of hidden units.
        tolerance: of the relative change of the marginals by an iteration of mean field.
        max_iter: iterations at most; `info` says how the last one ended.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> machine = RestrictedBoltzmannMachine([2, 3], hidden=4)
        >>> v = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0]])
        >>> chain = machine.sample(v, steps=3)
        >>> loss = machine.free_energy(v).mean() - machine.free_energy(chain).mean()
        >>> q = machine(v, torch.tensor([[True, False]]))
        >>> q[0, :2].tolist(), round(q[0, 2:].sum().item(), 5)
        ([1.0, 0.0], 1.0)
    """

    def __init__(
        self,
        states: Sequence[int],
        hidden: int,
        *,
        tolerance: float = 1e-4,
        max_iter: int = 100,
    ) -> None:
        super().__init__()
        groups = StateGroups(states)
        check_solver("picard", tolerance, max_iter)
        if hidden < 1:
            raise ValueError(f"hidden: {hidden} given, a positive number expected")
        self.tolerance = tolerance
        self.max_iter = max_iter
        self.info: SolverInfo | None = None
        size = sum(states)
        self.weight = nn.Parameter(torch.randn(size, hidden) / math.sqrt(size * hidden))
        self.visible_bias = nn.Parameter(torch.zeros(size))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.groups = groups

    def hidden_logits(self, v: Float[Tensor, "batch total"]) -> Float[Tensor, "batch hidden"]:
        """vᵀ W + c."""
        return v @ self.weight + self.hidden_bias

    def visible_logits(self, h: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch total"]:
        """W h + a."""
        return h @ self.weight.mT + self.visible_bias

    def free_energy(self, v: Float[Tensor, "batch total"]) -> Float[Tensor, "batch"]:
        """F(v), so that p(v) ∝ exp(−F(v))."""
        return -(v @ self.visible_bias) - F.softplus(self.hidden_logits(v)).sum(-1)

    @torch.no_grad()
    def sample(
        self,
        v: Float[Tensor, "batch total"],
        steps: int,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch total"]:
        """Visible states after `steps` sweeps of Gibbs sampling from `v`.

        Raises:
            ValueError: `steps` is negative.
        """
        if steps < 0:
            raise ValueError(f"steps: {steps} given, a number that is not negative expected")
        for _ in range(steps):
            spins = sample_spins(self.hidden_logits(v), 0.5, generator=generator)
            logits = self.visible_logits((spins + 1) / 2)
            v = self.groups.join(
                [sample_states(part, generator=generator) for part in self.groups.split(logits)]
            )
        return v

    @torch.no_grad()
    def forward(
        self,
        observed: Float[Tensor, "batch total"],
        mask: Bool[Tensor, "batch variables"],
    ) -> Float[Tensor, "batch total"]:
        """Marginals of the visible variables by mean field, observed ones held.

        Args:
            observed: one-hot states; what the mask hides may be anything.
            mask: which variables were observed.

        Raises:
            ValueError: shapes disagree, or what was observed is no distribution.
        """
        if observed.ndim != 2 or observed.shape[1] != len(self.visible_bias):
            raise ValueError(
                f"observed: shape {tuple(observed.shape)} given, "
                f"(batch, {len(self.visible_bias)}) expected"
            )
        if mask.shape != (len(observed), len(self.groups.states)):
            raise ValueError(
                f"mask: shape {tuple(mask.shape)} given, "
                f"{(len(observed), len(self.groups.states))} expected"
            )
        held = (mask != 0)[:, self.groups.variable]
        for values, flags in zip(self.groups.split(observed), self.groups.split(held), strict=True):
            check_observed(values, flags)

        observation = Observation(observed, held)

        def step(v: Tensor) -> Tensor:
            logits = self.visible_logits(torch.sigmoid(self.hidden_logits(v)))
            q = self.groups.join([part.softmax(-1) for part in self.groups.split(logits)])
            return observation.hold(q)

        start = self.groups.uniform(observed).expand(len(observed), -1)
        q, self.info = solve_fixed_point(
            step,
            observation.hold(start),
            solver="picard",
            tolerance=self.tolerance,
            max_iter=self.max_iter,
        )
        return q
