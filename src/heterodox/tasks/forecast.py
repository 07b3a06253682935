"""Forecasts: a small decoder learns the distribution of a series' next value over uniform bins.

As in Chronos (Ansari et al., 2024, arXiv 2403.07815), a window is divided by the mean absolute
value of its context, cut at ±`limit` and read as `bins` tokens. The context decides the scale; the
`horizon` values after it are what is predicted, each from all values before it. So no forecast
knows anything of what comes later. The series is cut in time: 70 % for training, 10 % for
validation, 20 % for testing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heterodox.data.series import SeriesData, load_series
from heterodox.experiment.measurement import Curve, Measurement
from heterodox.experiment.scale import Scale
from heterodox.layers import smoothness
from heterodox.layers.fourier_series import widest_dtype
from heterodox.models.forecaster import Forecaster, HeadFactory
from heterodox.models.transformer import (
    AttentionFactory,
    attention_of_layers,
    check_decoder,
    try_attention,
)
from heterodox.optim import OPTIMIZERS, SCHEDULES
from heterodox.tasks.series_bins import (
    DIVERGED,
    LEVELS,
    Scores,
    bins_of,
    mean_absolute_scaled_error,
    mean_scale,
    quantiles_of,
    weighted_quantile_loss,
)
from heterodox.tasks.task import chosen, described
from heterodox.training.batches import Shuffled
from heterodox.training.devices import fabric_on
from heterodox.training.history import History
from heterodox.training.loop import fit
from heterodox.training.seeding import derived_seed, generator_for, seeded

EVALUATED_AT_ONCE = 256

TRAINING, VALIDATION = 0.7, 0.1


@dataclass(frozen=True)
class ForecastSettings:
    """The sizes of a run.

    Args:
        column: see `heterodox.data.load_series`.
        context: values before the first forecast of a window, which decide its scale.
        horizon: values of a window that are predicted, one step ahead each.
        bins: tokens; 4096 in Chronos.
        limit: bins cover ± so many times the scale; 15 in Chronos.
        width, layers, heads: see `DecoderLM`.
        steps: optimizer steps, of `batch_size` windows each.
        learning_rate, warmup_steps: peak of the schedule, and the steps to reach it.
        weight_decay: of the optimizer.
        clip: largest norm of the gradient; None does not clip.
        evaluations: how often the validation part is evaluated during training.
        precision: as for `lightning_fabric.Fabric`.
    """

    context: int
    horizon: int
    bins: int
    limit: float
    width: int
    layers: int
    heads: int
    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float = 0.0
    clip: float | None = 1.0
    evaluations: int = 4
    column: str = ""
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for name in (
            *("context", "horizon", "limit", "steps", "batch_size", "learning_rate"),
            "evaluations",
        ):
            given = getattr(self, name)
            if not 0 < given < math.inf:
                raise ValueError(f"{name}: {given} given, a positive number expected")
        if self.bins < 2:
            raise ValueError(f"bins: {self.bins} given, at least 2 expected")

    @property
    def window(self) -> int:
        """Values that a forecast and its context take."""
        return self.context + self.horizon


SETTINGS: dict[Scale, ForecastSettings] = {
    Scale.SMOKE: ForecastSettings(
        context=48,
        horizon=24,
        bins=64,
        limit=4.0,
        width=32,
        layers=1,
        heads=2,
        steps=150,
        batch_size=16,
        learning_rate=4e-3,
        warmup_steps=10,
        evaluations=2,
    ),
    Scale.LAPTOP: ForecastSettings(
        context=96,
        horizon=24,
        bins=256,
        limit=4.0,
        width=64,
        layers=2,
        heads=4,
        steps=400,
        batch_size=16,
        learning_rate=2e-3,
        warmup_steps=40,
    ),
    # Bins, context and horizon of Chronos, and the width and depth of the T5 of its mini size.
    Scale.PAPER: ForecastSettings(
        context=512,
        horizon=64,
        bins=4096,
        limit=15.0,
        width=384,
        layers=4,
        heads=8,
        steps=20_000,
        batch_size=256,
        learning_rate=1e-3,
        warmup_steps=500,
        evaluations=20,
        precision="bf16-mixed",
    ),
}


@dataclass(frozen=True)
class TrainedForecast:
    """A trained model with its record.

    Attributes:
        model: in evaluation mode, on the device of training.
        series: what was predicted.
        settings: of the run.
        history: curves of the training loss and the validation WQL.
        validation, test: scores at the end; NaN if training diverged.
    """

    model: nn.Module
    series: SeriesData
    settings: ForecastSettings
    history: History
    validation: Scores
    test: Scores

    def measurement(self) -> Measurement:
        """The metric, WQL of the test part.

        Readings: "MASE", "smoothness", "test loss" [nats/value], "clipped" [%], all of the test
        part, and "validation WQL".
        """
        readings = {
            "MASE": self.test.mase,
            "smoothness": self.test.smoothness,
            "test loss": self.test.loss,
            "clipped": self.test.clipped,
            "validation WQL": self.validation.wql,
        }
        curves: dict[str, Curve] = {
            "training loss [nats/value]": self.history.loss,
            "validation WQL": self.history.evaluations.get("validation WQL", []),
        }
        return Measurement(self.test.wql, readings, curves)


def train(
    *,
    head: str | HeadFactory = "linear",
    attention: str | AttentionFactory | Sequence[str | AttentionFactory] = "softmax",
    position: str = "rotary",
    optimizer: str | Callable[..., Any] = "adamw",
    schedule: str | Callable[..., Any] = "cosine",
    data: str | Path | SeriesData = "seasonal",
    seed: int = 0,
    settings: ForecastSettings = SETTINGS[Scale.LAPTOP],
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: bool = False,
) -> TrainedForecast:
    """Trains a decoder on the first part of a series and scores its forecasts of the last.

    Args:
        head: a name of `heterodox.layers.HEADS`, or a callable `(in_features, out_features)`. What
            a Fourier head's `regularization` asks for is added to the loss.
        attention, position: see `DecoderLM`.
        optimizer, schedule: a name of the slot, or a callable with the call that the slot's module
            documents.
        data: see `heterodox.data.load_series`; or a series already loaded.
        seed: of initialisation and of the order of the windows. Two runs with the same seed see
            the same windows, whatever is in their slots.
        settings: see `SETTINGS` for those of each scale.
        device: see `heterodox.training.fabric_on`.
        checkpoint: see `heterodox.training.fit`; removed by the caller.
        progress: show a bar on a terminal.

    Raises:
        ValueError: unknown names, sizes that do not fit, a series that is too short, or one whose
            training part is constant.

    Example:
        >>> from dataclasses import replace
        >>> run = train(head="fourier", settings=replace(SETTINGS[Scale.SMOKE], steps=2))
        >>> 0 < run.test.wql < 1
        True
    """
    series = _loaded(data, settings)
    identity = check(
        head=head,
        attention=attention,
        position=position,
        optimizer=optimizer,
        schedule=schedule,
        data=series,
        settings=settings,
    )
    fabric = fabric_on(device, settings.precision)
    parts = _parts(series, settings)
    values = series.values.to(fabric.device, widest_dtype(fabric.device))
    with seeded(derived_seed(seed, "initialisation")):
        model = _build(head, attention, position, settings)
    descent = chosen(OPTIMIZERS, optimizer)(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    steps = settings.steps

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        tokens, _ = tokenised(values, batch[0], settings)
        logits, penalty = model(tokens[:, :-1], settings.horizon)
        targets = tokens[:, -settings.horizon :]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten()) + penalty

    def validate(model: nn.Module) -> dict[str, float]:
        return {"validation WQL": scores(model, values, parts["validation"], settings).wql}

    history = fit(
        model,
        descent,
        Shuffled((parts["training"],), settings.batch_size, generator_for(seed, "windows")),
        loss,
        steps=steps,
        scheduler=chosen(SCHEDULES, schedule)(descent, steps, settings.warmup_steps),
        clip=settings.clip,
        evaluate=validate,
        evaluate_every=max(1, steps // settings.evaluations),
        checkpoint=checkpoint,
        identity=described(
            task="forecast",
            head=head,
            attention=attention,
            position=position,
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
    model.eval()
    validation, test = (
        DIVERGED if history.diverged else scores(model, values, parts[part], settings)
        for part in ("validation", "test")
    )
    return TrainedForecast(model, series, settings, history, validation, test)


def check(
    *,
    head: str | HeadFactory = "linear",
    attention: str | AttentionFactory | Sequence[str | AttentionFactory] = "softmax",
    position: str = "rotary",
    optimizer: str | Callable[..., Any] = "adamw",
    schedule: str | Callable[..., Any] = "cosine",
    data: str | Path | SeriesData = "seasonal",
    settings: ForecastSettings = SETTINGS[Scale.LAPTOP],
) -> str:
    """Raises what `train` would raise for these arguments; returns the sha256 of the series."""
    factories = attention_of_layers(attention, settings.layers)
    chosen(OPTIMIZERS, optimizer), chosen(SCHEDULES, schedule)
    length = settings.window - 1
    check_decoder(
        vocabulary=settings.bins,
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        length=length,
        position=position,
    )
    with seeded(0):
        try_attention(factories, settings.width, settings.heads, length, position)
        _build(head, attention, position, settings)
    series = _loaded(data, settings)
    _parts(series, settings)
    return series.sha256


def tokenised(values: Tensor, starts: Tensor, settings: ForecastSettings) -> tuple[Tensor, Tensor]:
    """Bins (batch, window) of the windows that start there, and scales (batch, 1) of contexts."""
    places = starts.to(values.device)[:, None]
    windows = values[places + torch.arange(settings.window, device=values.device)]
    scale = mean_scale(windows[:, : settings.context])
    return bins_of(windows / scale, settings.bins, settings.limit), scale


@torch.no_grad()
def scores(model: nn.Module, values: Tensor, starts: Tensor, settings: ForecastSettings) -> Scores:
    """Scores of the forecasts for the windows that start there."""
    wide = values.dtype
    horizon, training = settings.horizon, values[: int(TRAINING * len(values))]
    truth, forecasts, smooth, likelihood, clipped = [], [], [], [], []
    for some in starts.split(EVALUATED_AT_ONCE):
        tokens, scale = tokenised(values, some, settings)
        logits, _ = model(tokens[:, :-1], horizon)
        log_pmf = logits.to(wide).log_softmax(-1)
        pmf = log_pmf.exp()
        targets = tokens[:, -horizon:]
        places = some.to(values.device)[:, None] + settings.context
        actual = values[places + torch.arange(horizon, device=values.device)]
        truth.append(actual.flatten())
        forecasts.append((quantiles_of(pmf, settings.limit) * scale[..., None]).flatten(0, 1))
        smooth.append(smoothness(pmf).flatten())
        likelihood.append(log_pmf.gather(-1, targets[..., None]).flatten())
        clipped.append(((actual / scale).abs() > settings.limit).flatten())
    values_there, quantiles = torch.cat(truth), torch.cat(forecasts)
    median = quantiles[:, LEVELS.index(0.5)]
    return Scores(
        weighted_quantile_loss(values_there, quantiles),
        mean_absolute_scaled_error(values_there, median, training),
        torch.cat(smooth).mean().item(),
        -torch.cat(likelihood).mean().item(),
        100 * torch.cat(clipped).to(wide).mean().item(),
    )


def _loaded(data: str | Path | SeriesData, settings: ForecastSettings) -> SeriesData:
    return data if isinstance(data, SeriesData) else load_series(data, settings.column)


def _build(
    head: str | HeadFactory,
    attention: str | AttentionFactory | Sequence[str | AttentionFactory],
    position: str,
    settings: ForecastSettings,
) -> Forecaster:
    return Forecaster(
        settings.bins,
        settings.width,
        settings.layers,
        settings.heads,
        settings.window - 1,
        head=head,
        attention=attention,
        position=position,
    )


def _parts(series: SeriesData, settings: ForecastSettings) -> dict[str, Tensor]:
    """Where windows start: all there are in the training part; in the others side by side, so that
    every value has one forecast. Contexts reach back into the part before."""
    if not series.values.isfinite().all():
        raise ValueError(
            f"data: {series.name} has values that are not finite, finite ones expected"
        )
    count, horizon = len(series.values), settings.horizon
    first, second = int(TRAINING * count), int((TRAINING + VALIDATION) * count)
    windows = first - settings.window + 1
    if windows < settings.batch_size or second - first < horizon or count - second < horizon:
        least = max(
            math.ceil((settings.window + settings.batch_size) / TRAINING),
            math.ceil((horizon + 1) / VALIDATION),
        )
        raise ValueError(
            f"data: {series.name} has {count} values, about {least} expected for a context of "
            f"{settings.context}, a horizon of {horizon} and a batch_size of {settings.batch_size}"
        )
    if not series.values[:first].diff().any() or not series.values[second:].any():
        raise ValueError(
            f"data: column {series.column!r} of {series.name} is constant, a series that changes "
            "expected"
        )
    return {
        "training": torch.arange(windows),
        "validation": torch.arange(first, second - horizon + 1, horizon) - settings.context,
        "test": torch.arange(second, count - horizon + 1, horizon) - settings.context,
    }
