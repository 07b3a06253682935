"""Output layers over ordered bins: linear, Fourier, and Fourier with every wave of every row."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.bench.workload import Case, Target, Workload
from heterodox.layers.fourier_head import FourierHead
from heterodox.layers.fourier_series import EPS, bin_centres

# The head of Chronos in the paper.
LARGE = "512x384x4096x550"

# Of the products of all coefficients with all waves, the least that the peer stores.
EVERY_WAVE = 8 * 512 * 4096 * 550

TARGETS = (
    Target("fourier", "time", LARGE, "forward and backward", 2.5),
    Target("fourier", "memory", LARGE, "forward and backward", 0.05, reference=EVERY_WAVE),
)


def workload() -> Workload:
    return Workload(
        facts={"dtype": "float32", "size": "rows x features x bins x frequencies"},
        cases=cases,
        prepare=prepare,
        targets=TARGETS,
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """Forward and with backward, at every size.

    Raises:
        ValueError: a size is not of the form 512x32x50x12.
    """
    for size in sizes:
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){3}", size) or int(size.split("x")[2]) < 2:
            raise ValueError(
                f"sizes: {size!r} given, rows x features x bins x frequencies such as 512x32x50x12 "
                "expected"
            )
    return [Case(size, passes) for size in sizes for passes in ("forward", "forward and backward")]


def prepare(make: Callable[..., Any], case: Case, device: str) -> Callable[[], object]:
    """A call of the layer `make(features, bins, frequencies)` on normal inputs."""
    rows, features, bins, frequencies = map(int, case.size.split("x"))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=generator).to(device)
    layer = make(features, bins, frequencies).to(device)
    upstream = torch.randn(rows, bins, generator=generator).to(device)

    @torch.no_grad()
    def forward() -> object:
        return layer(x)

    learned = x.requires_grad_()
    sources = [learned, *layer.parameters()]

    def forward_and_backward() -> object:
        return torch.autograd.grad(layer(learned), sources, upstream)

    return forward if case.passes == "forward" else forward_and_backward


def linear(features: int, bins: int, frequencies: int) -> nn.Module:
    return nn.Linear(features, bins)


fourier = FourierHead


class EveryWave(nn.Module):
    """The Fourier head the way the authors' code goes about it: coefficients by a grouped
    convolution with a group a row, and the product of every coefficient with its wave at every
    bin."""

    def __init__(self, features: int, bins: int, frequencies: int) -> None:
        super().__init__()
        self.bins, self.frequencies = bins, frequencies
        self.linear = nn.Linear(features, 2 * (frequencies + 1))

    def forward(self, x: Float[Tensor, "rows features"]) -> Float[Tensor, "rows bins"]:
        a = torch.complex(*self.linear(x).chunk(2, dim=-1))
        kernel = a[:, None].conj().resolve_conj()
        both_sides = F.conv1d(a[None], kernel, padding=self.frequencies, groups=len(a))[0]
        c = both_sides[:, self.frequencies :]
        c = c[:, 1:] / c[:, :1].real
        k = torch.arange(1, self.frequencies + 1, dtype=x.dtype, device=x.device)
        b = bin_centres(self.bins, x.dtype, x.device)
        wave = torch.exp(1j * math.pi * k * b[:, None])
        density = (0.5 + (c[:, None] * wave).sum(-1)).real
        return (density / density.sum(-1, keepdim=True) + EPS).log()
