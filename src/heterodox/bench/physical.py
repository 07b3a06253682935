"""Local learning around physics: all inner steps in closed form, or by autograd layer by layer."""

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heterodox.bench.workload import Case, Target, Workload
from heterodox.learning.physical import PhysicalNetwork, ScatteringCavity

LAYERS, INNER_STEPS = 2, 10
PASSES = "step"


def workload() -> Workload:
    return Workload(
        facts={
            "layers": str(LAYERS),
            "inner steps": str(INNER_STEPS),
            "physics": "scattering cavities, as many readings as features, with a skip",
            "dtype": "float32",
            "size": "rows x features x classes",
        },
        cases=cases,
        prepare=prepare,
        targets=(Target("closed-form", "time", "206x20x7", PASSES, 1 / 3),),
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """One batch, at every size.

    Raises:
        ValueError: a size is not of the form 206x20x7, with two classes or more.
    """
    for size in sizes:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x([2-9]|[1-9]\d+)", size):
            raise ValueError(
                f"sizes: {size!r} given, rows x features x classes such as 206x20x7 expected"
            )
    return [Case(size, PASSES) for size in sizes]


def prepare(function: Callable[..., Any], case: Case, device: str) -> Callable[[], object]:
    """A call of `function(network)`, which returns what trains on a batch (x, y)."""
    rows, features, classes = map(int, case.size.split("x"))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(rows, features, generator=generator).to(device)
    y = torch.randint(classes, (rows,), generator=generator).to(device)
    physics = [ScatteringCavity(features, features, seed=k) for k in range(LAYERS)]
    network = PhysicalNetwork(physics, features, classes, generator=generator).to(device)
    train = function(network)
    return lambda: train(x, y)


def closed_form(network: PhysicalNetwork) -> Callable[[Tensor, Tensor], object]:
    return lambda x, y: network.fit(x, y, epochs=1, inner_steps=INNER_STEPS)


def autograd_loop(network: PhysicalNetwork) -> Callable[[Tensor, Tensor], object]:
    """The way of the authors' script: a loop draws the wrong labels, positive and negative rows are
    read and multiplied apart, autograd finds the gradient, and each loss is waited for."""
    optimizers = [torch.optim.Adam(layer.parameters(), lr=5e-4) for layer in network.layers]
    cosine = nn.CosineSimilarity(dim=1, eps=1e-6)

    def overlaid(x: Tensor, y: Tensor) -> Tensor:
        marked = x.clone()
        marked[:, : network.num_classes] *= 0.0
        marked[range(len(x)), y] = x.abs().max()
        return marked

    def train(x: Tensor, y: Tensor) -> list[float]:
        wrong = y.clone()
        for row in range(len(y)):
            others = set(range(network.num_classes)) - {y[row].item()}
            wrong[row] = int(random.choice(list(others)))
        h_pos, h_neg = overlaid(x, y), overlaid(x, wrong)
        losses = []
        for k, (layer, optimizer) in enumerate(zip(network.layers, optimizers, strict=True)):
            u_pos, u_neg = (torch.cat((network.physics[k](h), h), 1) for h in (h_pos, h_neg))
            target = network.targets[k].repeat(len(x), 1)
            running = 0.0
            for _ in range(INNER_STEPS):
                g_pos = cosine(torch.abs(layer(u_pos)), target)
                g_neg = cosine(torch.abs(layer(u_neg)), target)
                loss = torch.log(1 + torch.exp(-network.theta * (g_pos - g_neg))).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                running += loss.item()
            losses.append(running / INNER_STEPS)
            h_pos, h_neg = layer(u_pos).detach(), layer(u_neg).detach()
        return losses

    return train
