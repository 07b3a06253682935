"""Sigmoid attention: every path against the double sum, and what the method promises."""

import math
from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from heterodox.attention import sigmoid, sigmoid_blocked
from heterodox.attention.position import alibi_slopes, apply_rotary
from heterodox.attention.sigmoid import sigmoid_attention, sigmoid_attention_reference


@pytest.fixture(params=["dense", "one tile", "many tiles"])
def path(request, monkeypatch):
    """Runs a test once for each way in which `sigmoid_attention` can compute on a CPU."""
    if request.param != "dense":
        monkeypatch.setattr(sigmoid, "DENSE_LIMIT", 0)
    if request.param == "many tiles":
        make_tiles_small(monkeypatch)
    return request.param


@pytest.fixture
def many_tiles(monkeypatch):
    monkeypatch.setattr(sigmoid, "DENSE_LIMIT", 0)
    make_tiles_small(monkeypatch)


def make_tiles_small(monkeypatch):
    """3 columns by up to 10 rows under a causal mask: the diagonal meets tiles at every place."""
    monkeypatch.setattr(sigmoid_blocked, "CPU_TILE", 30)
    monkeypatch.setattr(sigmoid_blocked, "MAX_ROWS", 10)


def inputs(batch=2, heads=2, queries=13, keys=19, dim=5, value_dim=3, kv_heads=None, **options):
    generator = torch.Generator().manual_seed(0)
    options = {"dtype": torch.float64, **options}
    kv_heads = kv_heads or heads
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).to(**options)
        for shape in (
            (batch, heads, queries, dim),
            (batch, kv_heads, keys, dim),
            (batch, kv_heads, keys, value_dim),
        )
    )


def mask_of(kind, batch=2, heads=2, queries=13, keys=19):
    generator = torch.Generator().manual_seed(1)
    floating = torch.randn(batch, heads, queries, keys, generator=generator, dtype=torch.float64)
    return {
        "none": None,
        "padding": floating[:, :1, :1] > -0.5,
        "boolean": floating > 0,
        "queries by keys": floating[0, 0] > 0,
        "keys": floating[0, 0, 0] > 0,
        "queries": floating[0, 0, :, :1] > 0,
        "heads": floating[:1, :, :, :] > 0,
        "floating": floating,
        "floating row": floating[0, 0, 0],
        "minus infinity": torch.where(floating > 0, 0.0, -torch.inf),
    }[kind]


MASKS = [
    "none",
    "padding",
    "boolean",
    "queries by keys",
    "keys",
    "queries",
    "heads",
    "floating",
    "floating row",
    "minus infinity",
]


