import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate
from scipy.spatial.distance import pdist

from heterodox.bench.live_memory import peak_of_live_tensors
from heterodox.losses.cauchy_schwarz import (
    CauchySchwarzBottleneckLoss,
    cauchy_schwarz_bottleneck,
    cauchy_schwarz_divergence,
    cauchy_schwarz_mutual_information,
    conditional_cauchy_schwarz_divergence,
    gaussian_gram,
    median_bandwidth,
)

TWO = cauchy_schwarz_divergence
CONDITIONAL = conditional_cauchy_schwarz_divergence
INFORMATION = cauchy_schwarz_mutual_information


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gram(a, b, s):
    """The definition, entry by entry."""
    return torch.tensor(
        [[math.exp(-((u - v) ** 2).sum().item() / (2 * s**2)) for v in b] for u in a],
        dtype=torch.float64,
    )


def brute_two(x, y, s):
    means = [gram(a, b, s).mean() for a, b in ((x, x), (y, y), (x, y))]
    return means[0].log() + means[1].log() - 2 * means[2].log()


def brute_conditional(x, target, input, s_x, s_y):
    k = gram(x, x, s_x)

    def c(m):
        return sum((k[j] @ m[j]) / k[j].sum() ** 2 for j in range(len(k)))

    own, other = c(gram(target, target, s_y)), c(gram(input, input, s_y))
    return own.log() + other.log() - 2 * c(gram(input, target, s_y)).log()


def brute_information(x, y, s_x, s_y):
    k, q = gram(x, x, s_x), gram(y, y, s_y)
    joint, product = (k * q).mean(), k.mean() * q.mean()
    cross = (k.mean(1) * q.mean(1)).mean()
    return joint.log() + product.log() - 2 * cross.log()


def test_a_gram_matrix_is_its_definition_entry_by_entry():
    x, y = normal(5, 3), normal(4, 3, seed=1)
    torch.testing.assert_close(gaussian_gram(x, y, 0.7), gram(x, y, 0.7))
    torch.testing.assert_close(gaussian_gram(x), gram(x, x, 1.0))
    torch.testing.assert_close(gaussian_gram(x[:, 0]), gaussian_gram(x[:, :1]))


@pytest.mark.parametrize("rows", [2, 3, 9, 10])
def test_the_median_width_is_numpys_median_of_the_distances_between_pairs(rows):
    x = normal(rows, 3)
    assert median_bandwidth(x).item() == pytest.approx(np.median(pdist(x.numpy())))


def test_all_estimates_are_their_definitions():
    x, y, t = normal(7, 3), normal(7, 2, seed=1), normal(7, 4, seed=2)
    p = y + 0.5 * normal(7, 2, seed=3)
    torch.testing.assert_close(TWO(y, p[:5], 0.8), brute_two(y, p[:5], 0.8))
    torch.testing.assert_close(CONDITIONAL(x, y, p, 1.3, 0.6), brute_conditional(x, y, p, 1.3, 0.6))
    torch.testing.assert_close(INFORMATION(x, t, 1.3, 0.9), brute_information(x, t, 1.3, 0.9))
    own = brute_information(x, x, 1.3, 1.3) * brute_information(t, t, 0.9, 0.9)
    torch.testing.assert_close(
        INFORMATION(x, t, 1.3, 0.9, normalized=True), brute_information(x, t, 1.3, 0.9) / own.sqrt()
    )


def test_each_row_of_the_conditional_divergence_is_divided_by_its_squared_sum():
    """The authors' code divides by the sum of squares, which is another number."""
    x, y, p = normal(9, 2), normal(9, 1, seed=1), normal(9, 1, seed=2)
    k = gram(x, x, 1.0)

    def c(m):
        return ((k * m).sum(1) / (k**2).sum(1)).sum()

    grams = [gram(a, b, 1.0) for a, b in ((y, y), (p, p), (p, y))]
    theirs = c(grams[0]).log() + c(grams[1]).log() - 2 * c(grams[2]).log()
    assert abs(CONDITIONAL(x, y, p) - theirs) > 1e-3
    torch.testing.assert_close(CONDITIONAL(x, y, p), brute_conditional(x, y, p, 1.0, 1.0))


