"""Adapter gradients against autograd and against dense formulas with a truncated exponential."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from heterodox.compression import exact_softmax, factored_softmax
from heterodox.compression.low_rank import full_lora_gradients, lora_gradients

SUBSETS = ("q", "k", "v", "qk", "qv", "kv", "qkv")


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of few points, so that short sequences need many of them."""
    monkeypatch.setattr(factored_softmax, "FEWEST", 3)
    monkeypatch.setattr(factored_softmax, "MOST", 4)
    monkeypatch.setattr(exact_softmax, "BLOCK", 16 * 40)


def draw(*shape, seed=0, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, dtype=torch.float64, generator=generator)).to(dtype)


def special(queries=37, keys=29, rows=5, columns=3, value_dim=4, rank=2, scale=0.5):
    """c1, c2, c3, target, weight, a, b of the case (C1), all sizes different."""
    return (
        draw(queries, rows, seed=1, scale=scale),
        draw(keys, columns, seed=2, scale=scale),
        draw(keys, value_dim, seed=3),
        draw(queries, value_dim, seed=4),
        draw(rows, columns, seed=5, scale=scale),
        draw(rank, columns, seed=6, scale=scale),
        draw(rows, rank, seed=7, scale=scale),
    )


def general(names, queries=37, keys=29, scale=0.5, self_attention=False):
    """Inputs, weights and adapters of the case (C2); cross-attention unless said otherwise."""
    dims, outs = {"q": 5, "k": 4, "v": 6}, {"q": 3, "k": 3, "v": 2}
    if self_attention:
        x = draw(queries, 4, seed=1)
        inputs, dims = (x, x, x), {"q": 4, "k": 4, "v": 4}
    else:
        inputs = draw(queries, 5, seed=1), draw(keys, 4, seed=2), draw(keys, 6, seed=3)
    weights = {n: draw(dims[n], outs[n], seed=10 + i, scale=scale) for i, n in enumerate("qkv")}
    adapters = {
        n: (draw(r, outs[n], seed=20 + r), draw(dims[n], r, seed=30 + r, scale=scale))
        for n, r in zip(names, (1, 2, 3), strict=False)
    }
    return *inputs, draw(queries, 2, seed=4), weights, adapters


def weight_gradients(query, key, value, target, degree):
    """The paper's formulas with whole matrices: gradients in the logits' factors and the values."""
    logits = query @ key.mT
    series = sum(logits**t / math.factorial(t) for t in range(degree + 1))
    f = series / series.sum(-1, keepdim=True)
    c = f @ value - target
    q = c @ value.mT
    p = f * q - torch.diag((f * q).sum(-1)) @ f
    return p @ key, p.mT @ query, f.mT @ c


