"""Linear attention against its sums written out, one query at a time."""

import pytest
import torch
import torch.nn.functional as F

from heterodox.attention.linear import LinearAttention, linear_attention, retention_decay
from heterodox.attention.position import apply_rotary

BATCH, HEADS, LENGTH, HEAD_DIM, VALUE_DIM = 2, 3, 11, 4, 5
DECAY = torch.tensor([1.0, 0.9, 0.5], dtype=torch.float64)


def heads(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(queries=LENGTH, keys=LENGTH):
    return (
        heads(BATCH, HEADS, queries, HEAD_DIM, seed=1),
        heads(BATCH, HEADS, keys, HEAD_DIM, seed=2),
        heads(BATCH, HEADS, keys, VALUE_DIM, seed=3),
    )


def written_out(
    query, key, value, mask=None, is_causal=False, feature_map="elu", normalize=True, decay=None
):
    output = torch.zeros(*query.shape[:3], value.shape[3], dtype=query.dtype)
    phi = (lambda x: F.elu(x) + 1) if feature_map == "elu" else (lambda x: x)
    allowed = torch.ones(*query.shape[:3], key.shape[2], dtype=torch.bool)
    allowed = allowed if mask is None else allowed & mask
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in query.shape[:3])).tolist():
        total = 0.0
        for j in range(key.shape[2]):
            if (j <= i or not is_causal) and allowed[b, h, i, j]:
                weight = phi(query[b, h, i]) @ phi(key[b, h, j])
                weight = weight if decay is None else weight * decay[h] ** (i - j)
                output[b, h, i] += weight * value[b, h, j]
                total += weight
        if normalize and total != 0:
            output[b, h, i] /= total
    return output


MASKS = {
    "none": None,
    "keys": torch.rand(BATCH, 1, 1, LENGTH, generator=torch.Generator().manual_seed(0)) > 0.4,
    "row of keys": torch.arange(LENGTH) != 0,
    "any": torch.rand(BATCH, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1)) > 0.4,
    "nothing": torch.tensor(False),
}


@pytest.mark.parametrize("chunk_size", [1, 4, 64])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"is_causal": True, "decay": DECAY},
        {"is_causal": True, "feature_map": "identity", "normalize": False},
        {"is_causal": True, "normalize": False, "decay": DECAY},
        {"feature_map": "identity", "normalize": False},
    ],
    ids=lambda options: "-".join(options) or "full",
)
def test_it_is_the_sum_over_the_keys_that_a_query_sees(options, mask, chunk_size):
    expected = written_out(*inputs(), MASKS[mask], **options)
    output = linear_attention(*inputs(), MASKS[mask], chunk_size=chunk_size, **options)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sizes", [(5, 9), (9, 5), (1, 6), (0, 4), (4, 0)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_queries_and_keys_may_differ_in_number(sizes, is_causal):
    output = linear_attention(*inputs(*sizes), is_causal=is_causal, chunk_size=4)
    torch.testing.assert_close(output, written_out(*inputs(*sizes), is_causal=is_causal))


def test_a_mask_of_everything_changes_nothing_though_it_goes_another_way():
    everything = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    for options in ({}, {"is_causal": True}, {"is_causal": True, "decay": DECAY}):
        torch.testing.assert_close(
            linear_attention(*inputs(), everything, **options),
            linear_attention(*inputs(), **options),
        )


def test_the_last_query_alone_sees_what_it_saw_in_the_sequence():
    query, key, value = inputs()
    one = linear_attention(query[:, :, -1:], key, value)
    torch.testing.assert_close(one, linear_attention(query, key, value, is_causal=True)[:, :, -1:])


def test_features_far_below_zero_still_weigh_keys():
    query, key, value = (x.float() for x in inputs())
    expected = linear_attention((query - 60).double(), (key - 30).double(), value.double())
    output = linear_attention(query - 60, key - 30, value)
    torch.testing.assert_close(output, expected.float(), rtol=1e-4, atol=1e-5)


def test_sums_of_bfloat16_run_in_float32():
    query, key, value = (x.bfloat16() for x in inputs(512, 512))
    output = linear_attention(query, key, value, is_causal=True)
    exact = linear_attention(query.double(), key.double(), value.double(), is_causal=True)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), exact, rtol=8e-3, atol=1e-3)


def test_groups_of_queries_share_a_head_of_keys():
    query, key, value = inputs()
    query = heads(BATCH, 2 * HEADS, LENGTH, HEAD_DIM, seed=4)
    repeated = (x.repeat_interleave(2, dim=1) for x in (key, value))
    torch.testing.assert_close(
        linear_attention(query, key, value, is_causal=True, enable_gqa=True),
        linear_attention(query, *repeated, is_causal=True),
    )


def test_dropped_weights_keep_the_mean():
    query, key, value = inputs()
    torch.manual_seed(0)
    many = torch.stack([linear_attention(query, key, value, None, 0.3) for _ in range(2000)])
    torch.testing.assert_close(
        many.mean(0), linear_attention(query, key, value), rtol=0, atol=5 * many.std() / 2000**0.5
    )


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"is_causal": True, "decay": DECAY}])
def test_gradients_match_finite_differences(options):
    small = [x[:, :, :5].requires_grad_() for x in inputs()]
    assert torch.autograd.gradcheck(
        lambda q, k, v: linear_attention(q, k, v, chunk_size=2, **options), small
    )


@pytest.mark.parametrize("decay", [False, True])
def test_the_layer_projects_turns_and_attends(decay):
    layer = LinearAttention(12, 3, position="rotary", decay=decay, bias=True).double()
    x = heads(BATCH, LENGTH, 12)
    query, key, value = (
        part.view(BATCH, LENGTH, 3, 4).transpose(1, 2) for part in layer.qkv(x).chunk(3, dim=-1)
    )
    rates = retention_decay(3).double() if decay else None
    expected = written_out(
        apply_rotary(query), apply_rotary(key), value, is_causal=True, decay=rates
    )
    expected = layer.proj(expected.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, is_causal=True), expected)


def test_bad_input_names_the_argument():
    query, key, value = inputs()
    with pytest.raises(ValueError, match=r"^attn_mask: torch\.float64"):
        linear_attention(query, key, value, torch.zeros(LENGTH, LENGTH, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^decay: given with is_causal=False"):
        linear_attention(query, key, value, decay=DECAY)
    with pytest.raises(ValueError, match=r"^decay: shape \(2,\)"):
        linear_attention(query, key, value, is_causal=True, decay=DECAY[:2])
    with pytest.raises(ValueError, match=r"^position: 'alibi'"):
        LinearAttention(12, 3, position="alibi")
    with pytest.raises(ValueError, match=r"^decay: given with is_causal=False"):
        LinearAttention(12, 3, decay=True)(torch.zeros(1, 4, 12))
