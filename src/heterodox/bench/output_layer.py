"""Output layers over very many classes: a step of training, forward, backward and update."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heterodox.bench.workload import Case, Target, Workload, check_sizes
from heterodox.losses.factored_spherical import FactoredSphericalLinear
from heterodox.losses.sampled_softmax import SampledSoftmaxLinear
from heterodox.losses.z_loss import ZLoss

EXAMPLES, LEARNING_RATE = 128, 0.1

Step = Callable[[Tensor, Tensor], Tensor]
"""`(hidden, target)` -> the gradient in `hidden`, after an update of the layer."""

TARGETS = (Target("factored-z-loss", "time", "200000x128", "step", 1 / 40),)


def workload() -> Workload:
    return Workload(
        facts={
            "examples": str(EXAMPLES),
            "targets": "log-uniform, as words are: class 0 is the most frequent",
            "update": "stochastic gradient descent",
            "dtype": "float32",
            "size": "classes x width",
        },
        cases=cases,
        prepare=prepare,
        targets=TARGETS,
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """One step at every size.

    Raises:
        ValueError: a size is not of the form 20000x128.
    """
    check_sizes(sizes, "classes x width", "20000x128")
    return [Case(size, "step") for size in sizes]


def prepare(make: Callable[..., Step], case: Case, device: str) -> Callable[[], object]:
    """A step of `make(width, classes, device)` on normal rows."""
    classes, width = map(int, case.size.split("x"))
    hidden, target = batch(width, classes, seed=0)
    hidden, target = hidden.to(device).requires_grad_(), target.to(device)
    step = make(width, classes, device)
    return lambda: step(hidden, target)


def batch(width: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(EXAMPLES, width, generator=generator)
    uniform = torch.rand(EXAMPLES, generator=generator, dtype=torch.float64)
    return hidden, ((classes + 1) ** uniform).long().clamp(max=classes) - 1


def linear(width: int, classes: int, device: str) -> Step:
    layer = nn.Linear(width, classes, bias=False, device=device)
    return _by_sgd(layer, lambda hidden, target: F.cross_entropy(layer(hidden), target))


def adaptive_softmax(width: int, classes: int, device: str) -> Step:
    """Cuts at a fifteenth and a fifth of the classes, as in torch's own example of its use."""
    cuts = [round(classes / 15), 3 * round(classes / 15)]
    layer = nn.AdaptiveLogSoftmaxWithLoss(width, classes, cuts, device=device)
    return _by_sgd(layer, lambda hidden, target: layer(hidden, target).loss)


def sampled_softmax(width: int, classes: int, device: str, samples: int) -> Step:
    layer = SampledSoftmaxLinear(width, classes, samples).to(device)
    generator = torch.Generator(device).manual_seed(0)
    return _by_sgd(layer, lambda hidden, target: layer(hidden, target, generator))


sampled_softmax_100 = partial(sampled_softmax, samples=100)
sampled_softmax_1000 = partial(sampled_softmax, samples=1000)


def factored_z_loss(width: int, classes: int, device: str) -> Step:
    layer = FactoredSphericalLinear(width, classes, LEARNING_RATE, device=device)
    loss = ZLoss(a=0.1, b=20.0)

    def step(hidden: Tensor, target: Tensor) -> Tensor:
        chosen, total, square = layer.statistics(hidden, target)
        value = loss.from_statistics(chosen, total, square, classes)
        (gradient,) = torch.autograd.grad(value, hidden)
        layer.step()
        return gradient

    return step


def _by_sgd(layer: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> Step:
    optimizer = torch.optim.SGD(layer.parameters(), lr=LEARNING_RATE)

    def step(hidden: Tensor, target: Tensor) -> Tensor:
        hidden.grad = None
        loss(hidden, target).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert hidden.grad is not None
        return hidden.grad

    return step
