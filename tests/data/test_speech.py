"""Recordings from files and folders, the cochlea against filters of SciPy, and codes of spikes."""

import io
import math
import wave
import zipfile

import numpy as np
import pytest
import torch
from scipy import signal

from heterodox.data import DataError, speech, spikes
from heterodox.data.cochlea import (
    cochlea_gain,
    cochlea_spikes,
    erb_frequencies,
    gammatone_filters,
    hair_cells,
)
from heterodox.data.speech import load_speech
from heterodox.data.spikes import latency_code, rate_code, spoken_spikes, timing_patterns
from heterodox.data.wav import read_wav

RATE = 8000


def wav_bytes(samples: np.ndarray, width: int = 2, channels: int = 1, rate: int = RATE) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as writer:
        writer.setparams((channels, width, rate, 0, "NONE", ""))
        writer.writeframes(samples.tobytes())
    return stream.getvalue()


def tone(frequency: float, seconds: float = 0.2, size: float = 0.5) -> np.ndarray:
    t = np.arange(int(seconds * RATE)) / RATE
    return (size * np.sin(2 * np.pi * frequency * t) * 2**15).astype("<i2")


@pytest.fixture
def folder(tmp_path):
    """Ten recordings of each of two tones."""
    words = tmp_path / "words"
    for name, frequency in (("high", 2000), ("low", 200)):
        (words / name).mkdir(parents=True)
        for number in range(10):
            samples = tone(frequency + 5 * number, 0.1 + 0.02 * number)
            (words / name / f"{number}.wav").write_bytes(wav_bytes(samples))
    return words


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_of_integers_is_read(width):
    values = np.array([-1.0, -0.5, 0.0, 0.25, 0.5])
    integers = (values * 2 ** (8 * width - 1)).astype(np.int64)
    if width == 1:
        samples = (integers + 128).astype(np.uint8)
    elif width == 3:
        samples = np.stack([integers >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
    else:
        samples = integers.astype(f"<i{width}")
    recording = read_wav(wav_bytes(samples, width))
    assert recording.sample_rate == RATE
    assert recording.mono.tolist() == values.tolist()


def test_channels_are_rows_and_mono_is_their_mean(tmp_path):
    samples = np.array([[16384, 0], [0, -32768], [8192, 8192]], dtype="<i2")
    (tmp_path / "a.wav").write_bytes(wav_bytes(samples, channels=2))
    recording = read_wav(tmp_path / "a.wav")
    assert recording.samples.tolist() == [[0.5, 0.0, 0.25], [0.0, -1.0, 0.25]]
    assert recording.mono.tolist() == [0.25, -0.5, 0.25]


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"not a recording at all", wav_bytes(np.zeros(0, "<i2"))]
)
def test_what_is_no_recording_is_a_data_error(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.wav: "):
        read_wav(tmp_path / "a.wav")


def test_a_missing_file_names_the_argument(tmp_path):
    with pytest.raises(ValueError, match=r"^file: .* expected"):
        read_wav(tmp_path / "none.wav")


def test_a_folder_is_cut_by_the_hash_of_names(folder):
    data = load_speech(folder, seconds=0.2)
    assert data.class_names == ("high", "low") and data.sample_rate == RATE
    assert data.train_waveforms.shape == (16, 1600) and data.test_waveforms.shape == (4, 1600)
    assert data.train_labels.bincount().tolist() == [8, 8]
    assert data.test_labels.bincount().tolist() == [2, 2]
    # Short recordings end in silence, long ones are cut.
    lengths = (data.train_waveforms != 0).int().flip(1).argmax(1)
    assert lengths.max() > 100 and lengths.min() <= 1
    again = load_speech(folder, seconds=0.2)
    assert torch.equal(again.test_waveforms, data.test_waveforms)


def test_the_users_own_cut_is_kept_and_a_class_may_be_missing_from_the_test(folder, tmp_path):
    cut = tmp_path / "cut"
    (cut / "test").mkdir(parents=True)
    (folder / "high").rename(cut / "test" / "high")
    (cut / "train").mkdir()
    for name in ("high", "low"):
        (cut / "train" / name).mkdir()
        (cut / "train" / name / "a.wav").write_bytes(wav_bytes(tone(400)))
    data = load_speech(cut, seconds=0.1)
    assert data.train_labels.tolist() == [0, 1]
    assert data.test_labels.tolist() == 10 * [0]
    (folder / "low").rename(cut / "test" / "other")
    with pytest.raises(ValueError, match=r"^data: class 'other' .* expected"):
        load_speech(cut)


def test_bad_folders_name_the_argument(folder, tmp_path):
    with pytest.raises(ValueError, match=r"^seconds: .* expected"):
        load_speech(folder, seconds=0.0)
    with pytest.raises(ValueError, match=r"^data: .* expected"):
        load_speech("fsd")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "class").mkdir()
    with pytest.raises(ValueError, match=r"^data: 1 folders .* expected"):
        load_speech(tmp_path / "one")
    (tmp_path / "one" / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^data: no recordings .* expected"):
        load_speech(tmp_path / "one")
    (folder / "high" / "other.wav").write_bytes(wav_bytes(tone(300), rate=16000))
    with pytest.raises(ValueError, match=r"^data: sample rates \[8000, 16000\]"):
        load_speech(folder)


def test_spoken_digits_have_the_official_cut(tmp_path, monkeypatch):
    archive = tmp_path / "recordings.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("recordings/notes.txt", "no recording")
        for digit in (0, 7):
            for number in (0, 4, 5, 49):
                file.writestr(f"recordings/{digit}_ann_{number}.wav", wav_bytes(tone(300)))
    monkeypatch.setattr(speech, "fetch", lambda name: {"recordings.zip": archive})
    data = load_speech("fsdd")
    assert data.train_labels.tolist() == data.test_labels.tolist() == [0, 0, 7, 7]
    assert data.class_names[7] == "seven" and data.train_waveforms.shape == (4, 4800)
    archive.write_bytes(b"broken")
    with pytest.raises(DataError, match="damaged"):
        load_speech("fsdd")


def test_filters_are_scipys_gammatones():
    frequencies = erb_frequencies(7, 100.0, 3500.0)
    ours = gammatone_filters(frequencies, RATE)
    for f, response in zip(frequencies.tolist(), ours, strict=True):
        b, _ = signal.gammatone(f, "fir", order=4, numtaps=len(response), fs=RATE)
        gain = abs((b * np.exp(-2j * np.pi * f * np.arange(len(b)) / RATE)).sum())
        # SciPy's bandwidth is 24.7 + 0.108 f, ours 24.7 + 0.1079 f: the same to a thousandth.
        np.testing.assert_allclose(response.numpy(), b / gain, atol=2e-3 * abs(b / gain).max())
        at_centre = response.numpy() * np.exp(-2j * np.pi * f * np.arange(len(b)) / RATE)
        assert abs(at_centre.sum()) == pytest.approx(1)


def test_frequencies_are_evenly_spaced_on_the_ear():
    frequencies = erb_frequencies(64, 80.0, 3800.0)
    numbers = 21.4 * torch.log10(1 + 0.00437 * frequencies)
    torch.testing.assert_close(numbers.diff(), numbers.diff().mean().expand(63))
    assert frequencies[0].item() == pytest.approx(80) and frequencies[-1].item() == pytest.approx(
        3800
    )


def waveforms(*frequencies: float, size: float = 0.5) -> torch.Tensor:
    rows = [torch.from_numpy(tone(f, size=size).astype(np.float32) / 2**15) for f in frequencies]
    return torch.stack(rows)


def test_a_tone_excites_the_channel_of_its_frequency():
    frequencies = erb_frequencies(32, 80.0, 3800.0)
    for channel in (4, 15, 27):
        counts = cochlea_spikes(waveforms(frequencies[channel].item()), RATE, channels=32)
        assert abs(counts.sum((0, 1)).argmax().item() - channel) <= 1


def test_hair_cells_are_a_convolution_rectified_and_compressed():
    x = waveforms(300, 1500).double()
    filters = gammatone_filters(erb_frequencies(3, 80.0, 3800.0), RATE)
    expected = [[np.convolve(row, h)[:1600].clip(0) ** 0.3 for h in filters] for row in x.numpy()]
    found = hair_cells(x, RATE, channels=3)
    # Near 0 the power 0.3 makes rounding errors of 1e-16 large.
    np.testing.assert_allclose(found, np.array(expected), atol=1e-4)


def test_neurons_are_leaky_and_reset_by_subtraction():
    x = waveforms(500)
    counts = cochlea_spikes(x, RATE, channels=4, step=0.01, gain=4000.0)
    cells = hair_cells(x, RATE, channels=4)[0].double().numpy()
    decay, expected = math.exp(-1 / (0.002 * RATE)), np.zeros((20, 4))
    for channel in range(4):
        v = 0.0
        for t in range(1600):
            v = v * decay + 4000.0 / RATE * cells[channel, t]
            if v >= 1:
                v -= 1
                expected[t // 80, channel] += 1
    assert expected.sum() > 50
    assert np.abs(counts[:, 0].numpy() - expected).max() <= 1  # float32 may be a sample late
    assert abs(counts.sum().item() - expected.sum()) <= 2


def test_the_gain_gives_the_rate_that_is_asked_for():
    x = waveforms(200, 700, 1900)
    for rate in (20.0, 40.0, 100.0):
        gain = cochlea_gain(x, RATE, channels=16, rate=rate)
        counts = cochlea_spikes(x, RATE, channels=16, gain=gain)
        assert counts.sum().item() / (3 * 16 * 0.2) == pytest.approx(rate, rel=0.03)
    assert torch.equal(
        cochlea_spikes(x, RATE, channels=16),
        cochlea_spikes(x, RATE, channels=16, gain=cochlea_gain(x, RATE, channels=16)),
    )


def test_with_a_given_gain_a_recording_does_not_depend_on_the_others():
    x = waveforms(200, 700, 1900)
    together = cochlea_spikes(x, RATE, channels=8, gain=4000.0)
    for row in range(3):
        alone = cochlea_spikes(x[row : row + 1], RATE, channels=8, gain=4000.0)
        assert torch.equal(alone[:, 0], together[:, row])


def test_silence_no_recordings_and_half_precision():
    assert not cochlea_spikes(torch.zeros(2, 1600), RATE, channels=4).any()
    assert cochlea_spikes(torch.zeros(0, 1600), RATE, channels=4).shape == (20, 0, 4)
    # An incomplete step at the end is left out.
    assert cochlea_spikes(torch.zeros(1, 1650), RATE, channels=4).shape == (20, 1, 4)
    half = cochlea_spikes(waveforms(500).half(), RATE, channels=4, gain=4000.0)
    assert half.dtype == torch.float16 and half.any()


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("waveform", {"waveform": torch.zeros(800)}),
        ("waveform", {"waveform": torch.full((1, 800), math.nan)}),
        ("waveform", {"waveform": torch.zeros(1, 79)}),
        ("sample_rate", {"sample_rate": 0}),
        ("channels", {"channels": 0}),
        ("step", {"step": 1e-5}),
        ("low", {"low": 0.0}),
        ("low", {"low": 3900.0}),
        ("high", {"high": 70.0}),
        ("high", {"high": 4100.0}),
        ("gain", {"gain": 0.0}),
    ],
)
def test_bad_input_of_the_cochlea_names_the_argument(argument, changes):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        cochlea_spikes(**{"waveform": torch.ones(1, 800), "sample_rate": RATE, **changes})


