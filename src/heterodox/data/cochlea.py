"""A cochlea for recordings: sound to counts of spikes, channel by channel.

    c_f(t)   = max(0, (h_f * x)(t))^0.3              the hair cell of the channel at frequency f
    v(t)     = e^{-1/(τ r)} v(t - 1) + gain · c_f(t) / r,   τ = 2 ms, r samples a second
    a spike  where v(t) ≥ 1, then v(t) - 1;          counts of spikes per step of 10 ms

with h_f gammatone filters of order 4, h(t) ∝ t³ e^{-2π b t} cos(2π f t), b = 1.019 ERB(f), spaced
evenly in numbers of ERB (Glasberg and Moore 1990), each of gain 1 at its own frequency. It stands
for the inner-ear model of the Heidelberg spiking data sets (Cramer et al. 2020, arXiv 1910.07407),
of which it keeps filters, rectification, compression and spiking neurons, and no more.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

ORDER = 4
COMPRESSION = 0.3
MEMBRANE = 0.002  # seconds
IMPULSE_RESPONSE = 0.128  # seconds, after which the lowest filter has decayed by 60 dB
RATE = 40.0  # spikes a second and channel that a gain is chosen for

CLIPS_AT_ONCE = 64


def erb_frequencies(channels: int, low: float, high: float) -> Float[Tensor, " {channels}"]:
    """Centre frequencies [Hz] from `low` to `high`, at equal distances in numbers of ERB.

    Example:
        >>> [round(f) for f in erb_frequencies(4, 80.0, 3800.0).tolist()]
        [80, 498, 1483, 3800]
    """
    ends = torch.tensor([low, high], dtype=torch.float64)
    first, last = (21.4 * torch.log10(1 + 0.00437 * ends)).tolist()
    numbers = torch.linspace(first, last, channels, dtype=torch.float64)
    return (10 ** (numbers / 21.4) - 1) / 0.00437


def gammatone_filters(
    frequencies: Float[Tensor, " channels"], sample_rate: int
) -> Float[Tensor, "channels taps"]:
    """Impulse responses h_f of gammatone filters of order 4, with gain 1 at their frequency."""
    f = frequencies.double()[:, None]
    t = torch.arange(round(IMPULSE_RESPONSE * sample_rate), dtype=torch.float64) / sample_rate
    bandwidth = 1.019 * 24.7 * (0.00437 * f + 1)
    response = t ** (ORDER - 1) * (-2 * math.pi * bandwidth * t).exp()
    response = response * (2 * math.pi * f * t).cos()
    at_centre = response * torch.exp(-2j * math.pi * f * t)
    return response / at_centre.sum(-1, keepdim=True).abs()


def hair_cells(
    waveform: Float[Tensor, "batch samples"],
    sample_rate: int,
    *,
    channels: int = 64,
    low: float = 80.0,
    high: float | None = None,
) -> Float[Tensor, "batch channels samples"]:
    """c: filtered, half-wave rectified and compressed sound.

    Args and errors as for `cochlea_spikes`.

    Example:
        >>> tone = torch.sin(2 * torch.pi * 1000 * torch.arange(800) / 8000)[None]
        >>> hair_cells(tone, 8000, channels=5).shape
        torch.Size([1, 5, 800])
    """
    high = _checked_high(waveform, sample_rate, channels, low, high)
    filters = gammatone_filters(erb_frequencies(channels, low, high), sample_rate)
    # No Fourier transform in half precision.
    waveform = waveform.to(torch.promote_types(waveform.dtype, torch.float32))
    filters = filters.to(waveform)
    samples = waveform.shape[1]
    points = 1 << max(0, samples + filters.shape[1] - 2).bit_length()
    spectrum = torch.fft.rfft(waveform, n=points)[:, None] * torch.fft.rfft(filters, n=points)
    sound = torch.fft.irfft(spectrum, n=points)[..., :samples]
    return sound.clamp(min=0).pow(COMPRESSION)


def cochlea_gain(
    waveform: Float[Tensor, "batch samples"],
    sample_rate: int,
    *,
    channels: int = 64,
    low: float = 80.0,
    high: float | None = None,
    rate: float = RATE,
) -> float:
    """The gain with which these recordings make channels spike `rate` times a second in the mean.

    It is measured on training data and then used for all others. For silence it is 1.

    Args:
        rate: spikes a second and channel; others as for `cochlea_spikes`.

    Raises:
        ValueError: as `cochlea_spikes`, or `rate` is not positive.

    Example:
        >>> tone = torch.sin(2 * torch.pi * 1000 * torch.arange(800) / 8000)[None]
        >>> loud = cochlea_gain(tone, 8000, channels=5)
        >>> cochlea_gain(0.1 * tone, 8000, channels=5) > loud
        True
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"rate: {rate} given, a positive number expected")
    _checked_high(waveform, sample_rate, channels, low, high)
    if not waveform.any():
        return 1.0
    cells = hair_cells(waveform, sample_rate, channels=channels, low=low, high=high)
    seconds = cells.shape[0] * channels * cells.shape[2] / sample_rate
    below, above = 1.0, 1.0
    while _spikes(cells, sample_rate, above).sum() < rate * seconds and above < 2.0**40:
        below, above = above, 4 * above
    for _ in range(12):  # to a thousandth of the gain
        middle = math.sqrt(below * above)
        if _spikes(cells, sample_rate, middle).sum() < rate * seconds:
            below = middle
        else:
            above = middle
    return above


