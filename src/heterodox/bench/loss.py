"""Losses: cross-entropy and what replaces it, as called and under `torch.compile`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from heterodox.bench.workload import Case, Workload
from heterodox.losses.stablemax import stablemax_cross_entropy

stablemax_float32 = functools.partial(stablemax_cross_entropy, compute_dtype=torch.float32)


def workload() -> Workload:
    return Workload(
        facts={
            "dtype": "float32 logits; stablemax computes in float64 where its name says nothing",
            "size": "examples x classes",
        },
        cases=cases,
        prepare=prepare,
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """Forward and with backward, at every size.

    Raises:
        ValueError: a size is not of the form 4096x10.
    """
    for size in sizes:
        parts = size.split("x")
        if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise ValueError(f"sizes: {size!r} given, examples x classes such as 4096x10 expected")
    return [Case(size, passes) for size in sizes for passes in ("forward", "forward and backward")]


def prepare(function: Callable[..., Tensor], case: Case, device: str) -> Callable[[], object]:
    """A call of `function(logits, target)` on normal logits and uniform classes."""
    generator = torch.Generator().manual_seed(0)
    examples, classes = map(int, case.size.split("x"))
    logits = (3 * torch.randn(examples, classes, generator=generator)).to(device)
    target = torch.randint(classes, (examples,), generator=generator).to(device)

    @torch.no_grad()
    def forward() -> object:
        return function(logits, target)

    learned = logits.requires_grad_()

    def forward_and_backward() -> object:
        return torch.autograd.grad(function(learned, target), learned)

    return forward if case.passes == "forward" else forward_and_backward


def _compiled(function: Callable[..., Tensor]) -> Any:
    # fullgraph: an error, where it would otherwise run uncompiled without a word.
    return torch.compile(function, fullgraph=True, dynamic=False)


cross_entropy_compiled = _compiled(F.cross_entropy)
stablemax_compiled = _compiled(stablemax_cross_entropy)
stablemax_float32_compiled = _compiled(stablemax_float32)
