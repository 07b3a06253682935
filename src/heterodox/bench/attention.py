"""Attention: the functions that stand in for `scaled_dot_product_attention`, at growing lengths."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from heterodox.attention import delta_rule, softmax_free_attention
from heterodox.bench.workload import Case, Target, Workload

BATCH, HEADS, HEAD_DIM = 1, 8, 64
LONGEST_RECURRENCE = 2048
BOTTLENECK = 49  # tokens of softmax-free attention, as in its paper

# Sequences from this length on have only two heads, for the time that they take.
LONG, HEADS_OF_LONG = 16384, 2

# A gigabyte for all heads, for as many as are measured.
GIGABYTE = 10**9 * HEADS_OF_LONG // HEADS

TARGETS = (
    Target("sigmoid", "time", "2048", "forward", 1.3),
    Target("sigmoid", "time", "2048", "forward and backward", 1.5),
    Target("sigmoid", "memory", "8192", "forward", 1.2),
    Target("sigmoid", "memory", "8192", "forward and backward", 1.2),
    Target("softplus-lssa", "time", "2048", "forward", 1.6),
    Target("softplus", "time", "2048", "forward", 2.2),
    Target("softplus", "memory", "16384", "forward", 1.0, reference=GIGABYTE),
    Target("softplus", "memory", "16384", "forward and backward", 1.0, reference=GIGABYTE),
    Target("delta", "time", "8192", "forward", 1.0),
    Target("delta", "time", "16384", "forward", 1.0),
    Target("sigmoid", "time", "2048", "forward", 1.0, device="cuda"),
    Target("sigmoid", "time", "2048", "forward and backward", 1.1, device="cuda"),
    Target("softplus", "time", "2048", "forward", 2.5, device="cuda"),
)


def workload() -> Workload:
    return Workload(
        facts={
            "batch": str(BATCH),
            "heads": f"{HEADS}, and {HEADS_OF_LONG} from a length of {LONG} on",
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
    length = int(case.size)
    shape = (BATCH, HEADS if length < LONG else HEADS_OF_LONG, length, HEAD_DIM)
    query, key, value, upstream = (
        torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4)
    )
    is_causal = case.variant == "causal"

    @torch.no_grad()
    def forward() -> object:
        return function(query, key, value, is_causal=is_causal)

    inputs = [x.requires_grad_() for x in (query, key, value)]

    def forward_and_backward() -> object:
        output = function(*inputs, is_causal=is_causal)
        return torch.autograd.grad(output, inputs, upstream, allow_unused=True)

    return forward if case.passes == "forward" else forward_and_backward


def delta(
    query: Float[Tensor, "batch heads length head_dim"],
    key: Float[Tensor, "batch heads length head_dim"],
    value: Float[Tensor, "batch heads length value_dim"],
    *,
    is_causal: bool = False,
) -> Float[Tensor, "batch heads length value_dim"]:
    """`delta_rule` with unit queries and keys, and half of what a key holds replaced."""
    _causal_only(is_causal)
    output: Any = delta_rule(*_for_delta(query, key, value))
    return output


def soft(
    query: Float[Tensor, "batch heads length head_dim"],
    key: Float[Tensor, "batch heads length head_dim"],
    value: Float[Tensor, "batch heads length value_dim"],
    *,
    is_causal: bool = False,
) -> Float[Tensor, "batch heads length value_dim"]:
    """`softmax_free_attention` through 49 means of neighbours; its keys are its queries."""
    return _soft(query, value, is_causal, normalize=False)


def soft_plus_plus(
    query: Float[Tensor, "batch heads length head_dim"],
    key: Float[Tensor, "batch heads length head_dim"],
    value: Float[Tensor, "batch heads length value_dim"],
    *,
    is_causal: bool = False,
) -> Float[Tensor, "batch heads length value_dim"]:
    """`soft` with the symmetric normalisation."""
    return _soft(query, value, is_causal, normalize=True)


def _soft(query: Tensor, value: Tensor, is_causal: bool, normalize: bool) -> Tensor:
    if is_causal:
        raise ValueError("is_causal: True given, False expected: a bottleneck token is a mean")
    query = query * query.shape[-1] ** -0.25
    tokens = min(BOTTLENECK, query.shape[2])
    whole = query[:, :, : query.shape[2] // tokens * tokens]
    bottleneck = whole.unflatten(2, (tokens, -1)).mean(dim=3)
    return softmax_free_attention(query, value, bottleneck, normalize=normalize)


def _causal_only(is_causal: bool) -> None:
    if not is_causal:
        raise ValueError("is_causal: False given, True expected: a recurrence knows only the past")


def _for_delta(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    beta = torch.full(query.shape[:3], 0.5, dtype=query.dtype, device=query.device)
    return F.normalize(query, dim=-1), F.normalize(key, dim=-1), value, beta


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


def fla_linear(
    query: Float[Tensor, "batch heads length head_dim"],
    key: Float[Tensor, "batch heads length head_dim"],
    value: Float[Tensor, "batch heads length value_dim"],
    *,
    is_causal: bool = False,
) -> Float[Tensor, "batch heads length value_dim"]:
    """flash-linear-attention's plain PyTorch, in chunks, with the features elu(x) + 1."""
    from fla.ops.linear_attn.naive import naive_chunk_linear_attn

    _causal_only(is_causal)
    _whole_chunks(query)
    query, key = F.elu(query) + 1, F.elu(key) + 1
    inputs = (x.transpose(1, 2) for x in (query, key, value))
    return naive_chunk_linear_attn(*inputs, scale=1.0, normalize=True).transpose(1, 2)


