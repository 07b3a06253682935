"""Images whose pixels change their places from task to task: a spiking network learns them in turn.

The network is `heterodox.continual.SpikingMLP`, trained by plain gradient descent without momentum,
one optimizer a task; methods against forgetting are Hebbian orthogonal projection (HLOP) and, as
baselines, none (SGD), elastic weights (EWC), projection by singular values (GPM), and training on
all tasks at once, which is no continual learning but its upper bound.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.optim import SGD

from heterodox.continual.elastic_weights import ElasticWeights
from heterodox.continual.metrics import accuracy_matrix, backward_transfer
from heterodox.continual.orthogonal_projection import (
    OrthogonalProjection,
    ProjectedLinear,
    gradient_projection_basis,
)
from heterodox.continual.spiking_mlp import Rule, SpikingMLP
from heterodox.continual.streams import ImageTask, permuted_tasks
from heterodox.data.images import ImageData, load_images
from heterodox.experiment.measurement import Measurement
from heterodox.experiment.scale import Scale
from heterodox.training.devices import fabric_on
from heterodox.training.progress import report
from heterodox.training.seeding import derived_seed, generator_for, seeded

Method = Literal["SGD", "EWC", "GPM", "HLOP", "joint"]
METHODS = ("SGD", "EWC", "GPM", "HLOP", "joint")

EVALUATED_AT_ONCE = 1000
# Rows with less than this share of the mean row's energy have had nothing to learn from.
NEGLIGIBLE = 0.1


@dataclass(frozen=True)
class ContinualSettings:
    """The sizes of a run.

    Args:
        tasks: how many, one after the other.
        train_images, test_images: at most so many are used; None for all. The training images are
            drawn anew by each seed, the test images are the first of the test set.
        epochs: passes over the training images of each task.
        batch_size: images a step.
        learning_rate: of plain gradient descent; 0.1 in the paper.
        hidden: neurons of each of the two hidden layers.
        first_units, more_units: subspace neurons of a layer for the first task, and added by each
            later one, as shares of its inputs.
        lateral: scale and levels of subspace neurons that spike; None for exact ones.
        strength: λ of EWC.
        energy: share of its inputs' energy that GPM keeps.
        samples: training images for EWC's Fisher information, and for GPM's singular values.
    """

    tasks: int
    train_images: int | None = None
    test_images: int | None = None
    epochs: int = 1
    batch_size: int = 64
    learning_rate: float = 0.1
    hidden: int = 200
    first_units: float = 0.25
    more_units: float = 0.1
    lateral: tuple[float, int] | None = None
    strength: float = 10.0
    energy: float = 0.97
    samples: int = 300

    def __post_init__(self) -> None:
        for name in ("tasks", "epochs", "batch_size", "learning_rate", "hidden", "samples"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} given, a positive number expected")


SETTINGS = {
    Scale.SMOKE: ContinualSettings(
        3, train_images=800, epochs=2, hidden=48, batch_size=32, samples=60
    ),
    Scale.LAPTOP: ContinualSettings(5, train_images=10_000, test_images=2_000),
    # The paper's for permuted MNIST, where its additions fall from 70 to 10 neurons.
    Scale.PAPER: ContinualSettings(10, hidden=800, first_units=0.2, more_units=0.06),
}


@dataclass(frozen=True)
class TrainedStream:
    """A network that has been through all tasks, with its record.

    Attributes:
        model: in evaluation mode, on the device of training.
        settings: of the run.
        accuracies: after each task (rows) on each so far [%]; of joint training, one row.
        energy_share: of the subspace neurons after the first task, in the layer where it is least:
            the energy of inputs that they keep, as a share of what as many principal directions
            keep; NaN without subspace neurons.
        orthonormality: the largest entry of |HHᵀ - I| among their rows with energy.
    """

    model: SpikingMLP
    settings: ContinualSettings
    accuracies: Tensor
    energy_share: float
    orthonormality: float

    def measurement(self) -> Measurement:
        """The metric, ACC: mean accuracy over all tasks at the end [%].

        Readings: "BWT" [%], negative for forgetting, if tasks came one after the other; for HLOP
        "energy share" and "orthonormality" of the subspaces after the first task.
        """
        last = self.accuracies[-1].tolist()
        value = sum(last) / len(last)
        readings = {}
        if len(self.accuracies) > 1:
            readings["BWT"] = backward_transfer(self.accuracies)
        if not math.isnan(self.energy_share):
            readings["energy share"] = self.energy_share
            readings["orthonormality"] = self.orthonormality
        at_end = [(float(n), value) for n, value in enumerate(last, start=1)]
        return Measurement(value, readings, {"accuracy at the end by task [%]": at_end})


def train(
    *,
    method: Method = "HLOP",
    rule: Rule = "bptt",
    data: str | Path | ImageData = "digits",
    seed: int = 0,
    settings: ContinualSettings = SETTINGS[Scale.LAPTOP],
    device: str = "cpu",
) -> TrainedStream:
    """Trains a network on permuted images, task by task, and evaluates it after each.

    Args:
        method: one of `METHODS`.
        rule: of training, see `SpikingMLP`.
        data: see `heterodox.data.load_images`; or images already loaded.
        seed: of permutations, images, their order, initialisation and subspace neurons.
        settings: see `SETTINGS` for those of each scale.
        device: see `heterodox.training.fabric_on`.

    Raises:
        ValueError: an unknown method or rule, a batch larger than a task, or as for the data.

    Example:
        >>> run = train(method="SGD", settings=SETTINGS[Scale.SMOKE])
        >>> run.accuracies.shape
        torch.Size([3, 3])
    """
    if method not in METHODS:
        raise ValueError(f"method: {method!r} given, one of {', '.join(METHODS)} expected")
    source = data if isinstance(data, ImageData) else load_images(data)
    tasks = stream(source, seed, settings)
    if settings.batch_size > len(tasks[0].train_labels):
        raise ValueError(
            f"batch_size: {settings.batch_size} given, at most the {len(tasks[0].train_labels)} "
            "images of a task expected"
        )
    where = fabric_on(device).device
    inputs, classes = tasks[0].train_inputs.shape[1], len(tasks[0].classes)
    with seeded(derived_seed(seed, "initialisation")):
        model = SpikingMLP(
            [inputs, settings.hidden, settings.hidden, classes],
            rule,
            quantization=settings.lateral if method == "HLOP" else None,
        ).to(where)
    order = generator_for(seed, "order")
    drawing = generator_for(seed, "method")
    learner = OrthogonalProjection(model) if method == "HLOP" else None
    springs = ElasticWeights(model, settings.strength) if method == "EWC" else None
    found = math.nan, math.nan

    def learn(number: int, task: ImageTask) -> None:
        nonlocal found
        if learner is not None:
            share = settings.more_units if number else settings.first_units
            units = [round(share * layer.subspace.in_features) for layer in learner.layers]
            learner.begin_task(units, generator=drawing)
        descend(model, task, springs, order, settings, number)
        samples = task.train_inputs[: settings.samples].to(where)
        if learner is not None:
            learner.end_task()
            if number == 0:
                found = quality(model, task.test_inputs.to(where))
        if springs is not None and number + 1 < settings.tasks:
            springs.end_task(samples, drawing)
        if method == "GPM" and number + 1 < settings.tasks:
            remember(model, samples, settings.energy)

    def accuracy(number: int, task: ImageTask) -> float:
        return accuracy_on(model, task, where)

    if method == "joint":
        learn(0, together(tasks))
        matrix = torch.tensor(
            [[accuracy(n, task) for n, task in enumerate(tasks)]], dtype=torch.float64
        )
    else:
        matrix = accuracy_matrix(tasks, learn, accuracy)
    return TrainedStream(model.eval(), settings, matrix, *found)


def stream(data: ImageData, seed: int, settings: ContinualSettings) -> list[ImageTask]:
    """The tasks of a seed."""
    picked = torch.randperm(len(data.train_labels), generator=generator_for(seed, "subset"))
    picked = picked[: settings.train_images]
    kept = ImageData(
        data.name,
        data.train_images[picked],
        data.train_labels[picked],
        data.test_images[: settings.test_images],
        data.test_labels[: settings.test_images],
        data.class_names,
    )
    return permuted_tasks(kept, settings.tasks, generator_for(seed, "permutations"))


def together(tasks: list[ImageTask]) -> ImageTask:
    """All tasks as one."""
    return ImageTask(
        torch.cat([task.train_inputs for task in tasks]),
        torch.cat([task.train_labels for task in tasks]),
        torch.cat([task.test_inputs for task in tasks]),
        torch.cat([task.test_labels for task in tasks]),
        tasks[0].classes,
    )


def descend(
    model: SpikingMLP,
    task: ImageTask,
    springs: ElasticWeights | None,
    order: torch.Generator,
    settings: ContinualSettings,
    number: int,
) -> None:
    """Gradient descent on one task; an incomplete last batch is left out."""
    where = next(model.parameters()).device
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = SGD(learned, lr=settings.learning_rate)
    model.train()
    batches = len(task.train_labels) // settings.batch_size
    for epoch in range(settings.epochs):
        shuffled = torch.randperm(len(task.train_labels), generator=order)
        for step, chosen in enumerate(shuffled.split(settings.batch_size)[:batches]):
            optimizer.zero_grad()
            model.backward(task.train_inputs[chosen].to(where), task.train_labels[chosen].to(where))
            if springs is not None and number > 0:
                springs.penalty().backward()
            optimizer.step()
            if step % 50 == 0:
                done = number * settings.epochs * batches + epoch * batches + step
                report(done, settings.tasks * settings.epochs * batches)
    model.eval()


@torch.no_grad()
def accuracy_on(model: SpikingMLP, task: ImageTask, where: torch.device) -> float:
    """Share of test images that are given their label [%]."""
    right = 0
    for first in range(0, len(task.test_labels), EVALUATED_AT_ONCE):
        part = slice(first, first + EVALUATED_AT_ONCE)
        found = model(task.test_inputs[part].to(where)).argmax(-1).cpu()
        right += int((found == task.test_labels[part]).sum())
    return 100 * right / len(task.test_labels)


def remember(model: SpikingMLP, samples: Tensor, energy: float) -> None:
    """GPM after a task: the directions of its inputs that are not in the bank yet."""
    for layer, given in zip(model.layers, model.activations(samples), strict=True):
        assert isinstance(layer, ProjectedLinear)
        bank = layer.subspace
        rows = gradient_projection_basis(given, energy, known=bank.frozen)
        bank.add_frozen(rows[: bank.in_features - bank.num_units])
        layer.projecting = True


def quality(model: SpikingMLP, inputs: Tensor) -> tuple[float, float]:
    """What `TrainedStream` says of subspace neurons, on inputs that they have not learned from."""
    shares, errors = [], []
    for layer, given in zip(model.layers, model.activations(inputs), strict=True):
        assert isinstance(layer, ProjectedLinear)
        rows, x = layer.subspace.frozen.double(), given.double()
        if not x.any() or not len(rows):
            continue  # a layer whose inputs never spike has nothing to learn
        responses = x @ rows.T
        kept = (responses @ rows).square().sum()
        # Eigenvalues of the second moment, the energies of the principal directions.
        best = torch.linalg.eigvalsh(x.T @ x)[-len(rows) :].sum()
        shares.append((kept / best).item())
        energy = responses.square().sum(0)
        known = rows[energy > NEGLIGIBLE * energy.mean()]
        gram = known @ known.T - torch.eye(len(known), dtype=rows.dtype, device=rows.device)
        errors.append(gram.abs().max().item())
    return min(shares, default=math.nan), max(errors, default=math.nan)
