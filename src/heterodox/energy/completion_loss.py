"""Focal loss of completed variables, balanced over their values.

    L = Σ w_y (1 − p_y)^γ (−log p_y) / Σ w_y  over unobserved variables,  p = softmax(τ² u)
    w_c = (1 − β) / (1 − β^{n_c}),  n_c the number of unobserved variables whose value is c

Feng, Winston and Kolter, TMLR 2023, arXiv 2307.04990; Lin et al., "Focal loss", 2017; Cui et al.,
"Class-balanced loss", 2019. u are the potentials Φ q + b at the fixed point. Dividing by the sum of
the weights is our choice; the paper does not say how the sum is normalised.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def focal_completion_loss(
    potential: Float[Tensor, "batch states *shape"],
    target: Int[Tensor, "batch *shape"],
    mask: Bool[Tensor, "batch *shape"] | Float[Tensor, "batch *shape"],
    *,
    temperature: float | Float[Tensor, "..."] = 1.0,
    gamma: float = 2.0,
    beta: float = 0.9999,
) -> Float[Tensor, ""]:
    """The loss of the variables that were not observed; 0 if all were.

    A value that none of them has takes no part, and needs no weight. float16 and bfloat16 are
    computed in float32.

    Args:
        potential: u, before the temperature; axis 1 has the states, as in `cross_entropy`.
        target: index of the right state.
        mask: true, or 1, where a variable was observed.
        temperature: τ, which is squared; a number, or a tensor that broadcasts to a variable, so
            that each may learn its own. √10 at first in the authors' training.
        gamma: how much what is already right is discounted; 2 in the paper, 0 for cross-entropy.
        beta: in [0, 1); 0 gives all values the weight 1, the paper's 0.9999 nearly the same sum of
            weights to every value.

    Raises:
        ValueError: shapes disagree, a target on a CPU is no state, `gamma` is negative or `beta`
            not in [0, 1).

    Example:
        >>> potential = torch.zeros(1, 2, 3)
        >>> target, mask = torch.tensor([[0, 1, 1]]), torch.tensor([[True, False, False]])
        >>> focal_completion_loss(potential, target, mask, gamma=0.0)  # log 2
        tensor(0.6931)
    """
    shape = potential.shape[:1] + potential.shape[2:]
    if potential.ndim < 2 or potential.shape[1] == 0:
        raise ValueError(
            f"potential: shape {tuple(potential.shape)} given, (batch, states, ...) expected"
        )
    for name, given in (("target", target), ("mask", mask)):
        if given.shape != shape:
            raise ValueError(
                f"{name}: shape {tuple(given.shape)} given, {tuple(shape)} expected, potential's "
                "without its states"
            )
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma: {gamma} given, a number that is not negative expected")
    if not 0 <= beta < 1:
        raise ValueError(f"beta: {beta} given, a number in [0, 1) expected")
    states = potential.shape[1]
    _check_range(target, states)
    working = potential.to(torch.promote_types(potential.dtype, torch.float32))
    missing = (mask == 0).to(working.dtype)
    log_p = F.log_softmax(working * temperature**2, dim=1)
    log_p = log_p.gather(1, target.long()[:, None])[:, 0]
    counts = working.new_zeros(states).index_add(0, target.long().flatten(), missing.flatten())
    # 1 − βⁿ without cancellation; a value that does not occur needs none.
    missed = -torch.expm1(counts.clamp(min=1) * (math.log(beta) if beta else -math.inf))
    weight = ((1 - beta) / missed)[target.long()] * missing
    wrong = (-torch.expm1(log_p)).clamp(min=torch.finfo(working.dtype).tiny)
    total = weight.sum()
    loss = (weight * wrong**gamma * -log_p).sum() / torch.where(total > 0, total, 1)
    return loss.to(potential.dtype)


def _check_range(target: Tensor, states: int) -> None:
    """On a CPU only: a GPU would have to be waited for."""
    if torch.compiler.is_compiling() or target.device.type != "cpu" or not target.numel():
        return
    low, high = (int(x) for x in target.aminmax())
    if low < 0 or high >= states:
        wrong = low if low < 0 else high
        raise ValueError(f"target: {wrong} given, states from 0 to {states - 1} expected")
