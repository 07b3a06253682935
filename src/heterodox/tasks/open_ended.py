"""Open-ended generation: a small decoder learns a text in byte pairs and continues passages of it.

The text is cut into what the decoder learns, a pool from which a few sequences are drawn for
hyperfitting, and validation text, which the contexts come from. Losses are in nats per token.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from heterodox.data.bpe import BytePairs, learn_byte_pairs
from heterodox.data.text import load_text
from heterodox.experiment.measurement import Curve
from heterodox.experiment.scale import Scale
from heterodox.models.transformer import DecoderLM, token_losses
from heterodox.optim import SCHEDULES
from heterodox.probes.continuation import evaluating
from heterodox.probes.generation import predictive_entropy
from heterodox.training.batches import RandomWindows
from heterodox.training.devices import fabric_on
from heterodox.training.loop import fit
from heterodox.training.seeding import derived_seed, generator_for, seeded

CONFIDENT = 0.9


@dataclass(frozen=True)
class OpenEndedSettings:
    """The sizes of a run.

    Args:
        data: see `heterodox.data.load_text`.
        vocabulary: byte pairs.
        length: tokens in a training window, and in a sequence of the pool.
        width, layers, heads: see `DecoderLM`.
        steps, batch_size, warmup_steps: of pre-training, with AdamW and a cosine schedule.
        pool: share of the training text that pre-training does not see.
        sequences: how many of the pool are hyperfitted.
        contexts, context, continuation: how many passages are continued, and tokens of both parts.
        evaluation_windows: of the validation text, of `length` tokens each.
    """

    data: str
    vocabulary: int
    length: int
    width: int
    layers: int
    heads: int
    steps: int
    batch_size: int
    warmup_steps: int
    pool: float
    sequences: int
    contexts: int
    context: int
    continuation: int
    evaluation_windows: int


SETTINGS: dict[Scale, OpenEndedSettings] = {
    Scale.SMOKE: OpenEndedSettings(
        data="python-docs",
        vocabulary=300,
        length=128,
        width=32,
        layers=2,
        heads=2,
        steps=30,
        batch_size=4,
        warmup_steps=5,
        pool=0.1,
        sequences=8,
        contexts=4,
        context=32,
        continuation=96,
        evaluation_windows=4,
    ),
    Scale.LAPTOP: OpenEndedSettings(
        data="python-docs",
        vocabulary=1024,
        length=128,
        width=128,
        layers=4,
        heads=4,
        steps=600,
        batch_size=8,
        warmup_steps=50,
        pool=0.1,
        sequences=64,
        contexts=32,
        context=32,
        continuation=96,
        evaluation_windows=32,
    ),
    # The sizes of the paper's set and contexts, with a model of GPT-2's smallest size.
    Scale.PAPER: OpenEndedSettings(
        data="ptb",
        vocabulary=8192,
        length=256,
        width=768,
        layers=12,
        heads=12,
        steps=5_000,
        batch_size=32,
        warmup_steps=500,
        pool=0.5,
        sequences=2000,
        contexts=300,
        context=32,
        continuation=224,
        evaluation_windows=64,
    ),
}


@dataclass(frozen=True)
class Passages:
    """A text, cut and encoded.

    Attributes:
        pairs: learned from what pre-training sees.
        learned: tokens that pre-training sees.
        pool: sequences of the setting's length that it does not see, side by side.
        windows: the evaluated validation text, each window with its targets.
        contexts, continuations: passages of the validation text, cut in two.
    """

    pairs: BytePairs
    learned: Int[Tensor, "learned"]
    pool: Int[Tensor, "pool length"]
    windows: Int[Tensor, "windows longer"]
    contexts: Int[Tensor, "contexts context"]
    continuations: Int[Tensor, "contexts continuation"]

    def drawn(self, count: int, generator: torch.Generator) -> Int[Tensor, "count length"]:
        """`count` sequences of the pool, each once."""
        return self.pool[torch.randperm(len(self.pool), generator=generator)[:count]]


def load_passages(settings: OpenEndedSettings, seed: int) -> Passages:
    """The text of a setting; the seed decides which passages are continued.

    Raises:
        ValueError: the text is too short for the sequences or contexts.

    Example:
        >>> passages = load_passages(SETTINGS[Scale.SMOKE], seed=1)
        >>> passages.contexts.shape, passages.continuations.shape
        (torch.Size([4, 32]), torch.Size([4, 96]))
    """
    text = load_text(settings.data)
    border = round((1 - settings.pool) * len(text.train))
    pairs = learn_byte_pairs(text.train[:border], settings.vocabulary)
    pool = _rows(pairs.encode(text.train[border:]), settings.length)
    validation = pairs.encode(text.validation)
    windows = _rows(validation, settings.length + 1)[: settings.evaluation_windows]
    passages = _rows(validation, settings.context + settings.continuation)
    for name, needed, there in (
        ("sequences", settings.sequences, len(pool)),
        ("contexts", settings.contexts, len(passages)),
    ):
        if there < needed:
            raise ValueError(f"{name}: {needed} given, at most the text's {there} expected")
    order = torch.randperm(len(passages), generator=generator_for(seed, "contexts"))
    chosen = passages[order[: settings.contexts]]
    return Passages(
        pairs,
        pairs.encode(text.train[:border]),
        pool,
        windows,
        chosen[:, : settings.context],
        chosen[:, settings.context :],
    )


def _rows(tokens: Int[Tensor, "tokens"], length: int) -> Int[Tensor, "rows length"]:
    return tokens[: len(tokens) // length * length].view(-1, length)


def pretrain(
    passages: Passages, settings: OpenEndedSettings, seed: int, rate: float, device: str
) -> tuple[DecoderLM, Curve]:
    """A decoder trained on the text, in evaluation mode, and its validation loss by step."""
    with seeded(derived_seed(seed, "initialisation")):
        model = DecoderLM(
            passages.pairs.vocabulary_size,
            settings.width,
            settings.layers,
            settings.heads,
            settings.length,
        )
    descent = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    history = fit(
        model,
        descent,
        RandomWindows(
            passages.learned, settings.length, settings.batch_size, generator_for(seed, "windows")
        ),
        lambda model, batch: token_losses(model, batch[0], batch[1]),
        steps=settings.steps,
        scheduler=SCHEDULES["cosine"](descent, settings.steps, settings.warmup_steps),
        clip=1.0,
        evaluate=lambda model: {"validation loss": read_model(model, passages.windows).loss},
        evaluate_every=max(1, settings.steps // 10),
        fabric=fabric_on(device),
        seed=derived_seed(seed, "dropout"),
    )
    return model.eval(), history.evaluations["validation loss"]


@dataclass(frozen=True)
class Reading:
    """What a model predicts on validation text, teacher-forced.

    Attributes:
        loss: [nats/token].
        entropy: mean entropy of the predicted distribution [nats].
        accuracy: of the most probable token [%].
        confident: positions whose most probable token has more than 0.9 [%].
    """

    loss: float
    entropy: float
    accuracy: float
    confident: float


@torch.no_grad()
def read_model(
    model: nn.Module, windows: Int[Tensor, "windows longer"], temperature: float = 1.0
) -> Reading:
    """Reads windows of text with a model whose logits are divided by a temperature."""
    device = next(model.parameters()).device
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    with evaluating(model):
        for window in windows.to(device).split(8):
            logits = (model(window[:, :-1]) / temperature).flatten(0, 1)
            target = window[:, 1:].flatten()
            top, token = logits.softmax(-1).max(-1)
            parts = (
                F.cross_entropy(logits, target, reduction="none"),
                predictive_entropy(logits),
                100.0 * (token == target),
                100.0 * (top > CONFIDENT),
            )
            sums += torch.stack([part.double().sum() for part in parts])
    loss, entropy, accuracy, confident = (sums / windows[:, 1:].numel()).tolist()
    return Reading(loss, entropy, accuracy, confident)


def temperature_of_entropy(
    model: nn.Module, windows: Int[Tensor, "windows longer"], entropy: float
) -> float:
    """The temperature at which the model's mean entropy is `entropy`, by bisection in its log."""
    low, high = math.log(0.01), math.log(10.0)
    for _ in range(14):
        middle = (low + high) / 2
        if read_model(model, windows, math.exp(middle)).entropy < entropy:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)
