"""`swap(model, head=...)` in plain modules and in this library's decoder."""

import copy

import pytest
import torch
from torch import nn

from heterodox.layers import FourierHead, GaussianMixtureHead, fourier_penalty
from heterodox.models.transformer import DecoderLM
from heterodox.swapping import SwappedMultiheadAttention, head_penalties, swap

BINS = 40


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, BINS))


def test_the_layer_of_that_name_is_replaced_and_nothing_else():
    model = plain().double().eval()
    first = model[0]
    report = swap(model, head="fourier", name="2", num_frequencies=5, regularization=1e-6)
    assert model[0] is first and isinstance(model[2], FourierHead)
    assert (model[2].in_features, model[2].out_features) == (8, BINS)
    assert (model[2].num_frequencies, model[2].regularization) == (5, 1e-6)
    assert model[2].linear.weight.dtype == torch.float64 and not model[2].training
    assert report.attention == "" and report.replaced == [
        ("2", "Linear", "fourier head (num_frequencies=5, regularization=1e-06)")
    ]
    assert any("head_penalties" in note for note in report.notes)
    assert model(torch.randn(3, 6).double()).shape == (3, BINS)


def test_every_head_can_take_the_place_of_every_other():
    model = plain()
    for head, kind in (
        ("fourier", FourierHead),
        ("gaussian-mixture", GaussianMixtureHead),
        ("linear", nn.Linear),
    ):
        swap(model, head=head, name="2")
        assert type(model[2]) is kind
        assert model(torch.randn(3, 6)).shape == (3, BINS)


def test_attention_and_head_are_swapped_together_and_options_find_their_place():
    layer = nn.TransformerEncoderLayer(8, nhead=2, batch_first=True)
    model = nn.ModuleDict({"encoder": layer, "readout": nn.Linear(8, BINS)})
    report = swap(
        model, attention="softplus", head="fourier", name="readout", power=3, num_frequencies=4
    )
    assert isinstance(model["encoder"].self_attn, SwappedMultiheadAttention)
    assert model["encoder"].self_attn.method.options == {"power": 3}
    assert model["readout"].num_frequencies == 4
    assert [replaced.name for replaced in report.replaced] == ["encoder.self_attn", "readout"]
    assert model["readout"](model["encoder"](torch.randn(2, 3, 8))).shape == (2, 3, BINS)


def test_attention_alone_leaves_output_layers_alone():
    layer = nn.TransformerEncoderLayer(8, nhead=2, batch_first=True)
    model = nn.Sequential(layer, nn.Linear(8, BINS))
    assert swap(model).attention.startswith("sigmoid")
    assert type(model[1]) is nn.Linear


def test_a_layer_in_two_places_stays_one_layer():
    layer = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": layer, "b": layer})
    report = swap(model, head="fourier", name="b")
    assert model["a"] is model["b"] and isinstance(model["a"], FourierHead)
    assert [replaced.name for replaced in report.replaced] == ["a", "b"]


def test_a_shared_weight_stays_with_the_embedding():
    model = DecoderLM(BINS, width=8, layers=1, heads=2, length=6)
    weight = model.embedding.weight
    report = swap(model, head="fourier", name="readout")
    assert model.embedding.weight is weight
    assert "readout: untied from embedding.weight" in report.notes
    assert model(torch.randint(BINS, (2, 6))).shape == (2, 6, BINS)


def test_head_penalties_are_those_of_every_call_and_reach_the_weights():
    model = plain()
    swap(model, head="fourier", name="2", num_frequencies=5, regularization=0.5)
    x = torch.randn(3, 6)
    with head_penalties(model) as penalties:
        model(x), model(x[:1])
    hidden = model[1](model[0](x))
    expected = 0.5 * fourier_penalty(model[2].coefficients(hidden))
    torch.testing.assert_close(penalties[0], expected)
    assert len(penalties) == 2
    sum(penalties).backward()
    assert model[0].weight.grad.abs().sum() > 0
    model(x)
    assert len(penalties) == 2 and not model[2]._forward_hooks


def test_head_penalties_need_a_fourier_head():
    with (
        pytest.raises(ValueError, match=r"^model: a Sequential without a Fourier head .*expected"),
        head_penalties(plain()),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "furier", "name": "2"}, r"^head: 'furier' given.*did you mean 'fourier'"),
        ({"head": "fourier"}, r"^name: None given, .* expected; its linear layers are 0, 2"),
        ({"head": "fourier", "name": "3"}, r"^name: '3' given, .* expected; .* 0, 2"),
        ({"head": "fourier", "name": "1"}, r"^name: '1' is a ReLU, .* expected; .* 0, 2"),
        ({"head": "fourier", "name": ""}, r"^name: '' is a Sequential, .* expected"),
        ({"head": "fourier", "name": "2", "power": 3}, r"^power: not an option of the fourier"),
        ({"head": "fourier", "name": "2", "num_frequencies": 0}, r"^num_frequencies: 0 given"),
        ({"head": "fourier", "name": "2", "sequence_length": 8}, r"^sequence_length: 8 given"),
        ({"head": "linear", "name": "2", "num_frequencies": 3}, r"^num_frequencies: not an option"),
        ({"name": "2"}, r"^name: '2' given without head"),
        ({"attention": "sigmoid", "head": "fourier", "name": "2"}, r"^model: a Sequential without"),
        (
            {"attention": "softplus", "head": "fourier", "name": "2", "colour": 1},
            r"^colour: not an option of softplus attention or the fourier head, .*expected",
        ),
    ],
)
def test_bad_arguments_are_named_and_nothing_has_changed(arguments, message):
    model = plain()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        swap(model, **arguments)
    assert type(model[2]) is nn.Linear
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_bare_output_layer_must_be_wrapped():
    with pytest.raises(ValueError, match=r"^model: a Linear itself given, .*expected"):
        swap(nn.Linear(6, BINS), head="fourier", name="")
