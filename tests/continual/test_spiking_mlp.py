"""Three training rules of one network, against loops that state them; and old outputs that stay."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from heterodox.continual.orthogonal_projection import (
    OrthogonalProjection,
    gradient_projection_basis,
)
from heterodox.continual.spiking_mlp import FIRST_RATE, RATE, SpikingMLP
from heterodox.layers.spiking import SigmoidSurrogate, weighted_rate
from heterodox.training.seeding import seeded

RULES = ("bptt", "ottt", "dsr")


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def network(rule: str, sizes=(9, 12, 11, 4), seed: int = 0) -> SpikingMLP:
    with seeded(seed):
        model = SpikingMLP(sizes, rule).double()
    with torch.no_grad():
        for layer in model.layers:
            layer.weight.mul_(3)
    return model


def gradients(model: SpikingMLP) -> list[Tensor]:
    return [layer.weight.grad.clone() for layer in model.layers]


def test_bptt_is_a_loop_over_time():
    model, x, labels = network("bptt"), draw(5, 9), torch.tensor([0, 1, 2, 3, 1])
    v = [torch.zeros(5, 12).double(), torch.zeros(5, 11).double()]
    outputs = []
    for _ in range(6):
        z = x
        for number in range(2):
            h = 0.5 * v[number] + z @ model.layers[number].weight.T
            z = SigmoidSurrogate(4.0)(h - 1)
            v[number] = h - z.detach()
        outputs.append(z @ model.layers[2].weight.T)
    scores = torch.stack(outputs).mean(0)
    torch.testing.assert_close(model(x), scores)
    loss = F.cross_entropy(scores, labels)
    expected = torch.autograd.grad(loss, [layer.weight for layer in model.layers])
    torch.testing.assert_close(model.backward(x, labels), loss.detach())
    for ours, theirs in zip(gradients(model), expected, strict=True):
        assert theirs.abs().max() > 1e-4
        torch.testing.assert_close(ours, theirs)


def test_ottt_multiplies_errors_of_a_step_with_traces():
    model, x, labels = network("ottt"), draw(5, 9), torch.tensor([0, 1, 2, 3, 1])
    weights = [layer.weight.detach() for layer in model.layers]
    surrogate = SigmoidSurrogate(4.0)
    v = [torch.zeros(5, n).double() for n in (12, 11)]
    traces = [torch.zeros(5, n).double() for n in (12, 11)]
    expected = [torch.zeros_like(w) for w in weights]
    outputs, total = [], 0.0
    for _ in range(6):
        z, slopes = x, []
        for number in range(2):
            h = 0.5 * v[number] + z @ weights[number].T
            slopes.append(surrogate.derivative(h - 1))
            z = (h >= 1).double()
            v[number], traces[number] = h - z, 0.5 * traces[number] + z
        scores = z @ weights[2].T
        outputs.append(scores)
        error = (scores.softmax(-1) - F.one_hot(labels, 4)) / 5 / 6
        total += F.cross_entropy(scores, labels).item() / 6
        for number in (2, 1, 0):
            given = x if number == 0 else traces[number - 1]
            expected[number] += error.T @ given
            if number:
                error = (error @ weights[number]) * slopes[number - 1]
    torch.testing.assert_close(model(x), torch.stack(outputs).mean(0))
    assert model.backward(x, labels).item() == pytest.approx(total)
    for ours, theirs in zip(gradients(model), expected, strict=True):
        assert theirs.abs().max() > 1e-4
        torch.testing.assert_close(ours, theirs)


def test_dsr_differentiates_clipped_rates():
    model, x, labels = network("dsr"), 2 * draw(5, 9), torch.tensor([0, 1, 2, 3, 1])
    scores = model(x)
    loss = F.cross_entropy(scores, labels)
    torch.testing.assert_close(model.backward(x, labels), loss.detach())
    # Of the last layer: the error times the weighted rate of its inputs' sum over steps.
    z = x @ model.layers[0].weight.T
    z = model.neurons[0](z.expand(20, 5, 12))
    z = model.neurons[1](z @ model.layers[1].weight.T)
    rates = weighted_rate(z)
    torch.testing.assert_close(scores, rates @ model.layers[2].weight.T)
    error = (scores.softmax(-1) - F.one_hot(labels, 4)) / 5
    torch.testing.assert_close(model.layers[2].weight.grad, (error.T @ rates).detach())
    assert all(grad.abs().max() > 1e-4 for grad in gradients(model))
    assert model.neurons[0].threshold.grad is not None


def inputs_of_layers(model: SpikingMLP, x: Tensor) -> list[Tensor]:
    """What each layer multiplies its weights with, at every step."""
    seen: dict[int, list[Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, given, n=n: seen.setdefault(n, []).append(given[0].detach().flatten(0, -2))
        )
        for n, layer in enumerate(model.layers)
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return [torch.cat(seen[n]) for n in range(len(model.layers))]


@pytest.mark.parametrize("rule", RULES)
def test_outputs_for_old_inputs_do_not_move(rule):
    """With banks that hold all of the old inputs' span, learning leaves every score as it was."""
    sizes = (30, 120, 120, 4)
    model, old = network(rule, sizes), draw(3, 30)
    learner = OrthogonalProjection(model)
    for layer, given in zip(model.layers, inputs_of_layers(model, old), strict=True):
        layer.subspace.add_frozen(gradient_projection_basis(given, 1.0))
        assert 0 < layer.subspace.num_frozen < layer.in_features
    learner.end_task()
    learner.begin_task(0)
    before = model(old).detach()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    new, labels = draw(40, 30, seed=1), torch.arange(40) % 4
    first = model(new).detach()
    for _ in range(20):
        optimizer.zero_grad()
        model.backward(new, labels)
        optimizer.step()
    assert (model(old) - before).abs().max() < 1e-10
    assert (model(new) - first).abs().max() > 0.1


