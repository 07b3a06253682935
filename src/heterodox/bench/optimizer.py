"""Optimizers: one step on gradients that are there already."""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from heterodox.bench.workload import Case, Target, Workload
from heterodox.optim.slot import adamw

LEARNING_RATE = 1e-3
NAMED = ("mlp", "transformer")

TARGETS = tuple(
    Target("perp-grad", "time", size, "step", limit, device=device)
    for device, limit in (("cpu", 1.2), ("cuda", 2.0))
    for size in ("20x1000000", *NAMED)
)


def workload() -> Workload:
    return Workload(
        facts={
            "dtype": "float32",
            "mlp": "weights and biases of 226-200-200-113",
            "transformer": "150 tensors: 12 blocks of width 256, 8192 tokens",
            "size": "tensors x elements, or the name of a model",
        },
        cases=cases,
        prepare=prepare,
        targets=TARGETS,
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """One step for every list of parameters.

    Raises:
        ValueError: a size is neither a model's name nor of the form 20x1000000.
    """
    for size in sizes:
        if size not in NAMED and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
            raise ValueError(
                f"sizes: {size!r} given, {', '.join(NAMED)} or tensors x elements such as "
                "20x1000000 expected"
            )
    return [Case(size, "step") for size in sizes]


def prepare(make: Callable[..., Any], case: Case, device: str) -> Callable[[], object]:
    """A step of `make(parameters, learning_rate)`; weights and gradients are normal."""
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for shape in shapes(case.size):
        weight, gradient = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
        parameter = nn.Parameter(weight)
        parameter.grad = gradient
        parameters.append(parameter)
    step: Callable[[], object] = make(parameters, LEARNING_RATE).step
    return step


def shapes(size: str) -> list[tuple[int, ...]]:
    """The shapes of the parameters that `size` stands for.

    Example:
        >>> shapes("2x10")
        [(10,), (10,)]
        >>> len(shapes("transformer"))
        150
    """
    if size == "mlp":
        widths = (226, 200, 200, 113)
        layers = [((n, m), (n,)) for m, n in itertools.pairwise(widths)]
        return [shape for layer in layers for shape in layer]
    if size == "transformer":
        width, tokens, length = 256, 8192, 512
        norm: list[tuple[int, ...]] = [(width,), (width,)]
        attention = [(3 * width, width), (3 * width,), (width, width), (width,)]
        mlp = [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
        head = [(tokens, width), (tokens,)]
        block = norm + attention + norm + mlp
        return [(tokens, width), (length, width), *12 * block, *norm, *head]
    count, elements = map(int, size.split("x"))
    return [(elements,) for _ in range(count)]


class PerpGradLoop:
    """PerpGrad around AdamW as a loop over tensors, the way the authors' code goes about it.

    It overwrites `.grad` with the projected gradient, and has no guard for parallel gradients.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        self.params = list(params)
        self.base = adamw(self.params, lr)

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.params:
            assert parameter.grad is not None
            w, g = parameter.view(-1), parameter.grad.view(-1)
            perpendicular = g - torch.dot(w, g) / (torch.dot(w, w) + 1e-30) * w
            perpendicular = perpendicular * (g.norm() / (perpendicular.norm() + 1e-30))
            parameter.grad.copy_(perpendicular.view_as(parameter))
        self.base.step()
