"""Completion: one model fills in the hidden pixels of an image and names its class.

Pixels are cut into equally wide bins of grey. In training and in the test a random part of them is
observed, and the label never is. Two models learn it: a monotone deep Boltzmann machine, by the
implicit gradient of its mean field, and a restricted Boltzmann machine, by persistent contrastive
divergence over pixels and label together. A third way needs neither: the nearest training image, by
the pixels that are seen, and logistic regression.
"""

import math
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from heterodox.data.images import load_images
from heterodox.energy.monotone_boltzmann import (
    MonotoneConvBoltzmannMachine,
    focal_completion_loss,
)
from heterodox.energy.restricted_boltzmann import RestrictedBoltzmannMachine
from heterodox.experiment.measurement import Measurement
from heterodox.experiment.scale import Scale
from heterodox.training.batches import Shuffled
from heterodox.training.devices import fabric_on
from heterodox.training.history import History
from heterodox.training.loop import fit
from heterodox.training.seeding import derived_seed, generator_for, seeded

EVALUATED_AT_ONCE = 500


@dataclass(frozen=True)
class CompletionSettings:
    """Data, model and length of training.

    Args:
        data: an image set of one channel.
        grey_levels: bins of a pixel's value.
        observed: share of pixels that are seen.
        hidden: (variables, states, stride against the image) of each hidden layer of the monotone
            machine; its weights are 3 x 3 within and between layers, and dense to the label.
        monotonicity: of the monotone machine.
        tolerance, max_iter: of the mean field of either machine.
        hidden_units: of the restricted machine.
        gibbs_steps: of its chains, for each step of training.
        epochs, rbm_epochs: of the monotone and of the restricted machine, whose step is cheaper.
        batch_size: images in a step, and chains.
        limit: training and test images at most; None: all.
    """

    data: str
    epochs: int
    rbm_epochs: int
    grey_levels: int = 4
    observed: float = 0.4
    hidden: tuple[tuple[int, int, int], ...] = ((6, 4, 2),)
    monotonicity: float = 0.1
    tolerance: float = 1e-3
    max_iter: int = 50
    hidden_units: int = 384
    gibbs_steps: int = 1
    batch_size: int = 128
    limit: int | None = None


SETTINGS = {
    Scale.SMOKE: CompletionSettings(
        "digits", epochs=2, rbm_epochs=2, hidden=((2, 4, 2),), hidden_units=32, limit=256
    ),
    Scale.LAPTOP: CompletionSettings("digits", epochs=60, rbm_epochs=300),
    Scale.PAPER: CompletionSettings(
        "fashion-mnist",
        epochs=40,
        rbm_epochs=40,
        grey_levels=20,
        hidden=((10, 4, 2), (20, 4, 4)),
        monotonicity=0.01,
        hidden_units=1960,
    ),
}


@dataclass(frozen=True)
class Images:
    """Grey levels and labels, and which pixels of the test images are seen.

    Attributes:
        train, test: index of each pixel's bin.
        seen: of the test images.
    """

    train: Int64[Tensor, "train height width"]
    train_labels: Int64[Tensor, "train"]
    test: Int64[Tensor, "test height width"]
    test_labels: Int64[Tensor, "test"]
    seen: Bool[Tensor, "test height width"]
    grey_levels: int
    classes: int


def load(settings: CompletionSettings, seed: int) -> Images:
    """The images with what the seed hides in the test set."""
    data = load_images(settings.data, limit=settings.limit)
    levels = settings.grey_levels
    train, test = (
        (x[:, 0].long() * levels).div(256, rounding_mode="floor")
        for x in (data.train_images, data.test_images)
    )
    seen = torch.rand(test.shape, generator=generator_for(seed, "hidden pixels"))
    return Images(
        train,
        data.train_labels,
        test,
        data.test_labels,
        seen < settings.observed,
        levels,
        len(data.class_names),
    )


