"""Gaussian Gram matrices, and the width that the median of the distances suggests.

    k(u, v) = exp(−|u − v|² / (2 s²)),   s the width; without a normalising constant

Rows are vectors, (rows, dim); (rows,) stands for (rows, 1).
"""

import torch
from jaxtyping import Float
from torch import Tensor

Bandwidth = int | float | Float[Tensor, ""]


def gaussian_gram(
    x: Float[Tensor, "rows dim"] | Float[Tensor, "rows"],
    y: Float[Tensor, "columns dim"] | Float[Tensor, "columns"] | None = None,
    bandwidth: Bandwidth = 1.0,
) -> Float[Tensor, "rows columns"]:
    """k(x_i, y_j) for every pair; half precision is computed in float32.

    Args:
        x, y: vectors; `y` is `x` by default.
        bandwidth: s, a constant for autograd.

    Raises:
        ValueError: there are no rows, they are not finite, their dims differ, or `bandwidth` is
            not positive.

    Example:
        >>> gaussian_gram(torch.tensor([0.0, 1.0]))
        tensor([[1.0000, 0.6065],
                [0.6065, 1.0000]])
    """
    named = {"x": x} if y is None else {"x": x, "y": y}
    rows, *others = as_rows(named, least=1)
    columns = others[0] if others else rows
    check_same_dim("y", columns, rows)
    width = checked_bandwidth("bandwidth", bandwidth)
    rows, columns = scaled(width, rows, columns)
    return half_distances(rows, columns).neg().exp().to(x.dtype)


def median_bandwidth(
    x: Float[Tensor, "rows dim"] | Float[Tensor, "rows"],
) -> Float[Tensor, ""]:
    """The median of |x_i − x_j| over i < j, a constant for autograd; 0 if most rows are equal.

    For an even number of pairs it is the mean of the two in the middle, as NumPy has it. Memory is
    that of all pairs.

    Raises:
        ValueError: fewer than two rows, or values that are not finite.

    Example:
        >>> median_bandwidth(torch.tensor([0.0, 1.0, 3.0]))
        tensor(2.)
    """
    (rows,) = as_rows({"x": x})
    return median_distance(rows).to(x.dtype)


def median_distance(rows: Float[Tensor, "rows dim"]) -> Float[Tensor, ""]:
    """`median_bandwidth` of rows that are known to be in order."""
    distances = torch.pdist(rows.detach())
    low = distances.kthvalue((len(distances) + 1) // 2).values
    high = distances.kthvalue(len(distances) // 2 + 1).values
    return (low + high) / 2


def as_rows(tensors: dict[str, Tensor], least: int = 2) -> list[Tensor]:
    """Each tensor as (rows, dim), all of one dtype that is at least float32.

    Raises:
        ValueError: naming the tensor that has another rank, fewer than `least` rows, or values
            that are not finite.
    """
    for name, x in tensors.items():
        if x.ndim not in (1, 2) or x.shape[1:].numel() == 0:
            raise ValueError(
                f"{name}: shape {tuple(x.shape)} given, (rows,) or (rows, dim) expected"
            )
        if not x.is_floating_point():
            raise ValueError(f"{name}: {x.dtype} given, floating-point numbers expected")
        if len(x) < least:
            raise ValueError(f"{name}: {len(x)} rows given, at least {least} expected")
    dtype = torch.float32
    for x in tensors.values():
        dtype = torch.promote_types(dtype, x.dtype)
    rows = [x.to(dtype).reshape(len(x), -1) for x in tensors.values()]
    # One look for all of them, as it waits for the device; sums of finite numbers may overflow.
    if not torch.stack([x.detach().sum() for x in rows]).sum().isfinite():
        for name, x in zip(tensors, rows, strict=True):
            if not x.isfinite().all():
                raise ValueError(f"{name}: NaN or infinite values given, finite numbers expected")
    return rows


def check_same_rows(tensors: dict[str, Tensor]) -> None:
    """Raises a ValueError naming the first tensor with another number of rows than the first."""
    first, *others = tensors
    for name in others:
        if len(tensors[name]) != len(tensors[first]):
            raise ValueError(
                f"{name}: {len(tensors[name])} rows given, {len(tensors[first])} as in {first} "
                "expected"
            )


def check_same_dim(name: str, given: Tensor, expected: Tensor) -> None:
    """Raises a ValueError naming `name` if its vectors have another dim than the other's."""
    if given.shape[1] != expected.shape[1]:
        raise ValueError(
            f"{name}: vectors of dim {given.shape[1]} given, {expected.shape[1]} expected"
        )


def checked_bandwidth(name: str, bandwidth: Bandwidth) -> float | Tensor:
    """A width without its history."""
    if not 0 < bandwidth < torch.inf:
        raise ValueError(f"{name}: {float(bandwidth)} given, a positive number expected")
    return bandwidth.detach() if isinstance(bandwidth, Tensor) else bandwidth


def result_dtype(x: Tensor) -> torch.dtype:
    """That of `x`; under autocast at least float32, as for torch's own losses."""
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.promote_types(x.dtype, torch.float32) if autocast else x.dtype


def scaled(width: float | Tensor, *points: Tensor) -> list[Tensor]:
    """Points in units of the width, around the mean of the last of them.

    Distances do not depend on the origin, but rounding does: far from it, squares cancel.
    """
    mean = points[-1].detach().mean(0)
    return [(x - mean) / width for x in points]


def half_distances(
    x: Float[Tensor, "rows dim"], y: Float[Tensor, "columns dim"]
) -> Float[Tensor, "rows columns"]:
    """½ |x_i − y_j|², never through a root, whose gradient at 0 is not finite."""
    if x.shape[1] == 1:
        return (x - y.mT).square() / 2
    norms = x.square().sum(1, keepdim=True) / 2 + y.square().sum(1) / 2
    return torch.addmm(norms, x, y.mT, alpha=-1).clamp_min(0)
