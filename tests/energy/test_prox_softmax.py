"""The softmax with a step size against its defining equation, a minimisation and its limits."""

import math

import pytest
import torch

from heterodox.energy.proximal_operator import prox_softmax

ALPHAS = (1e-5, 1e-3, 0.03, 0.125, 0.5, 0.9, 0.999)


def draw(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)


def by_bisection(x, alpha):
    """Two nested bisections, on λ and on every z, with numbers of Python."""

    def z_of(y):
        low, high = 0.0, 1.0
        for _ in range(200):
            middle = (low + high) / 2
            value = (1 - alpha) * middle + alpha * math.log(middle) if middle > 0 else -math.inf
            low, high = (middle, high) if value < y else (low, middle)
        return (low + high) / 2

    low, high = -max(x) - 60.0, 1 - max(x)
    for _ in range(100):
        middle = (low + high) / 2
        total = sum(z_of(value + middle - alpha) for value in x)
        low, high = (middle, high) if total < 1 else (low, middle)
    return [z_of(value + high - alpha) for value in x]


@pytest.mark.parametrize("alpha", [0.03, 0.125, 0.7])
def test_it_is_the_solution_of_the_equation_found_by_bisection(alpha):
    for row in draw(4, 5, scale=2.0):
        expected = torch.tensor(by_bisection(row.tolist(), alpha), dtype=torch.float64)
        torch.testing.assert_close(prox_softmax(row, alpha), expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("states", [1, 2, 4, 20, 300])
@pytest.mark.parametrize("scale", [0.01, 0.3, 3.0, 1e4])
def test_the_equation_holds_for_every_state_with_one_multiplier(alpha, states, scale):
    x = draw(100, states, scale=scale)
    z = prox_softmax(x, alpha)
    assert (z >= 0).all()
    torch.testing.assert_close(z.sum(-1), torch.ones(100, dtype=torch.float64))
    present = z > 1e-250
    multiplier = torch.where(present, (1 - alpha) * z + alpha * z.clamp(min=1e-300).log() - x, 0)
    largest = torch.where(present, multiplier, -math.inf).amax(-1)
    least = torch.where(present, multiplier, math.inf).amin(-1)
    assert (largest - least).max() < 1e-11 * max(1, scale)


@pytest.mark.parametrize("alpha", [0.125, 0.5, 1.0])
def test_no_point_of_the_simplex_is_better(alpha):
    x = draw(1, 6, scale=2.0)
    others = draw(2000, 6, seed=1, scale=3.0).softmax(-1)

    def objective(z):
        entropy = torch.xlogy(z, z).sum(-1)
        square = 0.5 * z.square().sum(-1)
        return 0.5 * (z - x).square().sum(-1) + alpha * (entropy - square)

    found = prox_softmax(x, alpha)
    near = 0.99 * found + 0.01 * others
    assert (objective(found) < objective(others)).all()
    assert (objective(found) < objective(near)).all()


def test_it_tends_to_softmax_and_to_the_projection_onto_the_simplex():
    x = draw(50, 7)
    torch.testing.assert_close(prox_softmax(x, 1.0), x.softmax(-1))
    torch.testing.assert_close(prox_softmax(x, 1 - 1e-9), x.softmax(-1), atol=1e-8, rtol=0)
    ordered = x.sort(-1, descending=True).values
    ranks = torch.arange(1, 8)
    excess = (ordered.cumsum(-1) - 1) / ranks
    count = (ordered > excess).sum(-1, keepdim=True)
    projected = (x - excess.gather(-1, count - 1)).clamp(min=0)
    torch.testing.assert_close(prox_softmax(x, 1e-6), projected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("alpha", [0.01, 0.125, 0.8])
def test_a_shift_of_x_does_not_matter(alpha):
    x = draw(20, 5)
    torch.testing.assert_close(prox_softmax(x + 17.0, alpha), prox_softmax(x, alpha))


@pytest.mark.parametrize("alpha", [0.01, 0.125, 0.8, 1.0])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_gradients_match_finite_differences(alpha, dim):
    x = draw(3, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: prox_softmax(x, alpha, dim), (x,))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_single_precision_is_right_to_1e_6(alpha):
    for states in (2, 4, 20, 300):
        x = torch.cat([draw(200, states, scale=s) for s in (0.01, 0.1, 1.0, 5.0)]).float()
        error = prox_softmax(x, alpha).double() - prox_softmax(x.double(), alpha)
        assert error.abs().max() < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [1e-3, 0.125, 0.9])
def test_far_apart_numbers_give_certainty_and_finite_gradients(dtype, alpha):
    x = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]], dtype=dtype, requires_grad=True)
    z = prox_softmax(x, alpha)
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=dtype)
    torch.testing.assert_close(z, expected)
    z.square().sum().backward()
    assert x.grad.isfinite().all()


def test_an_excluded_state_gets_nothing_and_leaves_the_others_as_if_it_were_not_there():
    x = draw(10, 4)
    padded = torch.cat([x, torch.full((10, 2), -math.inf, dtype=torch.float64)], 1)
    z = prox_softmax(padded, 0.125)
    torch.testing.assert_close(z[:, :4], prox_softmax(x, 0.125))
    assert (z[:, 4:] == 0).all()


def test_blocks_do_not_change_the_result(monkeypatch):
    x = draw(7, 5, 11)
    expected = prox_softmax(x, 0.125, dim=1)
    monkeypatch.setattr("heterodox.energy.proximal_operator.CPU_BLOCK", 12)
    torch.testing.assert_close(prox_softmax(x, 0.125, dim=1), expected)


def test_the_only_state_of_a_variable_is_certain():
    assert torch.equal(prox_softmax(draw(4, 1), 0.125), torch.ones(4, 1, dtype=torch.float64))


def test_nothing_gives_nothing():
    assert prox_softmax(torch.zeros(0, 3), 0.125).shape == (0, 3)


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1.5, math.nan])
def test_a_step_out_of_range_is_named(alpha):
    with pytest.raises(ValueError, match=r"^alpha: .* expected"):
        prox_softmax(torch.zeros(3), alpha)


def test_a_missing_dimension_or_no_states_are_named():
    with pytest.raises(ValueError, match=r"^dim: .* expected"):
        prox_softmax(torch.zeros(3), 0.5, dim=1)
    with pytest.raises(ValueError, match=r"^x: .* expected"):
        prox_softmax(torch.zeros(3, 0), 0.5)
