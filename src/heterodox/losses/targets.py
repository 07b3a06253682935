"""Class indices, checked where that costs little."""

import torch
from jaxtyping import Shaped
from torch import Tensor


def check_indices(target: Shaped[Tensor, "*batch"]) -> None:
    """Raises ValueError for targets that are no integers."""
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise ValueError(f"target: {target.dtype} given, class indices expected")


def check_range(target: Shaped[Tensor, "*batch"], classes: int) -> None:
    """Raises ValueError for a class index below 0 or from `classes` on.

    A GPU is not waited for: there an assertion of torch fails a little later.

    Example:
        >>> check_range(torch.tensor([0, 2]), 3)
    """
    if torch.compiler.is_compiling() or target.device.type == "meta" or not target.numel():
        return
    if target.device.type != "cpu":
        inside = (target >= 0) & (target < classes)
        torch._assert_async(inside.all(), f"target: indices from 0 to {classes - 1} expected")
        return
    low, high = (int(x) for x in target.aminmax())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise ValueError(f"target: {wrong} given, class indices from 0 to {classes - 1} expected")
