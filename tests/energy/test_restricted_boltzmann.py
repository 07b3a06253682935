"""The restricted machine against enumeration of all its states."""

import itertools
import math

import pytest
import torch

from heterodox.energy.restricted_boltzmann import RestrictedBoltzmannMachine
from heterodox.training.seeding import seeded

STATES = (2, 3, 2)


def machine(scale=3.0, **options):
    with seeded(0):
        made = RestrictedBoltzmannMachine(STATES, 4, **options).double()
        for parameter in made.parameters():
            parameter.data.copy_(scale * torch.randn(parameter.shape, dtype=torch.float64) / 3)
    return made


def all_visible():
    rows = [
        torch.cat([torch.eye(s)[i] for s, i in zip(STATES, index, strict=True)])
        for index in itertools.product(*map(range, STATES))
    ]
    return torch.stack(rows).double()


def test_the_free_energy_sums_over_hidden_units():
    made, v = machine(), all_visible()
    hidden = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).double()
    exponent = (
        (v @ made.weight) @ hidden.mT + (v @ made.visible_bias)[:, None] + hidden @ made.hidden_bias
    )
    torch.testing.assert_close(-made.free_energy(v), exponent.logsumexp(1))


def test_gibbs_sampling_ends_at_the_law_of_the_free_energy():
    made, v = machine(), all_visible()
    law = (-made.free_energy(v)).softmax(0)
    start = v[:1].expand(20_000, -1)
    drawn = made.sample(start, 30, generator=torch.Generator().manual_seed(0))
    share = (drawn[:, None] == v).all(-1).double().mean(0)
    assert 0.5 * (share - law).abs().sum() < 0.02


def test_mean_field_solves_its_equations_and_holds_what_was_observed():
    made, v = machine(0.5, tolerance=1e-10), all_visible()
    mask = torch.tensor([[True, False, False]]).expand(len(v), -1)
    q = made(v, mask)
    assert made.info.converged
    assert torch.equal(q[:, :2], v[:, :2])
    logits = made.visible_logits(torch.sigmoid(made.hidden_logits(q)))
    expected = torch.cat([part.softmax(-1) for part in logits.split(STATES, 1)], 1)
    torch.testing.assert_close(q[:, 2:], expected[:, 2:], atol=1e-8, rtol=0)


def test_weak_couplings_give_nearly_the_exact_marginals():
    made, v = machine(0.2, tolerance=1e-10), all_visible()
    exact = (-made.free_energy(v)).softmax(0) @ v
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    torch.testing.assert_close(made(v[:1], nothing)[0], exact, atol=0.01, rtol=0)


def test_no_steps_of_sampling_change_nothing():
    v = all_visible()
    assert torch.equal(machine().sample(v, 0), v)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("states", lambda: RestrictedBoltzmannMachine([], 3)),
        ("hidden", lambda: RestrictedBoltzmannMachine([2], 0)),
        ("tolerance", lambda: RestrictedBoltzmannMachine([2], 1, tolerance=0.0)),
        ("steps", lambda: machine().sample(all_visible(), -1)),
        ("observed", lambda: machine()(all_visible()[:, :3], torch.ones(12, 3).bool())),
        ("observed", lambda: machine()(math.nan * all_visible(), torch.ones(12, 3).bool())),
        ("mask", lambda: machine()(all_visible(), torch.ones(12, 2).bool())),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .*\bexpected"):
        call()
