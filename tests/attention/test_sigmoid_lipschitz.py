"""The bound on the Jacobian of sigmoid self-attention, against the Jacobian itself."""

import math

import pytest
import torch

from heterodox.attention.sigmoid import sigmoid_attention, sigmoid_attention_lipschitz_bound


def jacobian_norm(x, weight_query, weight_key, weight_value, **options):
    def attention(x):
        query, key, value = (
            (x @ weight.mT)[None, None] for weight in (weight_query, weight_key, weight_value)
        )
        return sigmoid_attention(query, key, value, **options)[0, 0]

    jacobian = torch.autograd.functional.jacobian(attention, x)
    return torch.linalg.matrix_norm(jacobian.reshape(-1, x.numel()), ord=2)


@pytest.mark.parametrize("radius", [0.1, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("bias", [None, 0.0, 2.0, -8.0])
@pytest.mark.parametrize("scale", [None, -0.7, 2.0])
def test_the_jacobian_is_within_the_bound(radius, bias, scale):
    generator = torch.Generator().manual_seed(0)
    for length, dim, head_dim, value_dim in ((6, 4, 3, 2), (1, 3, 5, 4), (9, 2, 2, 2)):
        x, weight_query, weight_key, weight_value = (
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in ((length, dim), (head_dim, dim), (head_dim, dim), (value_dim, dim))
        )
        arguments = (radius * x, weight_query, weight_key, weight_value)
        bound = sigmoid_attention_lipschitz_bound(*arguments, scale=scale, bias=bias)
        assert jacobian_norm(*arguments, scale=scale, bias=bias) <= bound


def test_the_bound_is_attained_where_attention_is_linear():
    x = torch.zeros(5, 3, dtype=torch.float64)
    weight = torch.randn(3, 3, dtype=torch.float64)
    bound = sigmoid_attention_lipschitz_bound(x, weight, weight, weight)
    torch.testing.assert_close(jacobian_norm(x, weight, weight, weight), bound)
    norm = torch.linalg.matrix_norm(weight, ord=2)
    torch.testing.assert_close(bound, 5 / (1 + 5) * norm)


def test_the_bound_is_the_formula_for_one_token():
    x = torch.tensor([[2.0]], dtype=torch.float64)
    query, key, value = (torch.tensor([[w]], dtype=torch.float64) for w in (0.5, -0.3, 3.0))
    weight = 1 / (1 + math.exp(-(0.5 * 2 * -0.3 * 2 * 1.7 + 0.4)))
    expected = 3 * (weight + 2 * weight * (1 - weight) * 1.7 * 0.15 * 4)
    bound = sigmoid_attention_lipschitz_bound(x, query, key, value, scale=1.7, bias=0.4)
    torch.testing.assert_close(bound, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("position", "given", "message"),
    [
        (0, torch.zeros(3), r"x: shape \(3,\) given"),
        (0, torch.zeros(0, 3), r"x: shape \(0, 3\) given"),
        (1, torch.zeros(2, 4), r"weight_query: shape \(2, 4\) given"),
        (2, torch.zeros(5, 3), r"weight_key: shape \(5, 3\) given"),
        (3, torch.zeros(2, 2), r"weight_value: shape \(2, 2\) given"),
    ],
)
def test_bad_input_names_the_argument(position, given, message):
    arguments = [torch.zeros(4, 3), torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(6, 3)]
    arguments[position] = given
    with pytest.raises(ValueError, match=f"^{message}"):
        sigmoid_attention_lipschitz_bound(*arguments)
