"""Attention: the functions that stand in for `scaled_dot_product_attention`, at growing lengths."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from heterodox.bench.workload import Case, Target, Workload

BATCH, HEADS, HEAD_DIM = 1, 8, 64

TARGETS = (
    Target("sigmoid", "time", "2048", "forward", 1.3),
    Target("sigmoid", "time", "2048", "forward and backward", 1.5),
    Target("sigmoid", "memory", "8192", "forward", 1.2),
    Target("sigmoid", "memory", "8192", "forward and backward", 1.2),
    Target("softplus-lssa", "time", "2048", "forward", 1.6),
    Target("softplus", "time", "2048", "forward", 2.2),
    Target("softplus", "memory", "16384", "forward", 1.0, reference=10**9),
    Target("softplus", "memory", "16384", "forward and backward", 1.0, reference=10**9),
    Target("sigmoid", "time", "2048", "forward", 1.0, device="cuda"),
    Target("sigmoid", "time", "2048", "forward and backward", 1.1, device="cuda"),
    Target("softplus", "time", "2048", "forward", 2.5, device="cuda"),
)


def workload() -> Workload:
    return Workload(
        facts={
            "batch": str(BATCH),
            "heads": str(HEADS),
            "head_dim": str(HEAD_DIM),
            "dtype": "float32 on a CPU, bfloat16 on a GPU",
            "size": "length of query, key and value",
        },
        cases=cases,
        prepare=prepare,
        targets=TARGETS,
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """Causal and full, forward and with backward, at every length.

    Raises:
        ValueError: a size is no positive whole number.
    """
    for size in sizes:
        if not size.isdecimal() or int(size) < 1:
            raise ValueError(f"sizes: {size!r} given, a length such as 2048 expected")
    return [
        Case(size, passes, variant)
        for size in sizes
        for variant in ("causal", "full")
        for passes in ("forward", "forward and backward")
    ]


def prepare(function: Callable[..., Tensor], case: Case, device: str) -> Callable[[], object]:
    """A call of `function(query, key, value, is_causal=...)` on standard normal inputs."""
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, HEADS, int(case.size), HEAD_DIM)
    query, key, value, upstream = (
        torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4)
    )
    is_causal = case.variant == "causal"

    @torch.no_grad()
    def forward() -> object:
        return function(query, key, value, is_causal=is_causal)

    inputs = [x.requires_grad_() for x in (query, key, value)]

    def forward_and_backward() -> object:
        return torch.autograd.grad(function(*inputs, is_causal=is_causal), inputs, upstream)

    return forward if case.passes == "forward" else forward_and_backward


def dense_softmax(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys value_dim"],
    *,
    is_causal: bool = False,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Softmax attention in three lines of torch, with all weights stored."""
    logits = query @ key.mT * query.shape[-1] ** -0.5
    if is_causal:
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
        logits = logits.masked_fill(future, -math.inf)
    return logits.softmax(dim=-1) @ value


def x_transformers_softmax(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys value_dim"],
    *,
    is_causal: bool = False,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """x-transformers' `Attend` as it is by default; with `flash=True` it calls torch's own."""
    return _attend(is_causal, sigmoid=False)(query, key, value)[0]


def x_transformers_sigmoid(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys value_dim"],
    *,
    is_causal: bool = False,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """x-transformers' `Attend(sigmoid=True)`, with the bias -log(keys) of `sigmoid_attention`."""
    bias = -math.log(key.shape[2])
    return _attend(is_causal, sigmoid=True)(query, key, value, attn_bias=bias)[0]


@functools.cache
def _attend(is_causal: bool, sigmoid: bool) -> Any:
    from x_transformers.attend import Attend

    return Attend(causal=is_causal, sigmoid=sigmoid).eval()
