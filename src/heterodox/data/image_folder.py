"""The user's own images: a folder with one folder of images for each class.

folder/<class>/<image>                 cut 80/20 in each class, by the hash of the file's name
folder/{train,test}/<class>/<image>    the user's own cut
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")

Labelled = list[tuple[Path, int]]


def read_image_folder(
    folder: Path, *, limit: int | None, size: int, grey: bool
) -> tuple[
    tuple[UInt8[Tensor, "train channels size size"], Int64[Tensor, "train"]],
    tuple[UInt8[Tensor, "test channels size size"], Int64[Tensor, "test"]],
    tuple[str, ...],
]:
    """The images and labels of both splits, and the names of the classes.

    The classes take turns in each split, in proportion to their sizes, so that the first `limit`
    images are a fair sample. An image keeps its side of the cut when others are added or removed,
    but for those at the border.

    Args:
        folder: as above; files that are not png, jpg or bmp are passed over, as are hidden ones.
        limit: at most so many images of each split are read; None for all.
        size: images are resized to size x size pixels, whatever their proportions.
        grey: one channel instead of red, green and blue.

    Raises:
        ValueError: fewer than two classes, a class without images or with too few to cut, a class
            that occurs in test only, or an unreadable image; the message names `data` and the file.
        ImportError: Pillow is not installed.
    """
    if _is_cut(folder):
        classes = _classes(folder / "train")
        unknown = sorted(set(_classes(folder / "test")) - set(classes))
        if unknown:
            raise ValueError(
                f"data: class {unknown[0]!r} is in {str(folder / 'test')!r}, not in train"
            )
        train = {name: _images(folder / "train" / name) for name in classes}
        test = {
            name: _images(folder / "test" / name)
            for name in classes
            if (folder / "test" / name).is_dir()
        }
    else:
        classes = _classes(folder)
        train, test = {}, {}
        for name in classes:
            train[name], test[name] = _cut(folder / name, _images(folder / name))
    return (
        _read(_take_turns(train, classes)[:limit], size, grey),
        _read(_take_turns(test, classes)[:limit], size, grey),
        classes,
    )


def _is_cut(folder: Path) -> bool:
    parts = (folder / "train", folder / "test")
    return all(part.is_dir() and _subfolders(part) for part in parts)


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _classes(folder: Path) -> tuple[str, ...]:
    names = _subfolders(folder)
    if len(names) < 2:
        found = f"one class, {names[0]!r}," if names else "no folders"
        raise ValueError(
            f"data: {found} in {str(folder)!r}, a folder of images for each of two or more "
            "classes expected"
        )
    return tuple(names)


def _images(folder: Path) -> list[Path]:
    images = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not images:
        raise ValueError(f"data: no images in {str(folder)!r}, png, jpg or bmp files expected")
    return sorted(images, key=lambda path: hashlib.sha256(os.fsencode(path.name)).digest())


def _cut(folder: Path, images: list[Path]) -> tuple[list[Path], list[Path]]:
    if len(images) < 2:
        raise ValueError(
            f"data: one image in {str(folder)!r}, two or more expected to cut off a test set"
        )
    held_out = max(1, round(0.2 * len(images)))
    return images[held_out:], images[:held_out]


def _take_turns(images: dict[str, list[Path]], classes: tuple[str, ...]) -> Labelled:
    turns = [
        ((rank + 0.5) / len(paths), classes.index(name), path)
        for name, paths in images.items()
        for rank, path in enumerate(paths)
    ]
    return [(path, label) for _, label, path in sorted(turns)]


def _read(
    labelled: Labelled, size: int, grey: bool
) -> tuple[UInt8[Tensor, "images channels size size"], Int64[Tensor, "images"]]:
    images = np.stack([_read_image(path, size, grey) for path, _ in labelled])
    if grey:
        images = images[..., None]
    return (
        torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
        torch.tensor([label for _, label in labelled], dtype=torch.int64),
    )


def _read_image(path: Path, size: int, grey: bool) -> np.ndarray:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError(
            'data: Pillow is needed to read images, pip install "heterodox[images]"'
        ) from error
    try:
        with Image.open(path, formats=("PNG", "JPEG", "BMP")) as image:
            deep = image.mode.startswith("I")
            upright = ImageOps.exif_transpose(image).convert("L" if grey else "RGB")
            pixels = np.asarray(upright.resize((size, size), Image.Resampling.BILINEAR))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"data: {str(path)!r} cannot be read as an image ({reason})") from error
    if deep:  # the conversion has clipped them to white
        raise ValueError(f"data: {str(path)!r} has 16 bits a channel, 8 expected")
    return pixels
