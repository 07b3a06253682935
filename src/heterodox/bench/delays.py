"""Synapses with delays: a delayed layer, the linear layer in its place, and the authors' own."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heterodox.bench.workload import Case, Workload, check_sizes
from heterodox.layers.delays import DelayedLinear


def workload() -> Workload:
    return Workload(
        facts={
            "dtype": "float32",
            "data": "spikes with probability 0.1",
            "passes": "forward in evaluation mode, with backward in training; kernels included",
            "size": "time x batch x inputs x outputs x lags",
        },
        cases=cases,
        prepare=prepare,
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """Forward, and with backward, at every size.

    Raises:
        ValueError: a size is not of the form 100x128x140x256x25.
    """
    check_sizes(sizes, "time x batch x inputs x outputs x lags", "100x128x140x256x25")
    return [Case(size, passes) for size in sizes for passes in ("forward", "forward and backward")]


def prepare(make: Callable[..., Any], case: Case, device: str) -> Callable[[], object]:
    """A call of the layer `make(inputs, outputs, lags)` on (time, batch, inputs)."""
    time, batch, inputs, outputs, lags = map(int, case.size.split("x"))
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(time, batch, inputs, generator=generator) < 0.1).float().to(device)
    layer = make(inputs, outputs, lags).to(device)
    if case.passes == "forward":
        layer.eval()

        @torch.no_grad()
        def forward() -> object:
            return layer(x)

        return forward
    layer.train()
    learned = [x.requires_grad_(), *(p for p in layer.parameters() if p.requires_grad)]

    def forward_and_backward() -> object:
        return torch.autograd.grad(layer(x).square().sum(), learned)

    return forward_and_backward


def linear(inputs: int, outputs: int, lags: int) -> nn.Module:
    return nn.Linear(inputs, outputs, bias=False)


def delayed(inputs: int, outputs: int, lags: int) -> nn.Module:
    return DelayedLinear(inputs, outputs, lags, sigma=lags / 4)


class DCLS(nn.Module):
    """The layer of the authors' package, in the form of their network."""

    def __init__(self, inputs: int, outputs: int, lags: int) -> None:
        super().__init__()
        from DCLS.construct.modules import Dcls1d

        lags += 1 - lags % 2
        self.padding = lags - 1, (lags - 1) // 2
        self.layer = Dcls1d(
            inputs, outputs, kernel_count=1, dilated_kernel_size=lags, bias=False, version="gauss"
        )
        self.layer.SIG.requires_grad_(False)
        nn.init.constant_(self.layer.SIG, lags / 4)
        nn.init.uniform_(self.layer.P, -(lags // 2), lags // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.pad(x.permute(1, 2, 0), self.padding)).permute(2, 0, 1)