def test_spoken_spikes_measure_the_gain_on_training_recordings(folder):
    data = load_speech(folder, seconds=0.2)
    found = spoken_spikes(data, channels=8)
    gain = cochlea_gain(data.train_waveforms, RATE, channels=8)
    expected = cochlea_spikes(data.test_waveforms, RATE, channels=8, gain=gain)
    assert torch.equal(found.test_counts.float(), expected)
    assert found.train_counts.shape == (20, 16, 8)


def test_counts_are_kept_in_the_cache_and_are_those_of_their_settings(folder, cache, monkeypatch):
    first = spoken_spikes(folder, seconds=0.2, channels=4)
    assert len(list((cache / "spikes").iterdir())) == 1
    monkeypatch.setattr(spikes, "_encode", lambda *given: pytest.fail("was in the cache"))
    again = spoken_spikes(folder, seconds=0.2, channels=4)
    assert torch.equal(first.train_counts, again.train_counts)
    monkeypatch.undo()
    assert spoken_spikes(folder, seconds=0.2, channels=5).train_counts.shape[2] == 5


def test_a_rate_code_spikes_as_often_as_the_number_says():
    x = torch.tensor([[0.0, 0.2], [0.7, 1.0]])
    code = rate_code(x, 4000, torch.Generator().manual_seed(0))
    assert set(code.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(code.mean(0), x, atol=0.03, rtol=0)
    assert rate_code(x, 0, torch.Generator()).shape == (0, 2, 2)


def test_a_latency_code_spikes_once_and_earlier_for_larger_numbers():
    x = torch.rand(50, generator=torch.Generator().manual_seed(0))
    code = latency_code(x, 16)
    assert (code.sum(0) == 1).all()
    when = code.argmax(0)
    assert (when[x.argsort()].diff() <= 0).all()
    assert latency_code(torch.zeros(3), 5).sum() == 0


@pytest.mark.parametrize("x", [torch.tensor([1.1]), torch.tensor([-0.1]), torch.tensor([math.nan])])
def test_codes_refuse_numbers_out_of_range(x):
    with pytest.raises(ValueError, match=r"^x: .* expected"):
        latency_code(x, 3)
    with pytest.raises(ValueError, match=r"^x: .* expected"):
        rate_code(x, 3, torch.Generator())
    with pytest.raises(ValueError, match=r"^steps: .* expected"):
        latency_code(torch.zeros(1), -1)


def test_made_up_classes_differ_in_timing_only():
    data = timing_patterns(400, classes=4, noise=0.0)
    assert (data.train_counts.sum(0) == 1).all()
    assert data.train_labels.bincount().tolist() == 4 * [100]
    when = data.train_counts.float().argmax(0)
    # Times from channel to channel, up to a jitter of a step each way, are the class.
    relative = when - when[:, :1]
    centres = torch.stack(
        [relative[data.train_labels == c].float().median(0).values for c in range(4)]
    )
    test = data.test_counts.float().argmax(0)
    distance = ((test - test[:, :1])[:, None] - centres).abs().sum(-1)
    assert (distance.argmin(-1) == data.test_labels).float().mean() > 0.9
    assert torch.equal(timing_patterns(8).train_counts, timing_patterns(8).train_counts)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("count", {"count": 0}),
        ("classes", {"classes": 0}),
        ("spread", {"spread": 30}),
        ("noise", {"noise": 1.0}),
    ],
)
def test_made_up_patterns_that_cannot_be_name_the_argument(argument, options):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        timing_patterns(**{"count": 8, **options})
