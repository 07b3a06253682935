"""Smoothness against SciPy's Gaussian filter, with which it is defined."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from heterodox.layers import smoothness


def draw(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(*shape, dtype=torch.float64, generator=generator).softmax(-1)


def by_filter(pmf, max_sigma):
    """The definition, one σ at a time."""
    return sum(
        6
        / (math.pi * sigma) ** 2
        * np.linalg.norm(pmf - gaussian_filter1d(pmf, sigma, mode="wrap", radius=len(pmf) - 1))
        for sigma in range(1, max_sigma + 1)
    )


@pytest.mark.parametrize("bins", [1, 2, 3, 8, 51])
@pytest.mark.parametrize("max_sigma", [1, 7, 100])
def test_it_is_the_distance_from_the_filtered_pmf(bins, max_sigma):
    pmf = draw(2, 3, bins)
    expected = [[by_filter(row, max_sigma) for row in rows] for rows in pmf.numpy()]
    torch.testing.assert_close(smoothness(pmf, max_sigma), torch.tensor(expected).double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_uniform_is_zero_with_a_finite_gradient(dtype):
    pmf = torch.full((2, 16), 1 / 16, dtype=dtype, requires_grad=True)
    value = smoothness(pmf)
    assert value.dtype == dtype and value.abs().max() < 1e-6
    (gradient,) = torch.autograd.grad(value.sum(), pmf)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("shift", [1, 5, -3])
def test_rolling_does_not_change_it(shift):
    pmf = draw(4, 20)
    torch.testing.assert_close(smoothness(pmf.roll(shift, -1)), smoothness(pmf))


def test_a_peak_is_less_smooth_than_a_wide_hill_and_a_hill_than_a_plain():
    x = torch.linspace(-1, 1, 50)
    narrow, wide = ((-(x**2) / (2 * s**2)).softmax(-1) for s in (0.05, 0.5))
    values = smoothness(torch.stack((wide, narrow)))
    assert 0 < values[0] < values[1]


def test_what_is_no_number_is_not_smooth():
    pmf = draw(2, 8)
    pmf[1, 3] = math.nan
    assert smoothness(pmf).isnan().tolist() == [False, True]


def test_gradients_match_finite_differences():
    assert torch.autograd.gradcheck(smoothness, draw(2, 6).requires_grad_())


def test_no_rows_give_no_numbers():
    assert smoothness(torch.zeros(0, 5)).shape == (0,)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("pmf", lambda: smoothness(torch.zeros(3, 0))),
        ("pmf", lambda: smoothness(torch.tensor(1.0))),
        ("pmf", lambda: smoothness(torch.tensor([1, 0]))),
        ("max_sigma", lambda: smoothness(torch.ones(3), max_sigma=0)),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .*expected"):
        call()
