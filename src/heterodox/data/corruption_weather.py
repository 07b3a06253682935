"""Snow, frost, fog and spatter, from noise and fractals."""

import torch
from jaxtyping import Float
from torch import Tensor

from heterodox.data.corruption_blurs import enlarge, motion_blur, smooth
from heterodox.data.corruption_noise import normal

Images = Float[Tensor, "batch channels height width"]

LUMINANCE = (0.299, 0.587, 0.114)
MUD = (63 / 255, 42 / 255, 20 / 255)
WATER = (175 / 255, 238 / 255, 238 / 255)


def grey(x: Images) -> Float[Tensor, "batch 1 height width"]:
    """The luminance of colour images; grey ones as they are.

    Example:
        >>> grey(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)).item()
        0.29899999499320984
    """
    return x if x.shape[1] == 1 else coloured(LUMINANCE, x).mul(x).sum(1, keepdim=True)


def coloured(rgb: tuple[float, float, float], like: Images) -> Tensor:
    """A colour (1, 3, 1, 1); for grey images its luminance (1, 1, 1, 1).

    Example:
        >>> coloured((0.0, 1.0, 0.0), torch.zeros(2, 1, 8, 8)).flatten()
        tensor([0.5870])
    """
    if like.shape[1] == 1:
        rgb_grey = sum(w * c for w, c in zip(LUMINANCE, rgb, strict=True))
        return torch.full((1, 1, 1, 1), rgb_grey, dtype=like.dtype, device=like.device)
    return torch.tensor(rgb, dtype=like.dtype, device=like.device).view(1, 3, 1, 1)


def plasma(
    batch: int, height: int, width: int, generator: torch.Generator, decay: float, like: Tensor
) -> Float[Tensor, "batch 1 height width"]:
    """Fractal clouds in [0, 1] by diamonds and squares, which wrap around.

    At each of the scales 2ᵏ, ..., 2, 1 the points between known ones become their mean plus uniform
    noise of the size wibble², and the wibble is divided by `decay`: the larger, the smoother.

    Example:
        >>> clouds = plasma(2, 10, 12, torch.Generator().manual_seed(0), 3.0, torch.zeros(1))
        >>> clouds.shape, clouds.min() >= 0, clouds.max() <= 1
        (torch.Size([2, 1, 10, 12]), tensor(True), tensor(True))
    """
    size = 1 << (max(height, width) - 1).bit_length()
    clouds = torch.zeros(batch, size, size, dtype=torch.float64, device=generator.device)
    wibble, step = 100.0, size

    def noisy(total: Tensor) -> Tensor:
        noise = torch.rand(total.shape, generator=generator, device=generator.device)
        return total / 4 + wibble**2 * (2 * noise - 1)

    while step >= 2:
        half = step // 2
        corners = clouds[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        middles = noisy(pairs + pairs.roll(-1, 2))
        clouds[:, half::step, half::step] = middles
        above = middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)
        clouds[:, ::step, half::step] = noisy(above)
        beside = middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)
        clouds[:, half::step, ::step] = noisy(beside)
        step, wibble = half, wibble / decay
    low, high = clouds.amin((1, 2), keepdim=True), clouds.amax((1, 2), keepdim=True)
    clouds = (clouds - low) / (high - low)
    return clouds[:, None, :height, :width].to(like)


def fog(x: Images, generator: torch.Generator, amount: float, decay: float) -> Images:
    """Clouds are added, and the sum is scaled back to the largest value of the image.

    Example:
        >>> fog(torch.ones(1, 1, 8, 8), torch.Generator(), 1.5, 1.75).max().round(decimals=4)
        tensor(1.)
    """
    largest = x.amax((1, 2, 3), keepdim=True)
    batch, _, height, width = x.shape
    clouds = plasma(batch, height, width, generator, decay, x)
    return (x + amount * clouds) * largest / (largest + amount)


def frost(x: Images, generator: torch.Generator, kept: float, ice: float) -> Images:
    """`kept` of the image and `ice` of a texture of ice: bright ridges of a fractal.

    Stands for the photographs of frost in the original, which are not here.

    Example:
        >>> frost(torch.zeros(1, 1, 8, 8), torch.Generator(), 0.75, 0.45).max() <= 0.45
        tensor(True)
    """
    batch, _, height, width = x.shape
    coarse, fine = (plasma(batch, height, width, generator, decay, x) for decay in (2.0, 1.5))
    ridges = 1 - (2 * coarse - 1).abs()
    return kept * x + ice * (0.7 * ridges + 0.3 * fine)


def snow(
    x: Images,
    generator: torch.Generator,
    mean: float,
    deviation: float,
    zoom: float,
    least: float,
    radius: float,
    blur: float,
    kept: float,
) -> Images:
    """Flakes, which fall in two directions, over an image that has turned paler.

    Args:
        mean, deviation: of the noise that flakes are made of.
        zoom: how much it is enlarged.
        least: what is below is no flake.
        radius, blur: of the motion of flakes, at −135 to −45 degrees.
        kept: share of the image that stays; the rest turns to 1.5 times its luminance + 0.5.

    Example:
        >>> x = torch.rand(2, 3, 16, 16)
        >>> snow(x, torch.Generator(), 0.3, 0.3, 1.25, 0.65, 14.0, 12.0, 0.8).mean() > x.mean()
        tensor(True)
    """
    batch, _, height, width = x.shape
    flakes = mean + deviation * normal((batch, 1, height, width), generator, x)
    flakes = enlarge(flakes, zoom)
    flakes = torch.where(flakes < least, 0, flakes).clamp(0, 1)
    flakes = motion_blur(flakes, generator, radius, blur, -135.0, -45.0)
    x = kept * x + (1 - kept) * torch.maximum(x, 1.5 * grey(x) + 0.5)
    return x + flakes + flakes.flip(2, 3)


def spatter(
    x: Images,
    generator: torch.Generator,
    mean: float,
    deviation: float,
    size: float,
    least: float,
    strength: float,
    is_mud: int,
) -> Images:
    """Drops of water or of mud: smoothed noise above a threshold.

    Args:
        mean, deviation: of the noise.
        size: of drops, the deviation of the smoothing.
        least: what is below is no drop.
        strength: of water, its largest share; of mud, the deviation of a second smoothing.
        is_mud: 1 for mud, 0 for water.

    Example:
        >>> x = torch.ones(2, 3, 16, 16)
        >>> spatter(x, torch.Generator(), 0.65, 0.1, 0.5, 0.68, 0.6, 1).mean() < 1
        tensor(True)
    """
    batch, _, height, width = x.shape
    liquid = smooth(mean + deviation * normal((batch, 1, height, width), generator, x), size)
    if is_mud:
        drops = smooth((liquid > least).to(x), strength)
        drops = torch.where(drops < 0.8, 0, drops)
        return x * (1 - drops) + drops * coloured(MUD, x)
    drops = torch.where(liquid < least, 0, liquid)
    largest = drops.amax((1, 2, 3), keepdim=True)
    return x + strength * drops / torch.where(largest > 0, largest, 1) * coloured(WATER, x)
