"""The loss family against cross-entropy, the regret and its gradient in closed form."""

import math

import pytest
import torch
import torch.nn.functional as F

from heterodox.losses.utility import UtilityLearningLoss, utility_learning_loss


def utilities(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, dtype=torch.float64, generator=generator)).to(dtype)


def targets(*shape, classes=5):
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (1, 5), (4, 5, 3), (2, 5, 3, 2), (0, 5)])
def test_at_temperature_one_it_is_cross_entropy(shape, reduction):
    u = utilities(*shape)
    class_dim = min(1, len(shape) - 1)
    target = targets(*shape[:class_dim], *shape[class_dim + 1 :])
    expected = F.cross_entropy(u, target, reduction=reduction)
    actual = utility_learning_loss(u, target, reduction=reduction)
    torch.testing.assert_close(actual, expected, equal_nan=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", [[0], [0, 1, 2, 3]])
def test_ignored_targets_do_not_count(ignored, reduction):
    u, target = utilities(4, 5).requires_grad_(), targets(4)
    target[ignored] = 99
    expected = F.cross_entropy(u, target, reduction=reduction, ignore_index=99)
    actual = utility_learning_loss(u, target, reduction=reduction, ignore_index=99)
    torch.testing.assert_close(actual, expected, equal_nan=True)
    if len(ignored) == 1:
        gradients = [torch.autograd.grad(loss.sum(), u)[0] for loss in (actual, expected)]
        torch.testing.assert_close(*gradients)


def test_at_temperature_zero_it_is_the_regret():
    u, target = utilities(6, 5), targets(6)
    regret = u.max(1).values - u[torch.arange(6), target]
    each = utility_learning_loss(u, target, temperature=0.0, reduction="none")
    torch.testing.assert_close(each, regret)
    assert (each[u.argmax(1) == target] == 0).all()
    near = utility_learning_loss(u, target, temperature=1e-6, reduction="none")
    torch.testing.assert_close(near, regret, atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 3.0])
def test_the_gradient_is_the_policy_less_the_choice(temperature):
    u, target = utilities(4, 5).requires_grad_(), targets(4)
    loss = utility_learning_loss(u, target, temperature, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, u)
    expected = (u / temperature).softmax(1) - F.one_hot(target, 5)
    torch.testing.assert_close(gradient, expected.detach())


def test_gradients_match_finite_differences():
    u, target = utilities(3, 4).requires_grad_(), targets(3, classes=4)
    for temperature in (0.0, 0.3, 2.0):
        assert torch.autograd.gradcheck(
            lambda u, t=temperature: utility_learning_loss(u, target, t), (u,)
        )


def test_tied_best_alternatives_share_the_gradient_of_the_regret():
    u = torch.tensor([[2.0, 2.0, 0.0]], requires_grad=True)
    utility_learning_loss(u, torch.tensor([2]), temperature=0.0).backward()
    assert u.grad.tolist() == [[0.5, 0.5, -1.0]]


def test_comparing_with_a_choice_of_the_policy_has_the_same_gradient_in_expectation():
    u, target = utilities(1, 4, seed=3).requires_grad_(), torch.tensor([2])
    (exact,) = torch.autograd.grad(utility_learning_loss(u, target), u)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(u.detach().softmax(1)[0], 200_000, True, generator=generator)
    (sampled,) = torch.autograd.grad((u[0, drawn] - u[0, target]).mean(), u)
    torch.testing.assert_close(sampled, exact, atol=0.01, rtol=0)


def test_on_fixed_utilities_it_grows_with_the_temperature_within_its_bounds():
    u, target = utilities(50, 5), targets(50)
    grid = (0.0, 0.05, 0.3, 1.0, 3.0, 30.0)
    losses = torch.stack([utility_learning_loss(u, target, t, "none") for t in grid])
    assert (losses >= 0).all() and (losses.diff(dim=0) > -1e-12).all()
    assert (losses[-1] > losses[0]).all()
    for t, each in zip(grid, losses, strict=True):
        assert (each <= losses[0] + t * math.log(5) + 1e-12).all()


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_a_single_class_has_no_loss(temperature):
    assert utility_learning_loss(utilities(3, 1), targets(3, classes=1), temperature).item() == 0


def test_an_impossible_alternative_does_not_count():
    u = torch.tensor([[1.0, -torch.inf, 0.0]])
    without = torch.tensor([[1.0, 0.0]])
    for t in (0.0, 0.4, 1.0):
        actual = utility_learning_loss(u, torch.tensor([2]), t)
        torch.testing.assert_close(actual, utility_learning_loss(without, torch.tensor([1]), t))
    assert utility_learning_loss(u, torch.tensor([1])).item() == math.inf


def test_not_a_number_stays_one():
    u = torch.tensor([[torch.nan, 0.0], [1.0, 0.0]])
    each = utility_learning_loss(u, torch.tensor([1, 1]), reduction="none")
    assert each.isnan().tolist() == [True, False]


def test_large_utilities_do_not_overflow():
    u = torch.tensor([[1e30, 0.0]])
    assert utility_learning_loss(u, torch.tensor([0]), 0.01).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    u, target = utilities(64, 500, dtype=dtype), targets(64, classes=500)
    loss = utility_learning_loss(u, target)
    assert loss.dtype == dtype
    torch.testing.assert_close(loss.float(), F.cross_entropy(u.float(), target), rtol=1e-2, atol=0)


def test_the_module_is_the_function():
    u, target = utilities(4, 5), targets(4)
    target[0] = 7
    module = UtilityLearningLoss(0.3, reduction="sum", ignore_index=7)
    assert module(u, target) == utility_learning_loss(u, target, 0.3, "sum", 7)
    assert "temperature=0.3" in repr(module)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("temperature", lambda u, y: utility_learning_loss(u, y, -0.1)),
        ("temperature", lambda u, y: utility_learning_loss(u, y, math.nan)),
        ("temperature", lambda u, y: UtilityLearningLoss(-1.0)),
        ("reduction", lambda u, y: utility_learning_loss(u, y, reduction="average")),
        ("target", lambda u, y: utility_learning_loss(u, y[:2])),
        ("target", lambda u, y: utility_learning_loss(u, y + 5)),
        ("target", lambda u, y: utility_learning_loss(u, y - 9)),
        ("input", lambda u, y: utility_learning_loss(u.sum(), y)),
        ("input", lambda u, y: utility_learning_loss(u[:, :0], y)),
    ],
)
def test_bad_input_names_the_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
        call(utilities(4, 5), targets(4))
