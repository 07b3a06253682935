"""What the image task trains on: which images, and with which, possibly wrong, labels."""

from typing import NamedTuple

import torch
from torch import Tensor

from heterodox.data.cifar import CIFAR10_CLASSES
from heterodox.data.images import ImageData
from heterodox.data.label_noise import (
    CIFAR10_CONFUSIONS,
    asymmetric_noise,
    human_noise,
    other_class_noise,
    symmetric_noise,
)
from heterodox.tasks.image_settings import ImageSettings
from heterodox.training.seeding import generator_for


class TrainingSet(NamedTuple):
    """What one run trains on.

    Attributes:
        images: (n, channels, height, width), uint8.
        labels: (n,), noisy if the settings say so.
        wrong: (n,), whether a label is not the true one.
        held_out: images and labels, as noisy as the others, that are not trained on.
    """

    images: Tensor
    labels: Tensor
    wrong: Tensor
    held_out: tuple[Tensor, Tensor]


def training_set(data: ImageData, seed: int, settings: ImageSettings) -> TrainingSet:
    """The training images that `images.train` picks with this seed, and their labels.

    Example:
        >>> from heterodox.data import load_images
        >>> settings = ImageSettings(1, 32, 1e-3, train_images=100, label_noise=0.4)
        >>> training_set(load_images("digits"), 1, settings).wrong.sum()
        tensor(40)
    """
    picked = torch.randperm(len(data.train_labels), generator=generator_for(seed, "subset"))
    picked = picked[: settings.train_images]
    labels = noisy_labels(data, picked, settings, generator_for(seed, "label noise"))
    count = round(settings.held_out * len(picked))
    rest = picked[count:]
    return TrainingSet(
        data.train_images[rest],
        labels[count:],
        labels[count:] != data.train_labels[rest],
        (data.train_images[picked[:count]], labels[:count]),
    )


def noisy_labels(
    data: ImageData, picked: Tensor, settings: ImageSettings, generator: torch.Generator
) -> Tensor:
    """The labels of some training images, with the noise that `settings` ask for."""
    if settings.noise_kind == "human":
        return human_noise(data.train_labels, settings.human_labels)[0][picked]
    labels, classes = data.train_labels[picked], len(data.class_names)
    if settings.label_noise == 0:
        return labels
    if settings.noise_kind == "asymmetric":
        following = {c: (c + 1) % classes for c in range(classes)}
        known = data.class_names == CIFAR10_CLASSES
        mapping = CIFAR10_CONFUSIONS if known else following
        return asymmetric_noise(labels, settings.label_noise, mapping, generator)[0]
    make = symmetric_noise if settings.noise_kind == "symmetric" else other_class_noise
    return make(labels, settings.label_noise, classes, generator)[0]
