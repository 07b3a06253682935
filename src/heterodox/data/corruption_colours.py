"""Brightness, contrast and saturation.

The first and the last act on value and saturation of a pixel's hue, saturation and value (HSV):
value is the largest of red, green and blue, saturation is 1 − smallest / largest. Both can be
changed without computing the hue, since at one hue colours lie on rays through black and through
the grey of their value.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "batch channels height width"]


def brightness(x: Images, generator: torch.Generator, more: float) -> Images:
    """The value of every pixel rises by `more`, at most to 1; hue and saturation stay.

    Example:
        >>> pixel = torch.tensor([0.2, 0.4, 0.1]).view(1, 3, 1, 1)
        >>> brightness(pixel, torch.Generator(), 0.2).flatten()
        tensor([0.3000, 0.6000, 0.1500])
    """
    value = x.amax(1, keepdim=True)
    brighter = (value + more).clamp(max=1)
    # Black has no hue, and becomes grey.
    return torch.where(value > 0, x * (brighter / torch.where(value > 0, value, 1)), brighter)


def contrast(x: Images, generator: torch.Generator, factor: float) -> Images:
    """Differences from the mean of each image's channel shrink to `factor` of what they were.

    Example:
        >>> contrast(torch.tensor([[[[0.0, 1.0]]]]), torch.Generator(), 0.5)
        tensor([[[[0.2500, 0.7500]]]])
    """
    return x.mean((2, 3), keepdim=True).lerp(x, factor)


def saturate(x: Images, generator: torch.Generator, factor: float, more: float) -> Images:
    """Saturation s becomes s · factor + more, in [0, 1]; hue and value stay. The hue of grey is red
    here, as in the original; an image of one channel has no saturation and stays as it is.

    Example:
        >>> pixel = torch.tensor([0.2, 0.4, 0.3]).view(1, 3, 1, 1)
        >>> saturate(pixel, torch.Generator(), 2.0, 0.0).flatten()
        tensor([0.0000, 0.4000, 0.2000])
    """
    if x.shape[1] == 1:
        return x
    value = x.amax(1, keepdim=True)
    spread = value - x.amin(1, keepdim=True)
    saturation = spread / torch.where(value > 0, value, 1)
    wanted = (saturation * factor + more).clamp(0, 1)
    # How far each channel is below the value, as a share of the lowest one's distance.
    share = (value - x) / torch.where(spread > 0, spread, 1)
    red = torch.tensor([0.0, 1.0, 1.0], dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    return value - value * wanted * torch.where(spread > 0, share, red)
