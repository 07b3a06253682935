"""Layers of leaky integrate-and-fire neurons over all time steps."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from heterodox.bench.workload import Case, Workload, check_sizes
from heterodox.layers.spiking import LIF, ATanSurrogate

TAU, ALPHA = 2.0, 2.0

LAYER = LIF(TAU, decay_input=False, surrogate=ATanSurrogate(ALPHA))


def workload() -> Workload:
    return Workload(
        facts={
            "dtype": "float32",
            "neurons": "τ = 2, threshold 1, reset to zero, arctangent surrogate with α = 2",
            "size": "time x batch x neurons",
        },
        cases=cases,
        prepare=prepare,
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """Forward, and with backward, at every size.

    Raises:
        ValueError: a size is not of the form 100x128x256.
    """
    check_sizes(sizes, "time x batch x neurons", "100x128x256")
    return [Case(size, passes) for size in sizes for passes in ("forward", "forward and backward")]


def prepare(function: Callable[..., Any], case: Case, device: str) -> Callable[[], object]:
    """A call of `function(current)`, which gives spikes."""
    generator = torch.Generator().manual_seed(0)
    shape = tuple(map(int, case.size.split("x")))
    current = torch.randn(shape, generator=generator).to(device)
    if case.passes == "forward":

        @torch.no_grad()
        def forward() -> object:
            return function(current)

        return forward
    current.requires_grad_()
    weights = torch.randn(shape, generator=generator).to(device)

    def forward_and_backward() -> object:
        return torch.autograd.grad((function(current) * weights).sum(), current)

    return forward_and_backward


def loop(current: Tensor) -> Tensor:
    """The equations step by step, with autograd's graph of each operation."""
    v, spikes = torch.zeros_like(current[0]), []
    for x in current:
        h = (1 - 1 / TAU) * v + x
        fired = LAYER.surrogate(h - 1)
        v = h * (1 - fired)
        spikes.append(fired)
    return torch.stack(spikes)


def lif(current: Tensor) -> Tensor:
    return LAYER(current)


def snntorch_leaky(current: Tensor) -> Tensor:
    """`snntorch.Leaky` with its default surrogate, the same arctangent."""
    import snntorch

    neurons = snntorch.Leaky(1 - 1 / TAU, reset_mechanism="zero", reset_delay=False).to(
        current.device
    )
    membrane, spikes = torch.zeros_like(current[0]), []
    for x in current:
        fired, membrane = neurons(x, membrane)
        spikes.append(fired)
    return torch.stack(spikes)