class MonotoneCompleter(nn.Module):
    """The convolutional machine over pixels, hidden maps and the label, with its temperatures."""

    def __init__(self, settings: CompletionSettings, images: Images) -> None:
        super().__init__()
        levels, classes = images.grey_levels, images.classes
        height, width = images.train.shape[1:]
        layers = [(levels, height, width, levels)]
        kernels = [[3]]
        for depth, (variables, states, stride) in enumerate(settings.hidden, start=1):
            layers.append((variables * states, height // stride, width // stride, states))
            kernels.append([3] * (depth + 1))
        layers.append((classes, 1, 1, classes))
        kernels.append([0] * len(settings.hidden) + [1, 1])
        self.machine = MonotoneConvBoltzmannMachine(
            layers,
            kernels,
            monotonicity=settings.monotonicity,
            alpha=1.0,  # the longest step that surely converges
            tolerance=settings.tolerance,
            max_iter=settings.max_iter,
        )
        self.levels, self.hidden = levels, len(settings.hidden)
        # τ, whose square scales the potentials. The label's starts like the pixels', where the
        # authors' starts at 1: in few steps its gradient would be lost among theirs.
        self.pixel_temperature = nn.Parameter(torch.full((height, width), math.sqrt(10.0)))
        self.label_temperature = nn.Parameter(torch.tensor(math.sqrt(10.0)))

    def potentials(self, pixels: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """At the fixed point, of pixels (batch, levels, height, width) and label."""
        image = F.one_hot(pixels, self.levels).movedim(-1, 1)
        image = image.to(self.machine.biases[0].dtype)
        unknown = [None] * (self.hidden + 1)
        q = self.machine([image, *unknown], [seen[:, None], *unknown])
        u = self.machine.potentials(q)
        return u[0], u[-1].flatten(1)

    def loss(self, pixels: Tensor, labels: Tensor, seen: Tensor) -> Tensor:
        """Half the focal loss of hidden pixels and half the cross-entropy of the label."""
        u, label = self.potentials(pixels, seen)
        pixel_loss = focal_completion_loss(u, pixels, seen, temperature=self.pixel_temperature)
        label_loss = F.cross_entropy(label * self.label_temperature**2, labels)
        return 0.5 * pixel_loss + 0.5 * label_loss

    @torch.no_grad()
    def complete(self, pixels: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        u, label = self.potentials(pixels, seen)
        u = (u * self.pixel_temperature**2).softmax(1)
        return u.movedim(1, -1), (label * self.label_temperature**2).softmax(1)


class RestrictedCompleter(nn.Module):
    """The restricted machine over pixels and label, with chains that go on from step to step."""

    chains: Tensor

    def __init__(self, settings: CompletionSettings, images: Images) -> None:
        super().__init__()
        self.levels, self.classes = images.grey_levels, images.classes
        self.steps = settings.gibbs_steps
        height, width = images.train.shape[1:]
        self.machine = RestrictedBoltzmannMachine(
            [self.levels] * (height * width) + [self.classes],
            settings.hidden_units,
            tolerance=settings.tolerance,
            max_iter=settings.max_iter,
        )
        # How often each state occurs, as the common advice for the biases of visible units has it.
        share = self.visible(images.train, images.train_labels).mean(0)
        self.machine.visible_bias.data.copy_((share + 0.01).log())
        shape = (settings.batch_size, height, width)
        chains = torch.randint(self.levels, shape), torch.randint(self.classes, shape[:1])
        self.register_buffer("chains", self.visible(*chains))

    def visible(self, pixels: Tensor, labels: Tensor) -> Float[Tensor, "batch total"]:
        """One-hot states of all visible units."""
        states = F.one_hot(pixels.flatten(1), self.levels).flatten(1)
        return torch.cat([states, F.one_hot(labels, self.classes)], 1).float()

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Persistent contrastive divergence: its gradient is roughly that of the likelihood."""
        self.chains = self.machine.sample(self.chains, self.steps)
        data = self.machine.free_energy(self.visible(pixels, labels))
        return data.mean() - self.machine.free_energy(self.chains).mean()

    @torch.no_grad()
    def complete(self, pixels: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        observed = self.visible(pixels, torch.zeros_like(pixels[:, 0, 0]))
        flags = torch.cat([seen.flatten(1), torch.zeros_like(seen[:, 0, :1])], 1)
        q = self.machine(observed, flags)
        image, label = q[:, : -self.classes], q[:, -self.classes :]
        return image.unflatten(1, (*pixels.shape[1:], self.levels)), label


@dataclass(frozen=True)
class TrainedCompletion:
    """A trained completer with its record.

    Attributes:
        completer: in evaluation mode.
        images: with the pixels of the test set that were hidden.
        history: curves of the training loss and of both test errors [%].
    """

    completer: MonotoneCompleter | RestrictedCompleter
    images: Images
    history: History

    def measurement(self) -> Measurement:
        """The metric, the error of the label [%]; readings: "pixel error" [%] of hidden pixels,
        and "converged" [%], the share of test images whose mean field was found."""
        last = {name: self.history.last(name) for name in self.history.evaluations}
        value = last.pop("label error")
        curves = {f"{name} [%]": list(c) for name, c in self.history.evaluations.items()}
        return Measurement(value, last, curves)


def train(
    *,
    model: str = "monotone",
    seed: int = 0,
    settings: CompletionSettings = SETTINGS[Scale.LAPTOP],
    learning_rate: float = 3e-3,
    device: str = "cpu",
) -> TrainedCompletion:
    """Trains a machine to complete and to classify, and tries it on the test images.

    Args:
        model: "monotone" or "restricted".
        seed: of weights, order and hidden pixels; runs with the same seed are tried on the same
            pixels.
        settings: see `SETTINGS` for those of each scale.
        learning_rate: of Adam.
        device: see `heterodox.training.fabric_on`.

    Raises:
        ValueError: `model` is neither.

    Example:
        >>> run = train(settings=SETTINGS[Scale.SMOKE])
        >>> sorted(run.measurement().readings)
        ['converged', 'pixel error']
    """
    if model not in ("monotone", "restricted"):
        raise ValueError(f"model: {model!r} given, 'monotone' or 'restricted' expected")
    images = load(settings, seed)
    monotone = model == "monotone"
    with seeded(derived_seed(seed, "model")):
        completer: MonotoneCompleter | RestrictedCompleter = (
            MonotoneCompleter(settings, images)
            if monotone
            else RestrictedCompleter(settings, images)
        )

    def loss(wrapped: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        pixels, labels = batch
        if isinstance(completer, RestrictedCompleter):
            return completer.loss(pixels, labels)
        seen = torch.rand(pixels.shape, device=pixels.device) < settings.observed
        return completer.loss(pixels, labels, seen)

    batches = Shuffled(
        (images.train, images.train_labels), settings.batch_size, generator_for(seed, "order")
    )
    epochs = settings.epochs if monotone else settings.rbm_epochs
    history = fit(
        completer,
        torch.optim.Adam(completer.parameters(), lr=learning_rate),
        batches,
        loss,
        steps=epochs * len(batches),
        evaluate=lambda _: errors(completer, images),
        evaluate_every=max(1, epochs // 5) * len(batches),
        fabric=fabric_on(device),
        seed=derived_seed(seed, "training"),
    )
    return TrainedCompletion(completer.eval(), images, history)


def errors(completer: MonotoneCompleter | RestrictedCompleter, images: Images) -> dict[str, float]:
    """Of the test images [%]: wrong labels, wrong hidden pixels, mean fields that were found."""
    device = next(completer.parameters()).device
    wrong = hidden = labels = found = 0.0
    parts = (x.split(EVALUATED_AT_ONCE) for x in (images.test, images.seen, images.test_labels))
    for pixels, seen, truth in zip(*parts, strict=True):
        pixels, seen = pixels.to(device), seen.to(device)
        with warnings.catch_warnings():  # counted instead
            warnings.simplefilter("ignore", RuntimeWarning)
            image, label = completer.complete(pixels, seen)
        wrong += float(((image.argmax(-1) != pixels) & ~seen).sum())
        hidden += float((~seen).sum())
        labels += float((label.argmax(1).cpu() != truth).sum())
        info = completer.machine.info
        found += len(truth) * float(info is not None and info.converged)
    count = len(images.test)
    return {
        "label error": 100 * labels / count,
        "pixel error": 100 * wrong / max(hidden, 1.0),
        "converged": 100 * found / count,
    }


def nearest(seed: int, settings: CompletionSettings) -> Measurement:
    """Hidden pixels from the training image that is nearest in those that are seen; the label by
    logistic regression on the completed image."""
    from sklearn.linear_model import LogisticRegression

    images = load(settings, seed)
    scale = images.grey_levels - 1
    train, test = (x.flatten(1).float() / scale for x in (images.train, images.test))
    seen = images.seen.flatten(1).float()
    # Σ over seen pixels of (x − y)², expanded, less what is the same for all y.
    distance = seen @ train.square().mT - 2 * (seen * test) @ train.mT
    completed = torch.where(seen > 0, test, train[distance.argmin(1)])
    regression = LogisticRegression(max_iter=1000).fit(train.numpy(), images.train_labels.numpy())
    labels = torch.from_numpy(regression.predict(completed.numpy()))
    wrong = (completed != test).sum() / (seen == 0).sum().clamp(min=1)
    label_error = 100 * float((labels != images.test_labels).double().mean())
    return Measurement(label_error, {"pixel error": 100 * float(wrong)})