def assert_pairs_close(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    for name in expected:
        for found, truth in zip(actual[name], expected[name], strict=True):
            assert (found - truth).abs().max() <= tolerance * (1 + truth.abs().max())


def special_by_autograd(c1, c2, c3, target, weight, a, b):
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    output = (c1 @ (weight + b @ a) @ c2.mT).softmax(-1) @ c3
    return torch.autograd.grad((output - target).square().sum() / 2, (a, b))


def general_by_autograd(x_query, x_key, x_value, target, weights, adapters, alpha, beta):
    leaves = {n: tuple(x.clone().requires_grad_() for x in pair) for n, pair in adapters.items()}
    whole = dict(weights)
    for name, (a, b) in leaves.items():
        whole[name] = whole[name] + alpha / len(a) * b @ a
    logits = beta * (x_query @ whole["q"]) @ (x_key @ whole["k"]).mT
    output = logits.softmax(-1) @ (x_value @ whole["v"])
    loss = (output - target).square().sum() / 2
    return {
        name: torch.autograd.grad(loss, pair, retain_graph=True) for name, pair in leaves.items()
    }


def test_exact_special_gradients_are_those_of_autograd(small_blocks):
    inputs = special()
    found, truth = lora_gradients(*inputs), special_by_autograd(*inputs)
    assert_pairs_close({"q": found}, {"q": truth}, 1e-10)


@pytest.mark.parametrize("names", SUBSETS)
@pytest.mark.parametrize("self_attention", [False, True])
def test_exact_general_gradients_are_those_of_autograd(small_blocks, names, self_attention):
    inputs = general(names, self_attention=self_attention)
    found = full_lora_gradients(*inputs, alpha=3.0, beta=0.4)
    assert_pairs_close(found, general_by_autograd(*inputs, 3.0, 0.4), 1e-10)


@pytest.mark.parametrize("degree", [0, 2, 4, 6])
def test_polynomial_special_gradients_are_the_dense_ones_of_the_truncated_exponential(
    small_blocks, degree
):
    c1, c2, c3, target, weight, a, b = special()
    in_query, _, _ = weight_gradients(c1 @ (weight + b @ a), c2, c3, target, degree)
    truth = b.mT @ c1.mT @ in_query, c1.mT @ in_query @ a.mT
    found = lora_gradients(c1, c2, c3, target, weight, a, b, method="polynomial", degree=degree)
    assert_pairs_close({"q": found}, {"q": truth}, 1e-9)


@pytest.mark.parametrize("names", SUBSETS)
@pytest.mark.parametrize("degree", [2, 4])
def test_polynomial_general_gradients_are_the_dense_ones_of_the_truncated_exponential(
    small_blocks, names, degree
):
    x_query, x_key, x_value, target, weights, adapters = general(names)
    alpha, beta = 3.0, 0.4
    whole = dict(weights)
    for name, (a, b) in adapters.items():
        whole[name] = whole[name] + alpha / len(a) * b @ a
    in_q, in_k, in_v = weight_gradients(
        beta * x_query @ whole["q"], x_key @ whole["k"], x_value @ whole["v"], target, degree
    )
    dense = {"q": beta * x_query.mT @ in_q, "k": x_key.mT @ in_k, "v": x_value.mT @ in_v}
    truth = {
        name: (alpha / len(a) * b.mT @ dense[name], alpha / len(a) * dense[name] @ a.mT)
        for name, (a, b) in adapters.items()
    }
    found = full_lora_gradients(
        x_query, x_key, x_value, target, weights, adapters,
        alpha=alpha, beta=beta, method="polynomial", degree=degree,
    )  # fmt: skip
    assert_pairs_close(found, truth, 1e-9)


def test_general_gradients_with_an_adapter_of_the_query_alone_are_the_special_ones():
    x_query, x_key, x_value, target, weights, adapters = general("q")
    a, b = adapters["q"]
    alpha, beta = 3.0, 0.4
    c1 = alpha / len(a) * beta * x_query
    special = lora_gradients(
        c1,
        x_key @ weights["k"],
        x_value @ weights["v"],
        target,
        len(a) / alpha * weights["q"],
        a,
        b,
    )
    found = full_lora_gradients(
        x_query, x_key, x_value, target, weights, adapters, alpha=alpha, beta=beta
    )
    assert_pairs_close(found, {"q": special}, 1e-12)


def relative_error(found, truth):
    return max(
        float((x - y).abs().max() / y.abs().max()) for x, y in zip(found, truth, strict=True)
    )


def test_the_error_falls_with_the_degree_while_logits_are_at_most_one():
    c1, c2, c3, target, weight, a, b = special(columns=4, rows=4)
    c1 = c1 / (c1 @ (weight + b @ a)).norm(dim=-1).max()
    c2 = c2 / c2.norm(dim=-1).max()
    inputs = c1, c2, c3, target, weight, a, b
    exact = lora_gradients(*inputs)
    errors = [
        relative_error(lora_gradients(*inputs, method="polynomial", degree=g), exact)
        for g in range(8)
    ]
    assert all(after < before for before, after in itertools.pairwise(errors))
    assert errors[-1] < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("largest", [0.5, 1.0, 2.0])
def test_a_tolerance_bounds_the_error_of_the_gradient(dtype, largest):
    c1, c2, *rest = special(queries=200, keys=300, rows=4, columns=4)
    weight, a, b = rest[2:]
    c1 = 0.25 * largest * c1 / (c1 @ (weight + b @ a)).abs().max()  # beta = 1/d
    c2 = largest * c2 / c2.abs().max()
    inputs = [x.to(dtype) for x in (c1, c2, *rest)]
    found = lora_gradients(*inputs, method="polynomial", tol=1e-4)
    exact = lora_gradients(*(x.double() for x in inputs))
    assert relative_error([x.double() for x in found], exact) < 1e-3
    assert found[0].dtype == dtype


def test_large_logits_in_float32_are_computed_in_float64():
    inputs = [x.float() for x in special(rows=2, columns=2, scale=1.5)]
    query, key = inputs[0] @ (inputs[4] + inputs[6] @ inputs[5]), inputs[1]
    shrink = 6.0 / (query.norm(dim=-1).max() * key.norm(dim=-1).max())
    inputs[0] = inputs[0] * shrink
    found = lora_gradients(*inputs, method="polynomial", tol=1e-6)
    exact = lora_gradients(*(x.double() for x in inputs))
    assert relative_error([x.double() for x in found], exact) < 1e-5


def test_tokens_may_come_in_any_order():
    c1, c2, c3, target, *rest = special()
    queries = torch.randperm(len(c1), generator=torch.Generator().manual_seed(8))
    keys = torch.randperm(len(c2), generator=torch.Generator().manual_seed(9))
    for options in ({}, {"method": "polynomial", "degree": 4}):
        truth = lora_gradients(c1, c2, c3, target, *rest, **options)
        found = lora_gradients(c1[queries], c2[keys], c3[keys], target[queries], *rest, **options)
        assert_pairs_close({"q": found}, {"q": truth}, 1e-12)


@pytest.mark.parametrize("options", [{}, {"method": "polynomial", "degree": 4}])
def test_a_fresh_adapter_has_a_gradient_in_b_only(options):
    *inputs, b = special()
    grad_a, grad_b = lora_gradients(*inputs, torch.zeros_like(b), **options)
    assert not grad_a.any() and grad_b.abs().min() > 0


def test_one_channel_and_degree_zero_are_uniform_attention():
    c1, c2, c3, target, weight, a, b = special(rows=1, columns=1, value_dim=1, rank=1)
    found = lora_gradients(c1, c2, c3, target, weight, a, b, method="polynomial", degree=0)
    c = c3.mean() - target
    in_weight = (c1 * (c * (c3 * c2).mean() - c * c3.mean() * c2.mean())).sum()
    assert found[0].item() == pytest.approx((b * in_weight).item())
    assert found[1].item() == pytest.approx((a * in_weight).item())


def test_an_odd_degree_is_refused_where_a_row_is_not_positive():
    one = torch.ones(1, 1)
    inputs = one, -1.5 * one, one, one, one, one, 0 * one
    lora_gradients(*inputs, method="polynomial", degree=2)
    lora_gradients(*inputs, method="polynomial", degree=3)
    with pytest.raises(ValueError, match=r"^degree: 1 given.*even degree"):
        lora_gradients(*inputs, method="polynomial", degree=1)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that an operation gives out."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for x in output if isinstance(output, tuple | list) else (output,):
            if isinstance(x, torch.Tensor):
                self.numbers = max(self.numbers, x.numel())
        return output


def long_inputs(length):
    generator = torch.Generator().manual_seed(0)
    x, target = torch.rand(2, length, 4, generator=generator) * 2 - 1
    weights = {name: torch.eye(4) for name in "qkv"}
    adapters = {name: (0.1 * torch.ones(2, 4), 0.1 * torch.ones(4, 2)) for name in "qkv"}
    return x, x, x, target, weights, adapters


def test_no_tensor_is_as_large_as_length_times_features_times_channels_or_length_squared():
    length, features = 8192, math.comb(10, 4)
    with Largest() as largest:
        full_lora_gradients(*long_inputs(length), beta=0.25, method="polynomial", degree=6)
    block = max(factored_softmax.BLOCK, features * factored_softmax.FEWEST)
    assert largest.numbers <= block < length * features < length**2
    with Largest() as largest:
        full_lora_gradients(*long_inputs(2048), beta=0.25)
    assert largest.numbers <= exact_softmax.BLOCK < 2048**2


def test_a_length_of_65536_is_no_obstacle():
    inputs = long_inputs(65536)
    found = full_lora_gradients(*inputs, beta=0.25, method="polynomial", tol=1e-2)
    assert all(x.isfinite().all() for pair in found.values() for x in pair)


def test_no_queries_have_no_gradient_and_half_precision_is_computed_in_float32():
    c1, c2, c3, target, *rest = special()
    for options in ({}, {"method": "polynomial", "tol": 1e-3}):
        found = lora_gradients(c1[:0], c2, c3, target[:0], *rest, **options)
        assert [x.shape for x in found] == [(2, 3), (5, 2)] and not any(x.any() for x in found)
        half = [x.half() for x in (c1, c2, c3, target, *rest)]
        truth = lora_gradients(*(x.double() for x in half))
        found = lora_gradients(*half, **options)
        assert found[0].dtype == torch.float16
        assert relative_error([x.double() for x in found], truth) < 5e-3


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"method": "polynomial"}, "degree"),
        ({"method": "polynomial", "degree": 2, "tol": 0.1}, "degree"),
        ({"method": "polynomial", "degree": -2}, "degree"),
        ({"method": "polynomial", "tol": 0.0}, "tol"),
        ({"method": "polynomial", "tol": 1e-30}, "tol"),
        ({"degree": 2}, "degree"),
        ({"tol": 0.1}, "tol"),
        ({"method": "chebyshev"}, "method"),
    ],
)
def test_a_bad_option_is_named(options, argument):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        lora_gradients(*special(), **options)
    with pytest.raises(ValueError, match=f"^{argument}: "):
        full_lora_gradients(*general("qkv"), **options)


