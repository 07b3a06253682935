"""Tasks that come one after another, made of one set of labelled images."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from heterodox.data.images import ImageData


@dataclass(frozen=True)
class ImageTask:
    """One task of a stream; images are flat.

    Attributes:
        train_inputs, test_inputs: pixels with mean 0 and deviation 1 over the whole training set.
        train_labels, test_labels: indices into `classes`.
        classes: names of what the task tells apart.
    """

    train_inputs: Float[Tensor, "train pixels"]
    train_labels: Int64[Tensor, " train"]
    test_inputs: Float[Tensor, "test pixels"]
    test_labels: Int64[Tensor, " test"]
    classes: tuple[str, ...]


def permuted_tasks(data: ImageData, count: int, generator: torch.Generator) -> list[ImageTask]:
    """The same classes in every task, with all images' pixels in another order, the same for all.

    The first task has the pixels as they are. A class of which there are no images is no hindrance:
    it keeps its label.

    Args:
        data: images of any size.
        count: tasks.
        generator: decides the orders.

    Raises:
        ValueError: `count` is below 1, or there are no images for training or for testing.

    Example:
        >>> from heterodox.data import load_images
        >>> tasks = permuted_tasks(load_images("digits"), 3, torch.Generator().manual_seed(0))
        >>> tasks[2].train_inputs.shape, len(tasks[2].classes)
        (torch.Size([1437, 64]), 10)
    """
    if count < 1:
        raise ValueError(f"count: {count} given, at least 1 expected")
    train, test = _standardised(data)
    tasks = []
    for number in range(count):
        order = torch.arange(train.shape[1])
        if number > 0:
            order = torch.randperm(train.shape[1], generator=generator)
        tasks.append(
            ImageTask(
                train[:, order],
                data.train_labels,
                test[:, order],
                data.test_labels,
                data.class_names,
            )
        )
    return tasks


def split_tasks(data: ImageData, count: int) -> list[ImageTask]:
    """The classes dealt out: each task has its own, labelled from 0 on, for heads of their own.

    Args:
        data: images of any size.
        count: tasks, a divisor of the number of classes.

    Raises:
        ValueError: `count` does not divide the number of classes, or a class has no images for
            training or for testing.

    Example:
        >>> from heterodox.data import load_images
        >>> tasks = split_tasks(load_images("digits"), 5)
        >>> tasks[1].classes, tasks[1].train_labels.unique().tolist()
        (('2', '3'), [0, 1])
    """
    classes = len(data.class_names)
    if not 1 <= count <= classes or classes % count:
        raise ValueError(f"count: {count} given, a divisor of the {classes} classes expected")
    for part, labels in (("training", data.train_labels), ("test", data.test_labels)):
        for label in sorted(set(range(classes)) - set(labels.unique().tolist())):
            raise ValueError(
                f"data: class {data.class_names[label]!r} has no {part} images, at least one "
                "expected in a split"
            )
    train, test = _standardised(data)
    each = classes // count
    tasks = []
    for first in range(0, classes, each):
        ours, theirs = (
            (labels >= first) & (labels < first + each)
            for labels in (data.train_labels, data.test_labels)
        )
        tasks.append(
            ImageTask(
                train[ours],
                data.train_labels[ours] - first,
                test[theirs],
                data.test_labels[theirs] - first,
                data.class_names[first : first + each],
            )
        )
    return tasks


def _standardised(data: ImageData) -> tuple[Tensor, Tensor]:
    if len(data.train_images) == 0 or len(data.test_images) == 0:
        raise ValueError(
            f"data: {len(data.train_images)} training and {len(data.test_images)} test images "
            "given, at least one of each expected"
        )
    train, test = data.train_images.flatten(1).float(), data.test_images.flatten(1).float()
    mean, deviation = train.mean(), train.std(correction=0).clamp(min=1.0)
    return (train - mean) / deviation, (test - mean) / deviation
