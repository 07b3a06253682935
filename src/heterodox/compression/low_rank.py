"""Low-rank adaptation of attention, and the low rank of attention that makes its gradient cheap.

    softmax(Q Kᵀ) ≈ U₁ V₁ᵀ,   U₁ = φ(Q) / D,   V₁ = φ(K),   D = φ(Q) (φ(K)ᵀ 1)

with the polynomial features φ of `heterodox.layers.polynomial`: entries are right to about the
error of the polynomial, if the logits are small. Hu, Su, Kuo, Song, Liu, "Computational Limits of
Low-Rank Adaptation (LoRA) for Transformer-Based Models", ICLR 2025, arXiv 2406.03136: below a norm
of √(log L) of queries and keys the gradient of LoRA costs almost linear time, above it none that is
sub-quadratic exists under the strong exponential time hypothesis.
Time and memory O(L · C(d + g, g)).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from heterodox.compression.adapter_gradients import full_lora_gradients, lora_gradients
from heterodox.compression.factored_attention import low_rank_attention
from heterodox.compression.head_norms import HeadNorms, audit, efficiency_norms
from heterodox.compression.lora import LoRALinear
from heterodox.layers.polynomial import degree_for, polynomial_features

__all__ = [
    "HeadNorms",
    "LoRALinear",
    "LowRank",
    "audit",
    "degree_for",
    "efficiency_norms",
    "full_lora_gradients",
    "lora_gradients",
    "low_rank_attention",
    "low_rank_softmax",
    "polynomial_features",
]


class LowRank(NamedTuple):
    """A matrix as a product, `left @ right.mT`."""

    left: Float[Tensor, "*batch queries rank"]
    right: Float[Tensor, "*batch keys rank"]


def low_rank_softmax(
    query: Float[Tensor, "*batch queries dim"],
    key: Float[Tensor, "*batch keys dim"],
    degree: int,
) -> LowRank:
    """softmax(query keyᵀ) as a product of two thin matrices; a scale is the caller's.

    Args:
        query, key: as they enter the logits. Few channels: the rank is C(dim + degree, degree).
        degree: g of the polynomial, for instance `degree_for(bound, tol)` with |logits| at most
            `bound`. Entries are then right to 2 tol / (1 - tol), relative.

    Half precision is computed in float32.

    Raises:
        ValueError: shapes disagree, there are no keys, `degree` is no whole number from 0 on, or it
            is odd and a row sums to a number that is not positive.

    Example:
        >>> x = torch.rand(100, 2)
        >>> left, right = low_rank_softmax(x, x, 8)
        >>> left.shape
        torch.Size([100, 45])
        >>> torch.allclose(left @ right.mT, (x @ x.mT).softmax(-1), rtol=1e-3)
        True
    """
    if query.ndim < 2:
        raise ValueError(f"query: shape {tuple(query.shape)} given, (..., queries, dim) expected")
    expected = (*query.shape[:-2], "keys", query.shape[-1])
    if key.ndim != query.ndim or key.shape[:-2] + key.shape[-1:] != (
        query.shape[:-2] + query.shape[-1:]
    ):
        raise ValueError(f"key: shape {tuple(key.shape)} given, {expected} expected")
    if key.shape[-2] == 0:
        raise ValueError("key: no keys given, at least one expected")
    wide = torch.promote_types(query.dtype, torch.float32)
    left, right = (polynomial_features(x.to(wide), degree) for x in (query, key))
    sums = left @ right.sum(-2, keepdim=True).mT
    if not bool((sums > 0).all()):
        raise ValueError(
            f"degree: {degree} given, which makes a row sum to a number that is not positive; an "
            "even degree expected"
        )
    return LowRank((left / sums).to(query.dtype), right.to(key.dtype))
