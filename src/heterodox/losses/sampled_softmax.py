"""Sampled softmax: cross-entropy over the target and a few classes drawn by their frequency.

    L = −log e^{o_c} / (e^{o_c} + Σ_{j drawn, j ≠ c} e^{o_j} / (S P(j)))
    P(k) = log((k + 2) / (k + 1)) / log(D + 1)

for S draws with replacement, shared by the minibatch, and classes in the order of their frequency.
The sum is an unbiased estimate of softmax's, the gradient is biased for few samples. Bengio and
Senécal, "Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language
Model", 2008; the log-uniform P is TensorFlow's. Time O(m S d), memory O(D d).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from heterodox.losses.targets import check_range


class SampledSoftmaxLinear(nn.Module):
    """A linear layer over very many classes, trained by sampled softmax.

    The weight has a sparse gradient, so that a step of `torch.optim.SGD` touches the drawn rows.

    Args:
        in_features: width of the hidden rows.
        num_classes: D; class 0 is the most frequent one.
        samples: S.

    Raises:
        ValueError: a size is not positive, shapes disagree, or a target is out of range.

    Example:
        >>> layer = SampledSoftmaxLinear(16, 10_000, samples=100)
        >>> layer(torch.randn(8, 16), torch.randint(10_000, (8,))).shape
        torch.Size([])
    """

    def __init__(self, in_features: int, num_classes: int, samples: int) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "num_classes": num_classes, "samples": samples}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: {size} given, a positive number expected")
        self.num_classes, self.samples = num_classes, samples
        self.weight = nn.Parameter(torch.randn(num_classes, in_features) / math.sqrt(in_features))

    def forward(
        self,
        hidden: Float[Tensor, "batch in_features"],
        target: Int[Tensor, "batch"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """The mean loss; `generator` draws the classes, on the device of `hidden`."""
        if hidden.ndim != 2 or hidden.shape[1] != self.weight.shape[1]:
            expected = ("batch", self.weight.shape[1])
            raise ValueError(f"hidden: shape {tuple(hidden.shape)} given, {expected} expected")
        if target.shape != hidden.shape[:1]:
            raise ValueError(
                f"target: shape {tuple(target.shape)} given, ({len(hidden)},) expected"
            )
        check_range(target, self.num_classes)
        uniform = torch.rand(self.samples, generator=generator, device=hidden.device)
        drawn = (uniform * math.log(self.num_classes + 1)).exp().long() - 1
        drawn = drawn.clamp(0, self.num_classes - 1)  # rounding
        rows = F.embedding(torch.cat([target, drawn]), self.weight, sparse=True)
        true, others = rows.split([len(target), self.samples])
        chosen = (hidden * true).sum(-1, keepdim=True)
        expected_count = self.samples * self.probability(drawn)
        sampled = hidden @ others.mT - expected_count.log()
        sampled = sampled.masked_fill(target[:, None] == drawn, -torch.inf)
        return F.cross_entropy(torch.cat([chosen, sampled], 1), torch.zeros_like(target))

    def probability(self, classes: Int[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """P of each class to be the one that a draw gives."""
        return (1 / (classes + 1)).log1p() / math.log(self.num_classes + 1)
