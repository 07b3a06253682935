"""The softmax matrix as a product of two thin ones."""

import itertools
import math

import pytest
import torch

from heterodox.compression.low_rank import degree_for, low_rank_softmax


def points(*shape, seed=0, largest=1.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*shape, dtype=torch.float64, generator=generator) * 2 - 1
    return largest * x / x.abs().max()


def truncated_softmax(logits, degree):
    series = sum(logits**t / math.factorial(t) for t in range(degree + 1))
    return series / series.sum(-1, keepdim=True)


@pytest.mark.parametrize("degree", [0, 2, 4])
def test_the_product_is_the_softmax_of_the_truncated_exponential(degree):
    query, key = points(2, 7, 3, seed=1, largest=2.0), points(2, 9, 3, seed=2, largest=2.0)
    left, right = low_rank_softmax(query, key, degree)
    assert left.shape == (2, 7, math.comb(3 + degree, degree))
    torch.testing.assert_close(left @ right.mT, truncated_softmax(query @ key.mT, degree))


def test_degree_zero_is_uniform_attention():
    left, right = low_rank_softmax(points(4, 2), points(5, 2, seed=1), 0)
    torch.testing.assert_close(left @ right.mT, torch.full((4, 5), 0.2, dtype=torch.float64))


def test_entries_are_as_good_as_the_degree_promises():
    query, key = points(50, 4, seed=1), points(60, 4, seed=2)
    tol = 1e-3
    degree = degree_for(float((query @ key.mT).abs().max()), tol)
    left, right = low_rank_softmax(query, key, degree)
    exact = (query @ key.mT).softmax(-1)
    assert ((left @ right.mT / exact - 1).abs()).max() <= 2 * tol / (1 - tol)


def test_the_error_falls_with_the_degree_while_logits_are_at_most_one():
    query, key = points(40, 3, seed=1) / 3**0.5, points(40, 3, seed=2) / 3**0.5
    assert (query @ key.mT).abs().max() <= 1
    exact = (query @ key.mT).softmax(-1)
    factors = [low_rank_softmax(query, key, degree) for degree in range(8)]
    errors = [float((left @ right.mT - exact).abs().max()) for left, right in factors]
    assert all(after < before for before, after in itertools.pairwise(errors))


def test_even_degrees_work_where_odd_ones_have_rows_that_are_not_positive():
    query, key = torch.tensor([[1.0]]), torch.tensor([[-1.5]])
    assert low_rank_softmax(query, key, 2).left.isfinite().all()
    with pytest.raises(ValueError, match=r"^degree: 1 given.*even"):
        low_rank_softmax(query, key, 1)
    assert low_rank_softmax(query, key, 3).left.isfinite().all()  # negative below -1.6 only
    with pytest.raises(ValueError, match=r"^degree: 3 given"):
        low_rank_softmax(query, 1.2 * key, 3)


@pytest.mark.parametrize(
    ("query", "key", "degree", "argument"),
    [
        (torch.ones(3), torch.ones(3, 2), 2, "query"),
        (torch.ones(3, 2), torch.ones(3, 4), 2, "key"),
        (torch.ones(2, 3, 2), torch.ones(3, 3, 2), 2, "key"),
        (torch.ones(3, 2), torch.ones(0, 2), 2, "key"),
        (torch.ones(3, 2), torch.ones(3, 2), -2, "degree"),
    ],
)
def test_bad_input_names_the_argument(query, key, degree, argument):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        low_rank_softmax(query, key, degree)
