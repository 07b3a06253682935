"""Fixed points against equations that can be solved, and their gradients against unrolled ones."""

import math
import warnings

import pytest
import torch

from heterodox.energy.fixed_point import SolverInfo, implicit_fixed_point, solve_fixed_point

SOLVERS = ("anderson", "picard")


def contraction(size=30, seed=0, radius=0.9):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, dtype=torch.float64, generator=generator)
    matrix = radius * matrix / torch.linalg.matrix_norm(matrix, 2)
    return matrix, torch.randn(4, size, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_linear_fixed_point_is_that_of_the_linear_system(solver):
    matrix, b = contraction()
    q, info = solve_fixed_point(
        lambda q: q @ matrix + b, torch.zeros_like(b), solver=solver, tolerance=1e-12, max_iter=500
    )
    expected = torch.linalg.solve((torch.eye(30, dtype=torch.float64) - matrix).mT, b.mT).mT
    torch.testing.assert_close(q, expected)
    assert info.converged and info.residual <= 1e-12


def test_anderson_needs_fewer_steps():
    matrix, b = contraction()
    matrix = 0.98 * (matrix + matrix.mT) / torch.linalg.matrix_norm(matrix + matrix.mT, 2)

    def run(solver):
        return solve_fixed_point(
            lambda q: q @ matrix + b,
            torch.zeros_like(b),
            solver=solver,
            tolerance=1e-10,
            max_iter=5000,
        )[1]

    fast, slow = run("anderson"), run("picard")
    assert fast.converged and slow.converged
    assert fast.iterations < slow.iterations / 2


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_number_of_calls_and_the_residual_are_those_reported(solver):
    calls = []

    def step(q):
        calls.append((q, torch.cos(q)))
        return torch.cos(q)

    q, info = solve_fixed_point(step, torch.zeros(1, 3), solver=solver, tolerance=1e-5)
    before, after = calls[-1]
    assert len(calls) == info.iterations
    assert torch.equal(q, after)
    assert info.residual == pytest.approx(float((after - before).norm() / after.norm()), abs=1e-7)


@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_do_not_depend_on_each_other(solver):
    matrix, b = contraction()
    b = b * torch.tensor([1e-3, 1.0, 10.0, 1e4], dtype=torch.float64)[:, None]

    def solve(rows):
        return solve_fixed_point(
            lambda q: torch.tanh(q @ matrix + b[rows]), torch.zeros_like(b[rows]), solver=solver
        )[0]

    together = solve(slice(None))
    for i in range(4):
        torch.testing.assert_close(solve(slice(i, i + 1))[0], together[i], rtol=1e-9, atol=1e-12)


def test_a_map_on_which_anderson_goes_astray_still_ends():
    # Plain iteration of tanh(b − q) swings into its fixed point; extrapolation jumps past it.
    b = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None]
    q, info = solve_fixed_point(
        lambda q: torch.tanh(b - q), torch.full_like(b, 0.9), tolerance=1e-10, max_iter=300
    )
    assert info.converged
    torch.testing.assert_close(q, torch.tanh(b - q), atol=1e-9, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_does_not_converge_says_so_and_stops(solver):
    q, info = solve_fixed_point(lambda q: -q, torch.ones(2, 3), solver="picard", max_iter=7)
    assert info == SolverInfo(7, 2.0, False) and torch.equal(q.abs(), torch.ones(2, 3))
    _, info = solve_fixed_point(
        lambda q: q + torch.nan, torch.ones(2, 3), solver=solver, max_iter=7
    )
    assert info.iterations == 7 and math.isnan(info.residual) and not info.converged


def test_a_tolerance_below_the_precision_counts_as_that():
    _, info = solve_fixed_point(torch.cos, torch.zeros(1, 1), tolerance=1e-30)
    assert info.converged and info.residual < 1e-6


def test_the_gradient_is_that_of_many_unrolled_steps():
    matrix, b = contraction(size=8)
    matrix.requires_grad_(), b.requires_grad_()

    def step(q):
        return torch.tanh(q @ matrix + b)

    weights = torch.linspace(-1, 2, 32, dtype=torch.float64).view(4, 8)
    q, _ = implicit_fixed_point(step, torch.zeros(4, 8, dtype=torch.float64), tolerance=1e-13)
    found = torch.autograd.grad((q * weights).sum(), (matrix, b))
    unrolled = torch.zeros(4, 8, dtype=torch.float64)
    for _ in range(400):
        unrolled = step(unrolled)
    expected = torch.autograd.grad((unrolled * weights).sum(), (matrix, b))
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-11)


def test_the_gradient_does_not_depend_on_the_size_of_the_loss():
    matrix, b = contraction(size=8)

    def gradient(scale):
        leaf = b.clone().requires_grad_()
        q, _ = implicit_fixed_point(lambda q: torch.tanh(q @ matrix + leaf), torch.zeros_like(b))
        (scale * q.sum()).backward()
        return leaf.grad / scale

    torch.testing.assert_close(gradient(1e-12), gradient(1.0))


def test_memory_does_not_grow_with_the_number_of_iterations():
    matrix, b = contraction(size=8, radius=0.99)
    matrix.requires_grad_()

    def saved(max_iter):
        kept = []
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            implicit_fixed_point(
                lambda q: torch.tanh(q @ matrix + b),
                torch.zeros_like(b),
                solver="picard",
                tolerance=1e-14,
                max_iter=max_iter,
            )
        return len(kept)

    assert saved(5) == saved(200)


def test_without_convergence_there_is_a_warning_also_of_the_gradient():
    b = torch.ones(1, 2, requires_grad=True)
    with pytest.warns(RuntimeWarning, match="fixed point did not converge"):
        q, info = implicit_fixed_point(
            lambda q: b - 0.999 * q, torch.zeros(1, 2), solver="picard", max_iter=3
        )
    assert not info.converged
    with pytest.warns(RuntimeWarning, match="gradient did not converge"):
        q.sum().backward()


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("solver", {"solver": "newton"}),
        ("tolerance", {"tolerance": 0.0}),
        ("tolerance", {"tolerance": math.nan}),
        ("max_iter", {"max_iter": 0}),
    ],
)
def test_bad_options_are_named(argument, options):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        solve_fixed_point(torch.cos, torch.zeros(1, 1), **options)


@pytest.mark.parametrize("start", [torch.zeros(()), torch.zeros(2, 3, dtype=torch.int64)])
def test_a_start_that_is_no_batch_of_numbers_is_named(start):
    with pytest.raises(ValueError, match=r"^start: .* expected"):
        solve_fixed_point(torch.cos, start)


def test_an_empty_batch_is_returned_at_once():
    q, info = solve_fixed_point(torch.cos, torch.zeros(0, 3))
    assert q.shape == (0, 3) and info == SolverInfo(0, 0.0, True)