def test_targets_of_one_dimension_are_columns():
    """In the authors' script they made the term a squared error."""
    x, y, p, t = normal(8, 3), normal(8, seed=1), normal(8, seed=2), normal(8, 2, seed=3)
    torch.testing.assert_close(CONDITIONAL(x, y, p), CONDITIONAL(x, y[:, None], p[:, None]))
    torch.testing.assert_close(TWO(y, p), TWO(y[:, None], p[:, None]))
    loss = CauchySchwarzBottleneckLoss()
    torch.testing.assert_close(loss(p, y, x, t), loss(p[:, None], y[:, None], x, t))
    assert abs(CONDITIONAL(x, y, p) - (y - p).square().sum()) > 1


def test_two_samples_are_compared_as_the_integral_over_their_density_estimates():
    x, y, s = normal(6).numpy(), 1 + normal(4, seed=1).numpy(), 0.8
    h = s / math.sqrt(2)

    def density(points, z):
        return np.exp(-((z - points) ** 2) / (2 * h**2)).sum() / (len(points) * h)

    def product(a, b):
        return integrate.quad(lambda z: density(a, z) * density(b, z), -9, 9, limit=200)[0]

    expected = math.log(product(x, x)) + math.log(product(y, y)) - 2 * math.log(product(x, y))
    assert TWO(torch.tensor(x), torch.tensor(y), s).item() == pytest.approx(expected, abs=1e-9)


def test_two_normal_samples_approach_the_closed_form():
    n, shift, deviations, s = 4000, 1.5, (1.0, 1.6), 0.5
    quantiles = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    v1, v2 = (deviation**2 + s**2 / 2 for deviation in deviations)
    expected = shift**2 / (v1 + v2) + math.log((v1 + v2) / (2 * math.sqrt(v1 * v2)))
    found = TWO(deviations[0] * quantiles, shift + deviations[1] * quantiles, s)
    assert found.item() == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("seed", range(5))
def test_divergence_and_information_are_symmetric_and_not_negative(seed):
    x, y = normal(12, 2, seed=seed), normal(12, 2, seed=seed + 100) + 0.1
    for estimate in (TWO, INFORMATION):
        assert estimate(x, y) > 0
        torch.testing.assert_close(estimate(x, y), estimate(y, x))
    for dtype in (torch.float64, torch.float32):
        assert INFORMATION(x.to(dtype), y.to(dtype), 20.0, 20.0) > -1e-7
        assert TWO(x.to(dtype), y.to(dtype) * 1e-3 + x.to(dtype), 20.0) > -1e-6


def test_equal_samples_and_only_they_have_no_divergence():
    x, y = normal(10, 2), normal(10, 2, seed=1)
    assert TWO(x, x.flip(0)).abs() < 1e-12
    assert CONDITIONAL(x, y, y).abs() < 1e-12
    moved = y.clone()
    moved[3, 0] += 0.1
    assert TWO(y, moved) > 1e-6
    assert CONDITIONAL(x, y, moved) != 0


def test_the_information_in_a_constant_is_zero_normalised_or_not():
    x = normal(20, 3, dtype=torch.float32)
    for constant in (torch.zeros(20), 1234.5 * torch.ones(20, 5)):
        assert INFORMATION(x, constant).abs() < 1e-6
        assert INFORMATION(x, constant, normalized=True).abs() < 1e-3


def test_the_information_of_a_variable_about_itself_is_one_when_normalised():
    x = normal(20, 3)
    assert INFORMATION(x, x, normalized=True).item() == pytest.approx(1.0)
    assert INFORMATION(x, 3 * x - 5, 1.0, 3.0, normalized=True).item() == pytest.approx(1.0)


def test_the_order_of_the_rows_does_not_matter():
    x, y, p, t = normal(11, 3), normal(11, 1, seed=1), normal(11, 1, seed=2), normal(11, 2, seed=3)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    loss = CauchySchwarzBottleneckLoss(beta=0.5)
    torch.testing.assert_close(loss(p[order], y[order], x[order], t[order]), loss(p, y, x, t))


