"""The Triton kernels against the reference: in Triton's interpreter, and on a GPU if there is one.

The interpreter runs a kernel's programs one after another in NumPy. It multiplies bfloat16 as the
integers that hold its bits, so that type is tested on a GPU only.
"""

import importlib.util
import math

import pytest
import torch

from heterodox.attention import sigmoid
from heterodox.attention.position import alibi_slopes
from heterodox.attention.sigmoid import sigmoid_attention_reference
from heterodox.attention.sigmoid_blocked import Logits

pytest.importorskip("triton", reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def interpreted():
    """A second copy of the module, whose kernels were made while the interpreter was asked for."""
    found = importlib.util.find_spec("heterodox.attention.sigmoid_triton")
    spec = importlib.util.spec_from_file_location("interpreted_sigmoid_triton", found.origin)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec.loader.exec_module(module)
    # Only this copy: with the variable still set, the kernels proper would be interpreted too.
    with pytest.MonkeyPatch.context() as patch:
        # Small tiles, so that short sequences have several, with and without a diagonal.
        patch.setattr(module, "TILES", {key: ((512, 32, 16, 4, 1),) for key in (False, True)})
        yield module


CASES = {
    "plain": {},
    "one row": {"queries": 1},
    "causal": {"is_causal": True},
    "causal, more queries": {"is_causal": True, "queries": 75, "keys": 40},
    "padding": {"padded": True},
    "alibi": {"with_slopes": True, "queries": 40},
    "alibi, more queries": {"with_slopes": True, "queries": 75, "keys": 40},
    "grouped": {"kv_heads": 2, "is_causal": True},
    "all": {
        "is_causal": True,
        "padded": True,
        "with_slopes": True,
        "kv_heads": 1,
        "dim": 17,
        "value_dim": 33,
    },
}


def compare(
    module,
    dtype,
    tolerance,
    *,
    device="cpu",
    queries=50,
    keys=50,
    dim=24,
    value_dim=20,
    kv_heads=4,
    is_causal=False,
    padded=False,
    with_slopes=False,
):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    # The layout that a fused projection gives: heads are strided.
    query = normal(2, queries, 4, dim).transpose(1, 2).requires_grad_()
    key = normal(2, keys, kv_heads, dim).transpose(1, 2).requires_grad_()
    value = normal(2, keys, kv_heads, value_dim).transpose(1, 2).requires_grad_()
    attn_mask = None
    if padded:
        attn_mask = torch.arange(keys, device=device) < torch.tensor([[keys], [29]], device=device)
        attn_mask = attn_mask[:, None, None, :]
    slopes = alibi_slopes(4, device) if with_slopes else None
    logits = Logits(dim**-0.5, -math.log(keys), is_causal, attn_mask, slopes, 0.0, 0)
    assert module.supports(query, value, logits)
    output = module.triton_sigmoid_attention(query, key, value, logits)
    exact = [x.detach().double().requires_grad_() for x in (query, key, value)]
    expected = sigmoid_attention_reference(
        *exact, attn_mask, is_causal=is_causal, alibi_slopes=slopes, enable_gqa=True
    )
    gradient = normal(*output.shape)
    output.backward(gradient)
    expected.backward(gradient.double())
    assert output.dtype == dtype
    for result, truth in (
        (output, expected),
        *((x.grad, y.grad) for x, y in zip((query, key, value), exact, strict=True)),
    ):
        torch.testing.assert_close(
            result.double() / truth.abs().max(), truth / truth.abs().max(), atol=tolerance, rtol=0
        )


@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernels_give_the_values_and_gradients_of_the_reference(interpreted, case):
    compare(interpreted, torch.float32, 3e-6, **CASES[case])


@pytest.mark.parametrize("case", ["causal", "all"])
def test_interpreted_kernels_in_float16_are_within_its_rounding(interpreted, case):
    compare(interpreted, torch.float16, 3e-3, **CASES[case])


def test_a_bias_of_minus_infinity_gives_zeros(interpreted):
    x = torch.randn(1, 1, 20, 8, requires_grad=True)
    logits = Logits(1.0, -math.inf, False, None, None, 0.0, 0)
    output = interpreted.triton_sigmoid_attention(x, x, x, logits)
    output.sum().backward()
    assert (output == 0).all() and (x.grad == 0).all()


def test_kernels_decline_what_they_do_not_compute(interpreted):
    x = torch.zeros(2, 1, 3, 8)
    plain = Logits(1.0, 0.0, False, None, None, 0.0, 0)
    assert interpreted.supports(x, x, plain)
    for mask in (torch.zeros(2, 1, 1, 3), torch.ones(1, 1, 3, 3).bool()):
        assert not interpreted.supports(x, x, plain._replace(attn_mask=mask))
    assert not interpreted.supports(x, x, plain._replace(dropout_p=0.1))
    assert not interpreted.supports(x.double(), x.double(), plain)
    assert not interpreted.supports(x, torch.zeros(2, 1, 3, 129), plain)
    assert interpreted.supports(x.half(), torch.zeros(2, 1, 3, 256).half(), plain)


@needs_gpu
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dim", [24, 64, 80, 128])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)],
)
def test_kernels_give_the_values_and_gradients_of_the_reference(case, dim, dtype, tolerance):
    from heterodox.attention import sigmoid_triton

    options = {"queries": 300, "keys": 300, "dim": dim, **CASES[case]}
    compare(sigmoid_triton, dtype, tolerance, device="cuda", **options)


@needs_gpu
@pytest.mark.parametrize("mask", ["none", "padding", "floating"])
def test_sigmoid_attention_on_a_gpu_is_the_reference_whatever_the_mask(mask, monkeypatch):
    monkeypatch.setattr(sigmoid, "DENSE_LIMIT", 0)
    query, key, value = torch.randn(3, 2, 3, 200, 32, device="cuda", requires_grad=True)
    attn_mask = {
        "none": None,
        "padding": (torch.arange(200, device="cuda") < 150)[None, None, None, :],
        "floating": torch.randn(200, 200, device="cuda"),
    }[mask]
    output = sigmoid.sigmoid_attention(query, key, value, attn_mask, is_causal=True)
    expected = sigmoid_attention_reference(query, key, value, attn_mask, is_causal=True)
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
