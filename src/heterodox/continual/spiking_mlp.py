"""A spiking network of fully connected layers, under three training rules.

- "bptt": backpropagation through time with surrogate gradients; images are a constant current, the
  output is the mean over time.
- "ottt": online; at every step the loss of that step is differentiated, with traces in place of
  presynaptic spikes and nothing going back in time.
- "dsr": the derivative of weighted firing rates; the output is the weighted rate of the last layer.

All three updates have the form (error) x (what the layer is given), so that each can be projected
and its subspaces learned by Hebbian neurons. Xiao et al., ICLR 2024, arXiv 2402.11984; constants
are the authors'.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from heterodox.continual.hebbian_subspace import HebbianSubspace, Quantization
from heterodox.continual.projected_layers import ProjectedLinear
from heterodox.layers.spiking import DSRLIF, LIF, OnlineLIF, weighted_rate

Rule = Literal["bptt", "ottt", "dsr"]
Note = Callable[[int, Tensor], None]
STEPS: dict[str, int] = {"bptt": 6, "ottt": 6, "dsr": 20}
NEURONS: dict[str, Callable[[], nn.Module]] = {
    # As the authors' network has it: no decay of the input, and the reset of the other two rules.
    "bptt": partial(LIF, reset="subtract", decay_input=False, detach_reset=True),
    "ottt": OnlineLIF,
    "dsr": DSRLIF,
}

# Of the subspace neurons: images have more energy than spikes.
FIRST_RATE, RATE = 0.001, 0.01


class SpikingMLP(nn.Module):
    """Layers of spiking neurons with projected weights and without biases.

    Args:
        sizes: inputs, hidden sizes, classes.
        rule: "bptt", "ottt" or "dsr".
        steps: of time; 6, and 20 for "dsr", by default.
        quantization: of the lateral neurons, see `heterodox.continual.project`.

    Raises:
        ValueError: fewer than two sizes, an unknown rule, or `steps` below 1.

    Example:
        >>> model = SpikingMLP([64, 32, 10], "ottt")
        >>> x, labels = torch.randn(8, 64), torch.arange(8)
        >>> loss = model.backward(x, labels)  # gradients of all weights
        >>> model(x).shape, model.layers[0].weight.grad.shape
        (torch.Size([8, 10]), torch.Size([32, 64]))
    """

    def __init__(
        self,
        sizes: Sequence[int],
        rule: Rule = "bptt",
        *,
        steps: int | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes: {list(sizes)} given, two or more positive numbers expected")
        if rule not in STEPS:
            raise ValueError(f"rule: {rule!r} given, one of {', '.join(STEPS)} expected")
        if steps is not None and steps < 1:
            raise ValueError(f"steps: {steps} given, at least 1 expected")
        self.inputs = sizes[0]
        self.rule = rule
        self.steps = STEPS[rule] if steps is None else steps
        self.layers = nn.ModuleList(
            ProjectedLinear(
                ins,
                outs,
                subspace=HebbianSubspace(
                    ins, lr=RATE if number else FIRST_RATE, quantization=quantization
                ),
            )
            for number, (ins, outs) in enumerate(itertools.pairwise(sizes))
        )
        self.neurons = nn.ModuleList(NEURONS[rule]() for _ in sizes[1:-1])

    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch classes"]:
        """Scores of the classes.

        Raises:
            ValueError: `x` has another number of axes or of inputs.
        """
        self._check(x)
        if self.rule == "ottt":
            return torch.stack(list(self._online(x))).mean(0)
        return self._scores(x)

    def backward(
        self, x: Float[Tensor, "batch inputs"], labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Adds the gradients of cross-entropy by the rule to the parameters'; returns the loss.

        Raises:
            ValueError: as `forward`, or the batch is empty.
        """
        self._check(x)
        if len(x) == 0:
            raise ValueError("x: an empty batch given, at least one sample expected")
        if self.rule != "ottt":
            loss = F.cross_entropy(self._scores(x), labels)
            loss.backward()
            return loss.detach()
        total = x.new_zeros(())
        for scores in self._online(x):
            loss = F.cross_entropy(scores, labels) / self.steps
            loss.backward()
            total += loss.detach()
        return total

    @torch.no_grad()
    def activations(
        self, x: Float[Tensor, "batch inputs"]
    ) -> list[Float[Tensor, "samples features"]]:
        """What each layer is given: samples of what its subspace neurons learn from."""
        self._check(x)
        seen: list[list[Tensor]] = [[] for _ in self.layers]

        def note(number: int, given: Tensor) -> None:
            seen[number].append(given.reshape(-1, given.shape[-1]))

        was_training = self.training
        self.eval()  # so that subspace neurons do not learn
        if self.rule == "ottt":
            for _ in self._online(x, note):
                pass
        else:
            self._scores(x, note)
        self.train(was_training)
        # The first layer sees the same at every step.
        return [given[0] if number == 0 else torch.cat(given) for number, given in enumerate(seen)]

    def _scores(self, x: Tensor, note: Note | None = None) -> Tensor:
        """All steps at once: BPTT and DSR."""
        z = x
        for number, layer in enumerate(self.layers):
            # A constant current is projected once, and its weighted rate is itself.
            learned = weighted_rate(z) if self.rule == "dsr" and number else z
            if note is not None:
                note(number, learned)
            z = layer(z, learn_from=learned if self.rule == "dsr" else None)
            if number == 0:
                z = z.expand(self.steps, *z.shape)
            if number < len(self.neurons):
                z = self.neurons[number](z)
        return weighted_rate(z) if self.rule == "dsr" else z.mean(0)

    def _online(self, x: Tensor, note: Note | None = None) -> Iterator[Tensor]:
        """The scores of each step, one after the other: OTTT."""
        self._rest()
        for _ in range(self.steps):
            z, trace = x, None
            for number, layer in enumerate(self.layers):
                if note is not None:
                    note(number, z)
                    if trace is not None:
                        note(number, trace)
                z = layer(z, trace)
                if number < len(self.neurons):
                    neurons = self.neurons[number]
                    assert isinstance(neurons, OnlineLIF)
                    z, trace = neurons.step(z)
            yield z
        self._rest()

    def _rest(self) -> None:
        for neurons in self.neurons:
            assert isinstance(neurons, OnlineLIF)
            neurons.reset_state()

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.inputs:
            raise ValueError(f"x: shape {tuple(x.shape)} given, (batch, {self.inputs}) expected")
