"""Images: a small network learns to tell classes apart.

The network is a vision transformer, a convolutional network or an MLP of `heterodox.models.vision`,
or one of the caller's own; sizes stand in `SETTINGS`. Pixels are brought to mean 0 and deviation 1
in each channel, as measured on the whole training set; nothing is augmented.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heterodox.attention import ATTENTION
from heterodox.data.images import ImageData, load_images
from heterodox.experiment.measurement import Curve, Measurement
from heterodox.experiment.scale import Scale
from heterodox.layers import NORMS
from heterodox.losses import LOSSES
from heterodox.models.vision import MLP, ConvNet, ViT
from heterodox.optim import OPTIMIZERS, SCHEDULES
from heterodox.tasks.task import chosen, described
from heterodox.training.batches import Shuffled
from heterodox.training.devices import fabric_on
from heterodox.training.history import History
from heterodox.training.loop import fit
from heterodox.training.seeding import derived_seed, generator_for, seeded

ModelFactory = Callable[[tuple[int, int, int], int], nn.Module]
"""`(image_shape, classes) -> Module`; image_shape is (channels, height, width)."""

MODELS = ("cnn", "vit", "mlp")

EVALUATED_AT_ONCE = 500


@dataclass(frozen=True)
class ImageSettings:
    """The sizes of a run.

    Args:
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate, warmup_steps: peak of the schedule, and the steps to reach it.
        weight_decay: of the optimizer.
        clip: largest norm of the gradient; None does not clip.
        train_images, test_images: at most so many are used; None for all. The training images are
            drawn anew by each seed, the test images are the first of the test set.
        label_noise: share of the training labels that are replaced by another class, drawn at
            random.
        image_size: a user's folder of images is resized to this side; datasets keep their own.
        patch, width, layers, heads, hybrid_norm, layer_scale: see `ViT`.
        conv_widths: see `ConvNet`.
        mlp_widths: see `MLP`.
        evaluations: how often the test set is evaluated during training.
        precision: as for `lightning_fabric.Fabric`.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip: float | None = 1.0
    train_images: int | None = None
    test_images: int | None = None
    label_noise: float = 0.0
    image_size: int = 32
    patch: int = 4
    width: int = 64
    layers: int = 3
    heads: int = 4
    hybrid_norm: bool = False
    layer_scale: float | None = None
    conv_widths: tuple[int, ...] = (16, 32)
    mlp_widths: tuple[int, ...] = (128, 128)
    evaluations: int = 5
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch_size",
            "learning_rate",
            "train_images",
            "test_images",
            "evaluations",
        ):
            given = getattr(self, name)
            if given is not None and not given > 0:
                raise ValueError(f"{name}: {given} given, a positive number expected")
        if not 0 <= self.label_noise <= 1:
            raise ValueError(f"label_noise: {self.label_noise} given, a share in [0, 1] expected")


SETTINGS: dict[Scale, ImageSettings] = {
    Scale.SMOKE: ImageSettings(
        epochs=8,
        batch_size=32,
        learning_rate=3e-3,
        warmup_steps=20,
        patch=2,
        width=32,
        layers=2,
        heads=2,
        conv_widths=(8, 16),
        evaluations=2,
    ),
    Scale.LAPTOP: ImageSettings(
        epochs=3,
        batch_size=32,
        learning_rate=2e-3,
        warmup_steps=50,
        train_images=12_000,
        evaluations=3,
    ),
    # All images, and a transformer of the depth and heads of ViT-S at half its width.
    Scale.PAPER: ImageSettings(
        epochs=100,
        batch_size=256,
        learning_rate=1e-3,
        warmup_steps=1000,
        weight_decay=0.05,
        width=192,
        layers=12,
        heads=6,
        conv_widths=(64, 128, 256),
        mlp_widths=(1024, 1024),
        evaluations=50,
        precision="bf16-mixed",
    ),
}


@dataclass(frozen=True)
class TrainedImages:
    """A trained model with its record.

    Attributes:
        model: in evaluation mode, on the device of training; takes images as `normalise` returns
            them.
        normalise: from uint8 images to what the model takes.
        settings: of the run.
        history: curves of the training loss, the test error [%] and the test loss.
    """

    model: nn.Module
    normalise: Callable[[Tensor], Tensor]
    settings: ImageSettings
    history: History

    @property
    def test_accuracy(self) -> float:
        """At the end [%]; NaN if training diverged."""
        return 100 - self.history.last("test error")

    def measurement(self) -> Measurement:
        """The metric, test accuracy at the end [%].

        Readings: "best test accuracy" [%] of all evaluations, and "test loss" [nats/image].
        """
        errors = self.history.evaluations.get("test error", [])
        accuracies: Curve = [(step, 100 - error) for step, error in errors]
        diverged = self.history.diverged
        readings = {
            "best test accuracy": math.nan if diverged else max(y for _, y in accuracies),
            "test loss": self.history.last("test loss"),
        }
        curves: dict[str, Curve] = {
            "test accuracy [%]": accuracies,
            "training loss": self.history.loss,
        }
        return Measurement(self.test_accuracy, readings, curves)


