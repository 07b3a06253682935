"""The gradients of softmax attention as they are, a block of rows of the softmax matrix at a time.

    f = softmax(q kᵀ),   z = f v,   p = f ∘ (c vᵀ - r),   r_j = c_j·z_j
    dq = p k,   dk = pᵀ q,   dv = fᵀ c

with c the loss's gradient in z. Hu et al., arXiv 2406.03136, theorem F.1: p is f times a matrix of
rank d, less a multiple of f in every row. Time O(queries · keys · d), memory O(keys · rows).
"""

from collections.abc import Collection

import torch
from torch import Tensor

from heterodox.compression.factored_softmax import Residual

# Numbers in a block of the softmax matrix: two of them, and what they are made of, in cache.
BLOCK = 2**17


def gradients(
    query: Tensor, key: Tensor, value: Tensor, residual: Residual, wanted: Collection[str]
) -> dict[str, Tensor]:
    """The gradients in those of "query", "key" and "value" that are wanted, of inputs (groups,
    length, channels) whose logits are query·key."""
    found = {
        name: torch.zeros_like(x)
        for name, x in {"query": query, "key": key, "value": value}.items()
        if name in wanted
    }
    rows = max(BLOCK // (key.shape[0] * key.shape[1] or 1), 16)
    for start in range(0, query.shape[1], rows):
        part = slice(start, min(start + rows, query.shape[1]))
        f = (query[:, part] @ key.mT).softmax(dim=-1)
        z = f @ value
        c = residual(z, part)
        if "value" in found:
            found["value"].baddbmm_(f.mT, c)
        if found.keys() == {"value"}:
            continue
        p = (c @ value.mT).sub_((c * z).sum(-1, keepdim=True)).mul_(f)
        if "query" in found:
            torch.bmm(p, key, out=found["query"][:, part])
        if "key" in found:
            found["key"].baddbmm_(p.mT, query[:, part])
    return found
