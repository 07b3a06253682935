"""Adam for one linear layer whose gradient in its output is known.

    G = δᵀ [u, 1],   m ← β₁ m + (1 − β₁) G,   v ← β₂ v + (1 − β₂) G²
    [W, b] ← [W, b] − η m̂ / (√v̂ + ε),   m̂ = m / (1 − β₁ᵗ),   v̂ = v / (1 − β₂ᵗ)

The same numbers as `torch.optim.Adam` gives: Kingma and Ba, 2015, arXiv 1412.6980, algorithm 1. For
layers so small that the calls of an optimizer cost more than its arithmetic: weight and bias are
one matrix, and nothing is looked up, grouped or recorded.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

BETAS, EPS = (0.9, 0.999), 1e-8


class LinearAdam:
    """Adam with torch's defaults.

    Args:
        layer: with a bias; its weights are changed in place.
        lr: η.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> before = layer.bias.clone()
        >>> descent = LinearAdam(layer, lr=0.1)
        >>> descent.step(torch.ones(5, 2), torch.ones(5, 4))
        >>> (before - layer.bias).detach()
        tensor([0.1000, 0.1000])
    """

    def __init__(self, layer: nn.Linear, lr: float) -> None:
        self.layer = layer
        self.lr = lr
        self.steps = 0
        self.mean = torch.zeros(layer.out_features, layer.in_features + 1)
        self.square = torch.zeros_like(self.mean)

    @torch.no_grad()
    def step(
        self, gradient: Float[Tensor, "batch outputs"], inputs: Float[Tensor, "batch more"]
    ) -> None:
        """One update.

        Args:
            gradient: δ, of the loss in the layer's output.
            inputs: [u, 1], what the layer took and a column of ones.
        """
        weight, bias = self.layer.weight, self.layer.bias
        self.mean, self.square = self.mean.to(weight), self.square.to(weight)
        self.steps += 1
        g = gradient.mT @ inputs
        self.mean.lerp_(g, 1 - BETAS[0])
        self.square.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
        correction = math.sqrt(1 - BETAS[1] ** self.steps)
        change = self.mean / (self.square.sqrt().div_(correction).add_(EPS))
        size = -self.lr / (1 - BETAS[0] ** self.steps)
        weight.add_(change[:, :-1], alpha=size)
        bias.add_(change[:, -1], alpha=size)
