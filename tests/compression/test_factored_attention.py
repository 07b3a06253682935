"""Attention by polynomial features: as good as promised, and softmax's own if they do not pay."""

import math

import pytest
import torch
import torch.nn.functional as F

from heterodox.compression import factored_softmax
from heterodox.compression import low_rank_attention as package_level
from heterodox.compression.factored_attention import features_pay
from heterodox.compression.low_rank import low_rank_attention

MODULE = "heterodox.compression.factored_attention"


@pytest.fixture
def always_features(monkeypatch):
    """Features whatever they cost, so that short sequences go through them too."""
    monkeypatch.setattr(f"{MODULE}.features_pay", lambda *arguments: True)


@pytest.fixture
def calls(monkeypatch):
    """The degrees with which the features were used."""
    degrees = []
    real = factored_softmax.output

    def noted(query, key, value, degree):
        degrees.append(degree)
        return real(query, key, value, degree)

    monkeypatch.setattr(factored_softmax, "output", noted)
    return degrees


def draw(*shape, seed=0, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, dtype=torch.float64, generator=generator)).to(dtype)


def draw_qkv(queries=9, keys=7, dim=3, value_dim=2, **options):
    return (
        draw(2, 3, queries, dim, seed=1, **options),
        draw(2, 3, keys, dim, seed=2, **options),
        draw(2, 3, keys, value_dim, seed=3, **options),
    )


def results(function, inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    output = function(*inputs)
    return output, *torch.autograd.grad(
        output, inputs, draw(*output.shape, seed=9, dtype=output.dtype)
    )


@pytest.mark.parametrize("scale", [None, 0.3, -0.7, 0.0])
def test_a_small_tolerance_gives_softmax_and_its_gradients(always_features, calls, scale):
    inputs = draw_qkv(scale=0.5)
    found = results(lambda *x: low_rank_attention(*x, tol=1e-12, scale=scale), inputs)
    truth = results(lambda *x: F.scaled_dot_product_attention(*x, scale=scale), inputs)
    assert calls
    for x, y in zip(found, truth, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-11)


def test_gradients_match_finite_differences_at_a_high_degree(always_features, calls):
    inputs = [x.requires_grad_() for x in draw_qkv(queries=4, keys=3, dim=2, scale=0.4)]
    assert torch.autograd.gradcheck(lambda *x: low_rank_attention(*x, tol=1e-12), inputs)
    assert calls


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2)])
def test_only_the_gradients_that_are_needed_are_made(always_features, needed):
    inputs, truth = draw_qkv(), draw_qkv()
    for place in needed:
        inputs[place].requires_grad_()
        truth[place].requires_grad_()
    low_rank_attention(*inputs, tol=1e-12).square().sum().backward()
    F.scaled_dot_product_attention(*truth).square().sum().backward()
    for place in range(3):
        if place in needed:
            torch.testing.assert_close(inputs[place].grad, truth[place].grad)
        else:
            assert inputs[place].grad is None


@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_right_to_twice_the_tolerance(always_features, calls, tol, dtype):
    query, key, _ = draw_qkv(queries=40, keys=50, dtype=dtype)
    value = torch.eye(50, dtype=dtype).expand(2, 3, 50, 50)
    weights = low_rank_attention(query, key, value, tol=tol)
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    assert calls and calls[0] % 2 == 0
    assert (weights / exact - 1).abs().max() <= 2 * tol / (1 - tol)


def test_long_sequences_of_few_channels_use_features_and_others_do_not(calls):
    x = draw(1, 1, 1024, 3, dtype=torch.float32, scale=0.5)
    low_rank_attention(x, x, x)
    assert len(calls) == 1
    calls.clear()
    wide = draw(1, 1, 1024, 64, dtype=torch.float32, scale=0.5)
    for short_or_wide in (x[:, :, :8], wide):
        output = low_rank_attention(short_or_wide, short_or_wide, short_or_wide)
        exact = F.scaled_dot_product_attention(short_or_wide, short_or_wide, short_or_wide)
        assert torch.equal(output, exact)
    assert not calls


def test_the_rule_is_the_one_that_is_documented():
    for queries, keys, dim, value_dim, degree in ((500, 300, 3, 2, 4), (100, 900, 2, 5, 6)):
        query, key = torch.empty(1, 1, queries, dim), torch.empty(1, 1, keys, dim)
        value = torch.empty(1, 1, keys, value_dim)
        features = math.comb(dim + degree, degree)
        for gradients in (False, True):
            m = (value_dim + 1) * (2 * dim + 3) if gradients else value_dim + 1
            worth = (125 if gradients else 25) * queries * keys
            for doubled in (False, True):
                cost = (queries + keys) * features * (12 + m) * (1 + doubled)
                pays = features_pay(query, key, value, degree, gradients, doubled)
                assert pays == (cost <= worth)


@pytest.mark.parametrize("size", [30.0, 1e30, math.inf, math.nan])
def test_logits_that_are_too_large_are_left_to_softmax(always_features, calls, size):
    query, key, value = draw_qkv(dtype=torch.float32)
    output = low_rank_attention(size * query, key, value)
    exact = F.scaled_dot_product_attention(size * query, key, value)
    assert torch.equal(output.nan_to_num(7.0), exact.nan_to_num(7.0)) and not calls


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(always_features, calls, dtype):
    inputs = draw_qkv(dtype=dtype)
    found = results(low_rank_attention, inputs)
    truth = results(F.scaled_dot_product_attention, [x.double() for x in inputs])
    assert calls
    for x, y in zip(found, truth, strict=True):
        assert x.dtype == dtype
        assert (x - y).abs().max() <= 2 * torch.finfo(dtype).eps * (1 + y.abs().max())


def test_no_queries_and_no_batch_give_nothing():
    query, key, value = draw_qkv()
    assert low_rank_attention(query[:, :, :0], key, value).shape == (2, 3, 0, 2)
    assert low_rank_attention(query[:0], key[:0], value[:0]).shape == (0, 3, 9, 2)


def test_the_package_offers_the_function_under_its_name():
    assert package_level is low_rank_attention


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda q, k, v: low_rank_attention(q[0], k, v), "query"),
        (lambda q, k, v: low_rank_attention(q, k[..., :1], v), "key"),
        (lambda q, k, v: low_rank_attention(q, k[:, :, :0], v[:, :, :0]), "key"),
        (lambda q, k, v: low_rank_attention(q, k.float(), v), "key"),
        (lambda q, k, v: low_rank_attention(q, k, v[:, :, 1:]), "value"),
        (lambda q, k, v: low_rank_attention(q, k, v, tol=0.0), "tol"),
        (lambda q, k, v: low_rank_attention(q, k, v, tol=1.0), "tol"),
        (lambda q, k, v: low_rank_attention(q, k, v, scale=math.inf), "scale"),
    ],
)
def test_bad_input_names_the_argument(call, argument):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        call(*draw_qkv())
