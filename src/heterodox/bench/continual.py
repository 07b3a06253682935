"""A training step of a spiking network with and without Hebbian orthogonal projection."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import SGD

from heterodox.bench.workload import Case, Target, Workload, check_sizes
from heterodox.continual.orthogonal_projection import OrthogonalProjection
from heterodox.continual.spiking_mlp import SpikingMLP

CLASSES = 10


def workload() -> Workload:
    return Workload(
        facts={
            "dtype": "float32",
            "network": "two hidden layers, 10 classes, backpropagation through 6 steps",
            "bank": "a quarter of each layer's inputs frozen, a tenth more that learn",
            "size": "batch x inputs x hidden",
        },
        cases=cases,
        prepare=prepare,
        targets=(Target("hlop", "time", "64x784x200", "step", 1.6),),
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """One step at every size.

    Raises:
        ValueError: a size is not of the form 64x784x200.
    """
    check_sizes(sizes, "batch x inputs x hidden", "64x784x200")
    return [Case(size, "step") for size in sizes]


def prepare(equip: Callable[..., Any], case: Case, device: str) -> Callable[[], object]:
    """A step of gradient descent of the network that `equip(model)` has prepared."""
    batch, inputs, hidden = map(int, case.size.split("x"))
    generator = torch.Generator().manual_seed(0)
    model = SpikingMLP([inputs, hidden, hidden, CLASSES]).to(device)
    equip(model)
    x = torch.randn(batch, inputs, generator=generator).to(device)
    labels = torch.randint(CLASSES, (batch,), generator=generator).to(device)
    optimizer = SGD(model.parameters(), lr=0.1)

    def step() -> object:
        optimizer.zero_grad()
        loss = model.backward(x, labels)
        optimizer.step()
        return loss

    return step


def plain(model: SpikingMLP) -> None:
    """Nothing is projected or learned beside the weights."""


def projected(model: SpikingMLP) -> None:
    """The second task of a learner."""
    learner = OrthogonalProjection(model)
    for share in (4, 10):
        learner.begin_task([layer.subspace.in_features // share for layer in learner.layers])
        if share == 4:
            learner.end_task()
