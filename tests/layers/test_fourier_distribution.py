"""The distribution against numerical integrals, and its samples against its cdf."""

import math

import pytest
import torch
from scipy import integrate, stats

from heterodox.layers import FourierDistribution, FourierHead, autocorrelation, fourier_cdf
from heterodox.layers.fourier_head import fourier_density
from heterodox.training.seeding import seeded


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return autocorrelation(torch.randn(*shape, dtype=torch.complex128, generator=generator))


@pytest.fixture
def density():
    return FourierDistribution(draw(3, 6))


def integral(function):
    return integrate.quad(function, -1, 1, limit=200)[0]


def at(c, x):
    return fourier_density(c, torch.tensor([x], dtype=torch.float64)).item()


def test_moments_and_entropy_are_the_integrals(density):
    for row, c in enumerate(density.coefficients):
        mean = integral(lambda x, c=c: x * at(c, x))
        square = integral(lambda x, c=c: x * x * at(c, x))
        entropy = integral(lambda x, c=c: -at(c, x) * math.log(max(at(c, x), 1e-300)))
        assert density.mean[row].item() == pytest.approx(mean, abs=1e-8)
        assert density.variance[row].item() == pytest.approx(square - mean**2, abs=1e-8)
        assert density.entropy()[row].item() == pytest.approx(entropy, abs=1e-5)


def test_each_value_is_seen_by_its_own_density(density):
    values = 2 * torch.rand(4, 3, dtype=torch.float64) - 1
    for row, c in enumerate(density.coefficients):
        expected = fourier_density(c, values[:, row]).log()
        torch.testing.assert_close(density.log_prob(values)[:, row], expected)
        torch.testing.assert_close(density.cdf(values)[:, row], fourier_cdf(c, values[:, row]))


def test_one_value_is_seen_by_all_densities(density):
    value = torch.tensor(0.3, dtype=torch.float64)
    expected = fourier_density(density.coefficients, value[None])[:, 0].log()
    torch.testing.assert_close(density.log_prob(value), expected)


def test_icdf_is_the_inverse_of_cdf(density):
    values = torch.linspace(-0.99, 0.99, 12, dtype=torch.float64).view(4, 3)
    torch.testing.assert_close(density.icdf(density.cdf(values)), values, rtol=0, atol=1e-6)


def test_icdf_of_half_precision_is_exact_for_the_number_that_is_given(density):
    half = torch.rand(4, 3).bfloat16()
    torch.testing.assert_close(density.icdf(half), density.icdf(half.double()), rtol=0, atol=1e-6)


def test_samples_follow_the_cdf(density):
    samples = density.sample((2000,), generator=torch.Generator().manual_seed(3))
    assert samples.shape == (2000, 3) and samples.abs().max() <= 1
    for row, c in enumerate(density.coefficients):
        result = stats.kstest(
            samples[:, row].numpy(), lambda x, c=c: fourier_cdf(c, torch.tensor(x)).numpy()
        )
        assert result.pvalue > 1e-3


def test_a_generator_decides_the_samples(density):
    first, second = (density.sample((5,), torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert density.sample().shape == (3,)


def test_expand_repeats_the_densities(density):
    wide = density.expand((4, 3))
    assert wide.batch_shape == (4, 3) and wide.sample((2,)).shape == (2, 4, 3)
    torch.testing.assert_close(wide.mean[2], density.mean)


def test_the_likelihood_has_the_gradient_of_finite_differences():
    head = FourierHead(4, 8, num_frequencies=3, weight_scale=1.0).double()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    values = torch.tensor([-0.4, 0.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: head.distribution(x).log_prob(values), x)


def test_training_by_likelihood_comes_near_the_entropy_of_the_data():
    with seeded(0):
        head = FourierHead(1, 2, num_frequencies=8)
    values = 0.1 * torch.randn(400, generator=torch.Generator().manual_seed(0)) + 0.4
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        loss = -head.distribution(torch.ones(400, 1)).log_prob(values).mean()
        loss.backward()
        optimizer.step()
    gaussian = 0.5 + math.log(math.sqrt(2 * math.pi) * values.std().item())
    assert gaussian - 0.1 < loss.item() < gaussian + 0.15
    learned = head.distribution(torch.ones(1))
    assert learned.mean.item() == pytest.approx(values.mean().item(), abs=0.03)


def test_where_the_density_is_zero_the_likelihood_is_finite():
    density = FourierDistribution(autocorrelation(torch.tensor([1 + 0j, 1 + 0j])))
    log_prob = density.log_prob(torch.tensor([-1.0, 1.0]))
    assert log_prob.isfinite().all() and (log_prob < -15).all()


def test_uniform_where_all_coefficients_are_zero():
    density = FourierDistribution(torch.zeros(4, dtype=torch.complex64))
    assert density.log_prob(torch.tensor([0.3])).item() == pytest.approx(math.log(0.5))
    assert density.variance.item() == pytest.approx(1 / 3)
    assert density.entropy().item() == pytest.approx(math.log(2))


def test_no_rows_give_no_numbers():
    density = FourierDistribution(torch.zeros(0, 4, dtype=torch.complex64))
    assert density.mean.shape == density.entropy().shape == density.sample().shape == (0,)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("coefficients", lambda: FourierDistribution(torch.zeros(3))),
        ("coefficients", lambda: FourierDistribution(torch.ones(1) + 0j)),
        ("coefficients", lambda: FourierDistribution(torch.tensor([1.0, math.nan]) + 0j)),
        ("coefficients", lambda: FourierDistribution(torch.tensor([1.0, 2.0]) + 0j)),
        ("coefficients", lambda: FourierDistribution(torch.tensor([-1.0, 0.0]) + 0j)),
        ("value", lambda: FourierDistribution(draw(4)).log_prob(torch.tensor([1.5]))),
        ("value", lambda: FourierDistribution(draw(4)).log_prob(torch.tensor([math.nan]))),
        ("value", lambda: FourierDistribution(draw(4)).cdf(torch.tensor([-2.0]))),
        ("value", lambda: FourierDistribution(draw(4)).icdf(torch.tensor([1.1]))),
        ("value", lambda: FourierDistribution(draw(4)).log_prob(0.3)),
        ("value", lambda: FourierDistribution(draw(3, 4)).log_prob(torch.zeros(2))),
        ("value", lambda: FourierDistribution(draw(3, 4)).icdf(torch.zeros(3, 2))),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .*expected"):
        call()


def test_unchecked_values_outside_have_no_density():
    density = FourierDistribution(draw(4), validate_args=False)
    values = torch.tensor([-2.0, 2.0], dtype=torch.float64)
    assert density.log_prob(values).tolist() == [-math.inf, -math.inf]
    assert density.cdf(values).tolist() == [0, 1]
