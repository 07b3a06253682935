"""Densities from coefficients, against double sums, quadrature and the head of another form."""

import math

import numpy as np
import pytest
import torch

from heterodox.layers import fourier_series
from heterodox.layers.fourier_head import (
    autocorrelation,
    fourier_cdf,
    fourier_density,
    fourier_logits,
    fourier_penalty,
)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.complex128, generator=generator)


def as_parameters(a):
    return torch.cat((a.real, a.imag), -1)


def direct_autocorrelation(a):
    """The double sum, in Python's own complex numbers."""
    a = a.tolist()
    return [sum(a[l + k] * a[l].conjugate() for l in range(len(a) - k)) for k in range(len(a))]


def squared_density(a, x):
    """|Σ_l a_l e^{iπlx}|² / (2 Σ_l |a_l|²) of one row at one point."""
    total = sum(value * np.exp(1j * math.pi * l * x) for l, value in enumerate(a.tolist()))
    return abs(total) ** 2 / (2 * sum(abs(value) ** 2 for value in a.tolist()))


def logits_of(a, bins, eps=1e-5):
    centres = [-1 + (2 * j + 1) / bins for j in range(bins)]
    p = np.array([squared_density(a, x) for x in centres])
    return np.log(p / p.sum() + eps)


GRID = torch.linspace(-1, 1, 2001, dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 33])
def test_autocorrelation_by_fft_equals_the_double_sum(count):
    a = draw(3, count)
    expected = torch.tensor([direct_autocorrelation(row) for row in a], dtype=a.dtype)
    torch.testing.assert_close(autocorrelation(a), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("count", [2, 5, 20])
def test_coefficients_give_the_squared_form(count, seed):
    a = draw(count, seed=seed)
    points = torch.linspace(-1, 1, 17, dtype=torch.float64)
    expected = [squared_density(a, x) for x in points.tolist()]
    density = fourier_density(autocorrelation(a), points)
    torch.testing.assert_close(density.tolist(), expected, rtol=0, atol=1e-12)


def one_hot(count, place):
    return torch.eye(count, dtype=torch.complex128)[place]


@pytest.mark.parametrize("a", [draw(4, 9), one_hot(9, 0)[None], one_hot(9, 5)[None]])
def test_a_density_is_not_negative_and_integrates_to_one(a):
    density = fourier_density(autocorrelation(a), GRID)
    assert density.dtype == torch.float64
    assert density.min() > -1e-12
    torch.testing.assert_close(
        torch.trapezoid(density, GRID), torch.ones(len(a), dtype=torch.float64), atol=1e-10, rtol=0
    )


@pytest.mark.parametrize("place", range(4))
def test_a_single_coefficient_is_uniform(place):
    density = fourier_density(autocorrelation(one_hot(4, place)), GRID)
    torch.testing.assert_close(density, torch.full_like(GRID, 0.5))
    logits = fourier_logits(as_parameters(one_hot(4, place)), 7)
    torch.testing.assert_close(logits, torch.full_like(logits, math.log(1 / 7 + 1e-5)))


def test_the_second_of_two_coefficients_moves_the_mass_to_the_left_if_its_phase_is_positive():
    density = fourier_density(autocorrelation(torch.tensor([1, 1j])), torch.tensor([-0.5, 0.5]))
    torch.testing.assert_close(density, torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("factor", [2.0, -1.0, 1j, 0.3 - 0.4j, 1e-150, 1e150j])
def test_scale_and_phase_do_not_change_the_density(factor):
    a = draw(3, 6)
    for bins, parameters in ((9, a), (200, draw(3, 80))):
        torch.testing.assert_close(
            fourier_logits(as_parameters(factor * parameters), bins),
            fourier_logits(as_parameters(parameters), bins),
        )
    if 1e-3 < abs(factor) < 1e3:
        c = autocorrelation(a)
        density = fourier_density(autocorrelation(factor * a), GRID)
        torch.testing.assert_close(density, fourier_density(c, GRID))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_do_not_leave_the_range_of_float32(scale):
    parameters = as_parameters(draw(3, 6)).float()
    torch.testing.assert_close(
        fourier_logits(scale * parameters, 9), fourier_logits(parameters, 9), rtol=1e-4, atol=1e-4
    )


def test_the_cdf_runs_from_zero_to_one_and_its_slope_is_the_density():
    c = autocorrelation(draw(3, 7))
    ends = fourier_cdf(c, torch.tensor([-1.0, 1.0]))
    expected = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(3, 2)
    torch.testing.assert_close(ends, expected, atol=1e-12, rtol=0)
    points = torch.linspace(-0.9, 0.9, 11, dtype=torch.float64)
    step = 1e-5
    slope = (fourier_cdf(c, points + step) - fourier_cdf(c, points - step)) / (2 * step)
    torch.testing.assert_close(slope, fourier_density(c, points), rtol=1e-6, atol=1e-8)


def test_outside_of_its_support_the_density_is_zero_and_the_cdf_flat():
    c = autocorrelation(draw(5))
    points = torch.tensor([-3.0, -1.0001, 1.0001, 3.0, math.nan])
    assert fourier_density(c, points)[:4].tolist() == [0, 0, 0, 0]
    assert fourier_cdf(c, points)[:4].tolist() == [0, 0, 1, 1]
    assert fourier_density(c, points)[4].isnan() and fourier_cdf(c, points)[4].isnan()


@pytest.mark.parametrize("frequencies", [1, 3, 12, 70])
@pytest.mark.parametrize("bins", [2, 5, 50, 71, 72, 300])
def test_logits_are_those_of_the_density_at_the_middles_of_the_bins(frequencies, bins):
    a = draw(2, frequencies + 1, seed=frequencies)
    expected = np.stack([logits_of(row, bins) for row in a])
    logits = fourier_logits(as_parameters(a), bins)
    torch.testing.assert_close(logits, torch.from_numpy(expected), rtol=0, atol=1e-7)


def test_the_fft_and_the_product_with_all_waves_agree(monkeypatch):
    parameters = as_parameters(draw(5, 20)).requires_grad_()
    results = []
    for first in (8, 10**6):
        monkeypatch.setattr(fourier_series, "FFT_FROM", first)
        assert fourier_series.uses_fft(19, 60) == (first == 8)
        logits = fourier_logits(parameters, 60)
        (gradient,) = torch.autograd.grad(logits.square().sum(), parameters)
        results.append((logits, gradient))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


def test_softmax_of_the_logits_is_the_pmf_with_a_floor():
    a, eps = draw(4, 6), 1e-2
    logits = fourier_logits(as_parameters(a), 10, eps=eps)
    probabilities = logits.softmax(-1)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(4, dtype=torch.float64))
    y = fourier_density(autocorrelation(a), fourier_series.bin_centres(10, torch.float64, "cpu"))
    y = y / y.sum(-1, keepdim=True)
    torch.testing.assert_close(probabilities, (y + eps) / (1 + 10 * eps))


def test_the_sum_over_bins_is_half_their_number_below_the_aliasing():
    c = autocorrelation(draw(6))
    centres = fourier_series.bin_centres(6, torch.float64, "cpu")
    torch.testing.assert_close(fourier_density(c, centres).sum(), torch.tensor(3.0).double())


def test_the_penalty_is_the_formula_of_the_authors_code():
    c = autocorrelation(draw(2, 3, 4))
    rows = c.reshape(6, 4).tolist()
    each = [sum(2 * math.pi**2 * k**2 * abs(x) ** 2 for k, x in enumerate(row)) for row in rows]
    assert fourier_penalty(c).item() == pytest.approx(2 * sum(each) / 6, rel=1e-12)


def test_the_penalty_grows_with_the_fourth_power_of_the_scale():
    a = draw(3, 5)
    once, twice = (fourier_penalty(autocorrelation(scale * a)) for scale in (1, 2))
    torch.testing.assert_close(twice, 16 * once)


@pytest.mark.parametrize(("frequencies", "bins"), [(3, 5), (66, 70)])
def test_gradients_match_finite_differences(frequencies, bins):
    parameters = as_parameters(draw(2, frequencies + 1)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda r: fourier_logits(r, bins, eps=1e-2), parameters, fast_mode=True
    )
    a = draw(2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: fourier_penalty(autocorrelation(x)), a)


def test_second_derivatives_match_finite_differences():
    parameters = as_parameters(draw(1, 3)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda r: fourier_logits(r, 4, eps=0.1), parameters)


def test_a_row_of_zeros_is_uniform_with_finite_gradients():
    parameters = torch.zeros(2, 8, requires_grad=True)
    logits = fourier_logits(parameters, 5)
    torch.testing.assert_close(logits, torch.full((2, 5), math.log(0.2 + 1e-5)))
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), parameters)
    assert gradient.isfinite().all()
    c = torch.zeros(3, dtype=torch.complex64)
    assert fourier_density(c, torch.tensor([0.0, 0.7])).tolist() == [0.5, 0.5]
    assert fourier_cdf(c, torch.tensor([0.0])).tolist() == [0.5]