def cochlea_spikes(
    waveform: Float[Tensor, "batch samples"],
    sample_rate: int,
    *,
    channels: int = 64,
    step: float = 0.010,
    low: float = 80.0,
    high: float | None = None,
    gain: float | None = None,
) -> Float[Tensor, "time batch {channels}"]:
    """Counts of spikes of each channel in each step; a last step that is incomplete is left out.

    Args:
        waveform: recordings of equal length, one a row.
        sample_rate: samples a second.
        channels: filters from `low` to `high`.
        step: length of a time step in seconds; 10 ms in arXiv 2306.17670.
        low, high: lowest and highest centre frequency [Hz]; `high` is 0.475 of the sample rate by
            default, 3.8 kHz at 8 kHz.
        gain: from the hair cells to the neurons. By default that of `cochlea_gain` for the
            recordings given, which then decide on each other's spikes; pass that of the training
            data otherwise.

    Raises:
        ValueError: `waveform` is not (batch, samples), is not finite, or is shorter than a step;
            `channels` is below 1; frequencies are not 0 < low < high <= sample_rate / 2; `step` is
            shorter than a sample; `gain` is not positive.

    Example:
        >>> tone = torch.sin(2 * torch.pi * 1000 * torch.arange(800) / 8000)[None]
        >>> counts = cochlea_spikes(tone, 8000, channels=5)
        >>> counts.shape, counts.sum((0, 1)).argmax().item()  # 0.1 s; the channel at about 900 Hz
        (torch.Size([10, 1, 5]), 2)
    """
    _checked_high(waveform, sample_rate, channels, low, high)
    if not step * sample_rate >= 1:
        raise ValueError(f"step: {step} s given, at least one sample expected")
    if waveform.shape[1] < round(step * sample_rate):
        raise ValueError(
            f"waveform: {waveform.shape[1]} samples given, at least the "
            f"{round(step * sample_rate)} of a step expected"
        )
    if gain is not None and not 0 < gain < math.inf:
        raise ValueError(f"gain: {gain} given, a positive number expected")
    where = {"channels": channels, "low": low, "high": high}
    if gain is None:
        gain = cochlea_gain(waveform, sample_rate, **where)  # type: ignore[arg-type]
    per_step = round(step * sample_rate)
    steps = waveform.shape[1] // per_step
    counts = waveform.new_zeros(steps, len(waveform), channels)
    for first in range(0, len(waveform), CLIPS_AT_ONCE):
        clips = waveform[first : first + CLIPS_AT_ONCE]
        cells = hair_cells(clips, sample_rate, **where)  # type: ignore[arg-type]
        spikes = _spikes(cells[..., : steps * per_step], sample_rate, gain)
        counts[:, first : first + CLIPS_AT_ONCE] = spikes.unflatten(0, (steps, per_step)).sum(1)
    return counts


def _spikes(
    cells: Float[Tensor, "batch channels samples"], sample_rate: int, gain: float
) -> Float[Tensor, "samples batch channels"]:
    """Where leaky neurons, driven by the hair cells, spike; at most once a sample."""
    drive = cells.permute(2, 0, 1).contiguous() * (gain / sample_rate)
    decay = math.exp(-1 / (MEMBRANE * sample_rate))
    v = torch.zeros_like(cells[..., 0])
    spikes = torch.empty_like(drive)
    for row, fired in zip(drive, spikes, strict=True):
        v = torch.add(row, v, alpha=decay)
        torch.ge(v, 1.0, out=fired)
        v = v - fired
    return spikes


def _checked_high(
    waveform: Tensor, sample_rate: int, channels: int, low: float, high: float | None
) -> float:
    """The highest frequency, after a check of what all functions here are given."""
    if waveform.ndim != 2:
        raise ValueError(
            f"waveform: shape {tuple(waveform.shape)} given, (batch, samples) expected"
        )
    if not waveform.isfinite().all():
        raise ValueError("waveform: numbers that are not finite given, finite ones expected")
    if sample_rate < 1:
        raise ValueError(f"sample_rate: {sample_rate} given, a positive number expected")
    if channels < 1:
        raise ValueError(f"channels: {channels} given, at least 1 expected")
    highest = 0.475 * sample_rate if high is None else high
    if not 0 < low < highest <= sample_rate / 2:
        name = "low" if high is None or not 0 < low < sample_rate / 2 else "high"
        given = low if name == "low" else high
        raise ValueError(
            f"{name}: {given} Hz given, 0 < low < high <= {sample_rate / 2:g} Hz expected"
        )
    return highest
