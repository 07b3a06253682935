"""The sizes of a run of the image task."""

from dataclasses import dataclass

from heterodox.data.label_noise import HUMAN_LABELS
from heterodox.experiment.scale import Scale

NOISE_KINDS = ("other class", "symmetric", "asymmetric", "human")


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
        label_noise: share of the training labels that are drawn anew; 0 with human noise, whose
            share is what it is.
        noise_kind: from which classes. "other class": all but the true one. "symmetric": all, so
            that one in C stays right. "asymmetric": the one that the true class is taken for,
            `CIFAR10_CONFUSIONS` for the classes of CIFAR-10 and the class after it for others.
            "human": what people answered, for CIFAR-10 only. See `heterodox.data.label_noise`.
        human_labels: which of their answers, see `human_noise`.
        held_out: share of the training images, with labels as noisy as the others', that is not
            trained on; they tell when to stop where no clean labels are to be had.
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
    noise_kind: str = "other class"
    human_labels: str = "worse_label"
    held_out: float = 0.0
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
        for name, known in {"noise_kind": NOISE_KINDS, "human_labels": HUMAN_LABELS}.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}: {getattr(self, name)!r} given, one of {', '.join(known)} expected"
                )
        if self.noise_kind == "human" and self.label_noise:
            raise ValueError(
                f"label_noise: {self.label_noise} given, 0 with human noise expected, whose share "
                "is what it is"
            )
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out: {self.held_out} given, a share in [0, 1) expected")


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
