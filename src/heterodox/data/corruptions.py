"""Corruptions of images: 15 kinds at 5 severities, and four more that are meant for tuning.

Kinds and constants are those of CIFAR-10-C (Hendrycks and Dietterich, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations", ICLR 2019, arXiv 1903.12261), which are chosen
for images of 32 x 32 pixels. They are computed here from the definitions, in torch, for a whole
batch and on its device, without the image libraries that the original needs. What differs:

- pixels stay real numbers; the original cuts them to 8 bits after every corruption;
- frost is a fractal ice texture, as there are no photographs of frost;
- spatter of water has no bright rims;
- glass blur exchanges pixels, where the original, by an oversight, copies them;
- grey images stay grey: what only changes a colour leaves them alone.
"""

import difflib
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from heterodox.data.corruption_blurs import (
    defocus_blur,
    gaussian_blur,
    glass_blur,
    motion_blur,
    zoom_blur,
)
from heterodox.data.corruption_colours import brightness, contrast, saturate
from heterodox.data.corruption_jpeg import jpeg
from heterodox.data.corruption_noise import (
    gaussian_noise,
    impulse_noise,
    shot_noise,
    speckle_noise,
)
from heterodox.data.corruption_warps import elastic_transform, pixelate
from heterodox.data.corruption_weather import fog, frost, snow, spatter

Corruption = Callable[..., Tensor]
"""`(images, generator, *constants of the severity) -> images`"""

# Smaller images have no room for a blur or a warp.
SMALLEST = 8

# Kind -> the function, and what it is given at severities 1 to 5.
_KINDS: dict[str, tuple[Corruption, tuple[tuple[float, ...], ...]]] = {
    "gaussian_noise": (gaussian_noise, ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))),
    "shot_noise": (shot_noise, ((500.0,), (250.0,), (100.0,), (75.0,), (50.0,))),
    "impulse_noise": (impulse_noise, ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))),
    "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))),
    "glass_blur": (
        glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "motion_blur": (motion_blur, ((6.0, 1.0), (6.0, 1.5), (6.0, 2.0), (8.0, 2.0), (9.0, 2.5))),
    # The last zooms of numpy.arange(1, 1.06, 0.01), ..., numpy.arange(1, 1.26, 0.01).
    "zoom_blur": (zoom_blur, ((1.06,), (1.11,), (1.15,), (1.2,), (1.25,))),
    "snow": (
        snow,
        (
            (0.1, 0.2, 1.0, 0.6, 8.0, 3.0, 0.95),
            (0.1, 0.2, 1.0, 0.5, 10.0, 4.0, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10.0, 4.0, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12.0, 6.0, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14.0, 12.0, 0.8),
        ),
    ),
    "frost": (frost, ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (fog, ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))),
    "brightness": (brightness, ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))),
    "contrast": (contrast, ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))),
    "elastic_transform": (
        elastic_transform,
        (
            (0.0, 0.0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
    ),
    "pixelate": (pixelate, ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))),
    "jpeg_compression": (jpeg, ((80,), (65,), (58,), (50,), (40,))),
    "speckle_noise": (speckle_noise, ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,))),
    "gaussian_blur": (gaussian_blur, ((0.4,), (0.6,), (0.7,), (0.8,), (1.0,))),
    "spatter": (
        spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1.0, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
    ),
    "saturate": (saturate, ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))),
}

CORRUPTIONS = tuple(_KINDS)[:15]
"""The kinds that an error is averaged over."""

TUNING_CORRUPTIONS = tuple(_KINDS)[15:]
"""The kinds that choices are made on, so that the others decide nothing but the result."""


@torch.no_grad()
def corrupt(
    images: Float[Tensor, "batch channels height width"],
    kind: str,
    severity: int,
    *,
    generator: torch.Generator,
) -> Float[Tensor, "batch channels height width"]:
    """The images with a corruption, each with random numbers of its own, in [0, 1].

    Half precision is computed in float32.

    Args:
        images: in [0, 1], grey (one channel) or red, green and blue, at least 8 x 8 pixels.
        kind: one of `CORRUPTIONS` or `TUNING_CORRUPTIONS`.
        severity: 1 to 5.
        generator: on any device; the same numbers on the CPU give the same images.

    Raises:
        ValueError: an unknown kind or severity, images that are too small, not of 1 or 3 channels,
            or not floating-point numbers in [0, 1].

    Example:
        >>> images = torch.rand(2, 3, 32, 32)
        >>> generator = torch.Generator().manual_seed(0)
        >>> corrupt(images, "fog", 5, generator=generator).shape
        torch.Size([2, 3, 32, 32])
    """
    if kind not in _KINDS:
        near = difflib.get_close_matches(str(kind), _KINDS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"kind: {kind!r} given, one of {', '.join(_KINDS)} expected{hint}")
    if isinstance(severity, float) or severity not in range(1, 6):
        raise ValueError(f"severity: {severity!r} given, 1, 2, 3, 4 or 5 expected")
    _check(images)
    if images.numel() == 0:
        return images.clone()
    function, constants = _KINDS[kind]
    x = images.to(torch.promote_types(images.dtype, torch.float32))
    return function(x, generator, *constants[severity - 1]).clamp(0, 1).to(images.dtype)


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < SMALLEST:
        raise ValueError(
            f"images: shape {tuple(images.shape)} given, (batch, 1 or 3 channels, height, width) "
            f"of at least {SMALLEST} x {SMALLEST} expected"
        )
    if not images.is_floating_point():
        raise ValueError(f"images: {images.dtype} given, floating-point numbers in [0, 1] expected")
    if images.numel() and not images.is_meta:
        low, high = (float(value) for value in images.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"images: values {low:g} to {high:g} given, in [0, 1] expected")
