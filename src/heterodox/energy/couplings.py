"""Couplings of a Boltzmann machine whose mean field has one fixed point.

    Φ = blkdiag(Â_iᵀ Â_i) − Âᵀ Â,   Â_i = A_i min(√(1 − m) / ‖A_i‖₂, 1)   for variable i

Then I − Φ ⪰ I − blkdiag(Â_iᵀ Â_i) ⪰ m I whatever A is, and Φ is symmetric with empty blocks on its
diagonal. Feng, Winston and Kolter, TMLR 2023, arXiv 2307.04990, section 4. This is the paper's
form; a public implementation that scales only one side of Φ is monotone too, but its Φ is not
symmetric, and the model no longer a Boltzmann machine. Both agree while no norm exceeds √(1 − m).
Cost: the product AᵀA, and the largest eigenvalue of a small matrix for each variable.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from heterodox.energy.state_groups import check_states, columns_by_states, variable_of_column


def monotone_couplings(
    A: Float[Tensor, "rank total"], states: Sequence[int], monotonicity: float
) -> Float[Tensor, "total total"]:
    """Φ from any A.

    float16 and bfloat16 are computed in float32. Squares of entries must not overflow.

    Args:
        A: a column for each state of each variable, those of one variable side by side.
        states: how many states each variable has; their sum is the number of columns.
        monotonicity: m in (0, 1).

    Raises:
        ValueError: `monotonicity` or a number of states is out of range, or the columns do not fit.

    Example:
        >>> A = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
        >>> phi = monotone_couplings(1000 * A, [2, 3, 1], monotonicity=0.1)
        >>> bool(torch.linalg.eigvalsh(torch.eye(6) - phi)[0] > 0.0999)
        True
    """
    check_states(states)
    check_monotonicity(monotonicity)
    if A.ndim != 2 or A.shape[1] != sum(states):
        raise ValueError(f"A: shape {tuple(A.shape)} given, ('rank', {sum(states)}) expected")
    working = A.to(torch.promote_types(A.dtype, torch.float32))
    groups = columns_by_states(states, A.device)
    factors = []
    for columns in groups:
        block = working[:, columns].movedim(1, 0)
        factor = shrinking(block.mT @ block, monotonicity)
        factors.append(factor[:, None].expand(columns.shape).flatten())
    order = torch.cat([columns.flatten() for columns in groups]).argsort()
    scaled = working * torch.cat(factors)[order]
    variable = variable_of_column(states, A.device)
    phi = -(scaled.mT @ scaled)
    return phi.masked_fill(variable[:, None] == variable, 0).to(A.dtype)


def shrinking(
    gram: Float[Tensor, "*blocks states states"], monotonicity: float
) -> Float[Tensor, "*blocks"]:
    """min(√(1 − m) / ‖A_i‖₂, 1) from A_iᵀ A_i; NaN where that is not finite, as in a run that
    diverged."""
    # The largest eigenvalue; numbers that are not finite would end in an error of LAPACK.
    largest = torch.linalg.eigvalsh(gram.nan_to_num(0.0, 0.0, 0.0))[..., -1]
    factor = math.sqrt(1 - monotonicity) / largest.clamp(min=1 - monotonicity).sqrt()
    return factor.where(gram.isfinite().flatten(-2).all(-1), torch.nan)


def check_monotonicity(monotonicity: float) -> None:
    if not 0 < monotonicity < 1:
        raise ValueError(f"monotonicity: {monotonicity} given, a number in (0, 1) expected")
