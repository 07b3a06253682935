import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heterodox.models.bottleneck import BottleneckMLP
from heterodox.probes.adversarial import fgsm, pgd
from heterodox.training.seeding import seeded


@pytest.fixture
def model():
    with seeded(0):
        return BottleneckMLP(4, 1, hidden=16, bottleneck=8).double().eval()


X = torch.randn(20, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(20, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_for_a_linear_model_the_attack_is_the_worst_change_within_its_size():
    weight = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    attacked = fgsm(lambda x: x @ weight[:, None], X, Y, eps=0.3)
    error = X @ weight - Y[:, 0]
    worst = error.abs() + 0.3 * weight.abs().sum()
    torch.testing.assert_close((attacked @ weight - Y[:, 0]).abs(), worst)


def test_repeated_steps_for_a_linear_model_end_where_one_large_step_does():
    weight = torch.tensor([[1.0], [-2.0], [0.5], [3.0]], dtype=torch.float64)
    steps = pgd(lambda x: x @ weight, X, Y, eps=0.3, step_size=0.1, steps=4)
    torch.testing.assert_close(steps, fgsm(lambda x: x @ weight, X, Y, eps=0.3))


def test_attacks_stay_within_their_size_and_raise_the_loss(model):
    clean = F.mse_loss(model(X), Y)
    for attack in (fgsm(model, X, Y, 0.3), pgd(model, X, Y, 0.3, 0.07, 7)):
        assert (attack - X).abs().max() <= 0.3 + 1e-12
        assert F.mse_loss(model(attack), Y) > clean
        assert not attack.requires_grad


def test_a_size_of_zero_changes_nothing(model):
    assert torch.equal(fgsm(model, X, Y, 0), X)
    assert torch.equal(pgd(model, X, Y, 0.0), X)


def test_a_row_is_attacked_as_it_would_be_alone(model):
    together = fgsm(model, X, Y, 0.2)
    torch.testing.assert_close(together[3:4], fgsm(model, X[3:4], Y[3:4], 0.2))


def test_attacks_leave_the_models_gradients_alone_and_work_without_gradients(model):
    with torch.no_grad():
        attacked = fgsm(model, X, Y, 0.2)
    assert not torch.equal(attacked, X)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_classes_are_attacked_by_their_own_loss():
    with seeded(0):
        classifier = nn.Linear(4, 3).double()
    labels = torch.arange(20) % 3
    attacked = fgsm(classifier, X, labels, 0.5, loss=F.cross_entropy)
    losses = [F.cross_entropy(classifier(x), labels) for x in (X, attacked)]
    assert losses[1] > losses[0]


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("eps", lambda: fgsm(lambda x: x, X, X, -0.1)),
        ("x", lambda: fgsm(lambda x: x, X / 0, X, 0.1)),
        ("step_size", lambda: pgd(lambda x: x, X, X, 0.1, -1.0)),
        ("steps", lambda: pgd(lambda x: x, X, X, steps=0)),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .*expected"):
        call()
