"""Test-time adaptation: one batch of images, adapted to and classified; and its Hebbian update."""

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heterodox.bench.workload import Case, Target, Workload, check_sizes
from heterodox.learning.test_time import NeuroModulatedAdapter
from heterodox.models.vision import ConvNet
from heterodox.training.seeding import seeded

IMAGE = (3, 32, 32)

nhl_before = functools.partial(NeuroModulatedAdapter, predict="before")


def adapters() -> Workload:
    return Workload(
        facts={
            "dtype": "float32",
            "network": "4 convolutions of 32 and 64 channels with batch norm, images 3 x 32 x 32",
            "size": "images in a batch",
        },
        cases=adapter_cases,
        prepare=prepare_adapter,
        targets=(
            Target("nhl", "time", "200", "step", 1.9),
            Target("nhl-before", "time", "200", "step", 1.25),
        ),
    )


def adapter_cases(sizes: Sequence[str]) -> list[Case]:
    """One batch of every size.

    Raises:
        ValueError: a size is not a positive number.
    """
    for size in sizes:
        if not size.isdecimal() or int(size) < 1:
            raise ValueError(f"sizes: {size!r} given, images such as 200 expected")
    return [Case(size, "step") for size in sizes]


def prepare_adapter(
    make: Callable[[nn.Module], Callable[[Tensor], Tensor]], case: Case, device: str
) -> Callable[[], object]:
    """A batch through `make(network)`, which goes on adapting from call to call."""
    with seeded(0):
        network = ConvNet(IMAGE, 10, widths=(32, 64))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(int(case.size), *IMAGE, generator=generator).to(device)
    adapter = make(network.to(device))
    return lambda: adapter(x)


class TentByHand:
    """Tent the way its authors go about it: training mode, all passes with gradients."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.train().requires_grad_(False)
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.requires_grad_(True)
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = None
        parameters = [p for norm in norms for p in norm.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-3)

    @torch.enable_grad()
    def __call__(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        loss = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return logits


def updates() -> Workload:
    return Workload(
        facts={
            "dtype": "float32",
            "filters": "3 x 3, padding 1",
            "size": "images x channels x side x filters",
        },
        cases=update_cases,
        prepare=prepare_update,
        targets=(Target("convolutions", "time", "200x3x32x16", "forward", 0.5),),
    )


def update_cases(sizes: Sequence[str]) -> list[Case]:
    """One update of every size.

    Raises:
        ValueError: a size is not of the form 200x3x32x16.
    """
    check_sizes(sizes, "images x channels x side x filters", "200x3x32x16")
    return [Case(size, "forward") for size in sizes]


def prepare_update(update: Callable[..., Tensor], case: Case, device: str) -> Callable[[], object]:
    """Δw of one batch, from `update(x, weight, padding=1)`."""
    images, channels, side, filters = map(int, case.size.split("x"))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, channels, side, side, generator=generator).to(device)
    weight = torch.randn(filters, channels, 3, 3, generator=generator).to(device)
    return lambda: update(x, weight, padding=1)


@torch.no_grad()
def unfolded(x: Tensor, weight: Tensor, *, padding: int) -> Tensor:
    """The rule on a matrix of all patches, the way it is usually written."""
    patches = F.unfold(x, weight.shape[2:], padding=padding).transpose(1, 2).flatten(0, 1)
    w = weight.flatten(1)
    u = patches @ w.T
    y = u.softmax(1)
    change = y.T @ patches - (y * u).sum(0)[:, None] * w
    return change.view_as(weight)
