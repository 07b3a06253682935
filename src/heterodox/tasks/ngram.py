"""n-grams: a small network learns to predict the next word of a real text, by plain SGD.

Nothing of a training step but the output layer grows with the vocabulary: words enter through rows
of an embedding with a sparse gradient. So output layers can be compared in quality and in time.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from heterodox.data.text import EncodedText
from heterodox.experiment.measurement import Curve
from heterodox.experiment.scale import Scale
from heterodox.losses.factored_spherical import FactoredSphericalLinear
from heterodox.models.factored_output import FactoredOutput, FromStatistics
from heterodox.models.ngram import NGramFeatures
from heterodox.tasks.likelihood import top_error
from heterodox.training.batches import RandomWindows
from heterodox.training.devices import fabric_on
from heterodox.training.history import History
from heterodox.training.loop import fit
from heterodox.training.seeding import derived_seed, generator_for, seeded

WINDOWS_AT_ONCE = 256
WATCHED = 10  # of the top-k error that is taken during training


@dataclass(frozen=True)
class NGramSettings:
    """The sizes of a run.

    Args:
        steps, batch_size: steps of SGD, and words in each.
        learning_rate: at the start.
        decay: whether the rate falls linearly to 0.
        context, embedding, hidden: see `NGramFeatures`.
        start: standard deviation of the output weights at the start, as a multiple of 1/√hidden.
        evaluations: how often the top-10 error is taken during training.
        evaluation_words: of the validation text, for that.
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 3.0
    decay: bool = True
    context: int = 4
    embedding: int = 64
    hidden: int = 128
    start: float = 1.0
    evaluations: int = 5
    evaluation_words: int = 2000


SETTINGS = {
    Scale.SMOKE: NGramSettings(steps=40, embedding=16, hidden=32, evaluation_words=200),
    Scale.LAPTOP: NGramSettings(steps=2000),
    # Sizes of the authors' timing example, a 10-gram.
    Scale.PAPER: NGramSettings(
        steps=200_000,
        batch_size=200,
        context=9,
        embedding=512,
        hidden=512,
        evaluations=20,
        evaluation_words=20_000,
    ),
}


@dataclass(frozen=True)
class TrainedNGram:
    """A trained model with its record.

    Attributes:
        model: gives all outputs; in evaluation mode.
        settings: of the run.
        history: "top-10 error" [%] and "seconds" of training by step.
    """

    model: nn.Module
    settings: NGramSettings
    history: History

    @property
    def error_by_seconds(self) -> Curve:
        """Top-10 error [%] over the processor time that was spent on training alone."""
        seconds = self.history.evaluations.get("seconds", [])
        errors = self.history.evaluations.get("top-10 error", [])
        return [(time, error) for (_, time), (_, error) in zip(seconds, errors, strict=True)]

    def errors(self, tokens: Int[Tensor, "tokens"], ks: Sequence[int]) -> dict[int, float]:
        """k -> top-k error [%] on a text, for each word that has a full context; NaN if training
        diverged."""
        if self.history.diverged:
            return dict.fromkeys(ks, float("nan"))
        return top_errors(self.model, tokens, self.settings.context, ks)


def train(
    loss: FromStatistics | None,
    *,
    text: EncodedText,
    seed: int = 0,
    settings: NGramSettings = SETTINGS[Scale.LAPTOP],
    device: str = "cpu",
) -> TrainedNGram:
    """Trains features and output layer together, both with the same rate.

    Args:
        loss: a spherical loss from statistics, for a factored output layer; None is a linear layer
            with cross-entropy.
        text: words.
        seed: of weights and of the order of the data. Runs with the same seed start from the same
            weights and see the same words, whatever their loss.
        settings: see `SETTINGS` for those of each scale.
        device: see `heterodox.training.fabric_on`.

    Example:
        >>> from heterodox.data import load_text
        >>> from heterodox.losses import ZLoss
        >>> words = load_text("python-docs").encode("word", vocabulary=500)
        >>> settings = NGramSettings(steps=30, embedding=8, hidden=16, evaluation_words=100)
        >>> run = train(ZLoss(0.1, 20.0).from_statistics, text=words, settings=settings)
        >>> len(run.error_by_seconds)
        5
    """
    fabric = fabric_on(device)
    words = text.vocabulary_size
    with seeded(derived_seed(seed, "initialisation")):
        features = NGramFeatures(words, settings.context, settings.embedding, settings.hidden)
        linear = nn.Linear(settings.hidden, words, bias=False)
        nn.init.normal_(linear.weight, std=settings.start * settings.hidden**-0.5)
    model: nn.Module = nn.Sequential(features, linear)
    if loss is not None:
        output = FactoredSphericalLinear(settings.hidden, words, settings.learning_rate)
        output.load_weight(linear.weight)
        model = FactoredOutput(features, output, loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate)
    if loss is not None:
        output.follow(optimizer)
    clock = _TrainingClock()
    held_out = text.validation[: settings.evaluation_words + settings.context]

    def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        words, target = batch[0], batch[1][:, -1]
        return F.cross_entropy(model(words), target) if loss is None else model(words, target)

    def evaluate(model: nn.Module) -> dict[str, float]:
        seconds = clock.stop()
        error = top_errors(model, held_out, settings.context, (WATCHED,))[WATCHED]
        clock.start()
        return {f"top-{WATCHED} error": error, "seconds": seconds}

    clock.start()
    history = fit(
        model,
        optimizer,
        RandomWindows(
            text.train, settings.context, settings.batch_size, generator_for(seed, "windows")
        ),
        mean_loss,
        steps=settings.steps,
        scheduler=torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 1 - step / settings.steps if settings.decay else 1.0
        ),
        evaluate=evaluate,
        evaluate_every=max(1, settings.steps // settings.evaluations),
        fabric=fabric,
        seed=derived_seed(seed, "dropout"),
    )
    return TrainedNGram(model.eval(), settings, history)


@torch.no_grad()
def top_errors(
    model: nn.Module, tokens: Int[Tensor, "tokens"], context: int, ks: Sequence[int]
) -> dict[int, float]:
    """k -> share of words [%] that are not among the k largest outputs for their context."""
    device = next(model.parameters()).device
    wrong, count = dict.fromkeys(ks, 0.0), len(tokens) - context
    for windows in tokens.unfold(0, context + 1, 1).split(WINDOWS_AT_ONCE):
        outputs = model(windows[:, :-1].to(device))
        for k in ks:
            wrong[k] += len(windows) * float(top_error(outputs, windows[:, -1].to(device), k))
    return {k: 100 * number / count for k, number in wrong.items()}


class _TrainingClock:
    """Processor time between `start` and `stop`, summed over all of them."""

    def __init__(self) -> None:
        self.seconds = self.started = 0.0

    def start(self) -> None:
        self.started = time.process_time()

    def stop(self) -> float:
        self.seconds += time.process_time() - self.started
        return self.seconds
