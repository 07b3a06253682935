"""The loss of completion against sums written out, and against cross-entropy where they agree."""

import math

import pytest
import torch
import torch.nn.functional as F

from heterodox.energy.completion_loss import focal_completion_loss


def draw(batch=3, states=4, shape=(5, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    potential = 2 * torch.randn(batch, states, *shape, dtype=torch.float64, generator=generator)
    target = torch.randint(states, (batch, *shape), generator=generator)
    mask = torch.rand(batch, *shape, generator=generator) < 0.4
    return potential, target, mask


def written_out(potential, target, mask, temperature, gamma, beta):
    rows = potential.movedim(1, -1)[~mask]
    targets = target[~mask].tolist()
    scale = torch.as_tensor(temperature).expand(mask.shape)[~mask]
    above = below = 0.0
    for row, value, tau in zip(rows.tolist(), targets, scale.tolist(), strict=True):
        exponentials = [math.exp(u * tau**2) for u in row]
        p = exponentials[value] / sum(exponentials)
        weight = (1 - beta) / (1 - beta ** targets.count(value))
        above += weight * (1 - p) ** gamma * -math.log(p)
        below += weight
    return above / below


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_it_is_the_weighted_mean_of_the_formula(gamma, beta):
    potential, target, mask = draw()
    temperature = torch.linspace(0.5, 1.5, 10, dtype=torch.float64).view(5, 2)
    found = focal_completion_loss(
        potential, target, mask, temperature=temperature, gamma=gamma, beta=beta
    )
    expected = written_out(potential, target, mask, temperature, gamma, beta)
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_without_focus_and_balance_it_is_cross_entropy_of_what_is_missing():
    potential, target, mask = draw()
    rows = potential.movedim(1, -1)[~mask]
    found = focal_completion_loss(potential, target, mask, gamma=0.0, beta=0.0)
    torch.testing.assert_close(found, F.cross_entropy(rows, target[~mask]))


def test_what_was_observed_does_not_count():
    potential, target, mask = draw()
    other = torch.where(mask[:, None], potential.flip(1), potential)
    expected = focal_completion_loss(potential, target, mask)
    assert torch.equal(focal_completion_loss(other, target, mask), expected)
    assert torch.equal(focal_completion_loss(potential, target, mask.double()), expected)


def test_a_value_that_does_not_occur_is_no_trouble():
    potential, target, mask = draw()
    potential.requires_grad_()
    loss = focal_completion_loss(potential, target.clamp(max=1), mask)
    loss.backward()
    assert loss.isfinite() and potential.grad.isfinite().all()


def test_when_everything_was_observed_there_is_no_loss():
    potential, target, mask = draw()
    potential.requires_grad_()
    loss = focal_completion_loss(potential, target, torch.ones_like(mask))
    loss.backward()
    assert loss.item() == 0 and (potential.grad == 0).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_certainty_has_finite_gradients(gamma):
    potential = torch.tensor([[[200.0, -200.0], [-200.0, 200.0]]], requires_grad=True)
    loss = focal_completion_loss(
        potential, torch.tensor([[0, 0]]), torch.zeros(1, 2), gamma=gamma, beta=0.0
    )
    loss.backward()
    assert loss.item() == pytest.approx(200.0)
    assert potential.grad.isfinite().all()


def test_gradients_match_finite_differences():
    potential, target, mask = draw(2, 3, (2,))
    temperature = torch.tensor([0.7, 1.2], dtype=torch.float64, requires_grad=True)

    def call(potential, temperature):
        return focal_completion_loss(potential, target, mask, temperature=temperature)

    assert torch.autograd.gradcheck(call, (potential.requires_grad_(), temperature))


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("potential", lambda u, y, m: focal_completion_loss(u[:, :0], y, m)),
        ("target", lambda u, y, m: focal_completion_loss(u, y[:1], m)),
        ("target", lambda u, y, m: focal_completion_loss(u, y + 4, m)),
        ("target", lambda u, y, m: focal_completion_loss(u, y - 1, m)),
        ("mask", lambda u, y, m: focal_completion_loss(u, y, m[..., 0])),
        ("gamma", lambda u, y, m: focal_completion_loss(u, y, m, gamma=-1.0)),
        ("beta", lambda u, y, m: focal_completion_loss(u, y, m, beta=1.0)),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .*\bexpected"):
        call(*draw())
