"""The LoRA layer against its formula, and against peft's."""

import copy

import pytest
import torch
from torch import nn

from heterodox.compression.low_rank import LoRALinear
from heterodox.training.seeding import seeded


def layer_with_numbers(**options):
    with seeded(0):
        layer = LoRALinear(nn.Linear(6, 5), **({"rank": 3} | options))
        nn.init.normal_(layer.b)
        x = torch.randn(4, 7, 6)
    return layer, x


def test_the_output_is_that_of_the_formula():
    layer, x = layer_with_numbers(alpha=7.0)
    update = 7.0 / 3 * layer.b @ layer.a
    expected = x @ (layer.base.weight + update).T + layer.base.bias
    torch.testing.assert_close(layer(x), expected)


def test_alpha_is_the_rank_by_default():
    layer, x = layer_with_numbers()
    same = copy.deepcopy(layer)
    same.alpha = 3.0
    assert torch.equal(layer(x), same(x)) and layer.alpha == 3.0


def test_it_starts_as_its_base_with_a_in_the_range_of_a_linear_layer():
    with seeded(0):
        layer = LoRALinear(nn.Linear(100, 5), rank=50)
    assert not layer.b.any()
    assert 0.095 < layer.a.abs().max() <= 0.1  # Kaiming-uniform, a = √5: 1 / √in


def test_only_the_adapter_is_trained():
    layer, x = layer_with_numbers()
    layer(x).square().sum().backward()
    assert layer.base.weight.grad is None and layer.base.bias.grad is None
    assert layer.a.grad.any() and layer.b.grad.any()


def test_merging_gives_one_linear_layer_and_leaves_this_one():
    for bias in (True, False):
        with seeded(0):
            layer = LoRALinear(nn.Linear(6, 5, bias=bias).double(), rank=2, alpha=5.0)
            nn.init.normal_(layer.b)
            x = torch.randn(4, 6, dtype=torch.float64)
        before, weight = layer(x), layer.base.weight.clone()
        merged = layer.merge()
        assert type(merged) is nn.Linear and merged.weight.requires_grad
        torch.testing.assert_close(merged(x), before)
        assert torch.equal(layer.base.weight, weight) and torch.equal(layer(x), before)


def test_dropout_is_on_the_adapter_s_input_in_training_only():
    layer, x = layer_with_numbers(dropout=0.5)
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    layer.train()
    with seeded(1):
        dropped = layer(x)
    with seeded(1):
        seen = nn.functional.dropout(x, 0.5)
    update = (seen @ layer.a.T) @ layer.b.T
    torch.testing.assert_close(dropped, layer.base(x) + update)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("alpha", [1.0, 16.0])
def test_it_gives_the_numbers_of_peft(bias, alpha):
    peft = pytest.importorskip("peft", reason="needs peft")
    with seeded(0):
        model = nn.Sequential(nn.Linear(6, 5, bias=bias))
        ours = LoRALinear(copy.deepcopy(model[0]), rank=2, alpha=alpha)
        config = peft.LoraConfig(r=2, lora_alpha=alpha, target_modules=["0"])
        theirs = peft.get_peft_model(model, config).base_model.model[0]
        theirs.lora_A["default"].weight.data.copy_(nn.init.normal_(ours.a))
        theirs.lora_B["default"].weight.data.copy_(nn.init.normal_(ours.b))
        x = torch.randn(3, 6)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for own, other in ((ours.a, theirs.lora_A), (ours.b, theirs.lora_B)):
        torch.testing.assert_close(own.grad, other["default"].weight.grad, rtol=1e-5, atol=1e-5)
    theirs.merge()
    torch.testing.assert_close(ours.merge().weight, theirs.base_layer.weight)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: LoRALinear(nn.Conv1d(2, 2, 1), 1), "base"),
        (lambda: LoRALinear(nn.Linear(2, 2), 0), "rank"),
        (lambda: LoRALinear(nn.Linear(2, 2), 1, alpha=float("nan")), "alpha"),
        (lambda: LoRALinear(nn.Linear(2, 2), 1, dropout=1.0), "dropout"),
        (lambda: LoRALinear(nn.Linear(2, 2), 1)(torch.ones(3)), "x"),
    ],
)
def test_bad_input_names_the_argument(call, argument):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        call()
