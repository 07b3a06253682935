"""Softplus attention against the paper's equations written as loops, and what follows from them."""

import math

import pytest
import torch
from torch import nn

from heterodox.attention import softplus_blocks
from heterodox.attention.position import apply_rotary
from heterodox.attention.softplus import (
    SoftplusAttention,
    set_power,
    softplus_attention,
    softplus_attention_weights,
)

POWERS = (None, 1, 2, 3, 4.5, 15)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of few rows and keys, so that short sequences need many of them."""
    monkeypatch.setattr(softplus_blocks, "CPU_BLOCK", 200)
    monkeypatch.setattr(softplus_blocks, "MIN_ROWS", 4)
    monkeypatch.setattr(softplus_blocks, "MAX_ROWS", 7)


def draw(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def draw_qkv(batch=2, heads=3, queries=11, keys=11, head_dim=8, value_dim=5, dtype=torch.float64):
    return (
        draw(batch, heads, queries, head_dim, dtype=dtype, seed=1),
        draw(batch, heads, keys, head_dim, dtype=dtype, seed=2),
        draw(batch, heads, keys, value_dim, dtype=dtype, seed=3),
    )


def draw_mask(kind, batch, heads, queries, keys):
    shape = {
        "padding": (batch, 1, 1, keys),
        "full": (batch, heads, queries, keys),
        "one for all": (queries, keys),
        "queries": (queries, 1),
        "keys": (keys,),
    }[kind]
    return draw(*shape, seed=4) > -0.4


def row_of_weights(query, keys, visible, scale, power, offset):
    """One row of A or W, from the paper's equations, in Python's own floating point numbers."""
    count = sum(visible)
    scores = []
    for key, seen in zip(keys, visible, strict=True):
        product = sum(a * b for a, b in zip(query, key, strict=True))
        cosine = product / math.hypot(*query) / math.hypot(*key)
        scores.append(math.log1p(math.exp(scale * math.log(count) * cosine)) if seen else 0.0)
    weights = [score / sum(scores) for score in scores]
    if power is None:
        return weights
    cut = offset if count > 3 else 0.0
    kept = [max(count * weight - cut, 0.0) ** power for weight in weights]
    return [k / sum(kept) for k in kept]


def leaves(*tensors):
    return [x.clone().requires_grad_() for x in tensors]


def outputs_and_gradients(function, inputs):
    inputs = leaves(*inputs)
    output = function(*inputs)
    (output * draw(*output.shape, dtype=output.dtype, seed=9)).sum().backward()
    return output.detach(), *(x.grad for x in inputs)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_weights_are_those_of_the_paper_s_equations(power, is_causal, masked):
    query, key, _ = draw_qkv(batch=1, heads=2, queries=9, keys=9)
    visible = torch.ones(1, 2, 9, 9, dtype=torch.bool)
    if masked:
        visible = draw_mask("full", 1, 2, 9, 9)
        visible[..., 0] = True
    weights = softplus_attention_weights(
        query, key, visible if masked else None, is_causal, power=power
    )
    visible = visible.tril() if is_causal else visible
    for h in range(2):
        for i in range(9):
            row = row_of_weights(
                query[0, h, i].tolist(),
                key[0, h].tolist(),
                visible[0, h, i].tolist(),
                math.log(8),
                power,
                1.0,
            )
            assert weights[0, h, i].tolist() == pytest.approx(row, abs=1e-12)


def test_scale_and_offset_replace_log_head_dim_and_one():
    query, key, _ = draw_qkv(batch=1, heads=1, queries=1, keys=9)
    weights = softplus_attention_weights(query, key, scale=3.0, power=2, offset=1.5)
    row = row_of_weights(query[0, 0, 0].tolist(), key[0, 0].tolist(), [True] * 9, 3.0, 2, 1.5)
    assert weights[0, 0, 0].tolist() == pytest.approx(row, abs=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "power"),
    [(torch.float64, 1e-10, power) for power in (None, 1, 4.5, 15)] + [(torch.float32, 2e-4, 15)],
)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("queries", [1, 11, 23])
@pytest.mark.parametrize("mask", [None, "padding", "full", "one for all", "queries", "keys"])
def test_blocks_equal_the_dense_weights(
    small_blocks, dtype, tolerance, power, is_causal, queries, mask
):
    inputs = draw_qkv(queries=queries, keys=17, dtype=dtype)
    visible = None if mask is None else draw_mask(mask, 2, 3, queries, 17)
    blocks = outputs_and_gradients(
        lambda q, k, v: softplus_attention(q, k, v, visible, is_causal=is_causal, power=power),
        inputs,
    )
    dense = outputs_and_gradients(
        lambda q, k, v: softplus_attention_weights(q, k, visible, is_causal, power=power) @ v,
        inputs,
    )
    for fast, slow in zip(blocks, dense, strict=True):
        assert (fast - slow).abs().max() <= tolerance * (1 + slow.abs().max())


@pytest.mark.parametrize("power", [None, 3, 2.5])
@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_match_finite_differences(small_blocks, power, is_causal):
    inputs = leaves(*draw_qkv(batch=1, heads=1, queries=6, keys=9, head_dim=3, value_dim=2))
    weights = softplus_attention_weights(*inputs[:2], is_causal=is_causal, offset=0.0)
    count = (weights > 0).sum(-1, keepdim=True)
    assert ((count * weights - 1).abs()[(count > 3).expand_as(weights)]).min() > 1e-3  # the kink
    assert torch.autograd.gradcheck(
        lambda q, k, v: softplus_attention(q, k, v, is_causal=is_causal, power=power), inputs
    )


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_rows_are_distributions(power, is_causal):
    query, key, _ = draw_qkv()
    weights = softplus_attention_weights(query, key, is_causal=is_causal, power=power)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_a_large_power_picks_the_key_at_the_smallest_angle():
    query, key, value = draw_qkv()
    cosine = nn.functional.normalize(query, dim=-1) @ nn.functional.normalize(key, dim=-1).mT
    nearest = cosine.argmax(-1)
    weights = softplus_attention_weights(query, key, power=2000)
    torch.testing.assert_close(
        weights, nn.functional.one_hot(nearest, 11).to(weights), atol=1e-3, rtol=0
    )
    expected = value.gather(2, nearest[..., None].expand(-1, -1, -1, 5))
    torch.testing.assert_close(
        softplus_attention(query, key, value, power=2000), expected, atol=1e-3, rtol=0
    )


def test_power_one_without_offset_is_the_first_stage():
    inputs = draw_qkv()
    torch.testing.assert_close(
        softplus_attention(*inputs, power=1, offset=0.0), softplus_attention(*inputs)
    )


@pytest.mark.parametrize("power", [None, 15])
def test_lengths_of_queries_and_keys_do_not_matter(power):
    query, key, value = draw_qkv()
    lengths = draw(2, 3, 11, 1, seed=5).exp()
    torch.testing.assert_close(
        softplus_attention(query * lengths, key * lengths.flip(2), value, power=power),
        softplus_attention(query, key, value, power=power),
    )


@pytest.mark.parametrize("power", [None, 15])
def test_the_first_row_is_the_first_value(power):
    query, key, value = draw_qkv()
    output = softplus_attention(query, key, value, is_causal=True, power=power)
    torch.testing.assert_close(output[:, :, 0], value[:, :, 0])


def test_rows_of_two_and_three_keys_are_not_cut_and_longer_ones_are():
    query, key, _ = draw_qkv()
    weights = softplus_attention_weights(query, key, is_causal=True, power=2)
    for i in range(3):
        assert (weights[..., i, : i + 1] > 0).all()
    for i in range(3, 11):  # the smallest of several numbers is below their average
        assert (weights[..., i, : i + 1] == 0).any(-1).all()


@pytest.mark.parametrize("power", [None, 15])
def test_later_keys_have_no_influence_on_causal_rows(small_blocks, power):
    query, key, value = draw_qkv()
    before = softplus_attention(query, key, value, is_causal=True, power=power)
    key[:, :, 6:], value[:, :, 6:] = draw(2, 3, 5, 8, seed=6), draw(2, 3, 5, 5, seed=7)
    after = softplus_attention(query, key, value, is_causal=True, power=power)
    torch.testing.assert_close(before[:, :, :6], after[:, :, :6])
    assert (before[:, :, 6:] != after[:, :, 6:]).any(-1).any(0).any(0).all()


@pytest.mark.parametrize("power", [None, 15])
def test_a_decoding_step_equals_the_row_of_the_full_pass(small_blocks, power):
    query, key, value = draw_qkv()
    full = softplus_attention(query, key, value, is_causal=True, power=power)
    for i in range(11):
        cache = key[:, :, : i + 1], value[:, :, : i + 1]
        step = softplus_attention(query[:, :, i : i + 1], *cache, power=power)
        torch.testing.assert_close(step, full[:, :, i : i + 1])


@pytest.mark.parametrize("queries", [5, 15])
def test_causal_rows_are_counted_from_the_first_key_whatever_the_number_of_queries(queries):
    inputs = draw_qkv(queries=queries)
    mask = torch.ones(queries, 11, dtype=torch.bool).tril()
    torch.testing.assert_close(
        softplus_attention(*inputs, is_causal=True, power=3),
        softplus_attention(*inputs, mask, power=3),
    )


@pytest.mark.parametrize("power", [None, 3])
@pytest.mark.parametrize("is_causal", [False, True])
def test_padded_keys_have_no_influence(small_blocks, power, is_causal):
    query, key, value = draw_qkv()
    is_token = (torch.arange(11) < 7)[None, None, None]

    def run(mask):
        return lambda q, k, v: softplus_attention(q, k, v, mask, is_causal=is_causal, power=power)

    short = outputs_and_gradients(run(None), (query[:, :, :7], key[:, :, :7], value[:, :, :7]))
    padded = leaves(query[:, :, :7], key, value)
    output = run(is_token)(*padded)
    torch.testing.assert_close(output, short[0])
    (output * draw(*output.shape, seed=9)).sum().backward()
    for x, expected in zip(padded, short[1:], strict=True):
        torch.testing.assert_close(x.grad[:, :, :7], expected)
        assert (x.grad[:, :, 7:] == 0).all()


@pytest.mark.parametrize("power", [None, 1, 15])
@pytest.mark.parametrize("dense", [False, True])
def test_a_row_without_visible_keys_is_zero_and_has_no_gradient(power, dense):
    query, key, value = leaves(*draw_qkv())
    mask = torch.ones(11, 11, dtype=torch.bool)
    mask[4] = False
    if dense:
        output = softplus_attention_weights(query, key, mask, power=power) @ value
    else:
        output = softplus_attention(query, key, value, mask, power=power)
    assert (output[:, :, 4] == 0).all()
    output.square().sum().backward()
    assert (query.grad[:, :, 4] == 0).all()
    assert all(x.grad.isfinite().all() for x in (query, key, value))


def test_one_aligned_key_among_twenty_thousand_opposite_ones_is_all_that_counts():
    query = torch.ones(1, 1, 1, 64)
    key = -torch.ones(1, 1, 20_000, 64)
    key[:, :, 1234] = 1.0
    value = draw(1, 1, 20_000, 4, dtype=torch.float32)
    query, key, value = leaves(query, key, value)
    output = softplus_attention(query, key, value, power=15)
    torch.testing.assert_close(output[0, 0, 0], value[0, 0, 1234])
    output.sum().backward()
    assert all(x.grad.isfinite().all() for x in (query, key, value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keys", [3, 4, 7, 1000])
def test_equal_keys_share_a_short_row_and_none_of_them_is_above_the_average(dtype, keys):
    query, key, value = leaves(
        draw(1, 1, 100, 8, dtype=dtype),  # many rows: some averages are rounded up, others down
        torch.ones(1, 1, keys, 8, dtype=dtype),
        draw(1, 1, keys, 2, dtype=dtype, seed=1),
    )
    output = softplus_attention(query, key, value, power=15)
    mean = value.mean(2, keepdim=True).expand_as(output)
    expected = mean if keys <= 3 else torch.zeros_like(output)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(softplus_attention_weights(query, key, power=15) @ value, expected)
    output.sum().backward()
    assert all(x.grad.abs().max() <= 100 for x in (query, key, value))


@pytest.mark.parametrize("power", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_whose_exponential_overflows_float32_are_computed_all_the_same(dtype, power):
    inputs = draw_qkv(dtype=dtype)
    mask = draw_mask("full", 2, 3, 11, 11)

    def fast(query, key, value):
        return softplus_attention(query, key, value, mask, is_causal=True, scale=60.0, power=power)

    def dense(query, key, value):
        weights = softplus_attention_weights(
            query, key, mask, is_causal=True, scale=60.0, power=power
        )
        return weights @ value

    tolerance = 1e-10 if dtype == torch.float64 else 2e-3
    for a, b in zip(
        outputs_and_gradients(fast, inputs),
        outputs_and_gradients(dense, tuple(x.double() for x in inputs)),
        strict=True,
    ):
        assert (a - b).abs().max() <= tolerance * (1 + b.abs().max())


@pytest.mark.parametrize("power", range(1, 34))
def test_powers_by_repeated_multiplication_are_powers(power):
    x = draw(50).abs()
    torch.testing.assert_close(
        softplus_blocks.power_(x.clone(), power, torch.empty_like(x)), x**power
    )


@pytest.mark.parametrize("power", [None, 15])
def test_nothing_of_quadratic_size_is_kept_for_the_backward_pass(power):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: saved.append(x.numel()) or x, lambda x: x
    ):
        softplus_attention(*leaves(*draw_qkv(1, 1, 500, 500)), is_causal=True, power=power)
    assert 0 < max(saved) <= 500 * 8


@pytest.mark.parametrize("power", [None, 15])
def test_grouped_queries_share_their_keys(power):
    query, key, value = draw_qkv(heads=6)
    key, value = key[:, ::3], value[:, ::3]
    torch.testing.assert_close(
        softplus_attention(query, key, value, power=power, enable_gqa=True),
        softplus_attention(
            query, key.repeat_interleave(3, 1), value.repeat_interleave(3, 1), power=power
        ),
    )


@pytest.mark.parametrize("power", [None, 15])
def test_memory_layout_does_not_matter(power):
    query, key, value = draw_qkv(value_dim=8)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    assert not strided[0].is_contiguous()
    for a, b in zip(
        outputs_and_gradients(lambda q, k, v: softplus_attention(q, k, v, power=power), strided),
        outputs_and_gradients(
            lambda q, k, v: softplus_attention(q, k, v, power=power), (query, key, value)
        ),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("queries", [0, 1, 5])
@pytest.mark.parametrize("keys", [0, 1, 5])
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_empty_and_single_dimensions_work(batch, queries, keys, dropout_p):
    inputs = leaves(*draw_qkv(batch, 2, queries, keys))
    output = softplus_attention(*inputs, None, dropout_p, True, power=15)
    assert output.shape == (batch, 2, queries, 5)
    assert output.isfinite().all()
    output.sum().backward()
    assert all(x.grad.shape == x.shape for x in inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("power", [None, 15])
def test_half_precision_rounds_inputs_and_output_only(dtype, power):
    inputs = [x.to(dtype) for x in draw_qkv()]
    output = softplus_attention(*inputs, power=power)
    assert output.dtype == dtype
    single = softplus_attention(*(x.float() for x in inputs), power=power)
    torch.testing.assert_close(output, single.to(dtype))
    weights = softplus_attention_weights(*inputs[:2], power=power)
    assert weights.dtype == dtype


def test_autocast_leaves_the_weights_in_single_precision():
    inputs = draw_qkv(dtype=torch.float32)

    def run(query, key, value):
        return softplus_attention(query, key, value, power=15)

    plain = outputs_and_gradients(run, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = outputs_and_gradients(run, inputs)
        weights = softplus_attention_weights(*inputs[:2], power=15)
    for a, b in zip(cast, plain, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(weights, softplus_attention_weights(*inputs[:2], power=15))


def test_dropped_weights_are_rescaled():
    query, key, _ = draw_qkv(1, 1, 200, 50)
    weights = softplus_attention_weights(query, key, power=3)
    torch.manual_seed(0)
    dropped = softplus_attention(
        query, key, torch.eye(50).double()[None, None], None, 0.25, power=3
    )
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], weights[kept] / 0.75)
    assert (kept.sum() / (weights > 0).sum()).item() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("power", [None, 3])
@pytest.mark.parametrize(
    "mapped", [(0, 0, 0, 0), (0, None, 1, None), (None, 0, None, None), (None, None, 3, 0)]
)
def test_vmap_equals_a_loop(small_blocks, power, mapped):
    tensors = [*draw_qkv(batch=2, value_dim=8), draw(1, 1, 11, 11, seed=8) > -1]
    stacked = [
        x if dim is None else torch.stack([x, x.flip(-1), x.roll(2, -1)], dim)
        for x, dim in zip(tensors, mapped, strict=True)
    ]

    def loss_and_gradients(query, key, value, mask):
        def loss(q, k, v):
            output = softplus_attention(q, k, v, mask, is_causal=True, power=power)
            return output.sin().sum(), output

        return torch.func.grad(loss, argnums=(0, 1, 2), has_aux=True)(query, key, value)

    gradients, output = torch.func.vmap(loss_and_gradients, in_dims=mapped)(*stacked)
    for s in range(3):
        picked = [
            x if dim is None else x.select(dim, s) for x, dim in zip(stacked, mapped, strict=True)
        ]
        expected_gradients, expected = loss_and_gradients(*picked)
        torch.testing.assert_close(output[s], expected)
        for a, b in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(a[s], b)


def test_models_of_several_seeds_train_as_one():
    layers = [SoftplusAttention(16, 2).double() for _ in range(3)]
    parameters, _ = torch.func.stack_module_state(layers)
    x = draw(2, 9, 16)

    def loss(parameters):
        output = torch.func.functional_call(layers[0], parameters, (x,), {"is_causal": True})
        return output.square().mean()

    gradients = torch.func.vmap(torch.func.grad(loss))(parameters)
    for s, layer in enumerate(layers):
        layer(x, is_causal=True).square().mean().backward()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(gradients[name][s], parameter.grad)


def test_second_derivatives_are_left_to_the_dense_weights():
    query, key, value = leaves(*draw_qkv(1, 1, 4, 4, 3, 2))
    (first,) = torch.autograd.grad(
        softplus_attention(query, key, value, power=3).sum(), query, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="softplus_attention_weights"):
        first.sum().backward()
    assert torch.autograd.gradgradcheck(
        lambda q, k, v: softplus_attention_weights(q, k, power=3) @ v, (query, key, value)
    )


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("power", {"power": 0.5}),
        ("power", {"power": math.inf}),
        ("power", {"power": math.nan}),
        ("offset", {"offset": -1.0}),
        ("scale", {"scale": 0.0}),
        ("scale", {"scale": -1.0}),
        ("dropout_p", {"dropout_p": 1.0}),
        ("dropout_p", {"dropout_p": -0.1}),
        ("attn_mask", {"attn_mask": torch.zeros(11, 11)}),
        ("attn_mask", {"attn_mask": torch.ones(5, 11, dtype=torch.bool)}),
        ("attn_mask", {"attn_mask": torch.ones(1, 2, 3, 11, 11, dtype=torch.bool)}),
        ("query", {"query": torch.ones(2, 3, 11, 1), "key": torch.ones(2, 3, 11, 1)}),
        ("key", {"key": torch.ones(2, 3, 11, 7)}),
        ("key", {"key": torch.ones(1, 3, 11, 8)}),
        ("key", {"key": torch.ones(2, 1, 11, 8)}),
        ("key", {"key": torch.ones(2, 2, 11, 8), "enable_gqa": True}),
        ("value", {"value": torch.ones(2, 3, 10, 5)}),
        ("value", {"value": torch.ones(1, 3, 11, 5)}),
    ],
)
def test_bad_input_names_the_argument(argument, changes):
    query, key, value = draw_qkv(dtype=torch.float32)
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        softplus_attention(**{"query": query, "key": key, "value": value, **changes})
    if not {"dropout_p", "value", "enable_gqa"} & changes.keys():
        with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
            softplus_attention_weights(**{"query": query, "key": key, **changes})


@pytest.mark.parametrize(
    ("argument", "arguments", "options"),
    [
        ("embed_dim", (30, 4), {}),
        ("embed_dim", (0, 4), {}),
        ("embed_dim", (12, 4), {}),
        ("embed_dim", (4, 4), {"position": None}),
        ("position", (32, 4), {"position": "alibi"}),
        ("power", (32, 4), {"power": 0}),
        ("dropout", (32, 4), {"dropout": 1.0}),
    ],
)
def test_a_layer_that_cannot_be_built_names_the_argument(argument, arguments, options):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        SoftplusAttention(*arguments, **options)


@pytest.mark.parametrize("power", [None, 15.0])
@pytest.mark.parametrize("position", [None, "rotary"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_layer_is_its_equation(power, position, bias):
    layer = SoftplusAttention(24, 3, power=power, position=position, bias=bias).double()
    x = draw(2, 9, 24)
    mask = draw_mask("padding", 2, 3, 9, 9)
    query, key, value = (
        y.unflatten(-1, (3, 8)).transpose(1, 2) for y in layer.qkv(x).split(24, dim=-1)
    )
    if position == "rotary":
        query, key = apply_rotary(query), apply_rotary(key)
    weights = softplus_attention_weights(query, key, mask, True, power=power)
    expected = layer.proj((weights @ value).transpose(1, 2).reshape(2, 9, 24))
    torch.testing.assert_close(layer(x, mask, is_causal=True), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_made_from_multihead_attention_has_its_weights_and_not_its_memory(bias):
    mha = nn.MultiheadAttention(24, 3, dropout=0.1, bias=bias, batch_first=True).double().eval()
    layer = SoftplusAttention.from_multihead(mha, power=3)
    assert (layer.num_heads, layer.power, layer.position, layer.dropout) == (3, 3, None, 0.1)
    assert not layer.training
    x = draw(2, 9, 24)
    # The projected values of the one key of the first causal row are the same in both.
    mask = torch.ones(9, 9).triu(1).bool()
    expected, _ = mha(x, x, x, attn_mask=mask, need_weights=False)
    torch.testing.assert_close(layer(x, is_causal=True)[:, 0], expected[:, 0])
    # Keys are where multi-head attention has them: a layer without value rows would not notice.
    torch.testing.assert_close(layer.qkv.weight, mha.in_proj_weight)
    with torch.no_grad():
        mha.out_proj.weight.zero_()
    assert (layer.proj.weight != 0).any()


@pytest.mark.parametrize("options", [{"kdim": 12}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_multihead_attention_with_keys_of_its_own_is_refused(options):
    with pytest.raises(ValueError, match=r"^mha: .* expected"):
        SoftplusAttention.from_multihead(nn.MultiheadAttention(24, 3, **options))


def test_set_power_reaches_every_layer_and_changes_the_output():
    model = nn.Sequential(
        SoftplusAttention(16, 2, power=None), nn.Sequential(nn.ReLU(), SoftplusAttention(16, 2))
    ).double()
    x = draw(1, 9, 16)
    before, state = model(x), {k: v.clone() for k, v in model.state_dict().items()}
    set_power(model, 7)
    assert [m.power for m in model.modules() if isinstance(m, SoftplusAttention)] == [7, 7]
    assert (model(x) != before).all()
    set_power(model, None)
    assert all((model.state_dict()[k] == v).all() for k, v in state.items())
    with pytest.raises(ValueError, match=r"^power: "):
        set_power(model, 0.5)
    with pytest.raises(ValueError, match=r"^model: "):
        set_power(nn.Linear(2, 2), 3)


def test_dropout_acts_in_training_only():
    layer = SoftplusAttention(16, 2, dropout=0.5).double()
    x = draw(1, 9, 16)
    assert (layer(x) != layer(x)).any()
    layer.eval()
    torch.testing.assert_close(layer(x), layer(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("power", [None, 15])
def test_cuda_equals_the_cpu(power):
    inputs = draw_qkv(dtype=torch.float32)
    function = lambda q, k, v: softplus_attention(q, k, v, is_causal=True, power=power)  # noqa: E731
    output = function(*(x.cuda() for x in inputs))
    torch.testing.assert_close(output.cpu(), function(*inputs), atol=2e-4, rtol=2e-4)
