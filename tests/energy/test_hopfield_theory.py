"""The theory of multitasking recall against its limits, and against brute-force averages."""

import itertools
import math

import numpy as np
import pytest
import torch

from heterodox.energy.hopfield_theory import (
    critical_dilution,
    recall_free_energy,
    solve_self_consistency,
)


def by_brute_force(n, dilution, beta, entropy, samples=4001):
    """Both sides' averages by plain sums over ξ in all signs and a fine grid of z."""
    n = np.asarray(n)
    z = np.linspace(-9, 9, samples)
    density = np.exp(-(z**2) / 2)
    density /= density.sum()
    m, slope = np.zeros(len(n)), np.zeros(len(n))
    for signs in itertools.product((-1, 0, 1), repeat=len(n)):
        xi = np.asarray(signs)
        blanks = (xi == 0).sum()
        weight = ((1 - dilution) / 2) ** (len(n) - blanks) * dilution**blanks
        t = np.tanh(beta * (n @ xi + z * np.sqrt(entropy * (n**2 @ xi**2))))
        m += weight * xi * (density @ t)
        slope += weight * xi**2 * (density @ (1 - t**2))
    return m, m / (1 + entropy) + beta * entropy / (1 + entropy) * n * slope


@pytest.mark.parametrize("beta", [2.0, 5.0, 40.0])
@pytest.mark.parametrize("entropy", [0.0, 0.05, 0.5])
def test_a_solution_satisfies_the_equations(beta, entropy):
    solution = solve_self_consistency(3, 0.3, beta, entropy=entropy)
    assert solution.converged
    n = solution.example_overlap.numpy()
    m, expected = by_brute_force(n, 0.3, beta, entropy)
    np.testing.assert_allclose(solution.magnetization.numpy(), m, atol=1e-8)
    np.testing.assert_allclose(n, expected, atol=1e-8)


@pytest.mark.parametrize("num_patterns", [1, 2, 3, 5])
@pytest.mark.parametrize("dilution", [0.0, 0.1, 0.4])
def test_without_noise_magnetisations_fall_by_powers_of_the_dilution(num_patterns, dilution):
    for beta in (1e4, math.inf):
        solution = solve_self_consistency(num_patterns, dilution, beta)
        powers = torch.arange(num_patterns, dtype=torch.float64)
        expected = (1 - dilution) * torch.tensor(dilution, dtype=torch.float64) ** powers
        if dilution == 0.1 and beta == 1e4:  # 0.9e-4 is below the temperature
            expected, found = expected[:4], solution.magnetization[:4]
        else:
            found = solution.magnetization
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_hierarchical_recall_ends_at_the_critical_dilution():
    for num_patterns in (3, 4):
        critical = critical_dilution(num_patterns)
        below = solve_self_consistency(num_patterns, critical - 0.01, math.inf).magnetization
        above = solve_self_consistency(num_patterns, critical + 0.01, math.inf).magnetization
        powers = torch.arange(num_patterns, dtype=torch.float64)
        hierarchical = (1 - critical + 0.01) * (critical - 0.01) ** powers
        torch.testing.assert_close(below, hierarchical, atol=1e-9, rtol=0)
        assert above[0] < 1 - critical - 0.01 - 1e-3


def test_the_critical_dilution_is_the_root_of_the_polynomial():
    assert critical_dilution(1) == critical_dilution(2) == 1.0
    assert critical_dilution(3) == pytest.approx((math.sqrt(5) - 1) / 2, abs=1e-15)
    for num_patterns in (4, 5, 10, 50):
        d = critical_dilution(num_patterns)
        assert 1 - 2 * d + d**num_patterns == pytest.approx(0, abs=1e-14)
    assert critical_dilution(200) == pytest.approx(0.5)


@pytest.mark.parametrize("initial", ["hierarchical", "equal", [0.5, 0.1, 0.3]])
def test_with_many_blanks_and_noise_all_patterns_are_recalled_alike(initial):
    m = solve_self_consistency(3, 0.8, 40.0, entropy=0.028, initial=initial).magnetization
    assert m.max() / m.min() < 1.02
    assert m.mean().item() == pytest.approx(0.164, abs=2e-3)


def test_the_figures_of_a_known_case_are_met():
    m = solve_self_consistency(3, 0.3, 40.0, entropy=(1 - 0.64) / (20 * 0.64)).magnetization
    assert m.tolist() == pytest.approx([0.700, 0.210, 0.062], abs=2e-3)


