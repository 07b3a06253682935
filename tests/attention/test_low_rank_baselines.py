"""Approximations of softmax attention against softmax attention, where they must agree."""

import pytest
import torch
import torch.nn.functional as F

from heterodox.attention import low_rank_baselines
from heterodox.attention.low_rank_baselines import (
    LinformerMix,
    MixedAttention,
    NystromMix,
    PerformerMix,
    SoftmaxMix,
    nystrom_attention,
    orthogonal_features,
    performer_attention,
)
from heterodox.training.seeding import seeded


def draw_qkv(length=12, head_dim=4, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, length, head_dim)
    return [scale * torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(3)]


def softmax(query, key, value):
    weights = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)
    return weights @ value


def test_nystrom_with_every_token_as_a_landmark_is_softmax():
    query, key, value = draw_qkv()
    output = nystrom_attention(query, key, value, query, key, iterations=60)
    torch.testing.assert_close(output, softmax(query, key, value), rtol=1e-6, atol=1e-6)


def test_nystrom_is_its_three_matrices_with_an_exact_pseudo_inverse():
    query, key, value = draw_qkv(scale=2.0)
    landmarks = [x.unflatten(2, (4, 3)).mean(3) for x in (query, key)]
    left, middle, right = (
        torch.softmax(a @ b.mT / 2, dim=-1)
        for a, b in ((query, landmarks[1]), landmarks, (landmarks[0], key))
    )
    expected = left @ torch.linalg.pinv(middle) @ (right @ value)
    output = nystrom_attention(query, key, value, *landmarks, iterations=30)
    torch.testing.assert_close(output, expected)


def test_landmarks_are_means_of_square_patches():
    grid = torch.arange(24.0).view(1, 1, 4, 6, 1)
    means = NystromMix(2).patch_means(grid.flatten(2, 3), 4, 6)
    expected = F.avg_pool2d(torch.arange(24.0).view(1, 1, 4, 6), 2).flatten()
    torch.testing.assert_close(means.flatten(), expected)


def test_linformer_that_keeps_every_token_is_softmax():
    query, key, value = draw_qkv()
    mix = LinformerMix(12, 12).double()
    order = torch.eye(12, dtype=torch.float64)[torch.randperm(12)]
    with torch.no_grad():
        mix.keys.weight.copy_(order), mix.values.weight.copy_(order)
    torch.testing.assert_close(mix(query, key, value, 3, 4), softmax(query, key, value))


def test_performer_comes_to_softmax_as_features_grow(monkeypatch):
    monkeypatch.setattr(low_rank_baselines, "FEATURE_FLOOR", 0.0)  # which is a small bias
    query, key, value = draw_qkv(scale=0.7)
    expected = softmax(query, key, value)
    errors = []
    for number in (64, 4096, 65536):
        with seeded(1):
            features = orthogonal_features(number, 4).double()
        errors.append((performer_attention(query, key, value, features) - expected).norm().item())
    assert errors[1] < 0.6 * errors[0] and errors[2] < 0.6 * errors[1]
    assert errors[2] < 0.05 * expected.norm()


def test_performer_does_not_overflow_on_large_inputs():
    query, key, value = (100 * x.float() for x in draw_qkv())
    with seeded(1):
        mix = PerformerMix(4)
    assert mix(query, key, value, 3, 4).isfinite().all()


@pytest.mark.parametrize("number", [3, 8, 10])
def test_features_are_orthogonal_in_blocks_and_as_long_as_normal_vectors(number):
    with seeded(1):
        features = orthogonal_features(number, 4)
        many = orthogonal_features(4000, 4)
    assert features.shape == (number, 4)
    gram = features[:4] @ features[:4].mT
    torch.testing.assert_close(gram, gram.diagonal().diag(), atol=1e-4, rtol=0)
    assert many.square().sum(-1).mean().item() == pytest.approx(4, rel=0.05)
    torch.testing.assert_close(many.mean(0), torch.zeros(4), atol=0.1, rtol=0)
    torch.testing.assert_close(many.mT @ many / 4000, torch.eye(4), atol=0.06, rtol=0)


@pytest.mark.parametrize("mix", [SoftmaxMix(), NystromMix(2), LinformerMix(24, 6), PerformerMix(8)])
def test_the_layer_projects_around_its_mix(mix):
    layer = MixedAttention(16, 2, mix)
    x = torch.randn(3, 24, 16)
    query, key, value = (
        part.unflatten(-1, (2, 8)).transpose(1, 2) for part in layer.qkv(x).split(16, dim=-1)
    )
    mixed = mix(query, key, value, 4, 6).transpose(1, 2).reshape(3, 24, 16)
    torch.testing.assert_close(layer(x, 4, 6), layer.proj(mixed))
    with pytest.raises(ValueError, match=r"^x: .* expected"):
        layer(x[..., :8], 4, 6)
    with pytest.raises(ValueError, match=r"^embed_dim: .* expected"):
        MixedAttention(15, 2, mix)
