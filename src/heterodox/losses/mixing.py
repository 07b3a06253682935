"""Mixing crops of one image, and never of two.

    x̃ = l x_a + (1 − l) x_b,   ỹ = l y_a + (1 − l) y_b,   l ~ Beta(α, α)                     (mixup)
    a box of x_b pasted into x_a, l the share of pixels of x_a that are left                (cutmix)

a and b are crops of the same image, so that objects and soft labels of the mixture stay those of
one image. Shen, "FerKD", ICCV 2023, arXiv 2312.17473; that partners are found by a cyclic shift,
and both ways of mixing, are a reconstruction from the abstract and the code of FKD (arXiv
2112.01528). Time O(pixels).
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def self_mix(
    images: Float[Tensor, "batch crops channels height width"],
    soft: Float[Tensor, "batch crops classes"],
    alpha: int | float = 1.0,
    mode: str = "mixup",
    generator: torch.Generator | None = None,
) -> tuple[
    Float[Tensor, "batch crops channels height width"], Float[Tensor, "batch crops classes"]
]:
    """Each crop mixed with another crop of its image, and its soft label with that crop's.

    Each image draws a cyclic shift of 1 to crops − 1, so that every crop is once the partner of
    another; the weight l is drawn once for the batch. With the first two axes exchanged it mixes
    across images instead: `self_mix(images.transpose(0, 1), soft.transpose(0, 1))`.

    Args:
        images: crops of each image, two or more.
        soft: their soft labels.
        alpha: of the Beta distribution; FKD has 0.8 for mixup and 1.0 for cutmix.
        mode: "mixup" or "cutmix".
        generator: on the CPU; None is torch's own.

    Raises:
        ValueError: fewer than two crops, images of whole numbers, shapes that disagree, an unknown
            `mode`, or an `alpha` that is not positive.

    Example:
        >>> images, soft = torch.rand(8, 4, 3, 16, 16), torch.rand(8, 4, 10).softmax(-1)
        >>> mixed, labels = self_mix(images, soft, mode="cutmix")
        >>> mixed.shape, labels.shape
        (torch.Size([8, 4, 3, 16, 16]), torch.Size([8, 4, 10]))
    """
    if images.ndim != 5:
        raise ValueError(
            f"images: shape {tuple(images.shape)} given, (batch, crops, channels, height, width) "
            "expected"
        )
    if not images.is_floating_point():
        raise ValueError(f"images: {images.dtype} given, floating-point numbers expected")
    batch, crops, _, height, width = images.shape
    if crops < 2:
        raise ValueError(f"images: {crops} crops of each image given, at least 2 expected")
    if soft.ndim != 3 or soft.shape[:2] != images.shape[:2]:
        raise ValueError(
            f"soft: shape {tuple(soft.shape)} given, {(batch, crops, 'classes')} expected"
        )
    if mode not in ("mixup", "cutmix"):
        raise ValueError(f"mode: {mode!r} given, 'mixup' or 'cutmix' expected")
    weight = mixing_weight(alpha, generator)
    shift = torch.randint(1, crops, (batch, 1), generator=generator)
    partner = ((torch.arange(crops) + shift) % crops).to(images.device)
    row = torch.arange(batch, device=images.device)[:, None]
    others = images[row, partner]
    if mode == "mixup":
        mixed = torch.lerp(others, images, weight)
    else:
        inside = _box(height, width, 1 - weight, generator)
        weight = 1 - float(inside.float().mean())
        mixed = torch.where(inside.to(images.device), others, images)
    return mixed, torch.lerp(soft[row, partner], soft, weight)


def mixing_weight(alpha: int | float, generator: torch.Generator | None = None) -> float:
    """A draw from Beta(α, α).

    Raises:
        ValueError: `alpha` is not positive.

    Example:
        >>> 0 <= mixing_weight(0.5, torch.Generator().manual_seed(0)) <= 1
        True
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha: {alpha} given, a positive number expected")
    # torch's Beta takes no generator; NumPy's is started from the one that was given.
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def _box(height: int, width: int, share: float, generator: torch.Generator | None) -> Tensor:
    """True inside a box of about that share of the area, its centre anywhere, clipped."""
    side = math.sqrt(share)
    inside = []
    for length in (height, width):
        centre = int(torch.randint(length, (), generator=generator))
        extent = int(length * side)
        low, high = max(0, centre - extent // 2), min(length, centre - extent // 2 + extent)
        place = torch.arange(length)
        inside.append((place >= low) & (place < high))
    return inside[0][:, None] & inside[1]
