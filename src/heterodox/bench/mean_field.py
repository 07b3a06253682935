"""The mean field of a convolutional monotone machine: its implicit solution, and generic solvers.

The machine is that of the digits: 8 x 8 pixels of four states, a hidden layer of 6 variables of
four states at 4 x 4 places, and a label; 40 % of the pixels are observed.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from heterodox.bench.workload import Case, Workload
from heterodox.energy.monotone_boltzmann import MonotoneConvBoltzmannMachine, prox_softmax
from heterodox.energy.monotone_convolution import joined
from heterodox.training.seeding import seeded

LAYERS = [(4, 8, 8, 4), (24, 4, 4, 4), (10, 1, 1, 10)]
KERNELS = [[3], [3, 3], [0, 1, 1]]
ALPHA, TOLERANCE, STEPS = 0.25, 1e-3, 50

Machine = MonotoneConvBoltzmannMachine


def workload() -> Workload:
    return Workload(
        facts={
            "machine": "pixels 8 x 8 of 4 states, hidden 24 channels 4 x 4, label of 10 states",
            "accuracy": f"relative change by a step below {TOLERANCE:g}; {STEPS} steps if unrolled",
            "step length": f"{ALPHA:g}",
            "dtype": "float32",
            "size": "images in the batch",
        },
        cases=cases,
        prepare=prepare,
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """Forward, and with backward.

    Raises:
        ValueError: a size is no positive whole number.
    """
    for size in sizes:
        if not size.isdecimal() or int(size) < 1:
            raise ValueError(f"sizes: {size!r} given, a number of images such as 128 expected")
    return [Case(size, passes) for size in sizes for passes in ("forward", "forward and backward")]


def prepare(
    function: Callable[[Machine, Tensor, Tensor], Tensor], case: Case, device: str
) -> Callable[[], object]:
    """A call of `function(machine, image, seen)`, which returns the label's marginals."""
    generator = torch.Generator().manual_seed(0)
    batch = int(case.size)
    with seeded(0):
        machine = Machine(LAYERS, KERNELS, alpha=ALPHA, tolerance=TOLERANCE, max_iter=STEPS).to(
            device
        )
    for weight in machine.weights.values():
        weight.data.mul_(3)  # as after training, when the constraint is felt
    states = torch.randint(4, (batch, 8, 8), generator=generator)
    image = F.one_hot(states, 4).movedim(-1, 1).float().to(device)
    seen = (torch.rand(batch, 1, 8, 8, generator=generator) < 0.4).to(device)

    @torch.no_grad()
    def forward() -> object:
        return function(machine, image, seen)

    def forward_and_backward() -> object:
        loss = function(machine, image, seen)[:, 0].log().mean()
        return torch.autograd.grad(loss, list(machine.parameters()))

    return forward if case.passes == "forward" else forward_and_backward


def implicit(machine: Machine, image: Tensor, seen: Tensor) -> Tensor:
    return machine([image, None, None], [seen, None, None])[2].flatten(1)


def step_of(
    machine: Machine, image: Tensor, seen: Tensor
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """F and the first q, flat, as one would write them for a generic solver: Φ as a matrix."""
    maps = machine.maps
    eye = torch.eye(maps.size, device=image.device)
    phi = joined(machine.couple(maps.by_layer(eye)))
    bias = torch.cat([b.flatten() for b in machine.biases])
    values = F.pad(image.flatten(1), (0, maps.size - image[0].numel()))
    held = F.pad(seen.expand_as(image).flatten(1), (0, maps.size - image[0].numel()))

    def step(q: Tensor) -> Tensor:
        q = torch.where(held, values, q)
        moved = (1 - ALPHA) * q + ALPHA * (q @ phi + bias)
        return torch.where(
            held, values, maps.join([prox_softmax(z, ALPHA, dim=2) for z in maps.split(moved)])
        )

    return step, maps.uniform(bias).expand(len(image), -1)


def unrolled(machine: Machine, image: Tensor, seen: Tensor) -> Tensor:
    """Autograd through every step."""
    step, q = step_of(machine, image, seen)
    for _ in range(STEPS):
        q = step(q)
    return q[:, -10:]


def torchdeq_anderson(machine: Machine, image: Tensor, seen: Tensor) -> Tensor:
    """torchdeq's Anderson method and implicit gradient."""
    from torchdeq import get_deq

    deq = get_deq(
        f_solver="anderson",
        b_solver="anderson",
        f_max_iter=STEPS,
        b_max_iter=STEPS,
        f_tol=TOLERANCE,
        b_tol=TOLERANCE,
        f_stop_mode="rel",
        b_stop_mode="rel",
        ift=True,
    )
    step, start = step_of(machine, image, seen)
    solutions, _ = deq(step, start.contiguous())
    return solutions[-1][:, -10:]