def double_sum(query, key, value, attn_mask, is_causal, scale, bias, slopes):
    """Every weight by itself, from the equation."""
    batch, heads, queries, _ = query.shape
    keys, group = key.shape[2], heads // key.shape[1]
    full = (batch, heads, queries, keys)
    attn_mask = None if attn_mask is None else attn_mask.expand(full)
    output = query.new_zeros(batch, heads, queries, value.shape[3])
    for b, h, i, j in product(*map(range, full)):
        logit = scale * float(query[b, h, i] @ key[b, h // group, j]) + bias
        if slopes is not None:
            logit -= float(slopes[h]) * abs(i + keys - queries - j)
        if is_causal and j > i:
            continue
        if attn_mask is not None and attn_mask.dtype == torch.bool and not attn_mask[b, h, i, j]:
            continue
        if attn_mask is not None and attn_mask.dtype != torch.bool:
            logit += float(attn_mask[b, h, i, j])
        output[b, h, i] += value[b, h // group, j] / (1 + math.exp(min(700.0, -logit)))
    return output


@pytest.mark.parametrize("with_slopes", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_every_path_is_the_double_sum(path, mask, is_causal, with_slopes):
    query, key, value = inputs()
    attn_mask = mask_of(mask)
    slopes = torch.tensor([0.3, 0.1]) if with_slopes else None
    output = sigmoid_attention(
        query, key, value, attn_mask, is_causal=is_causal, bias=-2.0, alibi_slopes=slopes
    )
    expected = double_sum(query, key, value, attn_mask, is_causal, 5**-0.5, -2.0, slopes)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        {"queries": 19, "keys": 13},
        {"queries": 1, "keys": 40},
        {"queries": 17, "keys": 17, "dim": 1, "value_dim": 1},
        {"heads": 6, "kv_heads": 2},
        {"heads": 4, "kv_heads": 1, "queries": 5, "keys": 5, "batch": 3},
        {"heads": 1, "queries": 70, "keys": 33, "batch": 1},
    ],
    ids=str,
)
def test_every_shape_is_the_double_sum(path, shape, is_causal):
    query, key, value = inputs(**shape)
    slopes = alibi_slopes(query.shape[1])
    output = sigmoid_attention(
        query, key, value, None, 0.0, is_causal, 0.7, enable_gqa=True, alibi_slopes=slopes
    )
    bias = -math.log(key.shape[2])
    expected = double_sum(query, key, value, None, is_causal, 0.7, bias, slopes)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-12),
        (torch.float32, 1e-5),
        (torch.bfloat16, 2e-2),
        (torch.float16, 2e-2),
    ],
)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mask", ["none", "boolean", "floating"])
def test_tiles_give_the_values_and_gradients_of_the_reference(
    many_tiles, mask, is_causal, dtype, tolerance
):
    tensors = [x.to(dtype).requires_grad_() for x in inputs()]
    exact = [x.detach().double().requires_grad_() for x in tensors]
    options = {"is_causal": is_causal, "alibi_slopes": alibi_slopes(2)}
    output = sigmoid_attention(*tensors, mask_of(mask), **options)
    expected = sigmoid_attention_reference(*exact, mask_of(mask), **options)
    assert output.dtype == dtype
    output.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(output.double(), expected, atol=tolerance, rtol=tolerance)
    for x, y in zip(tensors, exact, strict=True):
        assert x.grad.dtype == dtype
        torch.testing.assert_close(x.grad.double(), y.grad, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mask", ["none", "boolean", "floating"])
def test_gradients_match_finite_differences(path, mask, is_causal):
    shape = {"queries": 9, "keys": 11}
    tensors = [x.requires_grad_() for x in inputs(batch=1, dim=2, value_dim=2, **shape)]
    attn_mask = mask_of(mask, batch=1, **shape)

    def function(query, key, value):
        return sigmoid_attention(
            query, key, value, attn_mask, 0.0, is_causal, 0.8, alibi_slopes=alibi_slopes(2)
        )

    assert torch.autograd.gradcheck(function, tensors)


def test_learned_masks_and_slopes_get_their_gradient(path):
    query, key, value = inputs(batch=1, queries=3, keys=4)
    bias_table = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    slopes = torch.tensor([0.3, 0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda table, slopes: sigmoid_attention(query, key, value, table, alibi_slopes=slopes),
        (bias_table, slopes),
    )


def test_the_default_bias_is_minus_log_of_the_number_of_keys(path):
    tensors = inputs()
    torch.testing.assert_close(
        sigmoid_attention(*tensors), sigmoid_attention(*tensors, bias=-math.log(19))
    )


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_bias_of_minus_infinity_gives_zeros(path, is_causal):
    tensors = [x.requires_grad_() for x in inputs()]
    output = sigmoid_attention(*tensors, is_causal=is_causal, bias=-math.inf)
    output.sum().backward()
    assert (output == 0).all()
    assert all((x.grad == 0).all() for x in tensors)


def test_large_logits_give_the_sum_of_the_values(path):
    query, key, value = inputs()
    output = sigmoid_attention(query, key, value, bias=1000.0)
    torch.testing.assert_close(output, value.sum(2, keepdim=True).expand_as(output))
    causal = sigmoid_attention(query, key, value, is_causal=True, bias=1000.0)
    torch.testing.assert_close(causal, value.cumsum(2)[:, :, :13])


def test_permuting_keys_and_values_together_changes_nothing(path):
    query, key, value = inputs()
    order = torch.randperm(19)
    torch.testing.assert_close(
        sigmoid_attention(query, key[:, :, order], value[:, :, order]),
        sigmoid_attention(query, key, value),
    )


def test_weights_of_a_long_row_are_close_to_exp_over_n():
    query, key, _ = inputs(1, 1, 2, 4096, dtype=torch.float32)
    query, key = 0.1 * query / query.norm(dim=-1, keepdim=True), key / key.norm(dim=-1).max()
    weights = sigmoid_attention(query, key, torch.eye(4096)[None, None], scale=1.0)
    torch.testing.assert_close(weights * 4096, (query @ key.mT).exp(), rtol=1e-2, atol=0)


def test_a_row_of_weights_sums_to_about_one_with_the_bias_and_to_half_the_keys_without():
    query, key, _ = inputs(1, 1, 8, 1024, dim=64)
    ones = torch.ones(1, 1, 1024, 1, dtype=torch.float64)
    with_bias = sigmoid_attention(0.1 * query, key, ones)
    without = sigmoid_attention(0.1 * query, key, ones, bias=0.0)
    assert (with_bias > 0.9).all() and (with_bias < 1.1).all()
    assert (without > 500).all() and (without < 524).all()


def test_a_row_without_visible_keys_is_zero_and_so_are_its_gradients(path):
    for attn_mask in (torch.ones(13, 19, dtype=torch.bool), torch.zeros(13, 19)):
        attn_mask[4] = False if attn_mask.dtype == torch.bool else -torch.inf
        tensors = [x.requires_grad_() for x in inputs()]
        output = sigmoid_attention(*tensors, attn_mask)
        output.sum().backward()
        assert (output[:, :, 4] == 0).all()
        assert (tensors[0].grad[:, :, 4] == 0).all()
        assert all(x.grad.isfinite().all() for x in tensors)


def test_hidden_keys_do_not_matter_however_large_they_are(path):
    query, key, value = inputs(queries=19)
    hidden = torch.arange(19) >= 11
    key[:, :, hidden] *= 1e6
    value[:, :, hidden] *= 1e6
    output = sigmoid_attention(query, key, value, ~hidden, is_causal=True)
    expected = sigmoid_attention(
        query, key[:, :, :11], value[:, :, :11], is_causal=True, bias=-math.log(19)
    )
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("with_slopes", [False, True])
def test_decoding_with_a_fixed_bias_is_the_last_row_of_the_full_causal_call(path, with_slopes):
    query, key, value = inputs(queries=19, dim=6)
    options = {"bias": -math.log(19), "alibi_slopes": alibi_slopes(2) if with_slopes else None}
    full = sigmoid_attention(
        apply_rotary(query), apply_rotary(key), value, is_causal=True, **options
    )
    for length in (1, 7, 19):
        step = sigmoid_attention(
            apply_rotary(query[:, :, length - 1 : length], offset=length - 1),
            apply_rotary(key[:, :, :length]),
            value[:, :, :length],
            **options,
        )
        torch.testing.assert_close(step, full[:, :, length - 1 : length])


def test_dropout_keeps_the_mean_and_drops_the_given_share(path):
    query, key, _ = inputs(1, 1, 40, 50)
    weights = sigmoid_attention(query, key, torch.eye(50, dtype=torch.float64)[None, None])
    torch.manual_seed(0)
    dropped = [
        sigmoid_attention(query, key, torch.eye(50, dtype=torch.float64)[None, None], None, 0.3)
        for _ in range(50)
    ]
    share = torch.stack([(x == 0).double().mean() for x in dropped]).mean()
    assert abs(share - 0.3) < 0.01
    kept = dropped[0] != 0
    torch.testing.assert_close(dropped[0][kept], (weights / 0.7)[kept])
    torch.testing.assert_close(torch.stack(dropped).mean(0).sum(), weights.sum(), rtol=0.01, atol=0)
    assert not torch.equal(dropped[0], dropped[1])


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_backward_pass_drops_the_weights_that_the_forward_pass_dropped(path, is_causal):
    tensors = [x.requires_grad_() for x in inputs(1, 2, 9, 11, 2, 2)]

    def function(*tensors):
        torch.manual_seed(3)
        return sigmoid_attention(*tensors, None, 0.4, is_causal)

    torch.testing.assert_close(function(*tensors), function(*tensors))
    assert torch.autograd.gradcheck(function, tensors)


def test_views_give_what_contiguous_tensors_give(path):
    packed = torch.randn(2, 13, 3, 2, 4, dtype=torch.float64)
    views = [x.requires_grad_() for x in packed.permute(2, 0, 3, 1, 4).unbind()]
    copies = [x.detach().clone(memory_format=torch.contiguous_format) for x in views]
    attn_mask = (torch.randn(13, 13) > 0).mT
    for copy in copies:
        copy.requires_grad_()
    output, expected = sigmoid_attention(*views, attn_mask), sigmoid_attention(*copies, attn_mask)
    gradient = torch.randn(3, 13, 2, 2, dtype=torch.float64).permute(3, 2, 1, 0)[..., :3]
    gradient = gradient[..., [0, 1, 2, 0]].mT.contiguous().mT
    output.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(output, expected)
    for view, copy in zip(views, copies, strict=True):
        torch.testing.assert_close(view.grad, copy.grad)


@pytest.mark.parametrize(
    "shape",
    [{"batch": 0}, {"heads": 0}, {"queries": 0}, {"keys": 0}, {"value_dim": 0}, {"dim": 0}],
    ids=str,
)
@pytest.mark.parametrize("is_causal", [False, True])
def test_empty_axes_give_zeros_of_the_right_shape(shape, is_causal):
    tensors = [x.requires_grad_() for x in inputs(**shape)]
    output = sigmoid_attention(*tensors, is_causal=is_causal)
    query, _, value = tensors
    assert output.shape == (*query.shape[:3], value.shape[3])
    assert (shape == {"dim": 0}) or (output == 0).all()
    output.sum().backward()


def test_each_element_of_a_batch_is_computed_as_if_alone(path):
    tensors = inputs(batch=3)
    together = sigmoid_attention(*tensors, is_causal=True)
    for index in range(3):
        alone = sigmoid_attention(*(x[index : index + 1] for x in tensors), is_causal=True)
        torch.testing.assert_close(together[index : index + 1], alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_rounded_once(path, dtype):
    tensors = inputs(keys=300, dtype=dtype)
    output = sigmoid_attention(*tensors, bias=-math.log(300))
    exact = sigmoid_attention_reference(*(x.double() for x in tensors), bias=-math.log(300))
    torch.testing.assert_close(
        output.double(), exact, atol=1e-6, rtol=torch.finfo(dtype).eps * 0.51
    )


def test_autocast_computes_in_its_dtype_whatever_the_inputs_are(path):
    query, key, value = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = sigmoid_attention(query, key.bfloat16(), value, is_causal=True)
    expected = sigmoid_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), is_causal=True)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, atol=0, rtol=0)


