"""Losses of the Cauchy-Schwarz bottleneck: shared Gram matrices, and one matrix for each use."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from heterodox.bench.workload import Case, Target, Workload
from heterodox.losses.cauchy_schwarz import cauchy_schwarz_bottleneck
from heterodox.losses.information_penalties import normalized_hsic

FEATURES, CODE, BETA = 8, 64, 0.01
PASSES = "forward and backward"

TARGETS = (
    *(Target("shared", "time", size, PASSES, 1 / 3) for size in ("128", "512", "1024")),
    Target("shared", "memory", "4096", PASSES, 0.25),
)


def workload() -> Workload:
    return Workload(
        facts={
            "features": str(FEATURES),
            "code": str(CODE),
            "dtype": "float32",
            "gradients": "in predictions and code",
            "size": "rows of a batch",
        },
        cases=cases,
        prepare=prepare,
        targets=TARGETS,
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """Forward and backward, at every size.

    Raises:
        ValueError: a size is no whole number of at least two rows.
    """
    for size in sizes:
        if not size.isdecimal() or int(size) < 2:
            raise ValueError(f"sizes: {size!r} given, rows of a batch such as 512 expected")
    return [Case(size, PASSES) for size in sizes]


def prepare(function: Callable[..., Tensor], case: Case, device: str) -> Callable[[], object]:
    """A call of `function(input, target, x, t)` and its gradients, on normal rows."""
    generator = torch.Generator().manual_seed(0)
    rows = int(case.size)
    x = torch.randn(rows, FEATURES, generator=generator).to(device)
    target = torch.randn(rows, 1, generator=generator).to(device)
    prediction = target + 0.5 * torch.randn(rows, 1, generator=generator).to(device)
    code = 0.3 * torch.randn(rows, CODE, generator=generator).to(device)
    learned = prediction.requires_grad_(), code.requires_grad_()

    def call() -> object:
        loss = function(prediction, target, x, code)
        return torch.autograd.grad(loss, learned, allow_unused=True)

    return call


def shared(input: Tensor, target: Tensor, x: Tensor, t: Tensor) -> Tensor:
    return cauchy_schwarz_bottleneck(input, target, x, t, BETA)


def shared_small_blocks(input: Tensor, target: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Sixteen blocks of rows, whatever the batch."""
    size = max(1, len(x) // 16)
    return cauchy_schwarz_bottleneck(input, target, x, t, BETA, block_size=size)


def mse(input: Tensor, target: Tensor, x: Tensor, t: Tensor) -> Tensor:
    return F.mse_loss(input, target)


def mse_and_hsic(input: Tensor, target: Tensor, x: Tensor, t: Tensor) -> Tensor:
    return F.mse_loss(input, target) + BETA * normalized_hsic(x, t)


def one_matrix_for_each_use(
    input: Float[Tensor, "rows 1"],
    target: Float[Tensor, "rows 1"],
    x: Float[Tensor, "rows features"],
    t: Float[Tensor, "rows code"],
) -> Float[Tensor, ""]:
    """The same objective in the way of the authors' code: four Gram matrices for the divergence and
    two for each of three informations, norms repeated to full matrices, and the joint term as the
    trace of a product of matrices."""
    gram_x = _repeated_gram(x, x)
    squared = gram_x.sum(-1).square()
    own, other, cross = (
        ((gram_x * _repeated_gram(a, b)).sum(-1) / squared).sum()
        for a, b in ((target, target), (input, input), (input, target))
    )
    divergence = own.log() + other.log() - 2 * cross.log()
    information = _trace_information(x, t)
    scale = (_trace_information(x, x) * _trace_information(t, t)).sqrt()
    return divergence + BETA * information / scale


def _repeated_gram(a: Tensor, b: Tensor) -> Tensor:
    left = a.square().sum(-1)[:, None].repeat(1, len(b))
    right = b.square().sum(-1)[None].repeat(len(a), 1)
    return (-(left + right - 2 * a @ b.T) / 2).exp().clamp(min=0)


def _trace_information(a: Tensor, b: Tensor) -> Tensor:
    rows = len(a)
    k, q = _repeated_gram(a, a), _repeated_gram(b, b)
    ones = torch.ones(1, rows, device=a.device)
    joint = torch.trace(k @ q.T) / rows**2
    product = k.sum() * q.sum() / rows**4
    cross = (ones @ k.T @ q @ ones.T).squeeze() / rows**3
    return joint.log() + product.log() - 2 * cross.log()


@cache
def _geomloss() -> Any:
    from geomloss import SamplesLoss

    return SamplesLoss("gaussian", blur=1.0, backend="tensorized")


def geomloss_mmd(input: Tensor, target: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Half the squared maximum mean discrepancy between (x, ŷ) and (x, y), another loss of one
    Gaussian kernel."""
    return _geomloss()(torch.cat([x, input], 1), torch.cat([x, target], 1))
