"""Recall: a decoder reads pairs of keys and values, then is asked for values by their keys.

    k₃ v₇ k₁ v₂ 0 k₁ 0 0 k₃ 0   ->   v₂ under the second k₁, v₇ under the second k₃

Multi-query associative recall of Arora et al., "Zoology", 2023, arXiv 2312.04927, section 4.1 and
appendix E: keys are distinct within a sequence and come from the first half of the vocabulary,
values from the second. Each key is asked for once, at a place whose distance follows a power law;
what is left of the sequence is token 0. The loss is taken where values are asked for, and nowhere
else. A mixer with a state of fixed size has to keep all pairs in it.

Weights start with a deviation of width^(-1/2): with the usual 0.02, a model as narrow as these
looks back at the token before only after many times as many steps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from heterodox.experiment.measurement import Curve, Measurement
from heterodox.experiment.scale import Scale
from heterodox.layers import NORMS
from heterodox.losses import LOSSES
from heterodox.models.transformer import (
    AttentionFactory,
    DecoderLM,
    attention_of_layers,
    check_decoder,
    try_attention,
)
from heterodox.optim import OPTIMIZERS, SCHEDULES
from heterodox.tasks.task import chosen, described
from heterodox.training.batches import Shuffled
from heterodox.training.devices import fabric_on
from heterodox.training.history import History
from heterodox.training.loop import fit
from heterodox.training.seeding import derived_seed, generator_for, seeded

EVALUATED_AT_ONCE = 500

NO_ANSWER = -100  # what cross-entropy ignores


@dataclass(frozen=True)
class RecallSettings:
    """The sizes of a run.

    Args:
        vocabulary: number of tokens; half are keys, half are values.
        length: tokens in a sequence, at least four times `pairs`.
        pairs: keys with their values in a sequence.
        training_sequences, test_sequences: how many are drawn.
        epochs: passes over the training sequences.
        batch_size: sequences a step.
        learning_rate, warmup_steps: peak of the schedule, and the steps to reach it.
        weight_decay: of the optimizer; 0.1 in Zoology.
        clip: largest norm of the gradient; None does not clip.
        width, layers, heads, mlp: see `DecoderLM`.
        power: exponent of the law of distances; the smaller, the nearer a query follows its pair.
            0.01 in Zoology.
        evaluations: how often the test sequences are evaluated during training.
        precision: as for `lightning_fabric.Fabric`.
    """

    vocabulary: int
    length: int
    pairs: int
    training_sequences: int
    test_sequences: int
    epochs: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 0
    weight_decay: float = 0.1
    clip: float | None = 1.0
    width: int = 64
    layers: int = 2
    heads: int = 1
    mlp: Literal["gelu", "swiglu", "none"] = "gelu"
    power: float = 0.01
    evaluations: int = 4
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for name in (
            *("vocabulary", "length", "pairs", "training_sequences", "test_sequences", "epochs"),
            *("batch_size", "learning_rate", "power", "evaluations"),
        ):
            given = getattr(self, name)
            if not given > 0:
                raise ValueError(f"{name}: {given} given, a positive number expected")
        if self.length < 4 * self.pairs:
            raise ValueError(
                f"length: {self.length} given, at least 4 x {self.pairs} pairs expected"
            )
        if self.vocabulary % 2 or self.vocabulary // 2 - 1 < self.pairs:
            raise ValueError(
                f"vocabulary: {self.vocabulary} given, an even number of more than 2 x "
                f"{self.pairs} pairs expected"
            )


SETTINGS: dict[Scale, RecallSettings] = {
    Scale.SMOKE: RecallSettings(
        vocabulary=32,
        length=16,
        pairs=2,
        training_sequences=3_000,
        test_sequences=200,
        epochs=3,
        batch_size=32,
        learning_rate=5e-3,
        width=32,
        evaluations=2,
    ),
    Scale.LAPTOP: RecallSettings(
        vocabulary=64,
        length=32,
        pairs=8,
        training_sequences=10_000,
        test_sequences=1_000,
        epochs=4,
        batch_size=64,
        learning_rate=3e-3,
    ),
    # The hardest setting of Zoology's figure 2.
    Scale.PAPER: RecallSettings(
        vocabulary=8192,
        length=512,
        pairs=64,
        training_sequences=100_000,
        test_sequences=3_000,
        epochs=64,
        batch_size=64,
        learning_rate=1e-3,
        width=128,
    ),
}


@dataclass(frozen=True)
class TrainedRecall:
    """A trained model with its record.

    Attributes:
        model: in evaluation mode, on the device of training.
        settings: of the run.
        history: curves of the training loss, the share of wrong answers [%] and the test loss.
    """

    model: DecoderLM
    settings: RecallSettings
    history: History

    @property
    def accuracy(self) -> float:
        """Right answers in the test sequences at the end [%]; NaN if training diverged."""
        return 100 - self.history.last("test error")

    def measurement(self) -> Measurement:
        """The metric, right answers in the test sequences at the end [%].

        Readings: "best accuracy" [%] of all evaluations, and "test loss" [nats/answer].
        """
        errors = self.history.evaluations.get("test error", [])
        accuracies: Curve = [(step, 100 - error) for step, error in errors]
        best = math.nan if self.history.diverged else max(y for _, y in accuracies)
        readings = {"best accuracy": best, "test loss": self.history.last("test loss")}
        curves: dict[str, Curve] = {
            "accuracy [%]": accuracies,
            "training loss [nats/answer]": self.history.loss,
        }
        return Measurement(self.accuracy, readings, curves)


def train(
    *,
    attention: str | AttentionFactory | Sequence[str | AttentionFactory] = "softmax",
    position: str = "learned",
    norm: str | Callable[[int], nn.Module] = "layer",
    loss: str | Callable[..., Tensor] = "cross-entropy",
    optimizer: str | Callable[..., Any] = "adamw",
    schedule: str | Callable[..., Any] = "cosine",
    seed: int = 0,
    settings: RecallSettings = SETTINGS[Scale.LAPTOP],
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: bool = False,
) -> TrainedRecall:
    """Trains a decoder to recall and evaluates it on sequences that it has not seen.

    Args:
        attention: see `DecoderLM`.
        position: "learned", "rotary", "alibi" or "none".
        norm, loss, optimizer, schedule: a name of the slot, or a callable with the call that the
            slot's module documents.
        seed: of the sequences, their order and the initialisation. Two runs with the same seed see
            the same batches, whatever is in their slots.
        settings: see `SETTINGS` for those of each scale.
        device: see `heterodox.training.fabric_on`.
        checkpoint: see `heterodox.training.fit`; removed by the caller.
        progress: show a bar on a terminal.

    Raises:
        ValueError: unknown names, or sizes that do not fit.

    Example:
        >>> run = train(settings=SETTINGS[Scale.SMOKE])
        >>> 0 <= run.accuracy <= 100
        True
    """
    check(
        attention=attention,
        position=position,
        norm=norm,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        settings=settings,
    )
    criterion = chosen(LOSSES, loss)
    fabric = fabric_on(device, settings.precision)
    batches = Shuffled(
        recall_sequences(
            settings.training_sequences, settings, generator_for(seed, "training sequences")
        ),
        settings.batch_size,
        generator_for(seed, "order"),
    )
    tested, answers = recall_sequences(
        settings.test_sequences, settings, generator_for(seed, "test sequences")
    )
    with seeded(derived_seed(seed, "initialisation")):
        model = DecoderLM(
            settings.vocabulary,
            settings.width,
            settings.layers,
            settings.heads,
            settings.length,
            attention=attention,
            position=position,
            norm=norm,
            mlp=settings.mlp,
            init_std=settings.width**-0.5,
            tie_embeddings=False,
        )
    descent = chosen(OPTIMIZERS, optimizer)(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    steps = settings.epochs * len(batches)

    def evaluate(model: nn.Module) -> dict[str, float]:
        wrong, total = 0, 0.0
        chunks = zip(tested.split(EVALUATED_AT_ONCE), answers.split(EVALUATED_AT_ONCE), strict=True)
        for tokens, expected in chunks:
            logits, labels = at_queries(model(tokens.to(fabric.device)), expected.to(fabric.device))
            wrong += int((logits.argmax(-1) != labels).sum())
            total += F.cross_entropy(logits, labels, reduction="sum").item()
        asked = len(tested) * settings.pairs
        # An error rate is finite even where the logits are not; the loss tells.
        error = 100 * wrong / asked if math.isfinite(total) else math.nan
        return {"test error": error, "test loss": total / asked}

    history = fit(
        model,
        descent,
        batches,
        lambda model, batch: criterion(*at_queries(model(batch[0]), batch[1])),
        steps=steps,
        scheduler=chosen(SCHEDULES, schedule)(descent, steps, settings.warmup_steps),
        clip=settings.clip,
        evaluate=evaluate,
        evaluate_every=max(1, steps // settings.evaluations),
        checkpoint=checkpoint,
        identity=described(
            task="recall",
            attention=attention,
            position=position,
            norm=norm,
            loss=loss,
            optimizer=optimizer,
            schedule=schedule,
            seed=seed,
            settings=settings,
        ),
        fabric=fabric,
        seed=derived_seed(seed, "dropout"),
        progress=progress,
    )
    return TrainedRecall(model.eval(), settings, history)


def check(
    *,
    attention: str | AttentionFactory | Sequence[str | AttentionFactory] = "softmax",
    position: str = "learned",
    norm: str | Callable[[int], nn.Module] = "layer",
    loss: str | Callable[..., Tensor] = "cross-entropy",
    optimizer: str | Callable[..., Any] = "adamw",
    schedule: str | Callable[..., Any] = "cosine",
    settings: RecallSettings = SETTINGS[Scale.LAPTOP],
) -> str:
    """Raises what `train` would raise for these arguments; returns what the data is."""
    factories = attention_of_layers(attention, settings.layers)
    chosen(NORMS, norm), chosen(LOSSES, loss)
    chosen(OPTIMIZERS, optimizer), chosen(SCHEDULES, schedule)
    check_decoder(
        vocabulary=settings.vocabulary,
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        length=settings.length,
        position=position,
        mlp=settings.mlp,
    )
    with seeded(0):
        try_attention(factories, settings.width, settings.heads, settings.length, position)
    if settings.batch_size > settings.training_sequences:
        raise ValueError(
            f"batch_size: {settings.batch_size} given, at most the {settings.training_sequences} "
            "training sequences expected"
        )
    return f"{settings.pairs} pairs in {settings.length} of {settings.vocabulary} tokens"


def recall_sequences(
    count: int, settings: RecallSettings, generator: torch.Generator
) -> tuple[Int[Tensor, "count length"], Int[Tensor, "count length"]]:
    """Draws sequences and their answers: the value where a key is asked for, else `NO_ANSWER`.

    Example:
        >>> tokens, answers = recall_sequences(1, SETTINGS[Scale.SMOKE], torch.Generator())
        >>> tokens.shape, int((answers != NO_ANSWER).sum())
        (torch.Size([1, 16]), 2)
    """
    half, pairs = settings.vocabulary // 2, settings.pairs
    keys = 1 + _distinct(torch.ones(half - 1), count, pairs, generator)
    values = half + _distinct(torch.ones(half), count, pairs, generator)
    places = torch.arange(1.0, (settings.length - 2 * pairs) // 2 + 1)
    gaps = _distinct(places ** (settings.power - 1), count, pairs, generator)
    tokens = torch.zeros(count, settings.length, dtype=torch.int64)
    tokens[:, 0 : 2 * pairs : 2] = keys
    tokens[:, 1 : 2 * pairs : 2] = values
    asked = 2 * pairs + 2 * gaps
    answers = torch.full_like(tokens, NO_ANSWER)
    return tokens.scatter(1, asked, keys), answers.scatter(1, asked, values)


def _distinct(
    weights: Tensor, count: int, size: int, generator: torch.Generator
) -> Int[Tensor, "count size"]:
    """`count` rows of `size` distinct indices, each next one drawn in proportion to `weights`."""
    # The order of exponential clocks is that of drawing without replacement.
    clocks = torch.empty(count, len(weights), dtype=torch.float64).exponential_(generator=generator)
    return (clocks / weights).topk(size, largest=False, sorted=True).indices


def at_queries(logits: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (asked, vocabulary) and answers (asked,) of the positions that are asked."""
    asked = answers != NO_ANSWER
    return logits[asked], answers[asked]