def train(
    *,
    model: str | ModelFactory = "cnn",
    attention: str | Callable[..., nn.Module] = "softmax",
    norm: str | Callable[[int], nn.Module] = "layer",
    loss: str | Callable[..., Tensor] = "cross-entropy",
    optimizer: str | Callable[..., Any] = "adamw",
    schedule: str | Callable[..., Any] = "cosine",
    data: str | Path | ImageData = "digits",
    seed: int = 0,
    settings: ImageSettings = SETTINGS[Scale.LAPTOP],
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: bool = False,
) -> TrainedImages:
    """Trains a classifier on images and evaluates it on the test set.

    Args:
        model: "cnn", "vit", "mlp", or a callable `(image_shape, classes) -> Module`.
        attention, norm: a name of the slot, or a factory; for "vit" only.
        loss, optimizer, schedule: a name of the slot, or a callable with the call that the slot's
            module documents.
        data: see `heterodox.data.load_images`; or images already loaded.
        seed: of the choice of training images, their order, label noise and initialisation. Two
            runs with the same seed see the same batches, whatever is in their slots.
        settings: see `SETTINGS` for those of each scale.
        device: see `heterodox.training.fabric_on`.
        checkpoint: see `heterodox.training.fit`; removed by the caller.
        progress: show a bar on a terminal.

    Raises:
        ValueError: unknown names, sizes that do not fit, or an attention for a model without any.

    Example:
        >>> run = train(model="mlp", settings=SETTINGS[Scale.SMOKE])
        >>> run.test_accuracy > 90
        True
    """
    source = _loaded(data, settings)
    identity = check(
        model=model,
        attention=attention,
        norm=norm,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        data=source,
        settings=settings,
    )
    criterion = chosen(LOSSES, loss)
    fabric = fabric_on(device, settings.precision)
    picked = torch.randperm(len(source.train_labels), generator=generator_for(seed, "subset"))
    picked = picked[: settings.train_images]
    labels = noisy_labels(
        source.train_labels[picked],
        len(source.class_names),
        settings.label_noise,
        generator_for(seed, "label noise"),
    )
    batches = Shuffled(
        (source.train_images[picked], labels), settings.batch_size, generator_for(seed, "order")
    )
    test_images = source.test_images[: settings.test_images]
    test_labels = source.test_labels[: settings.test_images]
    normalise = Normalisation(source.train_images)

    with seeded(derived_seed(seed, "initialisation")):
        network = _build(model, source, attention, norm, settings)
    descent = chosen(OPTIMIZERS, optimizer)(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    steps = settings.epochs * len(batches)

    def evaluate(network: nn.Module) -> dict[str, float]:
        wrong, total = 0, 0.0
        chunks = zip(
            test_images.split(EVALUATED_AT_ONCE), test_labels.split(EVALUATED_AT_ONCE), strict=True
        )
        for images, truth in chunks:
            truth = truth.to(fabric.device)
            logits = network(normalise(images.to(fabric.device)))
            wrong += int((logits.argmax(-1) != truth).sum())
            total += F.cross_entropy(logits, truth, reduction="sum").item()
        # An error rate is finite even where the logits are not; the loss tells.
        error = 100 * wrong / len(test_labels) if math.isfinite(total) else math.nan
        return {"test error": error, "test loss": total / len(test_labels)}

    history = fit(
        network,
        descent,
        batches,
        lambda network, batch: criterion(network(normalise(batch[0])), batch[1]),
        steps=steps,
        scheduler=chosen(SCHEDULES, schedule)(descent, steps, settings.warmup_steps),
        clip=settings.clip,
        evaluate=evaluate,
        evaluate_every=max(1, steps // settings.evaluations),
        checkpoint=checkpoint,
        identity=described(
            task="images",
            model=model,
            attention=attention,
            norm=norm,
            loss=loss,
            optimizer=optimizer,
            schedule=schedule,
            data=identity,
            seed=seed,
            settings=settings,
        ),
        fabric=fabric,
        seed=derived_seed(seed, "dropout"),
        progress=progress,
    )
    return TrainedImages(network.eval(), normalise, settings, history)


def check(
    *,
    model: str | ModelFactory = "cnn",
    attention: str | Callable[..., nn.Module] = "softmax",
    norm: str | Callable[[int], nn.Module] = "layer",
    loss: str | Callable[..., Tensor] = "cross-entropy",
    optimizer: str | Callable[..., Any] = "adamw",
    schedule: str | Callable[..., Any] = "cosine",
    data: str | Path | ImageData = "digits",
    settings: ImageSettings = SETTINGS[Scale.LAPTOP],
) -> str:
    """Raises what `train` would raise for these arguments; returns the sha256 of the images."""
    if isinstance(model, str) and model not in MODELS:
        raise ValueError(f"model: {model!r} given, one of {', '.join(MODELS)} expected")
    chosen(ATTENTION, attention), chosen(NORMS, norm), chosen(LOSSES, loss)
    chosen(OPTIMIZERS, optimizer), chosen(SCHEDULES, schedule)
    for slot, given, default in (
        ("attention", attention, ATTENTION.default),
        ("norm", norm, NORMS.default),
    ):
        if model != "vit" and given != default:
            raise ValueError(
                f"{slot}: {given!r} given, but only the model 'vit' has this slot, not {model!r}"
            )
    source = _loaded(data, settings)
    images = min(len(source.train_labels), settings.train_images or len(source.train_labels))
    if settings.batch_size > images:
        raise ValueError(
            f"batch_size: {settings.batch_size} given, at most the {images} images expected"
        )
    # Sizes that do not fit the images, and an attention that is causal only, show in a trial.
    with seeded(0), torch.no_grad():
        network = _build(model, source, attention, norm, settings).eval()
        network(torch.zeros(1, *source.train_images.shape[1:]))
    digest = hashlib.sha256()
    for part in (source.train_images, source.train_labels, source.test_images, source.test_labels):
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()


class Normalisation:
    """Pixels of 0 to 255 to mean 0 and deviation 1 in each channel of the training images.

    Example:
        >>> images = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8)
        >>> bool(Normalisation(images)(images).std() - 1 < 1e-3)
        True
    """

    def __init__(self, images: Tensor) -> None:
        # By channel and in float64: whole float copies of large sets would not fit.
        counts = [torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]
        shares = torch.stack(counts).double()
        shares /= shares.sum(1, keepdim=True)
        values = torch.arange(256).double()
        mean = shares @ values
        deviation = (shares @ values.square() - mean.square()).clamp(min=0).sqrt()
        self.mean = mean.float().view(1, -1, 1, 1)
        self.deviation = deviation.clamp(min=1).float().view(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        device = images.device
        return (images.float() - self.mean.to(device)) / self.deviation.to(device)


def noisy_labels(labels: Tensor, classes: int, share: float, generator: torch.Generator) -> Tensor:
    """`labels` with a random `share` of them replaced by another class, each as likely.

    Example:
        >>> labels = torch.zeros(10, dtype=torch.int64)
        >>> (noisy_labels(labels, 3, 0.2, torch.Generator()) != 0).sum().item()
        2
    """
    count = round(share * len(labels))
    if count == 0:
        return labels
    chosen_ones = torch.randperm(len(labels), generator=generator)[:count]
    shift = torch.randint(1, classes, (count,), generator=generator)
    noisy = labels.clone()
    noisy[chosen_ones] = (labels[chosen_ones] + shift) % classes
    return noisy


def _loaded(data: str | Path | ImageData, settings: ImageSettings) -> ImageData:
    return data if isinstance(data, ImageData) else load_images(data, size=settings.image_size)


def _build(
    model: str | ModelFactory,
    data: ImageData,
    attention: str | Callable[..., nn.Module],
    norm: str | Callable[[int], nn.Module],
    settings: ImageSettings,
) -> nn.Module:
    channels, height, width = data.train_images.shape[1:]
    shape, classes = (channels, height, width), len(data.class_names)
    if not isinstance(model, str):
        return model(shape, classes)
    if model == "cnn":
        return ConvNet(shape, classes, widths=settings.conv_widths)
    if model == "mlp":
        return MLP(shape, classes, widths=settings.mlp_widths)
    return ViT(
        shape,
        settings.patch,
        classes,
        settings.width,
        settings.layers,
        settings.heads,
        attention=attention,
        norm=norm,
        hybrid_norm=settings.hybrid_norm,
        layer_scale=settings.layer_scale,
    )
