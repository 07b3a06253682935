"""The Triton kernels against the recurrence: in Triton's interpreter, and on a GPU if there is one.

The interpreter multiplies bfloat16 as the integers that hold its bits, so that type is tested on a
GPU only.
"""

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from heterodox.attention.delta import delta_rule, delta_rule_recurrent

pytest.importorskip("triton", reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def interpreted():
    """A second copy of the module, whose kernels were made while the interpreter was asked for."""
    found = importlib.util.find_spec("heterodox.attention.delta_triton")
    spec = importlib.util.spec_from_file_location("interpreted_delta_triton", found.origin)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec.loader.exec_module(module)
    # Only this copy: with the variable still set, the kernels proper would be interpreted too.
    with pytest.MonkeyPatch.context() as patch:
        # Small blocks, so that a few channels have several.
        patch.setattr(module, "VALUE_BLOCK", 32)
        patch.setattr(module, "VALUE_BLOCK_OF_WALK", 16)
        yield module


CASES = {
    "several chunks": {"length": 130},
    "part of a chunk": {"length": 7},
    "whole chunks": {"length": 128, "dim": 16, "value_dim": 16},
    "one position": {"length": 1},
    "short chunks": {"length": 40, "dim": 80},
    "no correction": {"length": 70, "beta": 0.0},
    "reflections": {"length": 70, "beta": 2.0},
    "keys alike": {"length": 70, "alike": True, "beta": 1.0},
}


def inputs(dtype, device, *, length, dim=24, value_dim=40, beta=None, alike=False):
    """Of two heads, with unit keys."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    # The layout that a projection gives: heads are strided.
    query, key = normal(2, length, 1, dim), normal(2, 1 if alike else length, 1, dim)
    key = F.normalize(key, dim=-1).expand(2, length, 1, dim)
    rates = torch.rand(2, length, 1, generator=generator) if beta is None else beta
    rates = torch.as_tensor(rates).expand(2, length, 1)
    tensors = (F.normalize(query, dim=-1), key, normal(2, length, 1, value_dim), rates)
    tensors = [x.transpose(1, 2).to(device, dtype).requires_grad_() for x in tensors]
    state = normal(2, 1, dim, value_dim).to(device).requires_grad_()
    return (*tensors, state), normal(2, 1, length, value_dim), normal(2, 1, dim, value_dim)


def compare(module, dtype, tolerance, *, device="cpu", **case):
    tensors, upstream, upstream_state = inputs(dtype, device, **case)
    exact = [x.detach().double().cpu().requires_grad_() for x in tensors]
    assert module.supports(*tensors[:3])
    results = module.triton_delta_rule(*tensors, 0.3)
    expected = delta_rule_recurrent(*exact, scale=0.3, return_state=True)
    upstreams = (upstream, upstream_state)
    grads = torch.autograd.grad(
        results, tensors, [g.to(x) for g, x in zip(upstreams, results, strict=True)]
    )
    expected_grads = torch.autograd.grad(expected, exact, [g.double() for g in upstreams])
    for name, result, truth in zip(
        ("output", "end", "query", "key", "value", "beta", "start"),
        (*results, *grads),
        (*expected, *expected_grads),
        strict=True,
    ):
        assert result.dtype == (torch.float32 if name in ("end", "start") else dtype)
        error = (result.detach().double().cpu() - truth).norm() / truth.norm().clamp(min=1e-3)
        assert error < tolerance, name


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_interpreted_kernels_are_the_recurrence_with_its_gradients(interpreted, case):
    compare(interpreted, torch.float32, 1e-5, **case)


def test_interpreted_half_precision_stays_near_the_recurrence(interpreted):
    compare(interpreted, torch.float16, 5e-3, length=100)


def test_no_kernel_covers_float64_or_wide_keys(interpreted):
    x = torch.zeros(1, 1, 1, 4)
    assert interpreted.supports(x, x, x)
    assert not interpreted.supports(x.double(), x, x)
    wide = torch.zeros(1, 1, 1, 200)
    assert not interpreted.supports(wide, wide, x)
    assert not interpreted.supports(*[x[:, :, :0]] * 3)


@needs_gpu
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-4), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)],
    ids=str,
)
def test_kernels_are_the_recurrence_with_its_gradients(dtype, tolerance, case):
    from heterodox.attention import delta_triton

    compare(delta_triton, dtype, tolerance, device="cuda", **case)


@needs_gpu
def test_the_rule_uses_the_kernels_on_a_gpu(monkeypatch):
    from heterodox.attention import delta_triton

    calls = []
    original = delta_triton.triton_delta_rule
    monkeypatch.setattr(
        delta_triton, "triton_delta_rule", lambda *a: calls.append(1) or original(*a)
    )
    q, k, v = torch.randn(3, 2, 4, 33, 16, device="cuda")
    beta = torch.rand(2, 4, 33, device="cuda")
    k = F.normalize(k, dim=-1)
    output, state = delta_rule(q, k, v, beta, return_state=True)
    assert calls
    expected, end = delta_rule_recurrent(q, k, v, beta, return_state=True)
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state, end, atol=1e-4, rtol=1e-4)