def test_a_shift_does_not_matter_in_float32_either():
    x, y, p, t = (normal(30, d, seed=d, dtype=torch.float32) for d in (3, 1, 1, 4))
    loss = CauchySchwarzBottleneckLoss(beta=0.5)
    shifted = loss(p + 50, y + 50, x - 100, t + 200)
    torch.testing.assert_close(shifted, loss(p, y, x, t), rtol=1e-4, atol=1e-5)


def test_with_wide_kernels_the_divergence_of_two_samples_is_the_squared_distance_of_means():
    x, y = normal(15, 2), normal(12, 2, seed=1) + 1
    width = 1e3
    expected = (x.mean(0) - y.mean(0)).square().sum()
    assert TWO(x, y, width) < 1e-5
    torch.testing.assert_close(TWO(x, y, width) * width**2, expected, rtol=1e-4, atol=0)


def test_with_narrow_kernels_of_x_the_conditional_divergence_is_welschs_loss():
    x, y, p = normal(15, 4), normal(15, 1, seed=1), normal(15, 1, seed=2)
    welsch = -2 * (-(y - p).square() / (2 * 0.7**2)).exp().mean().log()
    torch.testing.assert_close(CONDITIONAL(x, y, p, 1e-3, 0.7), welsch)


def test_with_wide_kernels_of_x_the_pairing_is_lost():
    x, y = normal(15, 2), normal(15, 1, seed=1)
    assert CONDITIONAL(x, y, y.flip(0), 1e4, 1.0).abs() < 1e-6
    assert CONDITIONAL(x, y, y.flip(0), 0.1, 1.0) > 0.1


def test_predictions_far_from_every_target_have_a_finite_loss_that_draws_them_back():
    x, y, t = (normal(16, d, seed=d, dtype=torch.float32) for d in (3, 1, 4))
    p = (y + 200).requires_grad_()
    loss = cauchy_schwarz_bottleneck(p, y, x, t)
    (gradient,) = torch.autograd.grad(loss, p)
    assert loss.isfinite() and loss > 1e4
    assert gradient.sum() > 100
    assert cauchy_schwarz_bottleneck(p - 1e-2 * gradient, y, x, t) < loss
    far = TWO(x, x + 1000)
    assert far.isfinite() and far > 1e5


def test_rows_far_from_all_others_keep_the_loss_and_its_gradient_finite():
    for seed in range(30):
        x = normal(16, 3, seed=seed, dtype=torch.float32)
        x[::3] *= 3e4
        x.requires_grad_()
        y, t = (normal(16, d, seed=seed + d, dtype=torch.float32) for d in (1, 4))
        loss = cauchy_schwarz_bottleneck(y + 0.1, y, x, t)
        (gradient,) = torch.autograd.grad(loss, x)
        assert loss.isfinite() and gradient.isfinite().all()


def losses():
    x, y, p, t = normal(7, 3), normal(7, 2, seed=1), normal(7, 2, seed=2), normal(7, 4, seed=3)
    plain = CauchySchwarzBottleneckLoss(0.3, 1.2, 0.9, 0.8)
    absolute = CauchySchwarzBottleneckLoss(0.3, normalized=False, information_bandwidth=2.0)
    yield "two samples", lambda a, b: TWO(a, b, 0.8), (y, p[:5])
    yield "conditional", lambda a, b, c: CONDITIONAL(a, b, c, 1.2, 0.8), (x, y, p)
    yield "information", lambda a, b: INFORMATION(a, b, 1.2, 0.8), (x, t)
    yield "normalised", lambda a, b: INFORMATION(a, b, 1.2, 0.8, True), (x, t)
    yield "objective", plain, (p, y, x, t)
    yield "objective of two widths", absolute, (p, y, x, t)


@pytest.mark.parametrize(("function", "inputs"), [case[1:] for case in losses()])
def test_gradients_in_every_argument_match_finite_differences(function, inputs):
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("block_size", [1, 3, 7, 100])
def test_rows_in_blocks_give_the_same_loss_and_gradients(block_size):
    x, y, p, t = normal(13, 3), normal(13, 1, seed=1), normal(13, 1, seed=2), normal(13, 4, seed=3)
    calls = (
        lambda b, *z: cauchy_schwarz_bottleneck(*z, beta=0.7, block_size=b),
        lambda b, *z: CONDITIONAL(z[2], z[1], z[0], block_size=b),
        lambda b, *z: INFORMATION(z[2], z[3], normalized=True, block_size=b),
        lambda b, *z: TWO(z[0], z[1][:6], block_size=b),
    )
    for call in calls:
        results = []
        for size in (None, block_size):
            inputs = [z.clone().requires_grad_() for z in (p, y, x, t)]
            value = call(size, *inputs)
            gradients = torch.autograd.grad(value, inputs, materialize_grads=True)
            results.append((value, *gradients))
        for blocked, whole in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(blocked, whole)


