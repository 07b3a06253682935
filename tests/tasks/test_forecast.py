"""The forecasting task: no look ahead, the heads in their slot, and scores on known forecasts."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from heterodox.data.series import SeriesData
from heterodox.experiment import Scale
from heterodox.layers import HEADS, FourierHead
from heterodox.models.forecaster import Forecaster
from heterodox.tasks import TASKS, forecast
from heterodox.tasks.comparison import comparison
from heterodox.tasks.series_bins import (
    LEVELS,
    bins_of,
    mean_absolute_scaled_error,
    mean_scale,
    quantiles_of,
    weighted_quantile_loss,
)

TINY = replace(
    forecast.SETTINGS[Scale.SMOKE],
    context=12,
    horizon=4,
    bins=32,
    width=16,
    steps=3,
    batch_size=4,
    evaluations=1,
)


def series(values, column="x"):
    values = torch.as_tensor(values, dtype=torch.float64)
    return SeriesData("ours", column, values, str(hash(tuple(values.tolist()))))


def waves(count=200):
    return series(3 + torch.sin(torch.arange(count) / 3))


def test_bins_are_uniform_and_the_outer_ones_hold_what_lies_beyond():
    scaled = torch.tensor([-100.0, -4.0, -3.9, -0.1, 0.0, 3.9, 4.0, 100.0])
    assert bins_of(scaled, 8, 4.0).tolist() == [0, 0, 0, 3, 4, 7, 7, 7]


def test_the_scale_is_the_mean_absolute_value_of_the_context_alone():
    values = torch.arange(1.0, 41.0)
    tokens, scale = forecast.tokenised(values, torch.tensor([0, 20]), TINY)
    assert scale.flatten().tolist() == [6.5, 26.5]
    assert tokens.shape == (2, 16)
    changed = values.clone()
    changed[12:16] = 1e6
    again, unchanged = forecast.tokenised(changed, torch.tensor([0]), TINY)
    assert unchanged.item() == 6.5 and torch.equal(again[0, :12], tokens[0, :12])


def test_a_context_of_zeros_has_a_scale_of_one():
    assert mean_scale(torch.zeros(3, 5)).tolist() == [[1.0]] * 3


def test_quantiles_are_those_of_a_sample_of_the_bins():
    generator = torch.Generator().manual_seed(0)
    pmf = torch.rand(5, 20, dtype=torch.float64, generator=generator)
    drawn = torch.multinomial(pmf, 200_000, replacement=True, generator=generator)
    within = torch.rand(drawn.shape, dtype=torch.float64, generator=generator)
    sample = ((drawn + within) * 2 / 20 - 1) * 3.0
    expected = torch.quantile(sample, torch.tensor(LEVELS).double(), dim=1).T
    torch.testing.assert_close(quantiles_of(pmf, 3.0), expected, rtol=0, atol=0.03)


def test_quantiles_of_a_sure_forecast_lie_in_its_bin():
    pmf = torch.zeros(10).double()
    pmf[7] = 1
    quantiles = quantiles_of(pmf, 1.0)
    torch.testing.assert_close(quantiles, 0.4 + 0.2 * torch.tensor(LEVELS).double())


def test_wql_is_the_mean_pinball_loss_over_the_mean_size():
    truth, quantiles = [3.0, -1.0], [[1.0] * 9, [2.0] * 9]
    total = 0.0
    for x, row in zip(truth, quantiles, strict=True):
        for q, level in zip(row, LEVELS, strict=True):
            total += 2 * (level * (x - q) if x >= q else (1 - level) * (q - x))
    found = weighted_quantile_loss(torch.tensor(truth), torch.tensor(quantiles))
    assert found == pytest.approx(total / 9 / 4)


def test_mase_of_the_last_value_is_one_on_a_series_like_the_training_part():
    values = torch.tensor([0.0, 2.0, 0.0, 2.0, 0.0])
    assert mean_absolute_scaled_error(values[1:], values[:-1], values) == 1.0


class Knows(nn.Module):
    """Puts all mass into the bin that is right, or the one beside it."""

    def __init__(self, tokens, bins, off=0):
        super().__init__()
        self.tokens, self.bins, self.off = tokens, bins, off

    def forward(self, tokens, last):
        right = self.tokens[:, -last:] + self.off
        logits = torch.full((*right.shape, self.bins), -50.0)
        return logits.scatter(-1, right[..., None], 0.0), torch.zeros(())


def test_a_model_that_knows_is_wrong_by_less_than_a_bin():
    data, settings = waves(), replace(TINY, bins=400)
    starts = forecast._parts(data, settings)["test"]
    tokens, scale = forecast.tokenised(data.values, starts, settings)
    exact = forecast.scores(Knows(tokens, 400), data.values, starts, settings)
    width = 2 * settings.limit / 400 * scale.max().item()
    step = data.values[:140].diff().abs().mean().item()
    assert exact.mase < width / step
    assert exact.loss == pytest.approx(0, abs=1e-5) and exact.clipped == 0
    off = forecast.scores(Knows(tokens, 400, off=3), data.values, starts, settings)
    assert off.mase > 2 * exact.mase and off.wql > 2 * exact.wql and off.loss > 10


def test_every_test_value_is_forecast_once_with_its_past_as_context():
    data = waves()
    parts = forecast._parts(data, TINY)
    first = [int(start) + TINY.context for start in parts["test"]]
    assert first == list(range(160, 197, 4))
    assert parts["validation"][0] + TINY.context == 140
    assert parts["training"].max() + TINY.window == 140  # training ends where validation begins


def test_forecasts_do_not_depend_on_later_values():
    model = Forecaster(32, 16, 1, 2, 15, head="fourier").double()
    tokens = torch.randint(32, (2, 15))
    changed = tokens.clone()
    changed[:, 13:] = 0
    logits, _ = model(tokens, 4)
    again, _ = model(changed, 4)
    torch.testing.assert_close(again[:, :2], logits[:, :2])
    assert not torch.allclose(again[:, 2:], logits[:, 2:])


def test_the_penalty_of_a_fourier_head_is_in_the_loss():
    def make(regularization):
        return lambda width, bins: FourierHead(
            width, bins, 4, regularization=regularization, weight_scale=1.0
        )

    losses = [
        forecast.train(head=make(g), data=waves(), settings=TINY).history.loss[0][1]
        for g in (0.0, 1.0)
    ]
    assert losses[1] > losses[0] + 1


@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_and_is_measured(head):
    measurement = forecast.train(head=head, data=waves(), settings=TINY).measurement()
    assert math.isfinite(measurement.value)
    assert set(measurement.readings) == {
        "MASE", "smoothness", "test loss", "clipped", "validation WQL"
    }  # fmt: skip
    assert all(math.isfinite(x) for x in measurement.readings.values())


def test_training_learns_a_wave():
    settings = replace(TINY, steps=150, batch_size=16, learning_rate=1e-2, bins=64)
    before, after = (
        forecast.train(head="fourier", data=waves(400), settings=replace(settings, steps=steps))
        for steps in (1, 150)
    )
    assert after.test.wql < before.test.wql / 4
    assert after.test.mase < 1  # better than repeating the last value


def test_the_same_seed_gives_the_same_run_and_another_head_the_same_trunk():
    first, second = (forecast.train(data=waves(), seed=3, settings=TINY) for _ in range(2))
    assert first.test == second.test
    settings = replace(TINY, learning_rate=1e-12)
    trunks = [
        forecast.train(head=head, data=waves(), settings=settings).model.decoder.embedding.weight
        for head in ("linear", "fourier")
    ]
    torch.testing.assert_close(*trunks)


def test_a_run_that_diverges_has_no_number():
    settings = replace(TINY, learning_rate=1e30, clip=None, steps=20)
    run = forecast.train(optimizer="sgd", data=waves(), settings=settings)
    assert run.history.diverged and math.isnan(run.measurement().value)


def test_heads_are_compared_as_the_command_line_compares_them():
    changes = {name: str(getattr(TINY, name)) for name in ("context", "horizon", "steps", "bins")}
    paper = comparison(
        TASKS["forecast"], {"head": ["linear", "fourier"]}, scale=Scale.SMOKE, changes=changes
    )
    (claim,) = paper.claims
    assert claim.better == "lower" and claim.arms == ("linear", "fourier")
    for arm in claim.arms:
        (measurement,) = claim.measure.run(arm, 1, Scale.SMOKE, "cpu").values()
        assert math.isfinite(measurement.value)


def test_a_column_is_chosen_by_the_settings(tmp_path):
    path = tmp_path / "my.csv"
    rows = "\n".join(f"{i},{math.sin(i / 3) + 2},{i % 5}" for i in range(200))
    path.write_text(f"time,wave,saw\n{rows}\n")
    assert forecast.train(data=path, settings=TINY).series.column == "saw"
    run = forecast.train(data=path, settings=replace(TINY, column="wave"))
    assert run.series.values[0].item() == 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "furier"}, r"^head: 'furier' given"),
        ({"data": waves(40)}, r"^data: ours has 40 values, about .* expected"),
        ({"data": series([2.0] * 300)}, r"^data: column 'x' of ours is constant, .*expected"),
        ({"data": series([1.0, math.nan] * 150)}, r"^data: ours has .* not finite, .*expected"),
        ({"data": "no such file"}, r"^data: 'no such file' given"),
        ({"attention": "soft"}, r"^(is_causal|position): "),
        ({"head": lambda width, bins: FourierHead(width, bins, 0)}, r"^num_frequencies: 0 given"),
    ],
)
def test_what_cannot_be_trained_is_refused_before(arguments, message):
    with pytest.raises(ValueError, match=message):
        forecast.check(**{"data": waves(), "settings": TINY, **arguments})


@pytest.mark.parametrize(
    ("name", "value"), [("bins", 1), ("context", 0), ("horizon", -1), ("limit", math.nan)]
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
        replace(TINY, **{name: value})