@pytest.mark.parametrize("frequencies", [3, 66])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_not_finite_stays_so_and_in_its_row(number, frequencies):
    parameters = as_parameters(draw(2, frequencies + 1))
    expected = fourier_logits(parameters, 80)
    parameters[1, 2] = number
    logits = fourier_logits(parameters, 80)
    assert logits[1].isnan().all()
    torch.testing.assert_close(logits[0], expected[0])


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_no_rows_give_no_rows(shape):
    assert fourier_logits(torch.zeros(*shape, 8), 5).shape == (*shape, 5)
    c = autocorrelation(torch.zeros(*shape, 4, dtype=torch.complex64))
    assert c.shape == (*shape, 4)
    assert fourier_density(c, torch.zeros(6)).shape == (*shape, 6)
    assert fourier_penalty(c).item() == 0


def test_a_large_head_never_stores_every_wave_for_every_bin_and_row():
    from heterodox.bench.live_memory import peak_of_live_tensors

    parameters = torch.randn(64, 2 * 257, requires_grad=True)

    def forward_and_backward():
        return torch.autograd.grad(fourier_logits(parameters, 1024).sum(), parameters)

    every_wave = 64 * 1024 * 256 * 8
    assert peak_of_live_tensors(forward_and_backward) < every_wave / 20


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("a", lambda: autocorrelation(torch.zeros(3))),
        ("a", lambda: autocorrelation(torch.zeros(2, 0, dtype=torch.complex64))),
        ("coefficients", lambda: fourier_density(torch.zeros(3), torch.zeros(2))),
        ("coefficients", lambda: fourier_cdf(torch.zeros(2, 1) + 0j, torch.zeros(2))),
        ("coefficients", lambda: fourier_penalty(torch.zeros(2, 1) + 0j)),
        ("points", lambda: fourier_density(torch.zeros(3) + 0j, torch.zeros(2, 2))),
        ("points", lambda: fourier_cdf(torch.zeros(3) + 0j, torch.zeros(2).long())),
        ("parameters", lambda: fourier_logits(torch.zeros(2), 5)),
        ("parameters", lambda: fourier_logits(torch.zeros(3, 7), 5)),
        ("num_bins", lambda: fourier_logits(torch.zeros(3, 8), 1)),
        ("eps", lambda: fourier_logits(torch.zeros(3, 8), 5, eps=0.0)),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .*expected"):
        call()
