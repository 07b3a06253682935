"""Noise in single pixels: Gaussian, Poisson ("shot"), salt and pepper ("impulse"), and speckle."""

import torch
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "batch channels height width"]


def normal(shape: torch.Size | tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal numbers, drawn where the generator is, with the dtype and device of `like`.

    Example:
        >>> normal((2, 3), torch.Generator().manual_seed(0), torch.zeros(1)).shape
        torch.Size([2, 3])
    """
    return torch.randn(shape, generator=generator, device=generator.device).to(like)


def uniform(
    shape: torch.Size | tuple[int, ...], generator: torch.Generator, like: Tensor
) -> Tensor:
    """Numbers in [0, 1), drawn where the generator is, with the dtype and device of `like`.

    Example:
        >>> uniform((2, 3), torch.Generator().manual_seed(0), torch.zeros(1)).shape
        torch.Size([2, 3])
    """
    return torch.rand(shape, generator=generator, device=generator.device).to(like)


def gaussian_noise(x: Images, generator: torch.Generator, deviation: float) -> Images:
    """x + σ n.

    Example:
        >>> x = torch.full((1, 1, 99, 99), 0.5)
        >>> gaussian_noise(x, torch.Generator().manual_seed(0), 0.1).std().round(decimals=2)
        tensor(0.1000)
    """
    return x + deviation * normal(x.shape, generator, x)


def shot_noise(x: Images, generator: torch.Generator, photons: float) -> Images:
    """Poisson(c x) / c: a white pixel counts c photons.

    Example:
        >>> shot_noise(torch.zeros(1, 1, 2, 2), torch.Generator(), 50.0)
        tensor([[[[0., 0.],
                  [0., 0.]]]])
    """
    counts = torch.poisson((photons * x).to(generator.device), generator)
    return counts.to(x) / photons


def impulse_noise(x: Images, generator: torch.Generator, share: float) -> Images:
    """A share of the values becomes 0 or 1, each as often as the other.

    Example:
        >>> noisy = impulse_noise(torch.full((1, 1, 99, 99), 0.5), torch.Generator(), 0.07)
        >>> (noisy != 0.5).float().mean().round(decimals=2)
        tensor(0.0700)
    """
    chance = uniform(x.shape, generator, x)
    return torch.where(chance < share, (chance < share / 2).to(x), x)


def speckle_noise(x: Images, generator: torch.Generator, deviation: float) -> Images:
    """x + σ x n.

    Example:
        >>> speckle_noise(torch.zeros(1, 1, 1, 2), torch.Generator(), 0.2)
        tensor([[[[0., 0.]]]])
    """
    return x + deviation * x * normal(x.shape, generator, x)
