"""Images for classification: embedded, downloaded or the user's own folder, as uint8 tensors."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from heterodox.data.cifar import (
    CIFAR10_CLASSES,
    read_cifar10_binary,
    read_cifar10_first4000,
    read_cifar10_jpeg,
)
from heterodox.data.download import fetch
from heterodox.data.idx import read_idx
from heterodox.data.image_folder import read_image_folder
from heterodox.data.registry import datasets, near

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class ImageData:
    """Labelled images, cut into training and test set.

    Attributes:
        name: the dataset's name, or the path that was given.
        train_images, test_images: values 0 to 255; one channel (grey) or three (red, green, blue).
        train_labels, test_labels: indices into `class_names`.
        class_names: what the labels stand for.
    """

    name: str
    train_images: UInt8[Tensor, "train channels height width"]
    train_labels: Int64[Tensor, "train"]
    test_images: UInt8[Tensor, "test channels height width"]
    test_labels: Int64[Tensor, "test"]
    class_names: tuple[str, ...]


def load_images(
    data: str | Path, *, limit: int | None = None, size: int = 32, grey: bool = False
) -> ImageData:
    """Labelled images by name, or from the user's own folder.

    Args:
        data: "digits" (with scikit-learn), "fashion-mnist" or "cifar10" (downloaded),
            "cifar10-jpeg" or "cifar10-first4000" (from `$HETERODOX_DATA`); or the path of a folder,
            `folder/<class>/<image>`, which is cut 80/20 in each class, or
            `folder/{train,test}/<class>/<image>`.
            A name goes before a folder of the same name; write `./digits` for the folder.
        limit: keep only the first `limit` images of each split; None for all.
        size: a folder's images are resized to size x size pixels; a dataset keeps its own size.
        grey: a folder's images are read with one channel, not three; a dataset keeps its own.

    Raises:
        ValueError: `data` is neither a name nor a folder, or the folder is not laid out as above;
            `limit` or `size` is not positive.
        DataError: a dataset cannot be had, see `heterodox.data.fetch`.
        ImportError: Pillow is needed and not installed.

    Example:
        >>> digits = load_images("digits")
        >>> digits.train_images.shape, digits.test_images.shape
        (torch.Size([1437, 1, 8, 8]), torch.Size([360, 1, 8, 8]))
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: {limit} given, a positive number or None expected")
    if size < 1:
        raise ValueError(f"size: {size} given, a positive number expected")
    names = [entry.name for entry in datasets("images")]
    if data in names:
        (train, test), classes = _load_named(str(data), limit)
    elif Path(data).is_dir():
        train, test, classes = read_image_folder(Path(data), limit=limit, size=size, grey=grey)
    else:
        raise ValueError(
            f"data: {str(data)!r} given, an existing folder or one of {', '.join(names)} expected"
            f"{near(str(data), 'images')}"
        )
    return ImageData(
        name=str(data),
        train_images=train[0][:limit],
        train_labels=train[1][:limit],
        test_images=test[0][:limit],
        test_labels=test[1][:limit],
        class_names=classes,
    )


Split = tuple[Tensor, Tensor]


def _load_named(name: str, limit: int | None) -> tuple[tuple[Split, Split], tuple[str, ...]]:
    if name == "digits":
        return _digits()
    paths = fetch(name)
    if name == "fashion-mnist":
        return (_fashion(paths, "train"), _fashion(paths, "t10k")), FASHION_CLASSES
    (archive,) = paths.values()
    if name == "cifar10":
        train, test = (read_cifar10_binary(archive, split) for split in ("train", "test"))
    elif name == "cifar10-jpeg":
        train, test = (read_cifar10_jpeg(archive, split, limit) for split in ("train", "test"))
    else:
        train, test = (read_cifar10_first4000(archive, split) for split in ("train", "test"))
    return (train, test), CIFAR10_CLASSES


def _fashion(paths: dict[str, Path], split: str) -> Split:
    images = read_idx(paths[f"{split}-images-idx3-ubyte.gz"])
    labels = read_idx(paths[f"{split}-labels-idx1-ubyte.gz"])
    return images[:, None], labels.long()


def _digits() -> tuple[tuple[Split, Split], tuple[str, ...]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    table = load_digits()
    # 0..16 to 0..255, so that dividing by 255 means the same for every set
    images = np.rint(table.images * (255 / 16)).astype(np.uint8)[:, None]
    train_images, test_images, train_labels, test_labels = train_test_split(
        torch.from_numpy(images),
        torch.from_numpy(table.target.astype(np.int64)),
        test_size=0.2,
        stratify=table.target,
        random_state=0,
    )
    splits = (train_images, train_labels), (test_images, test_labels)
    return splits, tuple(str(name) for name in table.target_names)