@pytest.mark.parametrize(
    ("place", "change", "argument"),
    [
        (0, lambda x: x[0], "c1"),
        (1, lambda x: x[:, 0], "c2"),
        (1, lambda x: x[:0], "c3"),
        (1, lambda x: x.float(), "c2"),
        (2, lambda x: x[1:], "c3"),
        (3, lambda x: x[1:], "target"),
        (3, lambda x: x[:, 1:], "target"),
        (4, lambda x: x[1:], "weight"),
        (5, lambda x: x[:0], "a"),
        (5, lambda x: x[:, 1:], "a"),
        (6, lambda x: x[:, 1:], "b"),
    ],
)
def test_a_bad_tensor_of_the_special_case_is_named(place, change, argument):
    inputs = list(special())
    inputs[place] = change(inputs[place])
    with pytest.raises(ValueError, match=f"^{argument}: "):
        lora_gradients(*inputs)


def test_no_keys_and_infinite_logits_are_refused():
    c1, c2, c3, *rest = special()
    with pytest.raises(ValueError, match=r"^c2: no keys"):
        lora_gradients(c1, c2[:0], c3[:0], *rest)
    for huge in (1e200, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"^tol: "):
            lora_gradients(huge * c1, 1e200 * c2, c3, *rest, method="polynomial", tol=0.1)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"x_query": torch.ones(5)}, "x_query"),
        ({"x_key": torch.ones(0, 4, dtype=torch.float64)}, "x_key"),
        ({"x_value": torch.ones(3, 6, dtype=torch.float64)}, "x_value"),
        ({"target": torch.ones(37, 5, dtype=torch.float64)}, "target"),
        ({"weights": {}}, "weights"),
        ({"weights": dict.fromkeys("qkv", torch.ones(1, 1, dtype=torch.float64))}, "weights"),
        ({"adapters": {"out": (torch.ones(1, 3), torch.ones(5, 1))}}, "adapters"),
        ({"adapters": {"q": (torch.ones(0, 3), torch.ones(5, 0))}}, "adapters"),
        ({"adapters": {"q": (torch.ones(1, 3), torch.ones(4, 1))}}, "adapters"),
    ],
)
def test_a_bad_argument_of_the_general_case_is_named(change, argument):
    names = ("x_query", "x_key", "x_value", "target", "weights", "adapters")
    given = dict(zip(names, general("q"), strict=True)) | change
    if argument == "x_key":
        given["x_value"] = given["x_value"][:0]
    if argument == "adapters":
        double = {n: tuple(x.double() for x in pair) for n, pair in given["adapters"].items()}
        given["adapters"] = double
    with pytest.raises(ValueError, match=f"^{argument}: "):
        full_lora_gradients(**given)