@pytest.mark.parametrize("entropy", [0.0, 0.5])
def test_above_the_critical_temperature_nothing_is_recalled(entropy):
    assert solve_self_consistency(2, 0.2, 0.8, entropy=entropy).magnetization.abs().max() < 1e-6
    assert solve_self_consistency(2, 0.2, 0.0, entropy=entropy).magnetization.abs().max() < 1e-6


@pytest.mark.parametrize("entropy", [0.1, 1.0, 5.0])
def test_one_pattern_from_examples_follows_the_error_function(entropy):
    m = solve_self_consistency(1, 0.3, math.inf, entropy=entropy).magnetization
    assert m.item() / 0.7 == pytest.approx(math.erf(1 / math.sqrt(2 * entropy)), abs=1e-9)
    nearly = solve_self_consistency(1, 0.3, 1e6, entropy=entropy).magnetization
    assert nearly.item() == pytest.approx(m.item(), abs=1e-6)


@pytest.mark.parametrize("beta", [0.9, 3.0, 40.0, math.inf])
@pytest.mark.parametrize("entropy", [0.0, 0.01, 0.4])
def test_the_free_energy_is_stationary_at_a_solution_and_nowhere_near(beta, entropy):
    n = solve_self_consistency(3, 0.3, beta, entropy=entropy).example_overlap

    def gradient(n):
        steps = 1e-5 * torch.eye(3, dtype=torch.float64)
        return [
            (
                recall_free_energy(n + e, 0.3, beta, entropy=entropy)
                - recall_free_energy(n - e, 0.3, beta, entropy=entropy)
            )
            / 2e-5
            for e in steps
        ]

    assert gradient(n) == pytest.approx([0.0] * 3, abs=1e-6)
    away = gradient(n + torch.tensor([0.05, 0.04, 0.03], dtype=torch.float64))
    assert max(map(abs, away)) > 1e-3


def test_the_averages_do_not_depend_on_the_quadrature(monkeypatch):
    # Nodes, and the place where one rule takes over from the other.
    cases = [(2.0, 0.3), (8.0, 0.05), (40.0, 0.2)]
    before = [solve_self_consistency(3, 0.4, b, entropy=e).magnetization for b, e in cases]
    monkeypatch.setattr("heterodox.energy.hopfield_theory.NODES", 121)
    monkeypatch.setattr("heterodox.energy.hopfield_theory.SPACING", 0.1)
    after = [solve_self_consistency(3, 0.4, b, entropy=e).magnetization for b, e in cases]
    for x, y in zip(before, after, strict=True):
        torch.testing.assert_close(x, y, atol=1e-9, rtol=0)


def test_the_free_energy_without_signal_is_that_of_free_spins():
    zero = torch.zeros(2, dtype=torch.float64)
    assert recall_free_energy(zero, 0.3, 2.0) == pytest.approx(-math.log(2) / 2)
    assert recall_free_energy(zero, 0.3, math.inf) == 0


def test_without_convergence_it_says_so():
    solution = solve_self_consistency(3, 0.3, 5.0, entropy=0.3, max_iter=2)
    assert solution.iterations == 2 and not solution.converged


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("num_patterns", lambda: critical_dilution(0)),
        ("num_patterns", lambda: solve_self_consistency(11, 0.3, 1.0)),
        ("num_patterns", lambda: solve_self_consistency(0, 0.3, 1.0)),
        ("dilution", lambda: solve_self_consistency(2, 1.0, 1.0)),
        ("beta", lambda: solve_self_consistency(2, 0.3, -1.0)),
        ("beta", lambda: solve_self_consistency(2, 0.3, math.nan)),
        ("entropy", lambda: solve_self_consistency(2, 0.3, 1.0, entropy=-0.1)),
        ("entropy", lambda: solve_self_consistency(2, 0.3, 1.0, entropy=math.inf)),
        ("initial", lambda: solve_self_consistency(2, 0.3, 1.0, initial="parallel")),
        ("initial", lambda: solve_self_consistency(2, 0.3, 1.0, initial=torch.ones(3))),
        ("damping", lambda: solve_self_consistency(2, 0.3, 1.0, damping=1.0)),
        ("tolerance", lambda: solve_self_consistency(2, 0.3, 1.0, tolerance=0.0)),
        ("max_iter", lambda: solve_self_consistency(2, 0.3, 1.0, max_iter=0)),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .*\bexpected"):
        call()
