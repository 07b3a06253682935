"""Elastic weight consolidation: weights that mattered for earlier tasks are held back by springs.

    L(θ) + λ/2 Σ_tasks Σ_i F_i (θ_i - θ*_i)²,     F_i = E_x E_{y ~ p(y|x)} (∂ log p(y|x) / ∂θ_i)²

with θ* the weights at the end of a task and F the diagonal of its Fisher information. Kirkpatrick
et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017, arXiv 1612.00796; a
baseline of orthogonal projection.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ElasticWeights:
    """The springs of all tasks that have ended, in the memory of two copies of the weights.

    Args:
        model: its parameters that have a gradient are held.
        strength: λ; to be tuned.

    Raises:
        ValueError: `strength` is negative.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> springs = ElasticWeights(model, strength=10.0)
        >>> springs.end_task(torch.randn(20, 3), torch.Generator().manual_seed(0))
        >>> springs.penalty().item()  # nothing has moved yet
        0.0
    """

    def __init__(self, model: nn.Module, strength: float) -> None:
        if not 0 <= strength < math.inf:
            raise ValueError(f"strength: {strength} given, a number that is not negative expected")
        self.model = model
        self.strength = strength
        # Σ F and Σ F θ* over tasks: all that the gradient of the penalty needs.
        self._stiffness: dict[str, Tensor] = {}
        self._pull: dict[str, Tensor] = {}
        self._constant: Tensor | float = 0.0

    def penalty(self) -> Float[Tensor, ""]:
        """What is added to the loss."""
        total = next(self.model.parameters()).new_zeros(())
        for name, parameter in self.model.named_parameters():
            if name in self._stiffness:
                stiffness, pull = self._stiffness[name], self._pull[name]
                total = total + (parameter * (stiffness * parameter - 2 * pull)).sum()
        if not self._stiffness:
            return total
        return 0.5 * self.strength * (total + self._constant)

    def end_task(
        self,
        inputs: Float[Tensor, "samples ..."],
        generator: torch.Generator,
        *,
        logits: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Adds springs for the task that has ended, at the weights as they are.

        Args:
            inputs: samples of the task; their labels are drawn from the model's own distribution.
            generator: of the CPU, for the labels.
            logits: from a batch of inputs to logits; by default the model itself.

        Raises:
            ValueError: there are no samples.
        """
        if len(inputs) == 0:
            raise ValueError("inputs: no samples given, at least one expected")
        parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for x in inputs.split(1):
            scores = (logits or self.model)(x)
            # Of a run that has diverged any label will do: its Fisher information is NaN.
            probabilities = scores.detach().softmax(-1).double().cpu().nan_to_num(1.0)
            label = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            loss = F.cross_entropy(scores, label.to(scores.device))
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    fisher[name] += gradient.square() / len(inputs)
        for name, parameter in parameters.items():
            anchor = parameter.detach().clone()
            moved = fisher[name] * anchor
            self._stiffness[name] = self._stiffness.get(name, 0) + fisher[name]
            self._pull[name] = self._pull.get(name, 0) + moved
            self._constant = self._constant + (moved * anchor).sum()
