"""The gradient of a LoRA adapter of the query projection: exact, polynomial, and by autograd."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from heterodox.bench.workload import Case, Target, Workload
from heterodox.compression.adapter_gradients import lora_gradients

DIM, RANK, LARGEST, TOLERANCE = 4, 2, 1.0, 1e-3

# Of one (length, length) matrix in float32, the least that a dense gradient stores.
DENSE = 4 * 16384**2

exact = lora_gradients
polynomial = partial(lora_gradients, method="polynomial", tol=TOLERANCE)

TARGETS = (
    Target("polynomial", "time", "16384", "gradient", 0.1),
    Target("polynomial", "memory", "16384", "gradient", 0.05, reference=DENSE),
)


def workload() -> Workload:
    return Workload(
        facts={
            "channels": f"{DIM}, logits over {DIM}",
            "rank": str(RANK),
            "largest entry of queries and keys": f"{LARGEST:g}",
            "tolerance of the polynomial": f"{TOLERANCE:g}",
            "dtype": "float32",
            "size": "length of queries and keys",
        },
        cases=cases,
        prepare=prepare,
        targets=TARGETS,
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """One a length.

    Raises:
        ValueError: a size is no positive whole number.
    """
    for size in sizes:
        if not size.isdecimal() or int(size) < 1:
            raise ValueError(f"sizes: {size!r} given, a length such as 4096 expected")
    return [Case(size, "gradient") for size in sizes]


def prepare(function: Callable[..., Any], case: Case, device: str) -> Callable[[], object]:
    """A call of `function(c1, c2, c3, target, weight, a, b)`; queries and keys reach LARGEST."""
    generator = torch.Generator().manual_seed(0)
    length = int(case.size)
    x, c2, c3, target = 2 * torch.rand(4, length, DIM, generator=generator) - 1
    a, b = 0.1 * torch.randn(2, DIM, RANK, generator=generator)
    a, weight = a.mT, torch.eye(DIM)
    c1 = LARGEST / DIM * x / (x @ (weight + b @ a)).abs().max()
    c2 = LARGEST * c2 / c2.abs().max()
    inputs = [x.to(device) for x in (c1, c2, c3, target, weight, a.contiguous(), b)]
    return lambda: function(*inputs)


def sdpa_autograd(
    c1: Float[Tensor, "queries rows"],
    c2: Float[Tensor, "keys columns"],
    c3: Float[Tensor, "keys value_dim"],
    target: Float[Tensor, "queries value_dim"],
    weight: Float[Tensor, "rows columns"],
    a: Float[Tensor, "rank columns"],
    b: Float[Tensor, "rows rank"],
) -> tuple[Tensor, ...]:
    """torch's own attention, forward and backward."""
    a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
    query, key, value = (x[None, None] for x in (c1 @ (weight + b @ a), c2, c3))
    output = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    return torch.autograd.grad((output[0, 0] - target).square().sum() / 2, (a, b))
