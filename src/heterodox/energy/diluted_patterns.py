"""Patterns with blank entries, noisy examples of them, and how much a set of examples says.

    P(ξ = ±1) = (1 − d) / 2,  P(ξ = 0) = d        η^a = ξ χ^a,  P(χ = 1) = (1 + r) / 2,  a = 1..M
    𝓡 = r² + (1 − r²) / M = r² (1 + ρ),   ρ = (1 − r²) / (M r²)  the dataset entropy

Agliari, Alessandrelli, Barra and Ricci-Tersenghi, "Parallel Learning by Multitasking Neural
Networks", J. Stat. Mech. 2023, arXiv 2308.04106. 𝓡 is the second moment of the mean of χ over the
examples. A noisy mean keeps the sign of its pattern with confidence Θ while 1 / √(2ρ) > Θ.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def sample_patterns(
    num_patterns: int,
    size: int,
    dilution: float,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "patterns size"]:
    """Independent patterns of −1, 0 and 1.

    Args:
        num_patterns: K.
        size: N, the number of neurons.
        dilution: d in [0, 1), the probability of a blank entry; 0 gives Hopfield's patterns.
        generator: on `device`; the global one by default.
        dtype, device: of the patterns.

    Raises:
        ValueError: there are no patterns or neurons, or `dilution` is not in [0, 1).

    Example:
        >>> patterns = sample_patterns(2, 10_000, 0.3, generator=torch.Generator().manual_seed(0))
        >>> patterns.unique().tolist(), round(float((patterns == 0).float().mean()), 1)
        ([-1.0, 0.0, 1.0], 0.3)
    """
    check_count("num_patterns", num_patterns)
    check_count("size", size)
    check_dilution(dilution)
    uniform = torch.rand(num_patterns, size, generator=generator, device=device)
    # What is left of the unit interval beyond d is halved between the signs.
    signs = (uniform < (1 + dilution) / 2).to(dtype).mul_(2).sub_(1)
    return signs.masked_fill_(uniform < dilution, 0.0)


def sample_examples(
    patterns: Float[Tensor, "patterns size"],
    num_examples: int,
    quality: float,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "patterns examples size"]:
    """Noisy copies of each pattern: entries keep their sign with probability (1 + r) / 2.

    Args:
        patterns: entries −1, 0 and 1.
        num_examples: M.
        quality: r in (0, 1]; 1 gives exact copies.
        generator: on the device of `patterns`; the global one by default.

    Raises:
        ValueError: an argument is out of range, or an entry none of −1, 0 and 1.

    Example:
        >>> patterns = torch.tensor([[1.0, 0.0, -1.0]])
        >>> sample_examples(patterns, 2, 1.0)
        tensor([[[ 1.,  0., -1.],
                 [ 1.,  0., -1.]]])
    """
    check_entries("patterns", patterns, 2)
    check_count("num_examples", num_examples)
    check_quality(quality)
    shape = (len(patterns), num_examples, patterns.shape[1])
    uniform = torch.rand(shape, generator=generator, device=patterns.device)
    flips = (uniform < (1 + quality) / 2).to(patterns.dtype).mul_(2).sub_(1)
    return flips.mul_(patterns[:, None])


def dataset_normalizer(num_examples: int, quality: float) -> float:
    """𝓡 = r² + (1 − r²) / M.

    Raises:
        ValueError: `num_examples` is below 1, or `quality` not in (0, 1].

    Example:
        >>> dataset_normalizer(1, 0.3), dataset_normalizer(4, 0.5)
        (1.0, 0.4375)
    """
    check_count("num_examples", num_examples)
    check_quality(quality)
    return quality**2 + (1 - quality**2) / num_examples


def dataset_entropy(num_examples: int, quality: float) -> float:
    """ρ = (1 − r²) / (M r²): 0 for perfect knowledge, above 1 for less than the threshold.

    Raises:
        ValueError: `num_examples` is below 1, or `quality` not in (0, 1].

    Example:
        >>> dataset_entropy(3, 0.5), dataset_entropy(7, 1.0)
        (1.0, 0.0)
    """
    check_count("num_examples", num_examples)
    check_quality(quality)
    return (1 - quality**2) / (num_examples * quality**2)


def examples_needed(quality: float, confidence: float = 2**-0.5) -> int:
    """The learning threshold: the fewest examples M ≥ 2 Θ² (1 − r²) / r².

    The same with and without a teacher, and for every dilution.

    Args:
        quality: r in (0, 1].
        confidence: Θ. At 1/√2, the paper's choice, ρ is 1, and a field keeps its sign with
            probability 0.84.

    Raises:
        ValueError: `quality` is not in (0, 1], or `confidence` not positive.

    Example:
        >>> [examples_needed(r) for r in (0.1, 0.2, 0.3, 1.0)]
        [99, 24, 11, 1]
    """
    check_quality(quality)
    if not 0 < confidence < math.inf:
        raise ValueError(f"confidence: {confidence} given, a positive number expected")
    needed = 2 * confidence**2 * (1 - quality**2) / quality**2
    # A share of 1e-9 is rounding: 0.99 / 0.01 must not be 100.
    return max(1, math.ceil(needed * (1 - 1e-9)))


def estimate_normalizer(examples: Float[Tensor, "patterns examples size"]) -> float:
    """𝓡 of examples whose quality is not known: the mean of η̄² where entries are not blank.

    Raises:
        ValueError: an entry is none of −1, 0 and 1, or all are 0.

    Example:
        >>> estimate_normalizer(torch.tensor([[[1.0, 0.0, 1.0], [1.0, 0.0, -1.0]]]))
        0.5
    """
    check_entries("examples", examples, 3)
    present = (examples != 0).any(1)
    if not bool(present.any()):
        raise ValueError("examples: only blank entries given, some of -1 or 1 expected")
    return float(examples.mean(1, dtype=torch.float64).square()[present].mean())


def estimate_quality(examples: Float[Tensor, "patterns examples size"]) -> float:
    """r of examples: r² = (𝓡 M − 1) / (M − 1), and 0 if they agree less than by chance.

    Raises:
        ValueError: fewer than two examples, or as `estimate_normalizer`.

    Example:
        >>> estimate_quality(torch.ones(1, 5, 3))
        1.0
    """
    check_entries("examples", examples, 3)
    count = examples.shape[1]
    if count < 2:
        raise ValueError(f"examples: {count} of a pattern given, at least 2 expected")
    squared = (estimate_normalizer(examples) * count - 1) / (count - 1)
    return math.sqrt(max(squared, 0.0))


def check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name}: {count} given, at least 1 expected")


def check_dilution(dilution: float) -> None:
    if not 0 <= dilution < 1:
        raise ValueError(f"dilution: {dilution} given, a number in [0, 1) expected")


def check_quality(quality: float) -> None:
    if not 0 < quality <= 1:
        raise ValueError(f"quality: {quality} given, a number in (0, 1] expected")


def check_entries(name: str, x: Tensor, axes: int) -> None:
    """Raises ValueError unless x has `axes` axes, none of them empty, and entries −1, 0 and 1."""
    if x.ndim != axes or x.numel() == 0:
        shape = "(patterns, size)" if axes == 2 else "(patterns, examples, size)"
        raise ValueError(f"{name}: shape {tuple(x.shape)} given, {shape} without zeros expected")
    if x.device.type != "meta" and not bool(((x == 0) | (x.abs() == 1)).all()):
        raise ValueError(f"{name}: other numbers given, entries -1, 0 and 1 expected")
