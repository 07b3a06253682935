import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from heterodox.losses.information_penalties import (
    nonlinear_information,
    normalized_hsic,
    variational_information,
)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_the_variational_bound_is_torchs_divergence_from_a_standard_normal():
    mean, log_variance = normal(6, 3), normal(6, 3, seed=1)
    code = Independent(Normal(mean, (log_variance / 2).exp()), 1)
    standard = Independent(Normal(torch.zeros(6, 3).double(), torch.ones(6, 3).double()), 1)
    expected = kl_divergence(code, standard).mean()
    torch.testing.assert_close(variational_information(mean, log_variance), expected)


def test_the_nonlinear_bound_is_the_mean_logarithm_of_its_mixture():
    mean, noise = normal(6, 3), 0.7
    distances = torch.cdist(mean, mean).square() / (2 * noise**2)
    expected = -(-distances).exp().mean(1).log().mean()
    torch.testing.assert_close(nonlinear_information(mean, noise), expected)
    torch.testing.assert_close(nonlinear_information(mean, noise, block_size=2), expected)


def test_the_nonlinear_bound_lies_between_zero_and_the_logarithm_of_the_rows():
    assert nonlinear_information(torch.ones(8, 3)).abs() < 1e-6
    far = 100 * torch.eye(8, dtype=torch.float64)
    assert nonlinear_information(far).item() == pytest.approx(math.log(8))


def test_normalised_hsic_is_the_cosine_of_gram_matrices_centred_by_their_projection():
    x, y = normal(7, 2), normal(7, 3, seed=1)
    centre = torch.eye(7, dtype=torch.float64) - 1 / 7
    k, q = (centre @ torch.exp(-torch.cdist(z, z).square() / 2) @ centre for z in (x, y))
    expected = torch.trace(k @ q) / (torch.trace(k @ k) * torch.trace(q @ q)).sqrt()
    torch.testing.assert_close(normalized_hsic(x, y), expected)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (variational_information, [(5, 3), (5, 3)]),
        (nonlinear_information, [(5, 3)]),
        (normalized_hsic, [(5, 3), (5, 2)]),
    ],
)
def test_gradients_match_finite_differences(function, shapes):
    inputs = [normal(*shape, seed=n).requires_grad_() for n, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("log_variance", lambda: variational_information(normal(4, 2), normal(4, 3))),
        ("mean", lambda: variational_information(normal(0, 2), normal(0, 2))),
        ("mean", lambda: nonlinear_information(normal(1, 2))),
        ("noise", lambda: nonlinear_information(normal(4, 2), 0)),
        ("y", lambda: normalized_hsic(normal(4, 2), normal(3, 2))),
        ("bandwidth_x", lambda: normalized_hsic(normal(4, 2), normal(4, 2), -1)),
        ("x", lambda: normalized_hsic(normal(4, 2) * math.nan, normal(4, 2))),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .*expected"):
        call()
