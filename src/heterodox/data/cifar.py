"""CIFAR-10 in three guises, and the human labels of its training images.

The binary archive is six members of 10000 records: a label, then 32·32 red, green and blue values.
"""

import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from heterodox.data.download import fetch
from heterodox.data.errors import DataError

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
RECORD = 1 + 3 * 32 * 32

Images = UInt8[Tensor, "images 3 32 32"]
Labels = Int64[Tensor, "images"]


def read_cifar10_binary(archive: Path, split: str) -> tuple[Images, Labels]:
    """The images and labels of one split ("train" or "test") of `cifar-10-binary.tar.gz`.

    Raises:
        DataError: the archive is damaged, or a member is missing or of the wrong size.
    """
    names = ["test_batch"] if split == "test" else [f"data_batch_{k}" for k in range(1, 6)]
    records = []
    try:
        with tarfile.open(archive) as tar:
            for name in names:
                member = tar.extractfile(f"cifar-10-batches-bin/{name}.bin")
                content = member.read() if member else b""
                if not content or len(content) % RECORD:
                    raise DataError(
                        f"{archive}: {name}.bin has {len(content)} bytes, "
                        f"a multiple of {RECORD} expected"
                    )
                records.append(np.frombuffer(content, dtype=np.uint8).reshape(-1, RECORD))
    except (tarfile.TarError, KeyError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive}: damaged archive ({error})") from error
    table = torch.from_numpy(np.concatenate(records))
    return table[:, 1:].reshape(-1, 3, 32, 32).contiguous(), table[:, 0].long()


def read_cifar10_jpeg(archive: Path, split: str, limit: int | None) -> tuple[Images, Labels]:
    """The first `limit` images of one split of the JPEG re-encoding, decoded.

    Raises:
        ImportError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            'cifar10-jpeg: Pillow is needed to decode it, pip install "heterodox[images]"'
        ) from error
    with np.load(archive, allow_pickle=False) as table:
        jpeg, offsets = table[f"{split}_jpeg"], table[f"{split}_offsets"]
        labels = table[f"{split}_labels"][:limit]
    images = np.stack(
        [
            np.asarray(Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]])).convert("RGB"))
            for i in range(len(labels))
        ]
    )
    return _channels_first(images), torch.from_numpy(labels.astype(np.int64))


def read_cifar10_first4000(archive: Path, split: str) -> tuple[Images, Labels]:
    """Of the first 4000 training images, the first 3200 ("train") or the last 800 ("test")."""
    part = slice(3200, None) if split == "test" else slice(3200)
    with np.load(archive, allow_pickle=False) as table:
        images, labels = table["images"][part], table["labels"][part]
    return _channels_first(images), torch.from_numpy(labels.astype(np.int64))


def load_cifar10n() -> dict[str, Int64[Tensor, "50000"]]:
    """CIFAR-10N: what people answered for the training images of CIFAR-10, in their original order.

    Returns:
        "clean_label" (CIFAR-10's own), "aggre_label" (majority of three, 9 % differ),
        "random_label1", "random_label2", "random_label3" (one person each, 17 to 18 %) and
        "worse_label" (a wrong one of the three where there is any, 40 %).

    Raises:
        DataError: the file is not in `$HETERODOX_DATA`.
    """
    (path,) = fetch("cifar10n").values()
    with np.load(path, allow_pickle=False) as table:
        return {name: torch.from_numpy(table[name]) for name in table.files}


def _channels_first(images: np.ndarray) -> Images:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
