import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heterodox.models.pair_mlp import PairMLP, pair_logits
from heterodox.training.seeding import seeded


def one_hot_reference(model, pairs, symbols):
    x = F.one_hot(pairs, symbols).flatten(1).to(model.first.dtype)
    x = F.relu(F.linear(x, model.first.T))
    x = F.relu(F.linear(x, model.second.T))
    return F.linear(x, model.third.T)


def test_it_is_the_mlp_on_one_hot_vectors_in_values_and_gradients():
    model = PairMLP(7, 16).double()
    pairs = torch.randint(7, (30, 2))
    expected = one_hot_reference(model, pairs, 7)
    assert torch.allclose(model(pairs), expected, atol=1e-12)
    weights = torch.randn(30, 7, dtype=torch.float64)
    ours = torch.autograd.grad((model(pairs) * weights).sum(), model.weights)
    theirs = torch.autograd.grad((expected * weights).sum(), model.weights)
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(ours, theirs, strict=True))


def test_it_starts_as_linear_layers_do():
    with seeded(4):
        model = PairMLP(5, 8)
    with seeded(4):
        layers = [nn.Linear(a, b, bias=False) for a, b in ((10, 8), (8, 8), (8, 5))]
    for ours, layer in zip(model.weights, layers, strict=True):
        assert torch.equal(ours, layer.weight.T)


def test_several_models_at_once_are_each_on_its_own():
    models = [PairMLP(5, 8) for _ in range(3)]
    pairs = torch.randint(5, (3, 20, 2))
    stacked = tuple(torch.stack(w) for w in zip(*(m.weights for m in models), strict=True))
    together = pair_logits(stacked, pairs)
    for index, model in enumerate(models):
        assert torch.allclose(together[index], model(pairs[index]), atol=1e-6)


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match=r"^hidden: 0 given"):
        PairMLP(5, 0)
