"""Images: a small network learns to tell classes apart.

The network is a vision transformer, a convolutional network or an MLP of `heterodox.models.vision`,
or one of the caller's own; sizes stand in `SETTINGS`. Pixels are brought to mean 0 and deviation 1
in each channel, as measured on the whole training set; nothing is augmented. Training labels may be
noisy; test labels never are.
"""

import hashlib
import inspect
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
from heterodox.losses import INDEXED_LOSSES, LOSSES
from heterodox.models.vision import MLP, ConvNet, ViT
from heterodox.optim import OPTIMIZERS, SCHEDULES
from heterodox.tasks.image_labels import noisy_labels, training_set
from heterodox.tasks.image_settings import SETTINGS, ImageSettings
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
class TrainedImages:
    """A trained model with its record.

    Attributes:
        model: in evaluation mode, on the device of training; takes images as `normalise` returns
            them.
        normalise: from uint8 images to what the model takes.
        settings: of the run.
        history: curves of the training loss, the test error [%] and the test loss; with noisy
            labels also of what was memorised [%], and with held-out images of their error [%].
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

        Readings: "best test accuracy" [%] of all evaluations; "drop" [%], how far the end is below
        it; and "test loss" [nats/image]. With wrong training labels "memorised" [%], the share of
        them that the network has learned to give. With held-out images "early-stopped accuracy"
        [%], that of the evaluation at which the fewest of their noisy labels were missed.
        """
        errors = self.history.evaluations.get("test error", [])
        accuracies: Curve = [(step, 100 - error) for step, error in errors]
        best = math.nan if self.history.diverged else max(y for _, y in accuracies)
        readings = {
            "best test accuracy": best,
            "drop": best - self.test_accuracy,
            "test loss": self.history.last("test loss"),
        }
        curves: dict[str, Curve] = {
            "test accuracy [%]": accuracies,
            "training loss": self.history.loss,
        }
        if "memorised" in self.history.evaluations:
            readings["memorised"] = self.history.last("memorised")
            curves["memorised [%]"] = self.history.evaluations["memorised"]
        if "held-out error" in self.history.evaluations:
            missed = [error for _, error in self.history.evaluations["held-out error"]]
            stopped = accuracies[missed.index(min(missed))][1]
            readings["early-stopped accuracy"] = math.nan if self.history.diverged else stopped
        return Measurement(self.test_accuracy, readings, curves)


class LearnerWithLoss(nn.Module):
    """A network and a loss with a state of its own, such as targets, so that both are saved."""

    def __init__(self, network: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def train(
    *,
    model: str | ModelFactory = "cnn",
    attention: str | Callable[..., nn.Module] = "softmax",
    norm: str | Callable[[int], nn.Module] = "layer",
    loss: str | Callable[..., Any] = "cross-entropy",
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
            module documents. A loss may also be one of `heterodox.losses.INDEXED_LOSSES`, or any
            callable with a parameter `num_examples`: it is called with `num_examples` and
            `num_classes`, and makes a loss of `(input, target, index)`, with the index of each
            training image.
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
    fabric = fabric_on(device, settings.precision)
    training = training_set(source, seed, settings)
    labels = training.labels
    criterion, indexed = _criterion(loss, len(labels), len(source.class_names))
    tensors = (training.images, labels)
    batches = Shuffled(
        (*tensors, torch.arange(len(labels))) if indexed else tensors,
        settings.batch_size,
        generator_for(seed, "order"),
    )
    test_images = source.test_images[: settings.test_images]
    test_labels = source.test_labels[: settings.test_images]
    normalise = Normalisation(source.train_images)

    with seeded(derived_seed(seed, "initialisation")):
        network = _build(model, source, attention, norm, settings)
    learner = network
    if isinstance(criterion, nn.Module):
        learner = LearnerWithLoss(network, criterion)
    descent = chosen(OPTIMIZERS, optimizer)(
        learner.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    steps = settings.epochs * len(batches)

    def evaluate(network: nn.Module) -> dict[str, float]:
        def missed_of(images: Tensor, labels: Tensor) -> tuple[float, float]:
            return missed(network, normalise, images, labels, fabric.device)

        error, test_loss = missed_of(test_images, test_labels)
        metrics = {"test error": error, "test loss": test_loss}
        held_out, wrong = training.held_out, training.wrong
        if len(held_out[1]):
            metrics["held-out error"] = missed_of(*held_out)[0]
        if wrong.any():
            memorised = missed_of(training.images[wrong], labels[wrong])[0]
            metrics["memorised"] = 100 - memorised
        return metrics

    history = fit(
        learner,
        descent,
        batches,
        lambda learner, batch: criterion(learner(normalise(batch[0])), *batch[1:]),
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
    loss: str | Callable[..., Any] = "cross-entropy",
    optimizer: str | Callable[..., Any] = "adamw",
    schedule: str | Callable[..., Any] = "cosine",
    data: str | Path | ImageData = "digits",
    settings: ImageSettings = SETTINGS[Scale.LAPTOP],
) -> str:
    """Raises what `train` would raise for these arguments; returns the sha256 of the images."""
    if isinstance(model, str) and model not in MODELS:
        raise ValueError(f"model: {model!r} given, one of {', '.join(MODELS)} expected")
    chosen(ATTENTION, attention), chosen(NORMS, norm), chosen(LOSSES | INDEXED_LOSSES, loss)
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
    images -= round(settings.held_out * images)
    if settings.batch_size > images:
        raise ValueError(
            f"batch_size: {settings.batch_size} given, at most the {images} images expected"
        )
    noisy_labels(source, torch.arange(1), settings, generator_for(0, "trial"))
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


def missed(
    network: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    device: torch.device | str,
) -> tuple[float, float]:
    """Share of images that are not given their label [%], and the mean cross-entropy."""
    misses, total = 0, 0.0
    chunks = zip(images.split(EVALUATED_AT_ONCE), labels.split(EVALUATED_AT_ONCE), strict=True)
    for part, truth in chunks:
        truth = truth.to(device)
        logits = network(normalise(part.to(device)))
        misses += int((logits.argmax(-1) != truth).sum())
        total += F.cross_entropy(logits, truth, reduction="sum").item()
    # An error rate is finite even where the logits are not; the loss tells.
    error = 100 * misses / len(labels) if math.isfinite(total) else math.nan
    return error, total / len(labels)


def _criterion(
    loss: str | Callable[..., Any], examples: int, classes: int
) -> tuple[Callable[..., Tensor], bool]:
    """The loss, and whether it is called with indices."""
    given = chosen(LOSSES | INDEXED_LOSSES, loss)
    if "num_examples" in inspect.signature(given).parameters:
        return given(num_examples=examples, num_classes=classes), True
    return given, False


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
