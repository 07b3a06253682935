"""Spikes from numbers, from sound, and made up: what spiking networks are given.

Spikes have the time first: (time, batch, ...), as `heterodox.layers.spiking` takes them.
"""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from heterodox.data import cochlea
from heterodox.data.local import cache_folder
from heterodox.data.speech import SpeechData, load_speech

GAIN_CLIPS = 128  # training clips, spread over the set, that the gain is measured on


@dataclass(frozen=True)
class SpikeData:
    """Counts of spikes in steps of time, with classes, cut into training and test set.

    Attributes:
        name: of the dataset.
        train_counts, test_counts: spikes of each channel in each step.
        train_labels, test_labels: indices into `class_names`.
        class_names: what the labels stand for.
    """

    name: str
    train_counts: UInt8[Tensor, "time train channels"]
    train_labels: Int64[Tensor, " train"]
    test_counts: UInt8[Tensor, "time test channels"]
    test_labels: Int64[Tensor, " test"]
    class_names: tuple[str, ...]


def rate_code(
    x: Float[Tensor, "..."], steps: int, generator: torch.Generator
) -> Float[Tensor, "{steps} ..."]:
    """Spikes at random, independent from step to step, with probability x.

    Args:
        x: in [0, 1].
        steps: how many.
        generator: on the device of x.

    Raises:
        ValueError: `steps` is negative, or numbers are outside of [0, 1].

    Example:
        >>> spikes = rate_code(torch.tensor([0.0, 0.5, 1.0]), 100, torch.Generator().manual_seed(0))
        >>> spikes.mean(0)
        tensor([0.0000, 0.5600, 1.0000])
    """
    _check_code(x, steps)
    draws = torch.rand((steps, *x.shape), generator=generator, device=x.device, dtype=x.dtype)
    return (draws < x).to(x.dtype)


def latency_code(x: Float[Tensor, "..."], steps: int) -> Float[Tensor, "{steps} ..."]:
    """One spike for each number, the earlier the larger it is; none for 0.

    1 spikes in the first step, and what is just above 0 in the last.

    Raises:
        ValueError: `steps` is negative, or numbers are outside of [0, 1].

    Example:
        >>> latency_code(torch.tensor([1.0, 0.5, 0.0]), 3)
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 0.]])
    """
    _check_code(x, steps)
    at = ((1 - x) * steps).floor().clamp(max=steps - 1)
    time = torch.arange(steps, device=x.device, dtype=x.dtype)
    return ((time.view(-1, *(1,) * x.ndim) == at) & (x > 0)).to(x.dtype)