def fla_delta(
    query: Float[Tensor, "batch heads length head_dim"],
    key: Float[Tensor, "batch heads length head_dim"],
    value: Float[Tensor, "batch heads length value_dim"],
    *,
    is_causal: bool = False,
) -> Float[Tensor, "batch heads length value_dim"]:
    """flash-linear-attention's delta rule in plain PyTorch, in chunks."""
    from fla.ops.delta_rule.naive import delta_rule_chunkwise

    _causal_only(is_causal)
    _whole_chunks(query)
    return delta_rule_chunkwise(*_for_delta(query, key, value))[0]


def fla_delta_recurrent(
    query: Float[Tensor, "batch heads length head_dim"],
    key: Float[Tensor, "batch heads length head_dim"],
    value: Float[Tensor, "batch heads length value_dim"],
    *,
    is_causal: bool = False,
) -> Float[Tensor, "batch heads length value_dim"]:
    """flash-linear-attention's delta rule in plain PyTorch, position by position."""
    from fla.ops.delta_rule.naive import delta_rule_recurrence

    _causal_only(is_causal)
    if query.shape[2] > LONGEST_RECURRENCE:
        raise ValueError(
            f"query: length {query.shape[2]} given, at most {LONGEST_RECURRENCE} expected: step "
            "by step it takes minutes"
        )
    return delta_rule_recurrence(*_for_delta(query, key, value))[0]


def fla_delta_triton(
    query: Float[Tensor, "batch heads length head_dim"],
    key: Float[Tensor, "batch heads length head_dim"],
    value: Float[Tensor, "batch heads length value_dim"],
    *,
    is_causal: bool = False,
) -> Float[Tensor, "batch heads length value_dim"]:
    """flash-linear-attention's delta rule in Triton kernels; heads come after positions there."""
    from fla.ops.delta_rule import chunk_delta_rule

    _causal_only(is_causal)
    if not query.is_cuda:
        raise ValueError(f"query: on {query.device.type} given, a GPU expected")
    inputs = (x.transpose(1, 2).contiguous() for x in _for_delta(query, key, value))
    return chunk_delta_rule(*inputs)[0].transpose(1, 2)


def _whole_chunks(query: Tensor) -> None:
    if query.shape[2] % 64:
        raise ValueError(f"query: length {query.shape[2]} given, a multiple of 64 expected")
