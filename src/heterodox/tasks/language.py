"""Language: a decoder learns to predict the next byte, character or word of a real text.

The model is the pre-norm transformer of `heterodox.models.transformer`; sizes stand in `SETTINGS`.
Losses are natural logarithms: nats per token, and nats per byte of UTF-8, which compares bytes with
characters. Over many thousand words the output layer may be a factored one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from heterodox.data.text import EncodedText, TextData, Tokens, load_text
from heterodox.experiment.measurement import Curve, Measurement
from heterodox.experiment.scale import Scale
from heterodox.layers import NORMS
from heterodox.losses import LOSSES
from heterodox.models.factored_output import (
    FactoredOutput,
    FromStatistics,
    check_output,
    with_factored_output,
)
from heterodox.models.transformer import (
    AttentionFactory,
    DecoderLM,
    attention_of_layers,
    check_decoder,
    token_losses,
    try_attention,
)
from heterodox.optim import OPTIMIZERS, SCHEDULES
from heterodox.tasks.likelihood import (
    calibrate,
    likelihood_of,
    likelihood_of_output,
    top_error,
    window_loss,
)
from heterodox.tasks.task import chosen, described
from heterodox.training.batches import RandomWindows
from heterodox.training.devices import fabric_on
from heterodox.training.history import History
from heterodox.training.loop import fit
from heterodox.training.seeding import derived_seed, generator_for, seeded

OUTPUTS_AT_ONCE = 2**24
TOP = (1, 10)  # errors of words that are read


@dataclass(frozen=True)
class LanguageSettings:
    """The sizes of a run.

    Args:
        length: tokens in a training window.
        width, layers, heads, mlp, hybrid_norm, layer_scale, tie_embeddings: see `DecoderLM`.
        steps: optimizer steps, of `batch_size` windows each.
        learning_rate, warmup_steps: peak of the schedule, and the steps to reach it.
        weight_decay: of the optimizer.
        clip: largest norm of the gradient; None does not clip.
        tokens: "byte", "char" or "word".
        vocabulary: with words, how many of the most frequent are told apart; None: all.
        output_rate: learning rate of a factored output layer, which follows the same schedule.
        evaluate_lengths: multiples of `length` at which the trained model is evaluated.
        evaluation_windows: windows of validation text at the longest of these lengths; the shorter
            lengths cut the same text into more windows.
        evaluations: how often the validation loss is taken during training.
        precision: as for `lightning_fabric.Fabric`.
    """

    length: int
    width: int
    layers: int
    heads: int
    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float = 0.0
    clip: float | None = 1.0
    tokens: Tokens = "char"
    vocabulary: int | None = None
    output_rate: float = 20.0
    evaluate_lengths: tuple[int, ...] = (1, 2, 4, 8)
    evaluation_windows: int = 16
    evaluations: int = 10
    mlp: Literal["gelu", "swiglu", "none"] = "gelu"
    hybrid_norm: bool = False
    layer_scale: float | None = None
    tie_embeddings: bool = True
    precision: str = "32-true"

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "learning_rate", "output_rate", "evaluation_windows")
        for name in (*positive, "evaluations"):
            given = getattr(self, name)
            if not given > 0:
                raise ValueError(f"{name}: {given} given, a positive number expected")
        if 1 not in self.evaluate_lengths or min(self.evaluate_lengths) < 1:
            raise ValueError(
                f"evaluate_lengths: {self.evaluate_lengths} given, multiples from 1 on expected"
            )
        if self.tokens not in ("byte", "char", "word"):
            raise ValueError(f"tokens: {self.tokens!r} given, 'byte', 'char' or 'word' expected")
        if self.vocabulary is not None and (self.tokens != "word" or self.vocabulary < 1):
            raise ValueError(
                f"vocabulary: {self.vocabulary} given, a positive number of words, or None with "
                "other tokens, expected"
            )


SETTINGS: dict[Scale, LanguageSettings] = {
    Scale.SMOKE: LanguageSettings(
        length=64,
        width=48,
        layers=2,
        heads=3,
        steps=120,
        batch_size=8,
        learning_rate=4e-3,
        warmup_steps=10,
        evaluation_windows=8,
        evaluations=3,
    ),
    Scale.LAPTOP: LanguageSettings(
        length=128,
        width=96,
        layers=2,
        heads=3,
        steps=600,
        batch_size=16,
        learning_rate=2e-3,
        warmup_steps=50,
    ),
    # GPT-2 small, on bytes; rate, warm-up and decay of the usual GPT-2 reproductions.
    Scale.PAPER: LanguageSettings(
        length=1024,
        width=768,
        layers=12,
        heads=12,
        steps=20_000,
        batch_size=32,
        learning_rate=6e-4,
        warmup_steps=700,
        weight_decay=0.1,
        tokens="byte",
        evaluation_windows=32,
        evaluations=40,
        precision="bf16-mixed",
    ),
}


@dataclass(frozen=True)
class TrainedLanguage:
    """A trained model with its record.

    Attributes:
        model: in evaluation mode, on the device of training.
        text: tokens of the text, and what they stand for.
        settings: of the run.
        history: curves of training and validation loss [nats/token].
        attention_norms: see `DecoderLM.attention_norms`; at initialisation, a number a layer.
        losses: multiple of the training length -> validation loss [nats/token].
        nll: from (logits, targets) to the loss that is evaluated.
    """

    model: DecoderLM | FactoredOutput
    text: EncodedText
    settings: LanguageSettings
    history: History
    attention_norms: list[float]
    losses: dict[int, float]
    nll: Callable[..., Tensor]

    @property
    def decoder(self) -> DecoderLM:
        """The decoder itself, whichever output is on top of it."""
        body = self.model.body if isinstance(self.model, FactoredOutput) else self.model
        return cast(DecoderLM, body)

    @property
    def validation_loss(self) -> float:
        """At the training length [nats/token]; NaN if training diverged."""
        return self.losses[1]

    @property
    def nats_per_byte(self) -> float:
        """`validation_loss` over the mean number of bytes in a token of the validation text."""
        return self.validation_loss / self.bytes_per_token

    @property
    def bytes_per_token(self) -> float:
        targets = _validation(self.text, self.settings)[1:]
        return self.text.count_bytes(targets) / len(targets)

    def loss_at(self, length: int) -> float:
        """Validation loss [nats/token] in windows of `length` tokens, with the model as it is now.

        Positions run from 0 to `length` - 1 within a window, and the mean is over all of them. The
        windows of every length together cover the same validation text.

        Raises:
            ValueError: `length` is not positive, or longer than the evaluated text.
        """
        tokens = _validation(self.text, self.settings)
        if not 1 <= length < len(tokens):
            raise ValueError(
                f"length: {length} given, between 1 and the {len(tokens) - 1} tokens of the "
                "evaluated text expected"
            )
        training = self.model.training
        self.model.eval()
        loss = window_loss(self.model, tokens, length, self.nll, _at_once(self.text, self.settings))
        self.model.train(training)
        return loss

    def top_error(self, k: int) -> float:
        """Share of the validation tokens [%], in windows of the training length, that are not among
        the k largest outputs; NaN if training diverged."""
        if self.history.diverged:
            return math.nan
        tokens, length = _validation(self.text, self.settings), self.settings.length
        at_once, error = _at_once(self.text, self.settings), partial(top_error, k=k)
        return 100 * window_loss(self.model, tokens, length, error, at_once)

    def measurement(self) -> Measurement:
        """The metric, validation loss in nats per byte, and what else the run has shown.

        Readings: "loss at 2x" and so on, in nats per byte like the metric; "rise at 2x", the
        difference to the loss at the training length; "nats per token"; "attention norm", the
        mean over layers at initialisation; and for words "top-1 error" and "top-10 error" [%].
        """
        per_byte = {m: loss / self.bytes_per_token for m, loss in self.losses.items()}
        beyond = [multiple for multiple in per_byte if multiple != 1]
        readings = {f"loss at {m}x": per_byte[m] for m in beyond}
        readings |= {f"rise at {m}x": per_byte[m] - per_byte[1] for m in beyond}
        readings["nats per token"] = self.validation_loss
        readings["attention norm"] = sum(self.attention_norms) / len(self.attention_norms)
        if self.text.kind == "word":
            readings |= {f"top-{k} error": self.top_error(k) for k in TOP}
        curves: dict[str, Curve] = {
            "training loss [nats/token]": self.history.loss,
            "validation loss [nats/token]": self.history.evaluations.get("validation loss", []),
            "loss by length [nats/byte]": [(float(m), loss) for m, loss in per_byte.items()],
        }
        return Measurement(self.nats_per_byte, readings, curves)


def train(
    *,
    attention: str | AttentionFactory | Sequence[str | AttentionFactory] = "softmax",
    position: str = "rotary",
    norm: str | Callable[[int], nn.Module] = "layer",
    loss: str | Callable[..., Tensor] = "cross-entropy",
    output: str | FromStatistics = "linear",
    optimizer: str | Callable[..., Any] = "adamw",
    schedule: str | Callable[..., Any] = "cosine",
    data: str | Path | TextData = "python-docs",
    seed: int = 0,
    settings: LanguageSettings = SETTINGS[Scale.LAPTOP],
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: bool = False,
) -> TrainedLanguage:
    """Trains a decoder on a text and evaluates it, at the training length and beyond.

    Args:
        attention: see `DecoderLM`.
        norm, loss, optimizer, schedule: a name of the slot, or a callable with the call that the
            slot's module documents.
        output: "linear", trained with `loss`; or a name of `OUTPUTS`, a spherical loss of its own,
            or one from statistics: then the output layer is a `FactoredSphericalLinear`, whose
            steps of SGD do not get slower with the number of words.
        position: "rotary", "alibi", "learned" or "none". Learned positions are evaluated at the
            training length only.
        data: see `heterodox.data.load_text`; or a text already loaded.
        seed: of initialisation and of the order of the data. Two runs with the same seed see the
            same windows, whatever is in their slots.
        settings: see `SETTINGS` for those of each scale.
        device: see `heterodox.training.fabric_on`.
        checkpoint: see `heterodox.training.fit`; removed by the caller.
        progress: show a bar on a terminal.

    The validation loss is the negative log-likelihood of the distribution that the loss trains;
    see `heterodox.tasks.likelihood` for losses that train none.

    Raises:
        ValueError: unknown names, sizes that do not fit, or a text too short for the context.

    Example:
        >>> from dataclasses import replace
        >>> tiny = replace(SETTINGS[Scale.SMOKE], steps=2, evaluations=1, evaluation_windows=1)
        >>> run = train(attention="sigmoid", settings=tiny)
        >>> 3.0 < run.validation_loss < 6.0
        True
    """
    source = data if isinstance(data, TextData) else load_text(data)
    check(
        attention=attention,
        position=position,
        norm=norm,
        loss=loss,
        output=output,
        optimizer=optimizer,
        schedule=schedule,
        data=source,
        settings=settings,
    )
    make_loss = chosen(LOSSES, loss)
    make_optimizer, make_schedule = chosen(OPTIMIZERS, optimizer), chosen(SCHEDULES, schedule)
    fabric = fabric_on(device, settings.precision)
    multiples = _multiples(position, settings)
    text = source.encode(settings.tokens, settings.vocabulary)
    model: DecoderLM | FactoredOutput

    with seeded(derived_seed(seed, "initialisation")):
        model = DecoderLM(
            text.vocabulary_size,
            settings.width,
            settings.layers,
            settings.heads,
            settings.length,
            attention=attention,
            position=position,
            norm=norm,
            mlp=settings.mlp,
            hybrid_norm=settings.hybrid_norm,
            layer_scale=settings.layer_scale,
            tie_embeddings=settings.tie_embeddings,
        )
    validation = _validation(text, settings)
    attention_norms = model.attention_norms(validation[: settings.length][None])
    nll = likelihood_of(loss)
    if output != "linear":
        if fabric.world_size > 1:
            raise ValueError(f"device: {device!r} given, one device for output {output!r} expected")
        nll = likelihood_of_output(output)
        with seeded(derived_seed(seed, "output")):
            model = with_factored_output(model, output, settings.output_rate)
    steps, at_once = settings.steps, _at_once(text, settings)
    descent = make_optimizer(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    if isinstance(model, FactoredOutput):
        model.output.follow(descent)

    def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        factored = output != "linear"
        return model(*batch) if factored else token_losses(model, *batch, make_loss)

    def validate(model: nn.Module) -> dict[str, float]:
        calibrate(nll, model, text.train, settings.length)
        loss_now = window_loss(model, validation, settings.length, nll, at_once)
        return {"validation loss": loss_now}

    history = fit(
        model,
        descent,
        RandomWindows(
            text.train, settings.length, settings.batch_size, generator_for(seed, "windows")
        ),
        mean_loss,
        steps=steps,
        scheduler=make_schedule(descent, steps, settings.warmup_steps),
        clip=settings.clip,
        evaluate=validate,
        evaluate_every=max(1, steps // settings.evaluations),
        checkpoint=checkpoint,
        identity=described(
            task="language",
            attention=attention,
            position=position,
            norm=norm,
            loss=loss,
            output=output,
            optimizer=optimizer,
            schedule=schedule,
            data=source.sha256,
            seed=seed,
            settings=settings,
        ),
        fabric=fabric,
        seed=derived_seed(seed, "dropout"),
        progress=progress,
    )
    model.eval()
    if not history.diverged:
        calibrate(nll, model, text.train, settings.length)
    losses = {
        multiple: math.nan
        if history.diverged
        else window_loss(model, validation, multiple * settings.length, nll, at_once)
        for multiple in multiples
    }
    return TrainedLanguage(model, text, settings, history, attention_norms, losses, nll)


def check(
    *,
    attention: str | AttentionFactory | Sequence[str | AttentionFactory] = "softmax",
    position: str = "rotary",
    norm: str | Callable[[int], nn.Module] = "layer",
    loss: str | Callable[..., Tensor] = "cross-entropy",
    output: str | FromStatistics = "linear",
    optimizer: str | Callable[..., Any] = "adamw",
    schedule: str | Callable[..., Any] = "cosine",
    data: str | Path | TextData = "python-docs",
    settings: LanguageSettings = SETTINGS[Scale.LAPTOP],
) -> str:
    """Raises what `train` would raise for these arguments; returns the sha256 of the text."""
    factories = attention_of_layers(attention, settings.layers)
    chosen(NORMS, norm), chosen(LOSSES, loss)
    chosen(OPTIMIZERS, optimizer), chosen(SCHEDULES, schedule)
    check_decoder(
        vocabulary=1,
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        length=settings.length,
        position=position,
        mlp=settings.mlp,
    )
    with seeded(0):
        try_attention(factories, settings.width, settings.heads, settings.length, position)
    if output != "linear":
        check_output(output, settings.precision)
        if loss != "cross-entropy":
            raise ValueError(f"loss: {loss!r} given, none expected: output {output!r} has its own")
    source = data if isinstance(data, TextData) else load_text(data)
    longest = settings.length * max(_multiples(position, settings))
    source.require_length(longest + 1, settings.tokens)
    return source.sha256


def _multiples(position: str, settings: LanguageSettings) -> tuple[int, ...]:
    """Learned positions end with the training length."""
    return (1,) if position == "learned" else settings.evaluate_lengths


def _at_once(text: EncodedText, settings: LanguageSettings) -> int:
    """Tokens to evaluate at once: as in training, or fewer so that their outputs stay small."""
    return min(settings.batch_size * settings.length, OUTPUTS_AT_ONCE // text.vocabulary_size)


def _validation(text: EncodedText, settings: LanguageSettings) -> Tensor:
    """The start of the validation text: whole windows of the longest length and one target more."""
    longest = settings.length * max(settings.evaluate_lengths)
    windows = min(settings.evaluation_windows, max(1, (len(text.validation) - 1) // longest))
    return text.validation[: windows * longest + 1]
