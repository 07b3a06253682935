"""Blurs: out of focus, through glass, of motion, of zooming, and Gaussian."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from heterodox.data.corruption_noise import uniform

Images = Float[Tensor, "batch channels height width"]

ZOOM_STEP = 0.01


def gaussian_taps(deviation: float, truncate: float, like: Tensor) -> Tensor:
    """A Gaussian at whole numbers up to `truncate` deviations, with sum 1; for 0 a single tap.

    Example:
        >>> gaussian_taps(0.5, 2.0, torch.zeros(1))
        tensor([0.1065, 0.7870, 0.1065])
    """
    radius = int(truncate * deviation + 0.5)
    places = torch.arange(-radius, radius + 1, device=like.device, dtype=torch.float64)
    taps = torch.exp(-0.5 * (places / max(deviation, 1e-12)) ** 2)
    return (taps / taps.sum()).to(like)


def smooth(x: Images, deviation: float, truncate: float = 4.0, edge: str = "replicate") -> Images:
    """Gaussian smoothing, first along the columns, then along the rows.

    Args:
        truncate: radius of the filter in deviations; 4 as in SciPy.
        edge: "replicate" repeats the last pixel; "symmetric" mirrors the image, last pixel
            included.

    Example:
        >>> x = torch.zeros(1, 1, 3, 3)
        >>> x[0, 0, 1, 1] = 1
        >>> smooth(x, 0.3)[0, 0, 1]
        tensor([0.0038, 0.9847, 0.0038])
    """
    taps = gaussian_taps(deviation, truncate, x)
    radius = len(taps) // 2
    for axis in (2, 3):
        places = torch.arange(-radius, x.shape[axis] + radius, device=x.device)
        if edge == "symmetric":
            places = places % (2 * x.shape[axis])
            places = torch.minimum(places, 2 * x.shape[axis] - 1 - places)
        padded = x.index_select(axis, places.clamp(0, x.shape[axis] - 1))
        parts = padded.unfold(axis, len(taps), 1)
        x = parts @ taps
    return x


def gaussian_blur(x: Images, generator: torch.Generator, deviation: float) -> Images:
    """`smooth`, as a corruption.

    Example:
        >>> gaussian_blur(torch.ones(1, 1, 8, 8), torch.Generator(), 1.0).min().round(decimals=4)
        tensor(1.)
    """
    return smooth(x, deviation)


def disk(radius: float, alias: float, like: Tensor) -> Tensor:
    """A disk with sum 1, its rim softened by a Gaussian over 3 x 3 pixels of deviation `alias`.

    Example:
        >>> disk(1.0, 0.2, torch.zeros(1)).round(decimals=2)[2]
        tensor([0.0000, 0.2000, 0.2000, 0.2000, 0.0000])
    """
    reach = math.floor(radius) + 1  # beyond it, also the softened rim is 0
    places = torch.arange(-reach, reach + 1, device=like.device).to(like)
    sharp = (places[:, None] ** 2 + places**2 <= radius**2).to(like)
    places = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    taps = torch.exp(-0.5 * (places / alias) ** 2)
    taps = (taps / taps.sum()).to(like)
    return F.conv2d(
        (sharp / sharp.sum())[None, None], torch.outer(taps, taps)[None, None], padding=1
    )[0, 0]


def defocus_blur(x: Images, generator: torch.Generator, radius: float, alias: float) -> Images:
    """The mean over a disk around each pixel; the image is mirrored at its last pixel.

    Example:
        >>> defocus_blur(torch.ones(1, 3, 8, 8), torch.Generator(), 1.5, 0.1).shape
        torch.Size([1, 3, 8, 8])
    """
    kernel = disk(radius, alias, x)
    reach = len(kernel) // 2
    padded = F.pad(x, [reach] * 4, mode="reflect").flatten(0, 1)[:, None]
    return F.conv2d(padded, kernel[None, None]).view_as(x)


def glass_blur(
    x: Images, generator: torch.Generator, deviation: float, reach: int, rounds: int
) -> Images:
    """Smoothing, exchange of pixels with a neighbour, smoothing.

    From the last pixel to the first, each is exchanged with one up to `reach` rows above and
    columns to the left, `rounds` times; a rim of `reach` pixels takes no turn of its own.

    Example:
        >>> x = torch.rand(1, 1, 8, 8)
        >>> blurred = glass_blur(x, torch.Generator(), 0.05, 1, 1)
        >>> torch.equal(blurred.flatten().sort()[0], x.flatten().sort()[0])  # σ so small: a shuffle
        True
    """
    batch, channels, height, width = x.shape
    x = smooth(x, deviation)
    place = torch.arange(height * width).repeat(batch, 1)
    rows = torch.arange(batch)
    turns = rounds * (height - reach) * (width - reach)
    shifts = uniform((turns, 2, batch), generator, torch.zeros(1)).mul(2 * reach).long() - reach
    turn = 0
    for _ in range(rounds):
        for i in range(height - reach, reach, -1):
            for j in range(width - reach, reach, -1):
                down, right = shifts[turn]
                turn += 1
                here = i * width + j
                there = (i + down) * width + j + right
                other = place[rows, there]
                place[rows, there] = place[:, here].clone()
                place[:, here] = other
    place = place.to(x.device)[:, None].expand(-1, channels, -1)
    return smooth(x.flatten(2).gather(2, place).view_as(x), deviation)


def motion_blur(
    x: Images,
    generator: torch.Generator,
    radius: float,
    deviation: float,
    low: float = -45.0,
    high: float = 45.0,
) -> Images:
    """A half Gaussian trail of 2 · radius + 1 pixels, for each image in a direction of its own.

    Args:
        radius: of the trail in pixels.
        deviation: of the Gaussian in pixels.
        low, high: bounds of the direction in degrees.

    Example:
        >>> motion_blur(torch.ones(2, 1, 8, 8), torch.Generator(), 6.0, 1.0).std().round(decimals=4)
        tensor(0.)
    """
    batch, _, height, width = x.shape
    steps = torch.arange(2 * math.ceil(radius) + 1, device=x.device).to(x)
    taps = torch.exp(-0.5 * (steps / deviation) ** 2)
    taps = taps / taps.sum()
    angle = torch.deg2rad(low + (high - low) * uniform((batch, 1), generator, x))
    # Half a pixel is rounded down.
    down = torch.ceil(steps * angle.sin() - 0.5).long()
    right = torch.ceil(steps * angle.cos() - 0.5).long()
    rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
    images = torch.arange(batch, device=x.device)[:, None, None]
    pixels = x.movedim(1, -1)
    blurred = torch.zeros_like(pixels)
    for k, tap in enumerate(taps):
        i = (rows + down[:, k, None]).clamp(0, height - 1)[:, :, None]
        j = (columns + right[:, k, None]).clamp(0, width - 1)[:, None, :]
        blurred += tap * pixels[images, i, j]
    return blurred.movedim(-1, 1)


def enlarge(x: Images, zoom: float) -> Images:
    """The middle of the images, enlarged to their size.

    Example:
        >>> enlarge(torch.ones(1, 1, 9, 9), 1.25).shape
        torch.Size([1, 1, 9, 9])
    """
    height, width = x.shape[2:]
    rows, columns = math.ceil(height / zoom), math.ceil(width / zoom)
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = x[:, :, top : top + rows, left : left + columns]
    size = (round(rows * zoom), round(columns * zoom))
    large = F.interpolate(middle, size, mode="bilinear", align_corners=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return large[:, :, top : top + height, left : left + width]


def zoom_blur(x: Images, generator: torch.Generator, largest: float) -> Images:
    """The mean of the image and of its enlargements by 1, 1.01, 1.02, ..., `largest`.

    Example:
        >>> zoom_blur(torch.ones(1, 1, 8, 8), torch.Generator(), 1.26).mean().round(decimals=4)
        tensor(1.)
    """
    zooms = np.arange(1, largest + ZOOM_STEP / 2, ZOOM_STEP).tolist()
    return (x + sum(enlarge(x, zoom) for zoom in zooms)) / (len(zooms) + 1)
