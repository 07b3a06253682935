"""Leaky integrate-and-fire neurons that are trained while they run: no gradient goes back in time.

    h_t = (1 - 1/τ) sg(v_{t-1}) + I_t,   s_t = 1 if h_t ≥ θ, else 0,   v_t = h_t - θ sg(s_t)
    a_t = (1 - 1/τ) a_{t-1} + s_t

with sg stopping the gradient. The trace a_t is what past spikes still weigh in the membranes that
they reach: the next layer's weight gradient at step t is (error) x (trace), and memory does not
grow with time. Xiao et al., "Online Training Through Time for Spiking Neural Networks", NeurIPS
2022, arXiv 2210.04195; as used in arXiv 2402.11984.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.layers.lif import time_constant
from heterodox.layers.surrogates import Surrogate, checked_surrogate, positive


class OnlineLIF(nn.Module):
    """Neurons that are stepped, reset by subtraction, with a trace of their spikes.

    `step` moves them on; `reset_state` puts them to rest before the next sample. A batch of another
    shape, device or kind of number starts at rest as well. Membranes and traces of half precision
    are kept in float32.

    Args:
        tau: time constant of membrane and trace in steps, at least 1; 2 in arXiv 2402.11984.
        threshold: θ, above which a neuron spikes.
        surrogate: derivative of the step; by default that of a sigmoid with α = 4.

    Raises:
        ValueError: `tau` is below 1, `threshold` is not positive, or `surrogate` has no derivative.

    Example:
        >>> neurons = OnlineLIF(tau=2.0)
        >>> for _ in range(3):
        ...     spikes, trace = neurons.step(torch.full((1,), 1.0))
        >>> spikes.item(), trace.item()
        (1.0, 1.75)
    """

    def __init__(
        self,
        tau: int | float = 2.0,
        threshold: int | float = 1.0,
        *,
        surrogate: Surrogate | None = None,
    ) -> None:
        super().__init__()
        self.tau = time_constant(tau)
        self.threshold = positive("threshold", threshold)
        self.surrogate = checked_surrogate(surrogate)
        self.membrane: Tensor | None = None
        self.trace: Tensor | None = None

    def reset_state(self) -> None:
        """Membranes and traces to zero."""
        self.membrane = self.trace = None

    def step(
        self, current: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, "batch ..."]]:
        """Spikes of this step, and the trace that includes them, which has no gradient."""
        x = current.to(torch.promote_types(current.dtype, torch.float32))
        decay = 1 - 1 / self.tau
        potential = x
        if self.membrane is not None and self._is_for(x, self.membrane):
            potential = x + decay * self.membrane
        spikes = self.surrogate(potential - self.threshold)
        fired = spikes.detach()
        trace = fired
        if self.trace is not None and self._is_for(x, self.trace):
            trace = fired + decay * self.trace
        self.membrane = potential.detach() - self.threshold * fired
        self.trace = trace
        return spikes.to(current.dtype), trace.to(current.dtype)

    def forward(self, current: Float[Tensor, "time batch ..."]) -> Float[Tensor, "time batch ..."]:
        """All steps from rest: the spikes.

        Raises:
            ValueError: `current` has no axis of time.
        """
        if current.ndim == 0:
            raise ValueError("current: a single number given, (time, batch, ...) expected")
        self.reset_state()
        spikes = [self.step(row)[0] for row in current.unbind(0)]
        self.reset_state()
        return torch.stack(spikes) if spikes else current

    @staticmethod
    def _is_for(x: Tensor, state: Tensor) -> bool:
        return (x.shape, x.dtype, x.device) == (state.shape, state.dtype, state.device)

    def extra_repr(self) -> str:
        return f"tau={self.tau:g}, threshold={self.threshold:g}"
