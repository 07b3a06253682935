"""Reading WAV files: PCM with the standard library, what else there is with soundfile.

Samples become numbers in [-1, 1): an integer of b bits is divided by 2^(b - 1).
"""

import io
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from heterodox.data.errors import DataError


@dataclass(frozen=True)
class Recording:
    """Sound in time.

    Attributes:
        samples: one row a channel, in [-1, 1).
        sample_rate: samples a second.
    """

    samples: Float32[Tensor, "channels time"]
    sample_rate: int

    @property
    def mono(self) -> Float32[Tensor, " time"]:
        """The mean over channels."""
        return self.samples.mean(0)


def read_wav(file: str | Path | bytes) -> Recording:
    """A recording from a file, or from its bytes.

    Args:
        file: WAV with integer samples of 8, 16, 24 or 32 bits; with soundfile installed also WAV
            with floating samples, FLAC and OGG.

    Raises:
        ValueError: there is no such file.
        DataError: it is damaged, empty, or of a kind that cannot be read.
        ImportError: soundfile is needed and not installed.

    Example:
        >>> stream = io.BytesIO()
        >>> with wave.open(stream, "wb") as writer:
        ...     writer.setparams((1, 2, 8000, 0, "NONE", ""))
        ...     writer.writeframes(np.array([0, 16384, -32768], dtype="<i2").tobytes())
        >>> recording = read_wav(stream.getvalue())
        >>> recording.mono.tolist(), recording.sample_rate
        ([0.0, 0.5, -1.0], 8000)
    """
    name = "recording" if isinstance(file, bytes) else str(file)
    if isinstance(file, bytes):
        content = file
    elif Path(file).is_file():
        content = Path(file).read_bytes()
    else:
        raise ValueError(f"file: {name!r} given, an existing file expected")
    try:
        with wave.open(io.BytesIO(content)) as reader:
            channels, width, rate, frames = reader.getparams()[:4]
            samples = _numbers(reader.readframes(frames), width)
    except (wave.Error, EOFError) as error:
        samples, rate, channels = _by_soundfile(content, name, error)
    if not samples.size or samples.size % channels:
        raise DataError(f"{name}: damaged or empty, {samples.size} samples of {channels} channels")
    return Recording(torch.from_numpy(samples.reshape(-1, channels).T.copy()), rate)


def _numbers(content: bytes, width: int) -> np.ndarray:
    """Interleaved samples of `width` bytes; 8 bits are unsigned, more are signed."""
    content = content[: len(content) // width * width]
    if width == 1:
        return (np.frombuffer(content, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:  # as the upper bytes of 32 bits
        low = np.frombuffer(content, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(low), 4), np.uint8)
        wide[:, 1:] = low
        content, width = wide.tobytes(), 4
    integers = np.frombuffer(content, f"<i{width}")
    return (integers / float(2 ** (8 * width - 1))).astype(np.float32)


def _by_soundfile(content: bytes, name: str, reason: Exception) -> tuple[np.ndarray, int, int]:
    riff_with_floats = content[:4] == b"RIFF" and "unknown format" in str(reason)
    if not riff_with_floats and content[:4] not in (b"fLaC", b"OggS"):
        raise DataError(f"{name}: no WAV file that can be read ({reason})") from reason
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(
            f"file: {name} is no integer PCM, for which soundfile is needed, "
            'pip install "heterodox[audio]"'
        ) from error
    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (RuntimeError, TypeError) as error:
        raise DataError(f"{name}: cannot be read ({error})") from error
    return samples.reshape(-1), rate, samples.shape[1]
