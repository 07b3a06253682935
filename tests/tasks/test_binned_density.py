"""The toy laws against counts of their own samples, and training against what is known of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from heterodox.experiment import Scale
from heterodox.layers import FourierHead
from heterodox.tasks import binned_density
from heterodox.tasks.binned_density import BINS, FAMILIES, bin_probabilities, samples

TINY = replace(binned_density.SETTINGS[Scale.SMOKE], samples=200, epochs=2)


def counts(z):
    return np.histogram(np.clip(z, -1, 1), bins=np.linspace(-1, 1, BINS + 1))[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", [(0.5, -0.3), (-0.7, 0.75)])
def test_the_probabilities_are_the_shares_of_draws_from_the_law(family, place):
    x, y = place
    generator = np.random.default_rng(0)
    n = 100_000
    if family == "beta":
        z = generator.choice((-1, 1), n) * generator.beta(100 * abs(x), 100 * abs(y), n)
    else:
        centre = np.where(generator.random(n) < 0.5, x, y) if family == "mixture" else y
        z = centre + 0.1 * generator.standard_normal(n)
    (found,) = bin_probabilities(family, torch.tensor([place], dtype=torch.float64))
    assert np.abs(found.numpy() - counts(z) / n).max() < 0.006
    assert found.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_samples_are_those_of_the_law(family):
    xy, z = samples(family, 20_000, seed=1)
    expected = bin_probabilities(family, xy).mean(0).numpy()
    assert np.abs(expected - counts(z.numpy()) / 20_000).max() < 0.006
    x, y = xy.T
    assert x.abs().max() <= 0.8
    together = torch.corrcoef(torch.stack((x, y)))[0, 1].item()
    assert together == pytest.approx(0.0 if family == "mixture" else 0.977, abs=0.03)


def test_the_seed_decides_the_samples():
    assert torch.equal(samples("beta", 50, 3)[1], samples("beta", 50, 3)[1])
    assert not torch.equal(samples("beta", 50, 3)[1], samples("beta", 50, 4)[1])


def test_the_divergence_of_a_uniform_prediction_is_log_bins_less_the_entropy():
    run = binned_density.train("gaussian", Uniform, seed=0, settings=TINY)
    xy, _ = samples("gaussian", 200, binned_density.derived_seed(0, "samples"))
    truth = bin_probabilities("gaussian", xy[160:])
    entropy = torch.special.entr(truth).sum(-1).mean().item()
    assert run.divergence == pytest.approx(np.log(BINS) - entropy, abs=1e-6)
    assert run.smoothness == pytest.approx(0, abs=1e-6)


class Uniform(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 0


def test_training_brings_the_prediction_nearer_to_the_law():
    head = lambda width, bins: FourierHead(width, bins, 12)  # noqa: E731
    settings = replace(TINY, samples=2000, learning_rate=5e-3)
    before, after = (
        binned_density.train("gaussian", head, seed=0, settings=replace(settings, epochs=epochs))
        for epochs in (1, 10)
    )
    assert after.divergence < before.divergence / 2


def test_the_penalty_of_a_fourier_head_is_in_the_loss():
    def make(regularization):
        return lambda width, bins: FourierHead(
            width, bins, 6, regularization=regularization, weight_scale=1.0
        )

    losses = [
        binned_density.train("mixture", make(g), seed=0, settings=TINY).history.loss[0][1]
        for g in (0.0, 1.0)
    ]
    assert losses[1] > losses[0] + 0.1


def test_an_unknown_law_is_named():
    with pytest.raises(ValueError, match=r"^family: 'cauchy' given, .* expected"):
        binned_density.train("cauchy", nn.Linear, seed=0, settings=TINY)
