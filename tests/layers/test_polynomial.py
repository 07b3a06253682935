"""Polynomial features against monomials counted one by one, degrees against exact arithmetic."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from heterodox.layers.polynomial import degree_for, monomials_of, polynomial_features


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def exponential_series(s, degree):
    return sum(s**t / math.factorial(t) for t in range(degree + 1))


@pytest.mark.parametrize("dim", [1, 2, 4, 7])
@pytest.mark.parametrize("degree", [0, 1, 2, 5])
def test_inner_products_are_the_truncated_exponential(dim, degree):
    x, y = draw(2, 3, 5, dim, seed=1), draw(2, 3, 6, dim, seed=2)
    products = polynomial_features(x, degree) @ polynomial_features(y, degree).mT
    torch.testing.assert_close(products, exponential_series(x @ y.mT, degree))


@pytest.mark.parametrize("dim", [0, 1, 3])
@pytest.mark.parametrize("degree", [0, 1, 4])
def test_features_are_all_distinct_monomials_with_their_coefficients(dim, degree):
    x = draw(1, dim)
    expected = []
    for exponents in itertools.product(range(degree + 1), repeat=dim):
        if sum(exponents) <= degree:
            monomial = math.prod(v**e for v, e in zip(x[0].tolist(), exponents, strict=True))
            weight = math.prod(math.factorial(e) for e in exponents)
            expected.append(monomial / math.sqrt(weight))
    features = polynomial_features(x, degree)
    assert features.shape == (1, math.comb(dim + degree, degree))
    assert sorted(features[0].tolist()) == pytest.approx(sorted(expected))


def test_the_first_features_are_one_and_the_point_itself():
    x = draw(5, 3)
    torch.testing.assert_close(polynomial_features(x, 3)[:, 1:4], x)
    assert (polynomial_features(x, 3)[:, 0] == 1).all()


def test_gradients_match_finite_differences():
    x = draw(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: polynomial_features(x, 3), x)


def test_every_monomial_is_made_by_one_product_from_the_degree_below():
    monomials = monomials_of(5, 4)
    made = sum(stop for blocks in monomials.blocks for stop, _ in blocks)
    assert monomials.count == made + 1 == math.comb(9, 4)


def error_by_fractions(degree, bound):
    """|T_g(-b) / exp(-b) - 1| in exact numbers, exp by a long series."""
    b = Fraction(bound)
    series = sum((-b) ** t / math.factorial(t) for t in range(degree + 1))
    inverse = sum(b**t / math.factorial(t) for t in range(200))
    return abs(series * inverse - 1)


@pytest.mark.parametrize("bound", [0.0, 1e-6, 0.3, 0.999, 1.0, 2.25, 7.0, 16.0])
@pytest.mark.parametrize("tol", [0.5, 1e-3, 1e-12])
def test_the_degree_is_the_least_that_keeps_the_tolerance(bound, tol):
    degree = degree_for(bound, tol)
    assert error_by_fractions(degree, bound) <= tol
    assert all(error_by_fractions(lower, bound) > tol for lower in range(degree))


def test_minus_the_bound_is_the_worst_point():
    s = torch.linspace(-3, 3, 601, dtype=torch.float64)
    for degree in (2, 5, 9):
        errors = (exponential_series(s, degree) / s.exp() - 1).abs()
        assert errors.argmax() == 0


def test_large_bounds_have_a_degree_in_proportion():
    # E_g = 1 where g^g e^-g = b^g e^b: at g = 3.59 b.
    for bound in (1e3, 1e6):
        assert degree_for(bound, 0.5) / bound == pytest.approx(3.59, abs=0.02)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: polynomial_features(torch.ones(3, 2), -1), "degree"),
        (lambda: polynomial_features(torch.ones(3, 2), True), "degree"),
        (lambda: polynomial_features(torch.ones(3, 64), 12), "degree"),
        (lambda: degree_for(-1.0, 0.1), "bound"),
        (lambda: degree_for(math.inf, 0.1), "bound"),
        (lambda: degree_for(math.nan, 0.1), "bound"),
        (lambda: degree_for(1.0, 0.0), "tol"),
        (lambda: degree_for(1.0, 1.0), "tol"),
    ],
)
def test_bad_input_names_the_argument(call, argument):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        call()


def test_points_need_two_axes():
    with pytest.raises(ValueError, match=r"^x: "):
        polynomial_features(torch.ones(3), 2)
