"""The subspace of old inputs by singular values, as gradient projection memory takes it.

The fewest directions that keep a share `energy` of the inputs' squared length, found after a task
from samples of it. Saha, Garg, Roy, "Gradient Projection Memory for Continual Learning", ICLR 2021,
arXiv 2103.09762; here the baseline of Hebbian subspace neurons, which need no decomposition.
"""

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def gradient_projection_basis(
    activations: Float[Tensor, "samples features"],
    energy: float = 0.97,
    *,
    known: Float[Tensor, "rows features"] | None = None,
) -> Float[Tensor, "units features"]:
    """Orthonormal rows, in the order of the energy that they keep.

    Args:
        activations: inputs of a layer in samples of a task.
        energy: share of the squared length to be kept, together with `known`; the paper's
            thresholds are 0.95 to 0.99.
        known: orthonormal rows of earlier tasks; the new ones are orthogonal to them.

    Returns:
        No rows where nothing is left to be kept.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, or `energy` is not in
            (0, 1].

    Example:
        >>> x = torch.diag(torch.tensor([3.0, 1.0, 0.1]))
        >>> gradient_projection_basis(x, 0.85).abs()
        tensor([[1., 0., 0.]])
    """
    if activations.ndim != 2:
        raise ValueError(
            f"activations: shape {tuple(activations.shape)} given, (samples, features) expected"
        )
    if not activations.isfinite().all():
        raise ValueError("activations: numbers that are not finite given, finite ones expected")
    if not 0 < energy <= 1:
        raise ValueError(f"energy: {energy} given, a share in (0, 1] expected")
    features = activations.shape[1]
    if known is not None and (known.ndim != 2 or known.shape[1] != features):
        raise ValueError(f"known: shape {tuple(known.shape)} given, (rows, {features}) expected")
    x = activations.to(torch.promote_types(activations.dtype, torch.float32))
    total = x.square().sum()
    if known is not None:
        known = known.to(x)
        x = x - (x @ known.T) @ known
    _, sizes, rows = torch.linalg.svd(x, full_matrices=False)
    kept = total - x.square().sum()
    reached = kept + sizes.square().cumsum(0)
    # Directions of rounding errors are none.
    independent = sizes > torch.finfo(x.dtype).eps * max(x.shape) * total.sqrt()
    missing = torch.cat((kept[None], reached))[:-1] < energy * total
    count = int((missing & independent).sum())
    return rows[:count].to(activations.dtype)
