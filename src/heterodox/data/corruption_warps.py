"""Elastic deformation and pixelation."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from heterodox.data.corruption_blurs import smooth
from heterodox.data.corruption_noise import uniform

Images = Float[Tensor, "batch channels height width"]


def sample(
    x: Images,
    rows: Float[Tensor, "batch rows columns"],
    columns: Float[Tensor, "batch rows columns"],
    *,
    repeat_edge: bool,
) -> Float[Tensor, "batch channels rows columns"]:
    """Bilinear values at real-valued places; beyond its edge the image is mirrored.

    Args:
        rows, columns: in pixels from the middle of the first one.
        repeat_edge: whether the last pixel appears in the mirror too.

    Example:
        >>> x = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
        >>> half = torch.full((1, 1, 1), 0.5)
        >>> sample(x, half, half, repeat_edge=True)
        tensor([[[[1.5000]]]])
    """
    height, width = x.shape[2:]
    places = []
    for place, side in ((columns, width), (rows, height)):
        # The two mirrors of grid_sample: about the edge of the last pixel, or about its middle.
        places.append((2 * place + 1) / side - 1 if repeat_edge else 2 * place / (side - 1) - 1)
    grid = torch.stack(places, -1)
    return F.grid_sample(x, grid, "bilinear", "reflection", align_corners=not repeat_edge)


def elastic_transform(
    x: Images, generator: torch.Generator, shift: float, width: float, affine: float
) -> Images:
    """A random affine map, then displacements that vary smoothly.

    Args:
        shift: scale of the displacements; all three are shares of the smaller side.
        width: deviation of the Gaussian that smoothes them.
        affine: how far each of three points around the middle moves at most.

    Example:
        >>> x = torch.rand(2, 1, 16, 16)
        >>> torch.allclose(elastic_transform(x, torch.Generator(), 0.0, 0.0, 0.0), x, atol=1e-5)
        True
    """
    batch, _, height, columns = x.shape
    side = min(height, columns)
    middle = torch.tensor([columns // 2, height // 2]).to(x)
    legs = torch.tensor([[1, 1], [1, -1], [-1, -1]]).to(x) * (side // 3)
    source = middle + legs
    target = source + affine * side * (2 * uniform((batch, 3, 2), generator, x) - 1)
    # Where each pixel comes from: the affine map from the moved points back to the points.
    ones = torch.ones_like(target[..., :1])
    back = torch.linalg.solve(torch.cat([target, ones], -1), source.expand_as(target))
    i, j = torch.meshgrid(
        torch.arange(height, device=x.device).to(x),
        torch.arange(columns, device=x.device).to(x),
        indexing="ij",
    )
    places = torch.stack([j, i, torch.ones_like(i)], -1).flatten(0, 1) @ back
    from_column, from_row = places.view(batch, height, columns, 2).unbind(-1)
    x = sample(x, from_row, from_column, repeat_edge=False)
    noise = 2 * uniform((batch, 2, height, columns), generator, x) - 1
    moved = shift * side * smooth(noise, width * side, truncate=3.0, edge="symmetric")
    return sample(x, i + moved[:, 1], j + moved[:, 0], repeat_edge=True)


def box_matrix(outputs: int, inputs: int, like: Tensor) -> Float[Tensor, "outputs inputs"]:
    """Resizing of a line by means over boxes: an output is the mean of the inputs whose middles lie
    in its stretch of the line, or the nearest one.

    Example:
        >>> box_matrix(2, 3, torch.zeros(1))
        tensor([[0.5000, 0.5000, 0.0000],
                [0.0000, 0.0000, 1.0000]])
    """
    scale = inputs / outputs
    middles = (torch.arange(outputs, dtype=torch.float64) + 0.5)[:, None] * scale
    distance = (torch.arange(inputs) + 0.5 - middles) / max(scale, 1.0)
    # A middle on the border belongs to the box on its left; 1e-9 is for rounding.
    inside = ((distance > -0.5 + 1e-9) & (distance <= 0.5 + 1e-9)).double()
    return (inside / inside.sum(1, keepdim=True)).to(like)


def pixelate(x: Images, generator: torch.Generator, factor: float) -> Images:
    """The image is shrunk to `factor` of its sides and enlarged again, both by means over boxes.

    Example:
        >>> pixelate(torch.rand(1, 1, 8, 8), torch.Generator(), 0.5)[0, 0].unique().numel()
        16
    """
    for axis in (2, 3):
        side = x.shape[axis]
        small = max(1, math.floor(side * factor))
        both = box_matrix(side, small, x) @ box_matrix(small, side, x)
        x = (both @ x.movedim(axis, -2)).movedim(-2, axis)
    return x
