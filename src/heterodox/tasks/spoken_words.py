"""Spoken words as spikes: a spiking network with delays learns to tell which word was said.

Recordings become counts of spikes in a model of the cochlea (`heterodox.data.spikes`); the network,
its loss and its training are those of arXiv 2306.17670: one Adam for weights with a rate that rises
and falls (one cycle), one with 100 times the rate for delays with cosine decay, delays brought into
their window after every step, and a blur that shrinks during the first quarter of training.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from heterodox.data.spikes import SpikeData, spoken_spikes, timing_patterns
from heterodox.experiment.measurement import Curve, Measurement
from heterodox.experiment.scale import Scale
from heterodox.layers.delays import DelayedSNN, sigma_at, summed_softmax
from heterodox.training.batches import Shuffled
from heterodox.training.devices import fabric_on
from heterodox.training.history import History
from heterodox.training.loop import fit
from heterodox.training.seeding import derived_seed, generator_for, seeded

Delays = Literal["learned", "fixed", "none"]

FINAL_SIGMA = 0.23
EVALUATED_AT_ONCE = 300


@dataclass(frozen=True)
class SpokenWordsSettings:
    """The sizes of a run.

    Args:
        epochs: passes over the training recordings.
        batch_size: recordings a step.
        learning_rate: of weights, a fifth of the peak of the cycle, which starts at a 25th of the
            peak; the delays' rate is 100 times as high.
        hidden: neurons of each hidden layer, with learned delays; without, layers are wider, for
            the same number of learned parameters.
        layers: hidden layers.
        max_delay: lags of every layer.
        tau: membrane time constant in steps.
        dropout: share of hidden neurons that are silent in a recording.
        weight_decay: of the weights.
        seconds, channels, step: see `heterodox.data.spikes.spoken_spikes`.
        evaluations: how often the test set is evaluated during training.
    """

    epochs: int
    batch_size: int
    learning_rate: float = 1e-3
    hidden: int = 48
    layers: int = 2
    max_delay: int = 15
    tau: float = 1.005
    dropout: float = 0.4
    weight_decay: float = 1e-5
    seconds: float = 0.6
    channels: int = 32
    step: float = 0.010
    evaluations: int = 5

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "hidden", "layers", "evaluations"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} given, a positive number expected")


SETTINGS = {
    Scale.SMOKE: SpokenWordsSettings(
        epochs=4, batch_size=32, hidden=12, max_delay=9, dropout=0.1, evaluations=1
    ),
    Scale.LAPTOP: SpokenWordsSettings(epochs=20, batch_size=128, dropout=0.2),
    # The sizes of the paper for SHD.
    Scale.PAPER: SpokenWordsSettings(
        epochs=150, batch_size=256, hidden=256, max_delay=25, channels=140, evaluations=15
    ),
}


@dataclass(frozen=True)
class TrainedSpokenWords:
    """A trained network with its record.

    Attributes:
        model: in evaluation mode, with rounded delays, on the device of training.
        settings: of the run.
        history: curves of the training loss and the test error [%].
        blurred_accuracy: test accuracy [%] at the end with delays as trained: blurred, not rounded.
        spikes: of a hidden neuron in a test recording, in the mean.
    """

    model: DelayedSNN
    settings: SpokenWordsSettings
    history: History
    blurred_accuracy: float
    spikes: float

    @property
    def test_accuracy(self) -> float:
        """At the end, with rounded delays [%]; NaN if training diverged."""
        return 100 - self.history.last("test error")

    def measurement(self) -> Measurement:
        """The metric, test accuracy at the end [%].

        Readings: "drop" [%], what rounding the delays costs; "parameters", how many are learned;
        "spikes" of a hidden neuron in a recording.
        """
        errors = self.history.evaluations.get("test error", [])
        accuracies: Curve = [(step, 100 - error) for step, error in errors]
        learned = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        readings = {
            "drop": self.blurred_accuracy - self.test_accuracy,
            "parameters": float(learned),
            "spikes": self.spikes,
        }
        curves = {"test accuracy [%]": accuracies, "training loss": self.history.loss}
        return Measurement(self.test_accuracy, readings, curves)


def train(
    *,
    delays: Delays = "learned",
    inputs_a_neuron: int | None = None,
    shrinking: bool = True,
    data: str | Path | SpikeData = "fsdd",
    seed: int = 0,
    settings: SpokenWordsSettings = SETTINGS[Scale.LAPTOP],
    device: str = "cpu",
) -> TrainedSpokenWords:
    """Trains a network with delays of one kind and evaluates it on the test recordings.

    Args:
        delays: "learned"; "fixed", whole numbers drawn at random; or "none".
        inputs_a_neuron: so many synapses, at random, has each hidden neuron; None has all. Then
            networks of all kinds are equally wide.
        shrinking: whether the blur of learned delays shrinks; if not, it is narrow from the start.
        data: "fsdd", "timing-patterns" (made up) or a folder of recordings, see `load_speech`; or
            spikes.
        seed: of initialisation, connections, order and dropout.
        settings: see `SETTINGS` for those of each scale.
        device: see `heterodox.training.fabric_on`.

    Raises:
        ValueError: `delays` is none of the three, `inputs_a_neuron` is not positive, there are
            fewer recordings than in a batch, or as for the data.

    Example:
        >>> run = train(data="timing-patterns", settings=SETTINGS[Scale.SMOKE])
        >>> 0 <= run.test_accuracy <= 100
        True
    """
    if delays not in ("learned", "fixed", "none"):
        raise ValueError(f"delays: {delays!r} given, 'learned', 'fixed' or 'none' expected")
    if inputs_a_neuron is not None and inputs_a_neuron < 1:
        raise ValueError(f"inputs_a_neuron: {inputs_a_neuron} given, at least 1 expected")
    source = data if isinstance(data, SpikeData) else load(data, settings)
    fabric = fabric_on(device)
    with seeded(derived_seed(seed, "initialisation")):
        model = build(delays, source, settings, wider=inputs_a_neuron is None)
    if inputs_a_neuron is not None:
        generator = generator_for(seed, "connections")
        for layer in model.layers()[:-1]:
            keep_inputs(layer.weight, inputs_a_neuron, generator)
    batches = Shuffled(
        (source.train_counts.transpose(0, 1).contiguous(), source.train_labels),
        settings.batch_size,
        generator_for(seed, "order"),
    )
    optimizer = optimizer_for(model, settings)
    each_step(model, optimizer, len(batches), settings, shrinking and delays == "learned")

    def scores(model: nn.Module, counts: Tensor) -> Tensor:
        return summed_softmax(model(counts.transpose(0, 1).float()))

    def test_error(model: nn.Module) -> float:
        wrong = 0
        for first in range(0, len(source.test_labels), EVALUATED_AT_ONCE):
            part = slice(first, first + EVALUATED_AT_ONCE)
            counts = source.test_counts[:, part].transpose(0, 1).to(fabric.device)
            found = scores(model, counts).argmax(-1).cpu()
            wrong += int((found != source.test_labels[part]).sum())
        return 100 * wrong / len(source.test_labels)

    steps = settings.epochs * len(batches)
    history = fit(
        model,
        optimizer,
        batches,
        lambda model, batch: F.cross_entropy(scores(model, batch[0]), batch[1]),
        steps=steps,
        scheduler=schedule_for(optimizer, settings.epochs, len(batches)),
        evaluate=lambda model: {"test error": test_error(model)},
        evaluate_every=max(1, steps // settings.evaluations),
        fabric=fabric,
        seed=derived_seed(seed, "dropout"),
    )
    model.eval()
    with torch.no_grad():
        spikes = hidden_spikes(model, source.test_counts[:, :EVALUATED_AT_ONCE].to(fabric.device))
        for layer in model.layers():
            layer.train()
        blurred = 100 - test_error(model)
    return TrainedSpokenWords(model.eval(), settings, history, blurred, spikes)


@functools.cache
def load(data: str | Path, settings: SpokenWordsSettings) -> SpikeData:
    """The spikes behind a name or a folder; made-up ones are small."""
    if data == "timing-patterns":
        return timing_patterns(480)
    return spoken_spikes(
        data, seconds=settings.seconds, channels=settings.channels, step=settings.step
    )


def build(
    delays: Delays, data: SpikeData, settings: SpokenWordsSettings, *, wider: bool
) -> DelayedSNN:
    """The network; without learned delays as wide as gives the same number of learned parameters,
    if `wider`."""
    inputs, classes = data.train_counts.shape[2], len(data.class_names)
    hidden = settings.hidden
    if wider and delays != "learned":
        target = 2 * synapses(inputs, hidden, classes, settings.layers)
        while synapses(inputs, hidden + 1, classes, settings.layers) <= target:
            hidden += 1
    model = DelayedSNN(
        [inputs, *settings.layers * [hidden], classes],
        1 if delays == "none" else settings.max_delay,
        tau=settings.tau,
        dropout=settings.dropout,
    )
    if delays != "learned":
        # Whole numbers and no blur: what is trained is what is tested.
        model.round_delays_()
        model.set_sigma(0.0)
        for delay in model.delays():
            delay.requires_grad_(False)
    return model


def synapses(inputs: int, hidden: int, outputs: int, layers: int) -> int:
    return hidden * (inputs + (layers - 1) * hidden + outputs)


def keep_inputs(weight: nn.Parameter, count: int, generator: torch.Generator) -> None:
    """Leaves each neuron `count` inputs at random; the others stay at 0, without a gradient."""
    neurons, inputs, _ = weight.shape
    order = torch.rand(neurons, inputs, generator=generator).argsort(1)
    mask = (order < count)[..., None].to(weight)
    with torch.no_grad():
        weight.mul_(mask)
    weight.register_hook(lambda gradient: gradient * mask.to(gradient.device))


def optimizer_for(model: DelayedSNN, settings: SpokenWordsSettings) -> torch.optim.Adam:
    """Adam with a group for each of weights, normalisation and delays."""
    weights, delays = model.weights(), [d for d in model.delays() if d.requires_grad]
    known = {id(p) for p in (*weights, *model.delays())}
    others = [p for p in model.parameters() if id(p) not in known]
    rate = settings.learning_rate
    groups: list[dict[str, Any]] = [
        {"params": weights, "lr": 5 * rate, "weight_decay": settings.weight_decay},
        {"params": others, "lr": 5 * rate},
    ]
    if delays:
        groups.append({"params": delays, "lr": 100 * rate})
    return torch.optim.Adam(groups)


def schedule_for(optimizer: torch.optim.Optimizer, epochs: int, steps: int) -> LambdaLR:
    """One cycle for weights, half a cosine for delays; an epoch of `steps` steps has one rate."""

    def cycle(step: int) -> float:
        return one_cycle(step // steps, epochs)

    def cosine(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step // steps) / epochs)))

    rates: list[Any] = [cycle, cycle, cosine]
    return LambdaLR(optimizer, rates[: len(optimizer.param_groups)])


def one_cycle(epoch: int, epochs: int) -> float:
    """What `torch.optim.lr_scheduler.OneCycleLR` makes of its largest rate, with its defaults.

    Example:
        >>> [round(one_cycle(epoch, 11), 2) for epoch in (0, 2, 10)]
        [0.04, 0.96, 0.0]
    """
    lowest, first, last = 1 / 25 / 1e4, 1 / 25, epochs - 1
    top = 0.3 * epochs - 1
    if epoch <= top and top > 0:
        start, end, share = first, 1.0, epoch / top
    else:
        start, end, share = 1.0, lowest, min(1.0, (epoch - top) / max(1e-9, last - top))
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def each_step(
    model: DelayedSNN,
    optimizer: torch.optim.Optimizer,
    steps: int,
    settings: SpokenWordsSettings,
    shrinking: bool,
) -> None:
    """After every step brings delays into the window, and after every epoch shrinks the blur."""
    widest = float(model.layers()[0].max_delay // 2)

    def sigma(epoch: int) -> float:
        return sigma_at(
            epoch, initial=widest, final=FINAL_SIGMA, last_epoch=max(1, settings.epochs // 4)
        )

    learned = any(delay.requires_grad for delay in model.delays())
    if learned:
        model.set_sigma(sigma(0) if shrinking else FINAL_SIGMA)
    done = 0

    def after_step(*_: Any) -> None:
        nonlocal done
        done += 1
        if learned:
            model.clamp_delays_()
            if shrinking and done % steps == 0:
                model.set_sigma(sigma(done // steps))

    optimizer.register_step_post_hook(after_step)


def hidden_spikes(model: DelayedSNN, counts: Tensor) -> float:
    """Spikes of a hidden neuron in a recording."""
    x, total, neurons = counts.float(), 0.0, 0
    for block in model.blocks:
        x = block(x)
        total += x.sum().item()
        neurons += x.shape[2]
    return total / (counts.shape[1] * neurons)
