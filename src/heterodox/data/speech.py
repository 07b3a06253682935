"""Recordings of spoken words with their classes: downloaded, or the user's own folder."""

import hashlib
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from heterodox.data.download import fetch
from heterodox.data.errors import DataError
from heterodox.data.registry import datasets, near
from heterodox.data.wav import Recording, read_wav

SUFFIXES = (".wav", ".flac", ".ogg")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FSDD_NAME = re.compile(r"recordings/(\d)_(\w+?)_(\d+)\.wav")
FSDD_TEST = range(5)  # the official cut: the first five recordings of each speaker and digit

Labelled = list[tuple[Recording, int]]


@dataclass(frozen=True)
class SpeechData:
    """Recordings of one length, mono, cut into training and test set.

    Attributes:
        name: the dataset's name, or the path that was given.
        sample_rate: samples a second.
        train_waveforms, test_waveforms: in [-1, 1); short recordings end in zeros.
        train_labels, test_labels: indices into `class_names`.
        class_names: what is said.
    """

    name: str
    sample_rate: int
    train_waveforms: Float32[Tensor, "train samples"]
    train_labels: Int64[Tensor, " train"]
    test_waveforms: Float32[Tensor, "test samples"]
    test_labels: Int64[Tensor, " test"]
    class_names: tuple[str, ...]


def load_speech(data: str | Path, *, seconds: float = 0.6) -> SpeechData:
    """Recordings by name, or from the user's own folder.

    Args:
        data: "fsdd", the Free Spoken Digit Dataset (from `$HETERODOX_DATA`), with its official cut;
            or the path of a folder, `folder/<class>/<recording>`, which is cut 80/20 in each class
            by the hash of the file's name, or `folder/{train,test}/<class>/<recording>`. All
            recordings must have one sample rate.
        seconds: recordings are cut, or filled up with silence, to this length.

    Raises:
        ValueError: `data` is neither a name nor a folder, or the folder is not laid out as above:
            fewer than two classes, a class without recordings or with too few to cut, or one that
            occurs in test only; sample rates differ; `seconds` is not positive.
        DataError: a dataset cannot be had, or a recording cannot be read.
        ImportError: soundfile is needed for a recording and not installed.
    """
    if not 0 < seconds < 3600:
        raise ValueError(f"seconds: {seconds} given, a positive number below 3600 expected")
    if data == "fsdd":
        (path,) = fetch("fsdd").values()
        train, test = _read_fsdd(path)
        return _speech("fsdd", train, test, DIGITS, seconds)
    folder = Path(data)
    if not folder.is_dir():
        names = ", ".join(entry.name for entry in datasets("speech"))
        raise ValueError(
            f"data: {str(data)!r} given, an existing folder or one of {names} expected"
            f"{near(str(data), 'speech')}"
        )
    return _speech(str(data), *_read_folder(folder), seconds)


def _read_fsdd(path: Path) -> tuple[Labelled, Labelled]:
    train: Labelled = []
    test: Labelled = []
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                match = FSDD_NAME.fullmatch(name)
                if match:
                    part = test if int(match[3]) in FSDD_TEST else train
                    part.append((read_wav(archive.read(name)), int(match[1])))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: damaged archive ({error})") from error
    if not train or not test:
        raise DataError(f"{path}: no recordings/<digit>_<speaker>_<number>.wav inside")
    return train, test


def _read_folder(folder: Path) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    cut = all((folder / part).is_dir() for part in ("train", "test"))
    classes = _subfolders(folder / "train" if cut else folder)
    if len(classes) < 2:
        raise ValueError(
            f"data: {len(classes)} folders of recordings in {str(folder)!r}, two or more classes "
            "expected"
        )
    train: Labelled = []
    test: Labelled = []
    if cut:
        unknown = sorted(set(_subfolders(folder / "test")) - set(classes))
        if unknown:
            raise ValueError(f"data: class {unknown[0]!r} is in test only, one of train expected")
    for label, name in enumerate(classes):
        if cut:
            ours = _recordings(folder / "train" / name)
            theirs = folder / "test" / name
            held_out = _recordings(theirs) if theirs.is_dir() else []
        else:
            paths = _recordings(folder / name)
            if len(paths) < 2:
                raise ValueError(
                    f"data: one recording in {str(folder / name)!r}, two or more expected to cut "
                    "off a test set"
                )
            count = max(1, round(0.2 * len(paths)))
            ours, held_out = paths[count:], paths[:count]
        train += [(read_wav(path), label) for path in ours]
        test += [(read_wav(path), label) for path in held_out]
    if not test:
        raise ValueError(f"data: no recordings in {str(folder / 'test')!r}, at least one expected")
    return train, test, classes


def _subfolders(folder: Path) -> tuple[str, ...]:
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return tuple(sorted(name for name in names if not name.startswith(".")))


def _recordings(folder: Path) -> list[Path]:
    paths = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not paths:
        raise ValueError(f"data: no recordings in {str(folder)!r}, wav, flac or ogg files expected")
    return sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path.name)).digest())


def _speech(
    name: str, train: Labelled, test: Labelled, classes: tuple[str, ...], seconds: float
) -> SpeechData:
    rates = sorted({recording.sample_rate for recording, _ in (*train, *test)})
    if len(rates) > 1:
        raise ValueError(f"data: sample rates {rates} in {name}, one rate expected")
    samples = max(1, round(seconds * rates[0]))
    return SpeechData(
        name,
        rates[0],
        _of_length([recording for recording, _ in train], samples),
        torch.tensor([label for _, label in train]),
        _of_length([recording for recording, _ in test], samples),
        torch.tensor([label for _, label in test]),
        classes,
    )


def _of_length(recordings: Sequence[Recording], samples: int) -> Tensor:
    waveforms = torch.zeros(len(recordings), samples)
    for row, recording in zip(waveforms, recordings, strict=True):
        sound = recording.mono[:samples]
        row[: len(sound)] = sound
    return waveforms
