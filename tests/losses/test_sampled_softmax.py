import math

import pytest
import torch
import torch.nn.functional as F

from heterodox.losses.sampled_softmax import SampledSoftmaxLinear

HIDDEN, TARGET = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6)


def layer_of(samples, classes=30):
    torch.manual_seed(0)
    return SampledSoftmaxLinear(4, classes, samples)


def test_with_very_many_samples_it_is_cross_entropy():
    layer = layer_of(300_000)
    loss = layer(HIDDEN, TARGET, torch.Generator().manual_seed(1))
    expected = F.cross_entropy(HIDDEN @ layer.weight.T, TARGET)
    assert loss.item() == pytest.approx(expected.item(), abs=0.01)


def test_classes_are_drawn_with_their_probability():
    layer = layer_of(1, classes=9)
    probability = layer.probability(torch.arange(9))
    assert probability.sum().item() == pytest.approx(1)
    assert probability[0].item() == pytest.approx(math.log(2) / math.log(10))
    assert (probability.diff() < 0).all()


def test_the_gradient_touches_targets_and_drawn_classes_only():
    layer = layer_of(5, classes=10_000)
    layer(HIDDEN, TARGET).backward()
    gradient = layer.weight.grad
    assert gradient.is_sparse and len(gradient.coalesce().indices()[0]) <= 6 + 5


def test_a_drawn_target_is_not_counted_twice():
    layer = SampledSoftmaxLinear(4, 1, samples=3)
    assert layer(HIDDEN, torch.zeros(6, dtype=torch.long)).item() == 0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: SampledSoftmaxLinear(4, 5, 0), "samples: 0 given"),
        (lambda: layer_of(5)(HIDDEN[:, :2], TARGET), r"hidden: shape \(6, 2\) given"),
        (lambda: layer_of(5)(HIDDEN, TARGET[:2]), r"target: shape \(2,\) given"),
        (lambda: layer_of(5)(HIDDEN, TARGET + 25), "target: 30 given"),
    ],
)
def test_bad_input_names_the_argument(call, message):
    with pytest.raises(ValueError, match=f"^{message}.* expected"):
        call()
