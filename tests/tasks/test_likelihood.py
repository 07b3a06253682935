import math

import pytest
import torch
import torch.nn.functional as F

from heterodox.losses import LOSSES
from heterodox.tasks.likelihood import (
    CalibratedSoftmax,
    likelihood_of,
    likelihood_of_output,
    top_error,
)


def outputs_and_targets(classes=20, rows=400, noise=1.0):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(rows, classes, generator=generator)
    noisy = outputs + noise * torch.randn(rows, classes, generator=generator)
    return outputs, noisy.argmax(1)


@pytest.mark.parametrize("name", ["stablemax", "taylor-softmax", "spherical-softmax"])
def test_losses_of_probabilities_are_their_own_likelihood(name):
    outputs, targets = outputs_and_targets()
    for given in (name, LOSSES[name]):
        assert likelihood_of(given) is LOSSES[name]
    every = torch.stack(
        [LOSSES[name](outputs, torch.full_like(targets, c), reduction="none") for c in range(20)]
    )
    torch.testing.assert_close((-every).exp().sum(0), torch.ones(400))


def test_other_losses_are_softmax():
    assert likelihood_of("cross-entropy") is F.cross_entropy
    assert likelihood_of(lambda input, target: input.sum()) is F.cross_entropy


def test_losses_without_probabilities_are_calibrated():
    for given in ("z-loss", LOSSES["z-loss"]):
        assert likelihood_of(given).standardised
    assert not likelihood_of("spherical-squared").standardised
    assert likelihood_of_output(lambda *statistics: statistics[0]).standardised


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_the_fitted_sharpness_is_the_best(scale):
    outputs, targets = outputs_and_targets()
    likelihood = CalibratedSoftmax(standardised=False)
    likelihood.fit(scale * outputs, targets)
    grid = torch.linspace(0.05, 8, 400)
    best = min(F.cross_entropy(beta * outputs, targets).item() for beta in grid)
    assert likelihood(scale * outputs, targets).item() == pytest.approx(best, abs=1e-4)


def test_heavy_tailed_scores_are_calibrated_too():
    outputs, targets = outputs_and_targets(classes=5000, noise=0.3)
    outputs = outputs.sinh() ** 3
    likelihood = CalibratedSoftmax(standardised=True)
    likelihood.fit(outputs, targets)
    assert likelihood(outputs, targets) < math.log(5000) - 0.5


def test_standardised_scores_do_not_see_shift_and_scale():
    outputs, targets = outputs_and_targets()
    likelihood = CalibratedSoftmax(standardised=True)
    likelihood.fit(outputs, targets)
    torch.testing.assert_close(likelihood(3 * outputs + 5, targets), likelihood(outputs, targets))


def test_outputs_that_are_not_finite_have_no_likelihood():
    outputs, targets = outputs_and_targets()
    outputs[0, 0] = math.inf
    likelihood = CalibratedSoftmax(standardised=True)
    likelihood.fit(outputs, targets)
    assert math.isnan(likelihood.sharpness)


def test_the_top_error_counts_targets_beyond_the_k_largest():
    outputs, targets = outputs_and_targets()
    for k in (1, 3, 20):
        hit = (outputs.topk(k).indices == targets[:, None]).any(1)
        assert top_error(outputs, targets, k).item() == pytest.approx(1 - hit.float().mean().item())


def test_outputs_that_say_nothing_are_errors():
    targets = torch.zeros(3, dtype=torch.long)
    assert top_error(torch.zeros(3, 20), targets, 10) == 1
    assert top_error(torch.full((3, 20), math.nan), targets, 10) == 1