def peak_of_a_step(rows, block_size):
    x, y, p, t = (normal(rows, d, seed=d, dtype=torch.float32) for d in (3, 1, 1, 4))
    p.requires_grad_()
    t.requires_grad_()
    return peak_of_live_tensors(
        lambda: cauchy_schwarz_bottleneck(p, y, x, t, block_size=block_size).backward()
    )


def test_memory_is_linear_in_the_rows_of_a_batch():
    assert peak_of_a_step(1000, 20) < 5 * peak_of_a_step(250, 20)
    matrix = 4 * 1000**2
    assert peak_of_a_step(1000, 20) < matrix
    assert peak_of_a_step(1000, 1000) > 5 * matrix


def test_a_batch_of_more_than_a_thousand_rows_is_cut_into_blocks_by_itself():
    assert peak_of_a_step(2048, None) < 0.6 * peak_of_a_step(2048, 2048)
    assert peak_of_a_step(512, None) == peak_of_a_step(512, 512)


def test_the_objective_is_its_two_terms():
    x, y, p, t = normal(9, 3), normal(9, 1, seed=1), normal(9, 1, seed=2), normal(9, 4, seed=3)
    for normalized in (True, False):
        for width in (None, 1.7):
            loss = CauchySchwarzBottleneckLoss(
                0.4, 1.3, 0.6, 0.8, normalized, information_bandwidth=width
            )
            information = INFORMATION(x, t, width or 1.3, 0.6, normalized)
            expected = CONDITIONAL(x, y, p, 1.3, 0.8) + 0.4 * information
            torch.testing.assert_close(loss(p, y, x, t), expected)


def test_without_beta_the_code_does_not_matter_and_gets_no_gradient():
    x, y, p, t = normal(9, 3), normal(9, 1, seed=1), normal(9, 1, seed=2), normal(9, 4, seed=3)
    t.requires_grad_()
    loss = CauchySchwarzBottleneckLoss(beta=0)(p, y, x, t)
    torch.testing.assert_close(loss, CONDITIONAL(x, y, p))
    assert not loss.requires_grad


def test_median_widths_are_those_of_the_batch_and_constants():
    x, y, p, t = normal(9, 3), normal(9, 1, seed=1), normal(9, 1, seed=2), normal(9, 4, seed=3)
    t.requires_grad_()
    median = CauchySchwarzBottleneckLoss(0.4, bandwidth_t="median", information_bandwidth="median")
    fixed = CauchySchwarzBottleneckLoss(
        0.4,
        bandwidth_t=median_bandwidth(t).item(),
        information_bandwidth=median_bandwidth(x).item(),
    )
    values = [loss(p, y, x, t) for loss in (median, fixed)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, t)[0] for value in values))
    constant = torch.ones(9, 4, dtype=torch.float64)
    assert median(p, y, x, constant).isfinite()


