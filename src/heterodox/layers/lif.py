"""Leaky integrate-and-fire neurons over all time steps at once.

    h_t = (1 - 1/τ) v_{t-1} + I_t        (I_t / τ where the input decays as well),   v_0 = 0
    s_t = 1 if h_t ≥ θ, else 0
    v_t = h_t (1 - s_t)   reset to zero,   h_t - θ s_t   by subtraction,   h_t   without reset

The gradient through s_t is that of a surrogate. Time O(time · neurons), memory one number a step
and neuron.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from heterodox.layers.surrogates import Surrogate, checked_surrogate, positive

Reset = Literal["zero", "subtract", "none"]
RESETS = ("zero", "subtract", "none")


class Integration(Function):
    """All time steps of a layer of neurons: only the potential before the reset is kept.

    With D_t = dv_t/dh_t and σ'_t the surrogate's derivative, the backward pass is the recurrence
    ∂L/∂h_t = σ'_t ∂L/∂s_t + D_t (∂L/∂v_t + decay ∂L/∂h_{t+1}). Both passes go step by step, so that
    what a step needs stays in the cache.
    """

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        decay: float,
        gain: float,
        threshold: float,
        reset: Reset,
        detach_reset: bool,
        surrogate: Surrogate,
        return_membrane: bool,
    ) -> tuple[Tensor, Tensor]:
        potential, spikes = current.new_empty(current.shape), current.new_empty(current.shape)
        membrane = current.new_empty(current.shape if return_membrane else 0)
        carried = current.new_zeros(current.shape[1:])
        for t, (x, h, fired) in enumerate(zip(current, potential, spikes, strict=True)):
            torch.add(x if gain == 1 else gain * x, carried, alpha=decay, out=h)
            torch.ge(h, threshold, out=fired)
            carried = after_reset(h, fired, threshold, reset)
            if return_membrane:
                membrane[t] = carried
        ctx.save_for_backward(potential)
        ctx.constants = decay, gain, threshold, reset, detach_reset, surrogate, return_membrane
        ctx.set_materialize_grads(False)
        return spikes, membrane

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_spikes: Tensor | None, grad_membrane: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        (potential,) = ctx.saved_tensors
        decay, gain, threshold, reset, detach_reset, surrogate, returned = ctx.constants
        # A compiled graph fills in zeros where there is no gradient.
        grad_membrane = grad_membrane if returned else None
        grad = torch.zeros_like(potential)
        kept = grad.new_empty(grad.shape[1:])
        later: Tensor | None = None  # ∂L/∂h of the step after
        for t in reversed(range(len(potential))):
            h, row = potential[t], grad[t]
            slope = surrogate.derivative(h - threshold)
            # ∂L/∂v is `factor` times `through`.
            through, factor = later, decay
            if grad_membrane is not None:
                through, factor = grad_membrane[t], 1.0
                if later is not None:
                    through = torch.add(through, later, alpha=decay)
            fires = None if grad_spikes is None else grad_spikes[t]
            if through is not None and reset != "none" and not detach_reset:
                fires = torch.zeros_like(h) if fires is None else fires
                if reset == "zero":
                    fires = torch.addcmul(fires, through, h, value=-factor)
                else:
                    fires = torch.sub(fires, through, alpha=threshold * factor)
            if fires is not None:
                torch.mul(fires, slope, out=row)
            if through is not None and reset == "zero":
                row.addcmul_(through, torch.lt(h, threshold, out=kept), value=factor)
            elif through is not None:
                row.add_(through, alpha=factor)
            later = row
        return grad if gain == 1 else grad.mul_(gain), *(7 * [None])


def after_reset(h: Tensor, fired: Tensor, threshold: float, reset: Reset) -> Tensor:
    """v: the membrane after a step."""
    if reset == "zero":
        return torch.addcmul(h, h, fired, value=-1)
    return torch.sub(h, fired, alpha=threshold) if reset == "subtract" else h


class LIF(nn.Module):
    """A layer of leaky integrate-and-fire neurons, trained by backpropagation through time.

    It has no parameters and keeps no state: every call starts from rest. Half precision is computed
    in float32, since a membrane is a long sum.

    Args:
        tau: membrane time constant in steps, at least 1: a neuron of τ = 1 has no memory. 2 in
            arXiv 2402.11984.
        threshold: θ, above which a neuron spikes.
        reset: "zero", "subtract" (the threshold) or "none", for readout neurons.
        decay_input: whether the input is divided by τ, as in arXiv 2402.11984; not in 2306.17670.
        surrogate: derivative of the step; by default that of a sigmoid with α = 4.
        detach_reset: whether gradients ignore how a reset depends on the membrane.

    Raises:
        ValueError: `tau` is below 1, `threshold` is not positive, `reset` is none of the three, or
            `surrogate` has no derivative.

    Example:
        >>> neurons = LIF(tau=2.0, decay_input=False)
        >>> current = torch.full((4, 1), 0.6)  # (time, batch)
        >>> spikes, membrane = neurons(current, return_membrane=True)
        >>> spikes[:, 0].tolist()
        [0.0, 0.0, 1.0, 0.0]
    """

    def __init__(
        self,
        tau: int | float = 2.0,
        threshold: int | float = 1.0,
        *,
        reset: Reset = "zero",
        decay_input: bool = True,
        surrogate: Surrogate | None = None,
        detach_reset: bool = False,
    ) -> None:
        super().__init__()
        self.tau = time_constant(tau)
        self.threshold = positive("threshold", threshold)
        if reset not in RESETS:
            raise ValueError(f"reset: {reset!r} given, 'zero', 'subtract' or 'none' expected")
        self.reset: Reset = reset
        self.decay_input = decay_input
        self.surrogate = checked_surrogate(surrogate)
        self.detach_reset = detach_reset

    @classmethod
    def from_snntorch(cls, leaky: Any, *, surrogate: Surrogate | None = None) -> "LIF":
        """A layer that spikes as an `snntorch.Leaky` does, except at the threshold itself.

        snnTorch fires above the threshold, this layer at it as well. Whether its reset shows in the
        membrane at once or a step later (`reset_delay`) makes no difference to spikes with a reset
        to zero.

        Args:
            leaky: its β, threshold and kind of reset are taken, and whether gradients pass through
                the reset, which `reset_delay` decides there.
            surrogate: see `LIF`; snnTorch's own are functions of another form.

        Raises:
            ValueError: several values of β or of the threshold; or a reset by subtraction, which
                snnTorch counts otherwise.

        Example:
            >>> from types import SimpleNamespace
            >>> leaky = SimpleNamespace(beta=torch.tensor(0.5), threshold=torch.tensor(1.0),
            ...     reset_mechanism="zero")
            >>> LIF.from_snntorch(leaky).tau
            2.0
        """
        beta, threshold = torch.as_tensor(leaky.beta), torch.as_tensor(leaky.threshold)
        if beta.numel() != 1 or threshold.numel() != 1:
            raise ValueError(
                f"leaky: {max(beta.numel(), threshold.numel())} values given, one β and one "
                "threshold expected"
            )
        if leaky.reset_mechanism == "subtract":
            raise ValueError("leaky: reset 'subtract' given, 'zero' or 'none' expected")
        kept = min(max(beta.item(), 0.0), 1.0)
        return cls(
            math.inf if kept == 1 else 1 / (1 - kept),
            threshold.item(),
            reset=leaky.reset_mechanism,
            decay_input=False,
            surrogate=surrogate,
            detach_reset=bool(getattr(leaky, "reset_delay", True)),
        )

    def forward(
        self, current: Float[Tensor, "time ..."], return_membrane: bool = False
    ) -> Float[Tensor, "time ..."] | tuple[Float[Tensor, "time ..."], Float[Tensor, "time ..."]]:
        """Spikes (0 or 1), and if asked for the membrane after the reset, both of every step.

        Raises:
            ValueError: `current` is a single number.
        """
        if current.ndim == 0:
            raise ValueError("current: a single number given, (time, batch, ...) expected")
        spikes, membrane = Integration.apply(
            current.to(torch.promote_types(current.dtype, torch.float32)),
            1 - 1 / self.tau,
            1 / self.tau if self.decay_input else 1.0,
            self.threshold,
            self.reset,
            self.detach_reset,
            self.surrogate,
            return_membrane,
        )
        spikes = spikes.to(current.dtype)
        return (spikes, membrane.to(current.dtype)) if return_membrane else spikes

    def extra_repr(self) -> str:
        return (
            f"tau={self.tau:g}, threshold={self.threshold:g}, reset={self.reset!r}, "
            f"decay_input={self.decay_input}, "
            f"detach_reset={self.detach_reset}"
        )


def time_constant(tau: int | float) -> float:
    """τ, or the ValueError of one that is shorter than a step."""
    if not tau >= 1:
        raise ValueError(f"tau: {tau} given, at least one step expected")
    return float(tau)
