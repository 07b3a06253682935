"""Rotary embedding and ALiBi, against complex numbers and the published slopes."""

import math

import pytest
import torch

from heterodox.attention.position import alibi_bias, alibi_slopes, apply_rotary


def test_rotary_multiplies_each_pair_by_a_complex_phase():
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    rotated = apply_rotary(x, offset=4, base=500.0)
    for position in range(7):
        for pair in range(3):
            angle = (position + 4) * 500.0 ** (-2 * pair / 6)
            phase = complex(math.cos(angle), math.sin(angle))
            before = torch.complex(x[..., position, 2 * pair], x[..., position, 2 * pair + 1])
            after = torch.complex(
                rotated[..., position, 2 * pair], rotated[..., position, 2 * pair + 1]
            )
            torch.testing.assert_close(after, before * phase)


def test_rotary_products_depend_on_the_difference_of_positions_only():
    query, key = torch.randn(2, 1, 8, dtype=torch.float64)
    products = [
        apply_rotary(query, offset=start + 5) @ apply_rotary(key, offset=start).mT
        for start in (0, 3, 1000)
    ]
    torch.testing.assert_close(products[0], products[1])
    torch.testing.assert_close(products[0], products[2])


def test_rotary_leaves_position_zero_and_every_norm_as_they_are():
    x = torch.randn(5, 10)
    rotated = apply_rotary(x)
    torch.testing.assert_close(rotated[0], x[0])
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))


def test_rotary_of_half_precision_is_the_rounded_rotary_of_float32():
    x = torch.randn(2, 4000, 8).bfloat16()
    rotated = apply_rotary(x)
    assert rotated.dtype == torch.bfloat16
    torch.testing.assert_close(rotated, apply_rotary(x.float()).bfloat16())


def test_rotary_accepts_no_rows_and_views():
    assert apply_rotary(torch.zeros(2, 0, 4)).shape == (2, 0, 4)
    x = torch.randn(2, 6, 3, 4)
    torch.testing.assert_close(
        apply_rotary(x.transpose(1, 2)), apply_rotary(x.transpose(1, 2).contiguous())
    )


def test_rotary_gradients_match_finite_differences():
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: apply_rotary(x, offset=2), (x,))


def test_an_odd_head_dim_names_the_argument():
    with pytest.raises(ValueError, match=r"^x: last dimension 5 given"):
        apply_rotary(torch.zeros(2, 5))


def published_slopes(num_heads):
    """The recursion of the ALiBi paper's published code, in its own terms."""

    def power_of_two(count):
        start = 2 ** (-(2 ** -(math.log2(count) - 3)))
        return [start * start**i for i in range(count)]

    if math.log2(num_heads).is_integer():
        return power_of_two(num_heads)
    lower = 2 ** math.floor(math.log2(num_heads))
    return power_of_two(lower) + published_slopes(2 * lower)[0::2][: num_heads - lower]


@pytest.mark.parametrize("num_heads", [1, 2, 3, 5, 8, 12, 16, 20, 31])
def test_slopes_are_the_published_ones(num_heads):
    expected = torch.tensor(published_slopes(num_heads))
    torch.testing.assert_close(alibi_slopes(num_heads), expected)


def test_no_heads_name_the_argument():
    with pytest.raises(ValueError, match=r"^num_heads: 0 given"):
        alibi_slopes(0)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(4, 4), (2, 5), (5, 2), (1, 3), (0, 3)])
def test_the_penalty_is_the_distance_with_the_last_positions_aligned(num_queries, num_keys):
    bias = alibi_bias(torch.tensor([0.5, 2.0]), num_queries, num_keys)
    assert bias.shape == (2, num_queries, num_keys)
    for i in range(num_queries):
        for j in range(num_keys):
            distance = abs(i + num_keys - num_queries - j)
            assert bias[0, i, j] == -0.5 * distance
            assert bias[1, i, j] == -2.0 * distance
