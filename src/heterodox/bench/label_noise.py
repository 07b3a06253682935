"""Losses for noisy labels, in the training step of a small convolutional network."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from heterodox.bench.workload import Case, Target, Workload
from heterodox.losses.early_learning import EarlyLearningLoss
from heterodox.models.vision import ConvNet

EXAMPLES, SIDE = 50_000, 16

TARGETS = (
    Target("elr", "time", "128x10", "step", 1.1),
    Target("elr", "time", "128x100", "step", 1.1),
)


def workload() -> Workload:
    return Workload(
        facts={
            "network": f"ConvNet of widths 16 and 32, {SIDE}x{SIDE} pixels, one channel",
            "examples": f"{EXAMPLES}, each with targets of its own",
            "dtype": "float32",
            "size": "images of a batch x classes",
        },
        cases=cases,
        prepare=prepare,
        targets=TARGETS,
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """A training step, at every size.

    Raises:
        ValueError: a size is not of the form 128x10.
    """
    for size in sizes:
        parts = size.split("x")
        if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise ValueError(f"sizes: {size!r} given, images x classes such as 128x10 expected")
    return [Case(size, "step") for size in sizes]


def prepare(make: Callable[..., Any], case: Case, device: str) -> Callable[[], object]:
    """A step, forward, backward and SGD, with the loss `make(num_examples, num_classes)`."""
    batch, classes = map(int, case.size.split("x"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 1, SIDE, SIDE, generator=generator).to(device)
    labels = torch.randint(classes, (batch,), generator=generator).to(device)
    index = torch.randperm(EXAMPLES, generator=generator)[:batch]
    network = ConvNet((1, SIDE, SIDE), classes, widths=(16, 32)).to(device)
    descent, loss = SGD(network.parameters(), lr=0.02, momentum=0.9), make(EXAMPLES, classes)
    loss = loss.to(device) if isinstance(loss, nn.Module) else loss

    def step() -> object:
        descent.zero_grad()
        value = loss(network(images), labels, index)
        value.backward()
        descent.step()
        return value

    return step


def cross_entropy(num_examples: int, num_classes: int) -> Callable[..., Tensor]:
    return lambda input, target, index: F.cross_entropy(input, target)


def elr_float16(num_examples: int, num_classes: int) -> EarlyLearningLoss:
    """Targets in half the memory."""
    return EarlyLearningLoss(num_examples, num_classes, dtype=torch.float16)


class ListOfIndices(nn.Module):
    """ELR the way the authors' code goes about it: rows are looked up three times, by a list."""

    targets: Tensor

    def __init__(self, num_examples: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("targets", torch.zeros(num_examples, num_classes))

    def forward(self, input: Tensor, target: Tensor, index: Tensor) -> Tensor:
        rows = index.cpu().tolist()
        p = F.softmax(input, dim=1).clamp(1e-4, 1 - 1e-4)
        said = p.detach()
        self.targets[rows] = 0.7 * self.targets[rows] + 0.3 * (said / said.sum(1, keepdim=True))
        agreement = (self.targets[rows] * p).sum(1)
        return F.cross_entropy(input, target) + 3.0 * (1 - agreement).log().mean()