def test_widths_may_be_tensors():
    x, t = normal(9, 3), normal(9, 4, seed=3)
    width = median_bandwidth(t)
    torch.testing.assert_close(INFORMATION(x, t, 1.0, width), INFORMATION(x, t, 1.0, width.item()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_also_under_autocast(dtype):
    x, y, p, t = (normal(20, d, seed=d).to(dtype) for d in (3, 1, 1, 4))
    p = p + 0.5
    exact = cauchy_schwarz_bottleneck(*(z.double() for z in (p, y, x, t)), beta=0.5)
    half = cauchy_schwarz_bottleneck(p, y, x, t, beta=0.5)
    assert half.dtype == dtype
    assert half.item() == pytest.approx(exact.item(), rel=1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = cauchy_schwarz_bottleneck(p, y, x, t, beta=0.5)
    assert under.dtype == torch.float32
    assert under.item() == pytest.approx(exact.item(), rel=1e-4)


def line(loss, x, y):
    """Slope and intercept that a loss of predictions comes to."""
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss(weights[0] * x[:, 0] + weights[1]).backward()
        optimizer.step()
    return weights.tolist()


def test_it_learns_a_line_and_ignores_a_tenth_of_wild_targets():
    x = normal(150, 1)
    y = 2 * x[:, 0] - 1
    y[::10] += 30
    robust = line(lambda p: CONDITIONAL(x, y, p, 0.1), x, y)
    assert robust == pytest.approx([2, -1], abs=0.05)
    squared = line(lambda p: F.mse_loss(p, y), x, y)
    assert squared[1] > 1


def test_wide_kernels_of_x_smooth_the_predictions_and_the_divergence_becomes_negative():
    x = normal(150, 1)
    y = 2 * x[:, 0] - 1
    slope, intercept = line(lambda p: CONDITIONAL(x, y, p, 1.0), x, y)
    assert 1 < slope < 1.6
    assert CONDITIONAL(x, y, slope * x[:, 0] + intercept, 1.0) < -0.05


ROWS, OTHER = normal(5, 2), normal(5, 2, seed=1)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("x", lambda: TWO(ROWS[:1], OTHER)),
        ("y", lambda: TWO(ROWS, OTHER[:0])),
        ("y", lambda: TWO(ROWS, OTHER[:, :1])),
        ("x", lambda: TWO(ROWS[None], OTHER)),
        ("y", lambda: TWO(ROWS, OTHER * math.nan)),
        ("bandwidth", lambda: TWO(ROWS, OTHER, 0)),
        ("bandwidth", lambda: TWO(ROWS, OTHER, torch.tensor(-1.0))),
        ("bandwidth", lambda: TWO(ROWS, OTHER, math.nan)),
        ("block_size", lambda: TWO(ROWS, OTHER, block_size=0)),
        ("target", lambda: CONDITIONAL(ROWS, OTHER[:4], OTHER)),
        ("input", lambda: CONDITIONAL(ROWS, OTHER, OTHER[:4])),
        ("input", lambda: CONDITIONAL(ROWS, OTHER, OTHER[:, 0])),
        ("input", lambda: CONDITIONAL(ROWS, OTHER, OTHER / 0)),
        ("x", lambda: CONDITIONAL(ROWS[:1], OTHER[:1], OTHER[:1])),
        ("bandwidth_x", lambda: CONDITIONAL(ROWS, OTHER, OTHER, -1)),
        ("bandwidth_y", lambda: CONDITIONAL(ROWS, OTHER, OTHER, 1, math.inf)),
        ("y", lambda: INFORMATION(ROWS, OTHER[:4])),
        ("x", lambda: INFORMATION(ROWS.long(), OTHER)),
        ("bandwidth_y", lambda: INFORMATION(ROWS, OTHER, 1, 0)),
        ("x", lambda: median_bandwidth(ROWS[:1])),
        ("y", lambda: gaussian_gram(ROWS, OTHER[:, :1])),
        ("x", lambda: gaussian_gram(ROWS[:0])),
        ("bandwidth", lambda: gaussian_gram(ROWS, bandwidth=-2)),
        ("beta", lambda: CauchySchwarzBottleneckLoss(beta=-0.1)),
        ("bandwidth_x", lambda: CauchySchwarzBottleneckLoss(bandwidth_x=0)),
        ("bandwidth_t", lambda: CauchySchwarzBottleneckLoss(bandwidth_t="mean")),
        ("information_bandwidth", lambda: CauchySchwarzBottleneckLoss(information_bandwidth=0)),
        ("t", lambda: CauchySchwarzBottleneckLoss()(ROWS, OTHER, ROWS, OTHER[:3])),
        ("input", lambda: CauchySchwarzBottleneckLoss()(ROWS[:1], OTHER[:1], ROWS[:1], ROWS[:1])),
        ("t", lambda: CauchySchwarzBottleneckLoss()(ROWS, OTHER, ROWS, ROWS * math.inf)),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .*expected"):
        call()
