"""Softmax attention of few channels in almost linear time, with a guarantee, or else as usual.

    softmax(scale Q Kᵀ) V ≈ φ(Q) (φ(K)ᵀ V) / (φ(Q) (φ(K)ᵀ 1))

with polynomial features φ whose degree follows from a bound on the logits; the backward pass is the
exact gradient with the softmax matrix replaced in the same way. Alman and Song, arXiv 2302.13214;
Hu et al., arXiv 2406.03136. Time O(L C(d + g, g)) forward and O(L C(d + g, g) d²) backward, memory
O(L d): of use for up to about eight channels a head and small logits only.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from heterodox.compression import factored_softmax
from heterodox.compression.certificate import certified, logit_bound

# Time on a CPU in float32, in units of one multiply-add of the factors: of a feature of a point
# without its products, and of a logit in `scaled_dot_product_attention`, without and with backward.
PER_FEATURE, PER_LOGIT, PER_LOGIT_AND_BACK = 12, 25, 125


def low_rank_attention(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys value_dim"],
    *,
    tol: float = 1e-3,
    scale: int | float | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """Softmax attention over all keys, by polynomial features where they pay.

    They are used if both hold, and otherwise the result is that of
    `torch.nn.functional.scaled_dot_product_attention`:

    - a degree keeps `tol`: the logits are finite and, with b their bound, the rounding errors
      exp(2 b) · eps of float64 are below `tol`;
    - they are faster, by a count of operations: (queries + keys) · C(d + g, g) · (12 + m) is at
      most 25 · queries · keys, with m = value_dim + 1 products a feature; if gradients are needed,
      at most 125 · queries · keys, with m = (value_dim + 1) (2 head_dim + 3). The left side counts
      twice if float32 does not suffice. `features_pay` is this rule; its constants are from a CPU.

    Half precision is computed in float32. Gradients are the exact formula with the approximate
    weights; there are no second derivatives. Finding the bound waits for a GPU.

    Args:
        query, key, value: as for `scaled_dot_product_attention`.
        tol: largest relative error of the exponentials. Weights are then right to
            2 tol / (1 - tol), relative to each.
        scale: of the logits; 1 / √head_dim by default.

    Raises:
        ValueError: shapes, dtypes or devices disagree, there are no keys, `tol` is not between 0
            and 1, or `scale` is not finite.

    Example:
        >>> x = torch.rand(1, 2, 4096, 3)
        >>> fast = low_rank_attention(x, x, x)
        >>> torch.allclose(fast, F.scaled_dot_product_attention(x, x, x), rtol=2e-3)
        True
    """
    _check(query, key, value, tol, scale)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    dtype = torch.promote_types(query.dtype, torch.float32)
    bound = abs(factor) * logit_bound(query.detach(), key.detach())
    try:
        degree, precision = certified(bound, tol, dtype)
    except ValueError:  # the logits are too large
        return F.scaled_dot_product_attention(query, key, value, scale=factor)
    needs_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    if not features_pay(query, key, value, degree, needs_gradients, precision != dtype):
        return F.scaled_dot_product_attention(query, key, value, scale=factor)
    wide = [x.flatten(0, 1).to(precision) for x in (query, key, value)]
    output = _FactoredAttention.apply(factor * wide[0], wide[1], wide[2], degree)
    return output.to(value.dtype).unflatten(0, query.shape[:2])


def features_pay(
    query: Tensor, key: Tensor, value: Tensor, degree: int, gradients: bool, doubled: bool
) -> bool:
    """Whether polynomial features of a degree take less time than all logits.

    Args:
        query, key, value: what attends; their shapes decide.
        degree: of the polynomial.
        gradients: whether there will be a backward pass.
        doubled: whether features need float64 where the logits do not.

    Example:
        >>> x = torch.empty(1, 1, 4096, 4)
        >>> features_pay(x, x, x, 6, gradients=True, doubled=False)
        True
        >>> features_pay(x, x, x, 20, gradients=True, doubled=False)
        False
    """
    (queries, dim), (keys, value_dim) = query.shape[-2:], value.shape[-2:]
    if query.numel() == 0:
        return False
    products = (value_dim + 1) * (2 * dim + 3 if gradients else 1)
    features = math.comb(dim + degree, degree)
    cost = (queries + keys) * features * (PER_FEATURE + products) * (2 if doubled else 1)
    return cost <= queries * keys * (PER_LOGIT_AND_BACK if gradients else PER_LOGIT)


class _FactoredAttention(Function):
    """Of (groups, length, channels), logits query·key."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, degree: int) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.degree = degree
        return factored_softmax.output(query, key, value, degree)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        names = ("query", "key", "value")
        wanted = {name for name, needed in zip(names, ctx.needs_input_grad, strict=False) if needed}
        query, key, value = ctx.saved_tensors
        found = factored_softmax.gradients(
            query, key, value, lambda z, part: upstream[:, part], wanted, ctx.degree
        )
        return *(found.get(name) for name in names), None


def _check(
    query: Tensor, key: Tensor, value: Tensor, tol: float, scale: int | float | None
) -> None:
    if query.ndim != 4 or query.shape[3] == 0:
        raise ValueError(
            f"query: shape {tuple(query.shape)} given, (batch, heads, queries, head_dim) expected"
        )
    batch, heads, _, dim = query.shape
    if key.ndim != 4 or key.shape != (batch, heads, key.shape[2], dim) or key.shape[2] == 0:
        raise ValueError(
            f"key: shape {tuple(key.shape)} given, {(batch, heads, 'keys', dim)} expected, with at "
            "least one key"
        )
    if value.ndim != 4 or value.shape[:3] != key.shape[:3]:
        raise ValueError(
            f"value: shape {tuple(value.shape)} given, {(*key.shape[:3], 'value_dim')} expected"
        )
    for name, x in (("key", key), ("value", value)):
        if (x.dtype, x.device) != (query.dtype, query.device):
            raise ValueError(
                f"{name}: {x.dtype} on {x.device} given, query's {query.dtype} on {query.device} "
                "expected"
            )
    if not 0 < tol < 1:
        raise ValueError(f"tol: {tol} given, a number between 0 and 1 expected")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale: {scale} given, a finite number expected")
