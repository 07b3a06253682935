"""The soft-label bank: what a teacher says of random crops of each image, made once, kept on disk.

    crop m of image i    box (top, left, height, width) in float16, flip, the k largest p_c with
                         p = softmax(teacher(crop) / T):  2·4 + 1 + k (2 + 2) bytes
    a step               B images, a few distinct stored crops of each

A student then learns without a teacher in the loop, and an image is decoded once for several crops.
Shen and Xing, "A Fast Knowledge Distillation Framework for Visual Recognition" (FKD), ECCV 2022,
arXiv 2112.01528; corrected labels as in Shen, "FerKD", ICCV 2023, arXiv 2312.17473.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float16, Int, Integer, Shaped
from torch import Tensor, nn

from heterodox.losses.crops import random_boxes, resized_crops
from heterodox.losses.soft_label_file import read_soft_labels, write_soft_labels
from heterodox.losses.soft_labels import (
    SUM_TOLERANCE,
    SoftLabels,
    calibrate_soft_labels,
    check_bands,
    check_labels,
    compress_soft_labels,
    confidences,
    quantile,
    recover_soft_labels,
)

TENSORS = ("boxes", "flips", "indices", "values", "keep")

CROPS_AT_ONCE = 4096


class DrawnCrops(NamedTuple):
    """Crops of a batch of images with their soft labels.

    Attributes:
        crops: (batch, count, channels, height, width).
        soft: (batch, count, classes).
        weight: 1, or 0 for a crop that was discarded.
    """

    crops: Float[Tensor, "batch count channels height width"]
    soft: Float[Tensor, "batch count classes"]
    weight: Float[Tensor, "batch count"]


@dataclass(frozen=True, eq=False)
class SoftLabelBank:
    """Stored crops of every image of a data set, with their soft labels. `len` is the images.

    Made by `build` or `load`. Nothing of it changes; `calibrate` returns another.

    Attributes:
        boxes: see `heterodox.losses.crops`.
        flips: whether a crop is mirrored.
        indices, values: the largest entries of each soft label.
        keep: whether a crop counts.
        num_classes: C.
        size: height and width of a crop as the teacher saw it.

    Raises:
        ValueError: tensors that do not fit each other, or numbers out of range.

    Example:
        >>> images = torch.rand(5, 1, 8, 8)
        >>> teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> bank = SoftLabelBank.build(teacher, images, num_crops=4, k=3)
        >>> bank
        SoftLabelBank(5 images x 4 crops of 8x8, 3 of 10 classes, 21 bytes a crop)
        >>> crops, soft = bank.crops(images[2], index=2, count=3)
        >>> crops.shape, soft.shape
        (torch.Size([3, 1, 8, 8]), torch.Size([3, 10]))
    """

    boxes: Float16[Tensor, "images crops 4"]
    flips: Bool[Tensor, "images crops"]
    indices: Integer[Tensor, "images crops kept"]
    values: Float16[Tensor, "images crops kept"]
    keep: Bool[Tensor, "images crops"]
    num_classes: int
    size: tuple[int, int]

    def __post_init__(self) -> None:
        _check_tensors(self)

    @classmethod
    def build(
        cls,
        teacher: Callable[[Tensor], Tensor],
        dataset: Sequence[Any] | Tensor,
        num_crops: int,
        k: int = 5,
        scale: tuple[float, float] = (0.08, 1.0),
        size: int | tuple[int, int] | None = None,
        generator: torch.Generator | None = None,
        temperature: int | float = 1.0,
    ) -> "SoftLabelBank":
        """Draws the crops of every image and asks the teacher about each.

        Args:
            teacher: from crops (n, channels, height, width) to logits; a module is put in
                evaluation mode for the time, and gets the crops on its own device. Integer images
                reach it as float32 of the same numbers: what else it needs, such as normalised
                pixels, is part of it.
            dataset: images (channels, height, width), or tuples that begin with one; indexed from 0
                to its length.
            num_crops: M, of each image; 200 on ImageNet in FKD.
            k: entries of a soft label that are kept.
            scale: least and largest area of a crop; those of torchvision and FKD.
            size: of a crop, which the teacher sees and the student will; None: that of the first
                image.
            generator: on the CPU; decides boxes and flips. None is torch's own.
            temperature: T of the teacher's softmax.

        Raises:
            ValueError: no images, an option out of range, or a teacher whose logits do not fit.
        """
        for name, given in {"num_crops": num_crops, "k": k, "temperature": temperature}.items():
            if not given > 0:
                raise ValueError(f"{name}: {given} given, a positive number expected")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale: {scale} given, 0 < least <= largest <= 1 expected")
        if len(dataset) == 0:
            raise ValueError("dataset: no images given, at least one expected")
        height, width = _size(size, _image(dataset[0]))
        device = _device(teacher)
        parts: dict[str, list[Tensor]] = {name: [] for name in TENSORS[:4]}
        classes = 0
        with _asking(teacher):
            for position in range(len(dataset)):
                image = _image(dataset[position])
                high, wide = image.shape[1:]
                boxes = random_boxes(num_crops, high, wide, scale, generator=generator).half()
                flips = torch.rand(num_crops, generator=generator) < 0.5
                crops = resized_crops(image[None], boxes[None], flips[None], (height, width))[0]
                logits = teacher(crops if device is None else crops.to(device))
                if logits.ndim != 2 or len(logits) != num_crops:
                    raise ValueError(
                        f"teacher: logits of shape {tuple(logits.shape)} given, "
                        f"({num_crops}, classes) expected"
                    )
                soft = (logits.float() / temperature).softmax(-1)
                if bool(soft.isnan().any()):
                    raise ValueError("teacher: NaN or infinite logits given, finite ones expected")
                labels = compress_soft_labels(soft, k)
                classes = labels.num_classes
                stored = (boxes, flips, _as_integers(labels), labels.values.half())
                for name, tensor in zip(parts, stored, strict=True):
                    parts[name].append(tensor.cpu())
        tensors = {name: torch.stack(part) for name, part in parts.items()}
        keep = torch.ones_like(tensors["flips"])
        return cls(**tensors, keep=keep, num_classes=classes, size=(height, width))

    def calibrate(
        self,
        labels: Int[Tensor, "images"],
        lower: int | float = 0.15,
        upper: int | float = 1.0,
        mode: str = "quantile",
        confidence: str = "max",
        below: str = "smooth",
        above: str = "soft",
        smoothing: int | float = 0.1,
    ) -> "SoftLabelBank":
        """A bank whose unsure crops have corrected labels, or do not count; see
        `calibrate_soft_labels`.

        The defaults, the least sure 15 % of all crops and nothing above, are ours. Labels are those
        that "smooth" recovers. A bank that is calibrated already is taken as it is: quantiles are
        then those of its corrected labels.

        Args:
            labels: the true class of each image.
            lower, upper, mode, confidence, below, above, smoothing: as for `calibrate_soft_labels`;
                quantiles are of all crops of the bank.

        Raises:
            ValueError: as `calibrate_soft_labels`.
        """
        check_labels(labels, len(self), self.num_classes)
        check_bands(lower, upper, mode, confidence, below, above, smoothing)
        of_crops = labels.cpu().repeat_interleave(self.num_crops)
        if mode == "quantile":
            chunks = self._chunks(of_crops)
            sure = torch.cat([confidences(soft, own, confidence) for soft, own in chunks])
            lower, upper = float(quantile(sure, lower)), float(quantile(sure, upper))
        changed, indices, values, keep = [], [], [], []
        for soft, own in self._chunks(of_crops):
            corrected, counts = calibrate_soft_labels(
                soft, own, lower, upper, "absolute", confidence, below, above, smoothing
            )
            compressed = compress_soft_labels(corrected, self.values.shape[2])
            changed.append((corrected != soft).any(-1))
            indices.append(_as_integers(compressed))
            values.append(compressed.values.half())
            keep.append(counts)
        shape = self.indices.shape
        # What is not corrected stays as it was, to the bit.
        new = torch.cat(changed).view(*shape[:2], 1)
        return replace(
            self,
            indices=torch.where(new, torch.cat(indices).view(shape), self.indices),
            values=torch.where(new, torch.cat(values).view(shape), self.values),
            keep=self.keep & torch.cat(keep).view(shape[:2]),
        )

    def crops(
        self,
        image: Shaped[Tensor, "*batch channels height width"],
        index: int | Int[Tensor, "batch"],
        count: int,
        generator: torch.Generator | None = None,
    ) -> tuple[
        Float[Tensor, "*batch count channels out_height out_width"],
        Float[Tensor, "*batch count classes"],
    ]:
        """`count` distinct stored crops of an image, or of each of a batch, and their soft labels.

        As `draw`, without the weights: for a bank from which nothing was discarded.

        Args:
            image: one image, or a batch of one size.
            index: of the image, or of each.
            count: at most the crops that are stored.
            generator: on the CPU; None is torch's own.

        Raises:
            ValueError: as `draw`.
        """
        if image.ndim == 3:
            drawn = self.draw(image[None], torch.as_tensor([int(index)]), count, generator)
            return drawn.crops[0], drawn.soft[0]
        drawn = self.draw(image, torch.as_tensor(index), count, generator)
        return drawn.crops, drawn.soft

    def draw(
        self,
        images: Shaped[Tensor, "batch channels height width"],
        index: Int[Tensor, "batch"],
        count: int,
        generator: torch.Generator | None = None,
    ) -> DrawnCrops:
        """`count` distinct stored crops of each image, their soft labels and weights, on the device
        of `images`.

        Args:
            images: of one size, the pixels that the bank was built from.
            index: which image of the bank each is.
            count: crops of each; 4 in FKD.
            generator: on the CPU; None is torch's own.

        Raises:
            ValueError: shapes disagree, an index is not in the bank, or `count` is not from 1 to
                the crops that are stored.
        """
        if images.ndim != 4 or index.shape != images.shape[:1]:
            raise ValueError(
                f"index: shape {tuple(index.shape)} given for images of shape "
                f"{tuple(images.shape)}, one for each of (batch, channels, height, width) expected"
            )
        if not 1 <= count <= self.num_crops:
            raise ValueError(
                f"count: {count} given, from 1 to the {self.num_crops} stored crops expected"
            )
        index = index.cpu().long()
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            wrong = next(i for i in index.tolist() if not 0 <= i < len(self))
            raise ValueError(f"index: {wrong} given, an image in [0, {len(self)}) expected")
        order = torch.rand(len(index), self.num_crops, generator=generator).argsort(1)
        place = index[:, None], order[:, :count]
        crops = resized_crops(images, self.boxes[place], self.flips[place], self.size)
        labels = SoftLabels(
            self.indices[place].flatten(0, 1).to(images.device).long(),
            self.values[place].flatten(0, 1).to(images.device).float(),
            self.num_classes,
        )
        soft = recover_soft_labels(labels).view(len(index), count, self.num_classes)
        return DrawnCrops(crops, soft, self.keep[place].to(images.device).float())

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file, all of it or nothing.

        Raises:
            ValueError: there is no folder for it, or a folder of its name.
        """
        tensors = {name: getattr(self, name) for name in TENSORS}
        write_soft_labels(Path(path), tensors, self.num_classes, self.size)

    @classmethod
    def load(cls, path: str | Path) -> "SoftLabelBank":
        """What `save` wrote, verified by its checksums.

        Raises:
            ValueError: there is no such file, it is damaged, or it is something else.
        """
        stored = read_soft_labels(Path(path))
        missing = sorted({*TENSORS} - {*stored})
        if missing:
            raise ValueError(
                f"path: {str(path)!r} given, a file of soft labels with {missing[0]} expected"
            )
        return cls(**stored)

    @property
    def num_crops(self) -> int:
        """M, of each image."""
        return self.flips.shape[1]

    def __len__(self) -> int:
        return len(self.flips)

    def __repr__(self) -> str:
        tensors = (self.boxes, self.flips, self.indices, self.values)
        size = sum(x.element_size() * x[0, 0].numel() for x in tensors)
        return (
            f"SoftLabelBank({len(self)} images x {self.num_crops} crops of "
            f"{self.size[0]}x{self.size[1]}, {self.values.shape[2]} of {self.num_classes} classes, "
            f"{size} bytes a crop)"
        )

    def _chunks(self, of_crops: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Recovered soft labels and classes of some crops at a time: all at once would be large."""
        indices, values = self.indices.flatten(0, 1), self.values.flatten(0, 1)
        for first in range(0, len(values), CROPS_AT_ONCE):
            part = slice(first, first + CROPS_AT_ONCE)
            labels = SoftLabels(indices[part].long(), values[part].float(), self.num_classes)
            soft = recover_soft_labels(labels)
            # float16 rounds; rows of exact sum 1 again, or a second rounding would add to it.
            yield soft / soft.sum(-1, keepdim=True), of_crops[part]


def _image(item: Any) -> Tensor:
    image = item if isinstance(item, Tensor) else item[0]
    if not isinstance(image, Tensor) or image.ndim != 3:
        given = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"dataset: {given} given, images (channels, height, width) expected")
    return image


def _size(size: int | tuple[int, int] | None, image: Tensor) -> tuple[int, int]:
    if size is None:
        return image.shape[1], image.shape[2]
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size: {size} given, positive numbers expected")
    return height, width


def _device(teacher: Callable[[Tensor], Tensor]) -> torch.device | None:
    parameters = teacher.parameters() if isinstance(teacher, nn.Module) else iter(())
    first = next(parameters, None)
    return None if first is None else first.device


@contextmanager
def _asking(teacher: Callable[[Tensor], Tensor]) -> Iterator[None]:
    was_training = isinstance(teacher, nn.Module) and teacher.training
    if isinstance(teacher, nn.Module):
        teacher.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if isinstance(teacher, nn.Module):
            teacher.train(was_training)


def _as_integers(labels: SoftLabels) -> Tensor:
    """Two bytes where they do."""
    small = labels.num_classes <= torch.iinfo(torch.int16).max + 1
    return labels.indices.to(torch.int16 if small else torch.int32)


def _check_tensors(bank: SoftLabelBank) -> None:
    images, crops = bank.flips.shape if bank.flips.ndim == 2 else (0, 0)
    kept = bank.values.shape[-1] if bank.values.ndim == 3 else 0
    shapes = {
        "boxes": (images, crops, 4),
        "flips": (images, crops),
        "indices": (images, crops, kept),
        "values": (images, crops, kept),
        "keep": (images, crops),
    }
    for name, shape in shapes.items():
        given = tuple(getattr(bank, name).shape)
        if given != shape or 0 in shape:
            raise ValueError(f"{name}: shape {given} given, (images, crops, ...) alike expected")
    if kept > bank.num_classes:
        raise ValueError(f"values: {kept} given, at most the {bank.num_classes} classes expected")
    low, high = (int(x) for x in bank.indices.aminmax())
    if low < 0 or high >= bank.num_classes:
        raise ValueError(f"indices: {low} to {high} given, in [0, {bank.num_classes}) expected")
    total = bank.values.float().sum(-1)
    if not (bank.values >= 0).all() or not (total <= 1 + SUM_TOLERANCE).all():
        raise ValueError(
            "values: given that are no probabilities, entries of sum at most 1 expected"
        )
    if not ((bank.boxes >= 0) & (bank.boxes <= 1)).all():
        raise ValueError("boxes: given that leave the image, shares in [0, 1] expected")
