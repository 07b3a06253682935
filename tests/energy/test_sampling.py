"""Draws against the probabilities that they should have."""

import math

import pytest
import torch

from heterodox.energy.sampling import sample_spins, sample_states

MANY = 200_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("beta", [0.0, 0.7, 3.0])
def test_spins_have_the_mean_of_the_hyperbolic_tangent(beta):
    field = torch.tensor([-2.0, -0.3, 0.0, 1.0])
    spins = sample_spins(field.expand(MANY, 4), beta, generator=generator())
    assert set(spins.unique().tolist()) <= {-1.0, 1.0}
    torch.testing.assert_close(spins.mean(0), torch.tanh(beta * field), atol=0.01, rtol=0)


def test_without_temperature_a_spin_follows_its_field_or_stays():
    field = torch.tensor([2.0, -1e-30, 0.0, 0.0])
    current = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    drawn = generator()
    before = drawn.get_state()
    spins = sample_spins(field, math.inf, current=current, generator=drawn)
    assert spins.tolist() == [1.0, -1.0, -1.0, 1.0]
    assert torch.equal(drawn.get_state(), before)


def test_states_have_the_probabilities_of_softmax():
    logits = torch.tensor([[0.0, 1.0, -1.0], [3.0, 3.0, 0.0]])
    states = sample_states(logits.expand(MANY, 2, 3), generator=generator())
    assert torch.equal(states.sum(-1), torch.ones(MANY, 2))
    assert set(states.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(states.mean(0), logits.softmax(-1), atol=0.01, rtol=0)


def test_an_excluded_state_is_never_drawn():
    logits = torch.tensor([0.0, -math.inf, 0.0]).expand(10_000, 3)
    assert (sample_states(logits, generator=generator())[:, 1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_results_have_the_dtype_of_the_input(dtype):
    assert sample_spins(torch.zeros(3, dtype=dtype), 1.0).dtype == dtype
    assert sample_states(torch.zeros(3, dtype=dtype)).dtype == dtype
    spins = sample_spins(torch.full((MANY,), 0.01, dtype=dtype), 1.0, generator=generator())
    assert spins.double().mean().item() == pytest.approx(0.01, abs=0.008)


def test_nothing_gives_nothing():
    assert sample_spins(torch.zeros(0, 3), 1.0).shape == (0, 3)
    assert sample_states(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("beta", lambda: sample_spins(torch.zeros(3), -1.0)),
        ("beta", lambda: sample_spins(torch.zeros(3), math.nan)),
        ("current", lambda: sample_spins(torch.zeros(3), math.inf)),
        ("logits", lambda: sample_states(torch.zeros(3, 0))),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .*\bexpected"):
        call()
