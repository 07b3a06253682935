"""What JPEG does to an image: luminance and chroma in blocks of cosines, rounded to multiples.

The steps of a baseline JPEG file (ITU-T T.81, with the tables of its annex K scaled by the quality
as in libjpeg, chroma at half the resolution), without writing the file: Huffman's code loses
nothing.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "batch channels height width"]

LUMINANCE_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)


def quantisation(steps: tuple[tuple[int, ...], ...], quality: int, like: Tensor) -> Tensor:
    """The table of a quality from 1 to 100; 50 is the table of the standard.

    Example:
        >>> quantisation(LUMINANCE_STEPS, 75, torch.zeros(1))[0, :3]
        tensor([8., 6., 5.])
    """
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = torch.tensor(steps, dtype=torch.float64)
    return ((table * percent + 50) / 100).floor().clamp(1, 255).to(like)


def cosines(like: Tensor) -> Float[Tensor, "8 8"]:
    """The orthonormal cosine transform of 8 values.

    Example:
        >>> c = cosines(torch.zeros(1))
        >>> torch.allclose(c @ c.T, torch.eye(8), atol=1e-6)
        True
    """
    k = torch.arange(8, dtype=torch.float64)[:, None]
    waves = torch.cos(math.pi / 8 * k * (torch.arange(8) + 0.5)) / 2
    waves[0] /= math.sqrt(2)
    return waves.to(like)


def rounded_blocks(plane: Tensor, table: Tensor) -> Tensor:
    """A plane (batch, 1, height, width) of values around 0, as decoded; sides that are no multiples
    of 8 are filled up with the last pixel.

    Example:
        >>> plane = torch.full((1, 1, 8, 8), 37.0)
        >>> decoded = rounded_blocks(plane, torch.full((8, 8), 10.0))
        >>> decoded.mean().round(decimals=2)  # 8 · 37 = 296 becomes 300
        tensor(37.5000)
    """
    height, width = plane.shape[2:]
    padded = F.pad(plane, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = padded.unfold(2, 8, 8).unfold(3, 8, 8)
    c = cosines(plane)
    decoded = c.T @ ((c @ blocks @ c.T / table).round() * table) @ c
    return decoded.transpose(-3, -2).flatten(-4, -3).flatten(-2)[:, :, :height, :width]


def halved(plane: Tensor) -> Tensor:
    """Means over 2 x 2 pixels; an odd side is filled up with the last pixel.

    Example:
        >>> halved(torch.arange(3.0).view(1, 1, 1, 3))
        tensor([[[[0.5000, 2.0000]]]])
    """
    height, width = plane.shape[2:]
    return F.avg_pool2d(F.pad(plane, (0, width % 2, 0, height % 2), mode="replicate"), 2)


def doubled(plane: Tensor, height: int, width: int) -> Tensor:
    """Twice the resolution by 3/4 of the nearest and 1/4 of the next pixel, cut to the size.

    Example:
        >>> doubled(torch.tensor([[[[0.0, 4.0]]]]), 1, 4)
        tensor([[[[0., 1., 3., 4.]]]])
    """
    large = F.interpolate(plane, scale_factor=2, mode="bilinear", align_corners=False)
    return large[:, :, :height, :width]


def jpeg(x: Images, generator: torch.Generator, quality: int) -> Images:
    """The image after it has been saved with a quality and read again.

    Example:
        >>> x = torch.rand(1, 3, 16, 16)
        >>> jpeg(x, torch.Generator(), 40).shape
        torch.Size([1, 3, 16, 16])
    """
    height, width = x.shape[2:]
    pixels = (255 * x).round()
    luminance, chroma = (quantisation(t, quality, x) for t in (LUMINANCE_STEPS, CHROMA_STEPS))
    if x.shape[1] == 1:
        return (rounded_blocks(pixels - 128, luminance) + 128) / 255
    matrix = torch.tensor(TO_YCC, dtype=torch.float64)
    y, *colours = torch.einsum("cd,bdhw->bchw", matrix.to(x), pixels).round().split(1, 1)
    planes = [rounded_blocks(y - 128, luminance) + 128]
    for colour in colours:
        # Columns are filled up before they are halved, rows afterwards, as in libjpeg.
        wide = F.pad(colour, (0, -width % 16, 0, 0), mode="replicate")
        small = rounded_blocks(halved(wide), chroma)[:, :, :, : math.ceil(width / 2)]
        planes.append(doubled(small, height, width))
    back = torch.linalg.inv(matrix).to(x)
    return torch.einsum("cd,bdhw->bchw", back, torch.cat(planes, 1)) / 255
