"""From what is tolerated to a degree that keeps it: the range of the logits, and its proof.

    |q_j·k_l| ≤ b = min(max_j ‖q_j‖ · max_l ‖k_l‖,  Σ_i max_j |q_ji| · max_l |k_li|)

which costs O((queries + keys) · d). The Taylor polynomial of degree g is right to a tolerance on
[-b, b] if `degree_for` says so, and its rounding errors, at most about eps · exp(b) beside values
that may be as small as exp(-b), are below the tolerance too.
"""

import math

import torch
from torch import Tensor

from heterodox.layers.polynomial import degree_for


def logit_bound(query: Tensor, key: Tensor) -> float:
    """b, over all groups of (..., length, channels); 0 where there is nothing."""
    if query.numel() == 0 or key.numel() == 0:
        return 0.0
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key = query.to(wide), key.to(wide)
    norms = query.norm(dim=-1).amax(-1) * key.norm(dim=-1).amax(-1)
    entries = (query.abs().amax(-2) * key.abs().amax(-2)).sum(-1)
    return float(torch.minimum(norms, entries).max())


def certified(bound: float, tol: float, dtype: torch.dtype) -> tuple[int, torch.dtype]:
    """An even degree and a dtype, `dtype` or float64, that keep `tol` for logits up to `bound`.

    Even, because such a polynomial is positive everywhere, rounding errors in `bound` included.

    Raises:
        ValueError: `tol` is not between 0 and 1, or nothing keeps it, as float64 rounds too much.
    """
    if not 0 < tol < 1:
        raise ValueError(f"tol: {tol} given, a number between 0 and 1 expected")
    for precision in dict.fromkeys((dtype, torch.float64)):
        if 2 * bound + math.log(torch.finfo(precision).eps) <= math.log(tol):
            degree = degree_for(bound, tol)
            return degree + degree % 2, precision
    raise ValueError(
        f"tol: {tol} given, but with logits up to {bound:.4g} the rounding errors of float64 are "
        "larger; smaller queries and keys, or method 'exact', expected"
    )
