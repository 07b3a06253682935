"""A feed-forward spiking network whose synapses have learnable delays, and how it is trained.

    hidden:  delayed layer -> batch normalisation -> LIF -> dropout
    output:  delayed layer -> membrane of LIF neurons that never fire
    score_c = Σ_t softmax_c(v[t]),   loss = cross-entropy with the scores as logits
    σ(e) = σ_0 (0.23 / σ_0)^{e / E} in epoch e < E, then 0.23

Hammouamri, Khalfaoui-Hassani, Masquelier, ICLR 2024, arXiv 2306.17670. Every layer makes the
sequence longer, so that late spikes still arrive. Without recurrence, neurons that detect
coincidences see temporal patterns through the delays.
"""

import itertools
import math
from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.layers.delayed_synapses import DelayedLinear
from heterodox.layers.lif import LIF
from heterodox.layers.surrogates import ATanSurrogate


def summed_softmax(
    membrane: Float[Tensor, "time batch classes"],
) -> Float[Tensor, "batch classes"]:
    """Scores of the classes: softmax at every step, summed over time.

    They are the logits of the paper's cross-entropy; no confidence can exceed the number of steps.

    Raises:
        ValueError: `membrane` has other than three axes.

    Example:
        >>> import torch
        >>> summed_softmax(torch.zeros(6, 1, 3))
        tensor([[2., 2., 2.]])
    """
    if membrane.ndim != 3:
        raise ValueError(
            f"membrane: shape {tuple(membrane.shape)} given, (time, batch, classes) expected"
        )
    return membrane.softmax(-1).sum(0)


def sigma_at(
    epoch: int, *, initial: int | float, final: int | float = 0.23, last_epoch: int
) -> float:
    """σ during an epoch: a geometric decrease from `initial` in epoch 0 to `final`, then constant.

    Args:
        epoch: counted from 0.
        initial: σ_0 in steps; half of the window in the paper. Not above `final`, it stays.
        final: 0.23 in the authors' code, where the width is 0.27 more: half a step.
        last_epoch: E, the first epoch with `final`; a quarter of all epochs in the paper. With 0
            there is no decrease.

    Raises:
        ValueError: `epoch` or `last_epoch` is negative, `initial` is negative, or `final` is not
            positive.

    Example:
        >>> [round(sigma_at(epoch, initial=12, last_epoch=4), 2) for epoch in range(6)]
        [12.0, 4.46, 1.66, 0.62, 0.23, 0.23]
    """
    for name, given in (("epoch", epoch), ("initial", initial), ("last_epoch", last_epoch)):
        if not 0 <= given < math.inf:
            raise ValueError(f"{name}: {given} given, a number that is not negative expected")
    if not 0 < final < math.inf:
        raise ValueError(f"final: {final} given, a positive number expected")
    if initial <= final or last_epoch == 0:
        return float(initial)
    if epoch >= last_epoch:
        return float(final)
    return float(initial * (final / initial) ** (epoch / last_epoch))


class DelayedBlock(nn.Module):
    """A delayed layer, batch normalisation, spiking neurons and dropout."""

    def __init__(self, synapses: DelayedLinear, neurons: LIF, dropout: float) -> None:
        super().__init__()
        self.synapses = synapses
        self.norm = nn.BatchNorm1d(synapses.out_features)
        self.neurons = neurons
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        current = self.synapses(x)
        # All steps of all samples are the examples of the normalisation.
        current = self.norm(current.flatten(0, 1)).view(current.shape)
        spikes = self.neurons(current)
        if not self.training or self.dropout == 0:
            return spikes
        # A neuron that is dropped is silent at all time steps of its sample.
        return spikes * F.dropout(spikes.new_ones(spikes.shape[1:]), self.dropout)


class DelayedSNN(nn.Module):
    """The paper's network: hidden layers of LIF neurons and a readout, with delays everywhere.

    Args:
        sizes: inputs, hidden sizes, outputs.
        max_delay: lags of every layer, see `DelayedLinear`; 25 steps of 10 ms for SHD in the paper.
        tau: membrane time constant in steps; 1.005 for SHD, almost no memory, and 1.5 for the
            other sets of the paper.
        threshold: of the hidden neurons.
        surrogate_alpha: see `ATanSurrogate`.
        dropout: share of hidden neurons that are silent in a sample; 0.4 for SHD, else 0.25.
        kernel_count: synapses of each pair of neurons.
        extend: see `DelayedLinear`.

    Raises:
        ValueError: fewer than two sizes, `dropout` is not in [0, 1), or as for the layers.

    Example:
        >>> import torch
        >>> model = DelayedSNN([20, 16, 3], max_delay=5)
        >>> counts = torch.ones(10, 2, 20)  # (time, batch, inputs)
        >>> summed_softmax(model(counts)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        sizes: Sequence[int],
        max_delay: int,
        *,
        tau: int | float = 1.005,
        threshold: int | float = 1.0,
        surrogate_alpha: int | float = 5.0,
        dropout: int | float = 0.4,
        kernel_count: int = 1,
        extend: int | None = None,
    ) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"sizes: {list(sizes)} given, inputs, hidden sizes, outputs expected")
        if min(sizes) < 1:
            raise ValueError(f"sizes: {list(sizes)} given, positive numbers expected")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: {dropout} given, a number in [0, 1) expected")

        def synapses(ins: int, outs: int) -> DelayedLinear:
            return DelayedLinear(ins, outs, max_delay, kernel_count=kernel_count, extend=extend)

        def neurons() -> LIF:
            return LIF(
                tau,
                threshold,
                decay_input=False,
                surrogate=ATanSurrogate(surrogate_alpha),
                detach_reset=True,
            )

        *hidden, outputs = sizes
        self.blocks = nn.Sequential(
            *(
                DelayedBlock(synapses(ins, outs), neurons(), dropout)
                for ins, outs in itertools.pairwise(hidden)
            )
        )
        self.readout = synapses(hidden[-1], outputs)
        self.integrator = LIF(tau, threshold, reset="none", decay_input=False)

    def forward(
        self, x: Float[Tensor, "time batch inputs"]
    ) -> Float[Tensor, "longer_time batch outputs"]:
        """The membrane of the output neurons at every step.

        Raises:
            ValueError: `x` has another number of axes or of inputs.
        """
        _, membrane = self.integrator(self.readout(self.blocks(x)), return_membrane=True)
        return membrane

    def layers(self) -> list[DelayedLinear]:
        """The delayed layers, from the input on."""
        return [module for module in self.modules() if isinstance(module, DelayedLinear)]

    def delays(self) -> list[nn.Parameter]:
        """The delays of all layers, for an optimizer of their own."""
        return [layer.delay for layer in self.layers()]

    def weights(self) -> list[nn.Parameter]:
        """The weights of all synapses."""
        return [layer.weight for layer in self.layers()]

    def set_sigma(self, value: int | float) -> None:
        """Sets the blur σ of all layers."""
        for layer in self.layers():
            layer.set_sigma(value)

    def clamp_delays_(self) -> None:
        """Brings all delays into their window; to be called after each step of an optimizer."""
        for layer in self.layers():
            layer.clamp_delays_()

    def round_delays_(self) -> None:
        """Rounds all delays."""
        for layer in self.layers():
            layer.round_delays_()