def test_compiled_code_gives_the_same_values_and_gradients(path):
    tensors = [x.requires_grad_() for x in inputs(dtype=torch.float32)]

    def function(*tensors):
        return sigmoid_attention(*tensors, is_causal=True).sin()

    # The eager backend traces, guards and breaks graphs like any other, without a C++ compiler.
    compiled = torch.compile(function, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), function(*tensors))
    expected = torch.autograd.grad(function(*tensors).sum(), tensors)
    torch.testing.assert_close(torch.autograd.grad(compiled(*tensors).sum(), tensors), expected)


def test_small_problems_can_be_mapped_over_and_differentiated_by_torch_func():
    tensors = [torch.stack([x, x.flip(0), 2 * x]) for x in inputs()]

    def loss(*tensors):
        return (
            sigmoid_attention(*tensors, is_causal=True, alibi_slopes=alibi_slopes(2)).square().sum()
        )

    gradients = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(*tensors)
    for index in range(3):
        leaves = [x[index].clone().requires_grad_() for x in tensors]
        expected = torch.autograd.grad(loss(*leaves), leaves)
        for gradient, one in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient[index], one)


def test_differentiating_tiles_twice_is_refused_and_the_reference_can(many_tiles):
    (x,) = (x.requires_grad_() for x in inputs(1, 1, 3, 3, 2, 2)[:1])
    (gradient,) = torch.autograd.grad(
        sigmoid_attention(x, x, x).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()
    assert torch.autograd.gradgradcheck(lambda x: sigmoid_attention_reference(x, x, x), (x,))


class LargestTensor(TorchDispatchMode):
    """Notes the largest number of elements that any operation returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.untyped_storage().nbytes() >= 8:
            elements = result.untyped_storage().nbytes() // result.element_size()
            self.numel = max(self.numel, elements)
        return result


@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_no_tensor_is_larger_than_the_inputs_or_a_tile(padded, is_causal, dropout_p, monkeypatch):
    monkeypatch.setattr(sigmoid, "DENSE_LIMIT", 0)
    monkeypatch.setattr(sigmoid_blocked, "CPU_TILE", 2048)
    monkeypatch.setattr(sigmoid_blocked, "MAX_ROWS", 64)
    tensors = [x.requires_grad_() for x in inputs(1, 2, 300, 300, 4, 4)]
    attn_mask = torch.arange(300) < 250 if padded else None
    with LargestTensor() as largest:
        output = sigmoid_attention(
            *tensors, attn_mask, dropout_p, is_causal, alibi_slopes=alibi_slopes(2)
        )
        output.sum().backward()
    assert largest.numel <= 2 * 300 * 4


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    "shape", [(3, 2, 19, 23), (1, 1, 64, 64), (2, 5, 1, 70), (4, 3, 70, 2), (6, 2, 3, 3)]
)
def test_tiles_cover_every_visible_weight_once(shape, is_causal, monkeypatch):
    monkeypatch.setattr(sigmoid_blocked, "MAX_ROWS", 16)
    count = torch.zeros(shape, dtype=torch.int64)
    for tile in sigmoid_blocked._tiles(torch.Size(shape), is_causal, 64):
        part = count[tile.batch, tile.heads, tile.rows, tile.columns]
        assert 0 < part.numel() <= 64
        part += 1
    visible = torch.ones(shape, dtype=torch.bool)
    assert (count[visible.tril() if is_causal else visible] == 1).all()
    assert count.max() == 1
    if is_causal and shape == (1, 1, 64, 64):
        assert count.sum() < 0.6 * 64 * 64


BAD = {
    "three axes": ({"query": torch.zeros(2, 3, 4)}, r"query: shape \(2, 3, 4\) given"),
    "head_dim": ({"key": torch.zeros(2, 2, 19, 6)}, r"key: shape \(2, 2, 19, 6\) given"),
    "batch": ({"key": torch.zeros(1, 2, 19, 5)}, r"key: shape \(1, 2, 19, 5\) given"),
    "length": ({"value": torch.zeros(2, 2, 18, 3)}, r"value: shape \(2, 2, 18, 3\) given"),
    "heads without gqa": ({"key": torch.zeros(2, 1, 19, 5)}, r"key: shape \(2, 1, 19, 5\) given"),
    "indivisible heads": (
        {"key": torch.zeros(2, 3, 19, 5), "enable_gqa": True},
        r"key: shape \(2, 3, 19, 5\) given, .* or a divisor of 2 heads",
    ),
    "dtype": ({"value": torch.zeros(2, 2, 19, 3).half()}, "value: torch.float16 on cpu given"),
    "dropout": ({"dropout_p": 1.0}, "dropout_p: 1.0 given"),
    "negative dropout": ({"dropout_p": -0.1}, "dropout_p: -0.1 given"),
    "mask shape": ({"attn_mask": torch.ones(13, 18).bool()}, r"attn_mask: shape \(13, 18\)"),
    "five axes": (
        {"attn_mask": torch.ones(1, 1, 1, 1, 19).bool()},
        r"attn_mask: shape \(1, 1, 1, 1, 19\)",
    ),
    "mask dtype": ({"attn_mask": torch.ones(13, 19).int()}, "attn_mask: torch.int32 given"),
    "slopes": ({"alibi_slopes": torch.ones(3)}, r"alibi_slopes: shape \(3,\) on cpu given"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("function", [sigmoid_attention, sigmoid_attention_reference])
def test_bad_input_names_the_argument(function, case):
    query, key, value = inputs(dtype=torch.float32)
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=f"^{message}"):
        function(**{"query": query, "key": key, "value": value, **changes})