def timing_patterns(
    count: int,
    *,
    classes: int = 4,
    channels: int = 8,
    steps: int = 20,
    spread: int = 10,
    noise: float = 0.02,
    seed: int = 0,
) -> SpikeData:
    """A made-up set whose classes differ in nothing but when channels spike.

    Every channel spikes once in every example; a class is an order of these spikes within `spread`
    steps, its own for every channel. A pattern starts at a random step, spikes are moved by up to
    one step, and noise adds others. Counts by channel say nothing about the class.

    Args:
        count: training examples; a quarter as many for testing. The classes take turns.
        classes, channels, steps: sizes.
        spread: steps that a pattern takes.
        noise: probability of another spike in each step and channel.
        seed: decides all.

    Raises:
        ValueError: a size is below 1, `spread` is not between 1 and `steps`, or `noise` is not in
            [0, 1).

    Example:
        >>> data = timing_patterns(100, noise=0.0)
        >>> data.train_counts.shape, data.train_counts.sum(0).unique().tolist()
        (torch.Size([20, 100, 8]), [1])
    """
    sizes = {"count": count, "classes": classes, "channels": channels, "steps": steps}
    for name, given in sizes.items():
        if given < 1:
            raise ValueError(f"{name}: {given} given, at least 1 expected")
    if not 1 <= spread <= steps:
        raise ValueError(f"spread: {spread} given, 1 to {steps} steps expected")
    if not 0 <= noise < 1:
        raise ValueError(f"noise: {noise} given, a probability in [0, 1) expected")
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randint(spread, (classes, channels), generator=generator)

    def examples(number: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(number) % classes
        start = torch.randint(steps - spread + 1, (number, 1), generator=generator)
        moved = torch.randint(-1, 2, (number, channels), generator=generator)
        at = (patterns[labels] + start + moved).clamp(0, steps - 1)
        counts = torch.zeros(steps, number, channels, dtype=torch.uint8)
        counts.scatter_(0, at[None], 1)
        others = torch.rand(counts.shape, generator=generator) < noise
        return counts | others, labels

    train, test = examples(count), examples(max(1, count // 4))
    names = tuple(f"pattern {c}" for c in range(classes))
    return SpikeData("timing-patterns", *train, *test, names)


def spoken_spikes(
    data: str | Path | SpeechData, *, seconds: float = 0.6, channels: int = 64, step: float = 0.010
) -> SpikeData:
    """Recordings as a cochlea's counts of spikes, see `heterodox.data.cochlea.cochlea_spikes`.

    The gain is measured on training recordings. Counts of a named dataset are kept in the cache.

    Args:
        data: see `load_speech`; or recordings already loaded.
        seconds: length of the recordings, see `load_speech`.
        channels, step: of the cochlea.

    Raises:
        ValueError, DataError, ImportError: as `load_speech` and `cochlea_spikes`.

    Example:
        >>> sound, labels = torch.rand(4, 800) - 0.5, torch.tensor([0, 0, 1, 1])
        >>> speech = SpeechData("noise", 8000, sound, labels, sound[:1], labels[:1], ("a", "b"))
        >>> spoken_spikes(speech, channels=16).train_counts.shape
        torch.Size([10, 4, 16])
    """
    speech = data if isinstance(data, SpeechData) else load_speech(data, seconds=seconds)
    cached = None
    if not isinstance(data, SpeechData):
        cached = cache_folder() / "spikes" / f"{_key(speech, channels, step)}.npz"
    if cached is not None and cached.is_file():
        with np.load(cached) as arrays:
            train, test = (torch.from_numpy(arrays[part]) for part in ("train", "test"))
    else:
        train, test = _encode(speech, channels, step)
        if cached is not None:
            _keep(cached, train, test)
    return SpikeData(
        speech.name, train, speech.train_labels, test, speech.test_labels, speech.class_names
    )


def _encode(speech: SpeechData, channels: int, step: float) -> tuple[Tensor, Tensor]:
    stride = max(1, len(speech.train_waveforms) // GAIN_CLIPS)
    gain = cochlea.cochlea_gain(
        speech.train_waveforms[::stride], speech.sample_rate, channels=channels
    )

    def counts(waveforms: Tensor) -> Tensor:
        spikes = cochlea.cochlea_spikes(
            waveforms, speech.sample_rate, channels=channels, step=step, gain=gain
        )
        return spikes.clamp(max=255).to(torch.uint8)

    return counts(speech.train_waveforms), counts(speech.test_waveforms)


def _key(speech: SpeechData, channels: int, step: float) -> str:
    """What counts depend on: the recordings, the settings, and the code of the cochlea."""
    digest = hashlib.sha256(Path(__file__).with_name("cochlea.py").read_bytes())
    digest.update(f"{speech.sample_rate} {channels} {step} {GAIN_CLIPS}".encode())
    for waveforms in (speech.train_waveforms, speech.test_waveforms):
        digest.update(f"{tuple(waveforms.shape)}".encode())
        digest.update(waveforms.numpy().tobytes())
    return digest.hexdigest()[:32]


def _keep(path: Path, train: Tensor, test: Tensor) -> None:
    """Into the cache, at once; a cache that cannot be written is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".npz")
        with os.fdopen(handle, "wb") as stream:
            np.savez_compressed(stream, train=train.numpy(), test=test.numpy())
        os.replace(temporary, path)
    except OSError:
        return


def _check_code(x: Tensor, steps: int) -> None:
    if steps < 0:
        raise ValueError(f"steps: {steps} given, a number that is not negative expected")
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError("x: numbers outside of [0, 1] given, numbers in it expected")
