"""Random resized crops as numbers: drawn once, stored, and cut again to the same pixels.

    a box is (top, left, height, width) in shares of the image's height and width
    cut      x̃ = A_y x A_xᵀ,   A_ij ∝ max(0, 1 − |j + ½ − c_i| / s),  c_i = start + (i + ½) h / size

with A the rows of bilinear interpolation within the box, of triangles of half-width s = max(1, h /
size), which average where the image shrinks: what `F.interpolate(..., antialias=True)` does to the
slice, for many boxes and images in two matrix products. Areas and proportions are those of
torchvision's `RandomResizedCrop`.
"""

import math

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

ATTEMPTS = 10
"""Boxes drawn before one in the middle is taken, as in torchvision."""


def random_boxes(
    count: int,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    generator: torch.Generator | None = None,
) -> Float[Tensor, "count 4"]:
    """Boxes of random area, proportion and place.

    Args:
        count: how many.
        height, width: of the image in pixels; they decide what proportions mean.
        scale: least and largest share of the image's area.
        ratio: least and largest width over height, in pixels.
        generator: on the CPU; None is torch's own.

    Example:
        >>> boxes = random_boxes(5, 32, 48)
        >>> bool((boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-6).all())
        True
    """
    uniform = torch.rand(4, count, ATTEMPTS, generator=generator, dtype=torch.float64)
    area = (scale[0] + uniform[0] * (scale[1] - scale[0])) * height * width
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    proportion = torch.exp(log_low + uniform[1] * (log_high - log_low))
    tall = torch.sqrt(area / proportion) / height
    wide = torch.sqrt(area * proportion) / width
    fits = (tall <= 1) & (wide <= 1)
    first = fits.int().argmax(1, keepdim=True)
    extent = torch.stack([tall, wide]).gather(2, first.expand(2, -1, -1))[..., 0]
    # The whole image, or as much of it as the proportions allow, in the middle.
    allowed = min(max(width / height, ratio[0]), ratio[1])
    widest = torch.tensor([min(1.0, width / height / allowed), min(1.0, allowed * height / width)])
    extent = torch.where(fits.any(1), extent, widest[:, None].to(extent))
    place = uniform[2:].gather(2, first.expand(2, -1, -1))[..., 0]
    place = torch.where(fits.any(1), place, 0.5)
    return torch.stack([*(place * (1 - extent)), *extent], dim=1).float()


def resized_crops(
    images: Shaped[Tensor, "batch channels height width"],
    boxes: Float[Tensor, "batch crops 4"],
    flips: Bool[Tensor, "batch crops"],
    size: tuple[int, int],
) -> Float[Tensor, "batch crops channels out_height out_width"]:
    """Crops of each image, resized to `size` and mirrored where `flips` says so.

    Edges of a box are rounded to pixels, and a box has at least one. Integer images become float32
    of the same numbers.

    Example:
        >>> image = torch.arange(16.0).view(1, 1, 4, 4)
        >>> right_half = torch.tensor([[[0.0, 0.5, 1.0, 0.5]]])
        >>> resized_crops(image, right_half, torch.tensor([[True]]), (4, 2))[0, 0, 0, 0]
        tensor([3., 2.])
    """
    pixels = images if images.is_floating_point() else images.float()
    height, width = images.shape[2:]
    boxes = boxes.to(images.device)
    rows = _interpolation(boxes[..., 0], boxes[..., 2], height, size[0], pixels.dtype)
    columns = _interpolation(boxes[..., 1], boxes[..., 3], width, size[1], pixels.dtype)
    columns = torch.where(flips.to(images.device)[..., None, None], columns.flip(-2), columns)
    # One product a crop: the same bits, however many crops are cut at once.
    return rows[:, :, None] @ pixels[:, None] @ columns[:, :, None].mT


def _interpolation(
    start: Tensor, extent: Tensor, length: int, size: int, dtype: torch.dtype
) -> Tensor:
    """A of the module's docstring, (batch, crops, size, length)."""
    pixels = (extent.float() * length).round().clamp(1, length)
    first = torch.minimum((start.float() * length).round(), length - pixels)
    pixels, first = pixels[..., None, None], first[..., None, None]
    per_pixel = pixels / size
    place = torch.arange(length, device=start.device, dtype=torch.float32)
    centre = first + (torch.arange(size, device=start.device)[:, None] + 0.5) * per_pixel
    weights = (1 - (place + 0.5 - centre).abs() / per_pixel.clamp(min=1)).relu()
    weights = weights * ((place >= first) & (place < first + pixels))
    return (weights / weights.sum(-1, keepdim=True)).to(dtype)
