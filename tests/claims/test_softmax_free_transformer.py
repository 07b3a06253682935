"""What the claims of softmax-free transformers measure with."""

import math

import pytest
import torch

from heterodox.attention.softmax_free import SoftmaxFreeAttention, softmax_free_attention
from heterodox.claims.softmax_free_transformer import (
    ATTENTION,
    WIDTH,
    BestAtLeast,
    GridClassifier,
    exponent,
    map_norms,
)


def test_the_best_arms_are_compared_seed_by_seed():
    values = {
        "a": {1: 80.0, 2: 70.0, 3: math.nan},
        "b": {1: 70.0, 2: 75.0, 3: 77.0},
        "c": {1: 79.0, 2: 74.0, 3: 76.0},
        "d": {1: 0.0, 2: math.nan, 3: 0.0},
    }
    (effect,) = BestAtLeast(("a", "b"), ("c", "d"), margin=0.5).effects(values, "higher")
    assert effect.per_seed == {1: 1.0, 2: 1.0, 3: 1.0}
    assert (effect.side, effect.threshold, effect.verdict) == ("above", -0.5, "holds")
    (effect,) = BestAtLeast(("c",), ("a", "b"), margin=0.5).effects(values, "higher")
    assert effect.verdict == "fails"
    assert BestAtLeast(("a",), ("e",)).effects(values, "higher") == []


@pytest.mark.parametrize("normalize", [False, True])
def test_power_iteration_gives_the_largest_singular_value_of_the_map(normalize):
    layer = SoftmaxFreeAttention(16, 2, 2, normalize=normalize).double()
    x = torch.randn(3, 24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    query = layer.scaled_queries(x)
    eye = torch.eye(24, dtype=torch.float64).expand(3, 2, 24, 24)
    tokens = layer.bottleneck_tokens(query, 4, 6)
    dense = softmax_free_attention(query, eye, tokens, normalize=normalize)
    expected = torch.linalg.matrix_norm(dense, ord=2)
    torch.testing.assert_close(map_norms(layer, x, 4, 6), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("arm", ATTENTION)
def test_every_arm_has_the_same_backbone(arm):
    model = GridClassifier((1, 8, 8), 10, arm=arm)
    softmax = GridClassifier((1, 8, 8), 10, arm="softmax")
    others = {name for name, _ in softmax.named_parameters() if ".attention." not in name}
    assert others <= {name for name, _ in model.named_parameters()}
    assert model(torch.randn(3, 1, 8, 8)).shape == (3, 10)
    if arm != "Linformer":
        assert model(torch.randn(3, 1, 16, 16)).shape == (3, 10)
    layer = ATTENTION[arm](4)
    assert layer(torch.randn(2, 16, WIDTH), 4, 4).shape == (2, 16, WIDTH)


def test_the_exponent_of_a_power_law_is_found():
    assert exponent([(n, 3 * n**1.7) for n in (1, 4, 16)]) == pytest.approx(1.7)