@pytest.mark.parametrize("rule", RULES)
def test_subspace_neurons_learn_what_a_layer_is_given(rule):
    model, x = network(rule), draw(5, 9)
    given = model.activations(x)
    assert torch.equal(given[0], x)
    steps = {"bptt": 6 * 5, "ottt": 2 * 6 * 5, "dsr": 5}[rule]
    assert [tuple(g.shape) for g in given[1:]] == [(steps, 12), (steps, 11)]
    learner = OrthogonalProjection(model)
    learner.begin_task([2, 3, 3], generator=torch.Generator().manual_seed(0))
    start = [layer.subspace.weight.clone() for layer in learner.layers]
    model.activations(x)  # looks only
    model.eval()
    model(x)
    assert all(
        torch.equal(a, layer.subspace.weight)
        for a, layer in zip(start, learner.layers, strict=True)
    )
    model.train()
    model.backward(x, torch.tensor([0, 1, 2, 3, 1]))
    for layer, before, seen in zip(learner.layers, start, given, strict=True):
        assert not torch.equal(layer.subspace.weight, before)
        if rule != "ottt":
            twin = type(layer.subspace)(layer.in_features, lr=layer.subspace.lr).double()
            twin.add_frozen(before)
            twin.num_frozen = 0
            twin.learn(seen)
            torch.testing.assert_close(layer.subspace.weight, twin.weight)
    assert [layer.subspace.lr for layer in learner.layers] == [FIRST_RATE, RATE, RATE]


@pytest.mark.parametrize("rule", RULES)
def test_silence_and_a_batch_of_one(rule):
    model, x = network(rule), draw(4, 9)
    torch.testing.assert_close(model(x[2:3]), model(x)[2:3])
    silent = torch.zeros(4, 9).double()
    assert not model(silent).any() and model(x[:0]).shape == (0, 4)
    loss = model.backward(silent, torch.tensor([0, 1, 2, 3]))
    assert loss.item() == pytest.approx(math.log(4))
    assert not any(grad.any() for grad in gradients(model))
    with pytest.raises(ValueError, match=r"^x: an empty batch"):
        model.backward(x[:0], torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_learns(rule):
    x, labels = 2 * draw(40, 9), torch.arange(40) % 4
    with seeded(0):
        model = SpikingMLP((9, 60, 4), rule).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        losses.append(model.backward(x, labels).item())
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("sizes", lambda: SpikingMLP([4])),
        ("sizes", lambda: SpikingMLP([4, 0])),
        ("rule", lambda: SpikingMLP([4, 3], "backprop")),
        ("steps", lambda: SpikingMLP([4, 3], steps=0)),
        ("x", lambda: SpikingMLP([4, 3])(torch.zeros(2, 5))),
        ("x", lambda: SpikingMLP([4, 3])(torch.zeros(4))),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        call()
