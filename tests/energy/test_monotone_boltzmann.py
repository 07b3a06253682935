"""The dense machine against brute-force iteration, enumeration and the scalar equation."""

import itertools
import math
import warnings

import pytest
import torch

from heterodox.energy.monotone_boltzmann import (
    MonotoneBoltzmannMachine,
    monotone_couplings,
    prox_softmax,
    solve_fixed_point,
)
from heterodox.training.seeding import seeded

STATES = (2, 3, 1, 4, 3)
SIZE = sum(STATES)
EXACT = {"tolerance": 1e-13, "max_iter": 1000}


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def machine(states=STATES, scale=1.0, **options):
    with seeded(0):
        made = MonotoneBoltzmannMachine(states, **(EXACT | options)).double()
    made.A.data.mul_(scale)
    made.bias.data.copy_(draw(sum(states), seed=1))
    return made


def one_hot(batch=4, states=STATES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.nn.functional.one_hot(torch.randint(s, (batch,), generator=generator), s)
        for s in states
    ]
    return torch.cat(parts, 1).double()


def forward_backward(made, q, phi, alpha):
    moved = (1 - alpha) * q + alpha * (q @ phi + made.bias)
    parts = [prox_softmax(part, alpha) for part in made.groups.split(moved)]
    return made.groups.join(parts)


def some(batch=4, variables=5, seed=3):
    return draw(batch, variables, seed=seed) > 0


def softmax_of_each(u, states=STATES):
    return torch.cat([part.softmax(-1) for part in u.split(list(states), -1)], -1)


def blocks(states=STATES):
    return itertools.pairwise([0, *itertools.accumulate(states)])


@pytest.mark.parametrize("monotonicity", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("rank", [1, SIZE, 40])
def test_couplings_are_symmetric_hollow_and_monotone(monotonicity, scale, rank):
    phi = monotone_couplings(scale * draw(rank, SIZE), STATES, monotonicity)
    torch.testing.assert_close(phi, phi.mT)
    for first, last in blocks():
        assert (phi[first:last, first:last] == 0).all()
    eigenvalues = torch.linalg.eigvalsh(torch.eye(SIZE, dtype=torch.float64) - phi)
    assert eigenvalues[0] >= monotonicity - 1e-10


def test_couplings_are_those_of_the_formula_one_block_at_a_time():
    a, m = draw(6, SIZE), 0.3
    scaled = a.clone()
    for first, last in blocks():
        norm = torch.linalg.svdvals(a[:, first:last])[0]
        scaled[:, first:last] *= min(math.sqrt(1 - m) / norm, 1.0)
    expected = -(scaled.mT @ scaled)
    for first, last in blocks():
        expected[first:last, first:last] = 0
    torch.testing.assert_close(monotone_couplings(a, STATES, m), expected)


def test_columns_that_are_short_enough_are_left_alone():
    a = 1e-2 * draw(6, SIZE)
    phi = monotone_couplings(a, STATES, 0.3)
    assert torch.equal(phi[:2, 2:], -(a.mT @ a)[:2, 2:])
    assert (monotone_couplings(torch.zeros(3, SIZE), STATES, 0.3) == 0).all()


def test_couplings_have_gradients_also_where_blocks_are_shrunk():
    a = draw(6, SIZE).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: monotone_couplings(a, STATES, 0.3), (a,))
    zero = torch.zeros(6, SIZE, requires_grad=True)
    monotone_couplings(zero, STATES, 0.3).sum().backward()
    assert (zero.grad == 0).all()


@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0])
def test_the_mean_field_is_that_of_slow_damped_iteration(scale):
    made, values, mask = machine(scale=scale), one_hot(), some()
    q = made(values, mask)
    held = mask.repeat_interleave(torch.tensor(STATES), 1)
    slow = torch.full_like(values, 0.5)
    phi, bias = made.couplings().detach(), made.bias.detach()
    for _ in range(1000):
        slow = torch.where(held, values, slow)
        slow = 0.9 * slow + 0.1 * softmax_of_each(slow @ phi + bias)
    torch.testing.assert_close(q, torch.where(held, values, slow), atol=1e-9, rtol=0)
    assert made.info.converged


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_every_start_ends_at_the_same_point(scale):
    made = machine(scale=scale)
    phi = made.couplings()
    found, info = solve_fixed_point(
        lambda q: forward_backward(made, q, phi, 0.05),
        softmax_of_each(5 * draw(32, SIZE, seed=7)),
        tolerance=1e-12,
        max_iter=3000,
    )
    assert info.converged
    torch.testing.assert_close(found, made().expand(32, -1), atol=1e-9, rtol=0)


@pytest.mark.parametrize("solver", ["anderson", "picard"])
@pytest.mark.parametrize("alpha", [0.03, 0.3, 1.0])
def test_neither_the_step_nor_the_solver_matters(solver, alpha):
    values, mask = one_hot(), some()
    expected = machine()(values, mask)
    torch.testing.assert_close(machine(alpha=alpha)(values, mask), expected, atol=1e-9, rtol=0)
    made = machine()
    phi = made.couplings().detach()
    free, info = solve_fixed_point(
        lambda q: forward_backward(made, q, phi, min(alpha, 0.2)),
        torch.full((1, SIZE), 0.5, dtype=torch.float64),
        solver=solver,
        tolerance=1e-12,
        max_iter=5000,
    )
    assert info.converged
    torch.testing.assert_close(free, made(), atol=1e-9, rtol=0)


def test_steps_that_would_not_converge_are_shortened():
    # Equal columns: ‖Φ‖ grows with the number of variables, and α = 1 would swing forever.
    made = MonotoneBoltzmannMachine([2] * 60, rank=1, alpha=1.0, **EXACT).double()
    made.A.data.copy_(torch.tensor([3.0, -3.0]).repeat(60))
    made.bias.data.copy_(draw(120))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q = made()
    torch.testing.assert_close(q, softmax_of_each(made.potentials(q), [2] * 60))


def test_two_binary_variables_solve_the_scalar_equation():
    made = machine([2, 2], scale=3.0)
    q = made()[0]
    phi, bias = made.couplings().detach(), made.bias.detach()

    def excess(p):  # of variable 1's probability over what variable 2's answer makes of it
        first = torch.stack([1 - p, p])
        second = (first @ phi[:2, 2:] + bias[2:]).softmax(0)
        return p - (second @ phi[2:, :2] + bias[:2]).softmax(0)[1]

    low, high = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    assert q[1].item() == pytest.approx(low.item(), abs=1e-10)


def test_the_mean_field_minimises_the_free_energy_of_the_energy():
    made = machine()
    q = made()

    def free_energy(q):  # mean energy less entropy; E is quadratic, and Φ has no own blocks
        return made.energy(q) + torch.xlogy(q, q).sum(-1)

    others = softmax_of_each(3 * draw(500, SIZE, seed=9))
    assert (free_energy(q) < free_energy(others)).all()
    assert (free_energy(q) < free_energy(0.999 * q + 0.001 * others)).all()


def test_the_energy_is_the_double_sum_over_pairs():
    made, x = machine(), one_hot()
    phi = made.couplings()
    for row, energy in zip(x, made.energy(x), strict=True):
        parts = list(blocks())
        pairs = sum(
            row[a:b] @ phi[a:b, c:d] @ row[c:d]
            for (a, b), (c, d) in itertools.combinations(parts, 2)
        )
        assert energy.item() == pytest.approx(-(pairs + row @ made.bias).item())


def test_weak_couplings_give_nearly_the_exact_marginals():
    made = machine([2, 3, 2], scale=0.15)
    states = [
        torch.cat([torch.eye(s, dtype=torch.float64)[i] for s, i in zip((2, 3, 2), x, strict=True)])
        for x in itertools.product(range(2), range(3), range(2))
    ]
    x = torch.stack(states)
    exact = (-made.energy(x)).softmax(0) @ x
    torch.testing.assert_close(made()[0], exact, atol=5e-3, rtol=0)


def test_observed_variables_are_left_alone_and_hidden_values_not_looked_at():
    made, values, mask = machine(), one_hot(), some()
    held = mask.repeat_interleave(torch.tensor(STATES), 1)
    q = made(values, mask)
    assert torch.equal(q[held], values[held])
    junk = torch.where(held, values, math.nan)
    assert torch.equal(made(junk, held), q)
    assert torch.equal(made(values, held.double()), q)


def test_when_all_is_observed_it_is_returned():
    made, values = machine(), one_hot()
    assert torch.equal(made(values), values)
    assert torch.equal(made(values, torch.ones(4, len(STATES))), values)


def test_observing_nothing_is_as_no_observation():
    made = machine()
    nothing = torch.zeros(3, len(STATES), dtype=torch.bool)
    torch.testing.assert_close(made(torch.zeros(3, SIZE).double(), nothing), made().expand(3, -1))
    assert made().shape == (1, SIZE)


def test_integers_as_of_one_hot_are_an_observation():
    made, values = machine(), one_hot()
    assert torch.equal(made(values.long(), some()), made(values, some()))


def test_squares_that_overflow_show_in_the_couplings():
    A = torch.randn(8, SIZE, generator=torch.Generator().manual_seed(0))
    for scale, finite in ((1e18, True), (1e19, False), (1e30, False)):
        assert bool(monotone_couplings(scale * A, STATES, 0.1).isfinite().all()) == finite


def test_a_soft_observation_is_held_as_given():
    made = machine()
    values = softmax_of_each(draw(4, SIZE))
    q = made(values, some())
    held = some().repeat_interleave(torch.tensor(STATES), 1)
    assert torch.equal(q[held], values[held])


def test_the_order_of_the_variables_does_not_matter():
    made = machine()
    order = torch.tensor([3, 0, 4, 1, 2])
    columns = torch.cat([torch.arange(*list(blocks())[v]) for v in order.tolist()])
    permuted = machine([STATES[v] for v in order.tolist()])
    permuted.A.data.copy_(made.A.data[:, columns])
    permuted.bias.data.copy_(made.bias.data[columns])
    values, mask = one_hot(), some()
    expected = made(values, mask)[:, columns]
    torch.testing.assert_close(permuted(values[:, columns], mask[:, order]), expected)


def test_gradients_match_finite_differences():
    made, values, mask = machine(states=(2, 3, 2), scale=2.0), one_hot(3, (2, 3, 2)), some(3, 3)

    def call(a, b):
        return torch.func.functional_call(made, {"A": a, "bias": b}, (values, mask))

    a, b = (p.detach().clone().requires_grad_() for p in (made.A, made.bias))
    assert torch.autograd.gradcheck(call, (a, b), atol=1e-6, fast_mode=True)


def test_observations_have_gradients():
    made, mask = machine(states=(2, 3, 2)), torch.tensor([[True, False, False]])
    values = softmax_of_each(draw(1, 7), (2, 3, 2)).requires_grad_()
    # Along the simplex only: elsewhere it is no observation.
    direction = torch.tensor([[1.0, -1, 0, 0, 0, 0, 0]], dtype=torch.float64)
    weights = draw(1, 7, seed=5)
    (gradient,) = torch.autograd.grad((made(values, mask) * weights).sum(), values)
    step = 1e-5 * direction
    plus, minus = (made(values.detach() + s, mask) for s in (step, -step))
    numeric = ((plus - minus) * weights).sum() / 2e-5
    assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-5)
    assert (gradient[:, 2:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lower_precisions_give_nearly_the_same(dtype):
    made, values, mask = machine(), one_hot(), some()
    expected = made(values, mask)
    low = machine(tolerance=1e-4).to(dtype)
    q = low(values.to(dtype), mask)
    assert q.dtype == dtype
    torch.testing.assert_close(q.double(), expected, atol=5e-2, rtol=0)


def test_an_end_without_convergence_is_told():
    made = machine(max_iter=1)
    with pytest.warns(RuntimeWarning, match="did not converge"):
        q = made(one_hot(), some())
    assert made.info.iterations == 1 and not made.info.converged
    assert q.isfinite().all()


def test_an_empty_batch_gives_nothing():
    assert machine()(torch.zeros(0, SIZE).double(), some(0)).shape == (0, SIZE)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("states", lambda: MonotoneBoltzmannMachine([])),
        ("states", lambda: MonotoneBoltzmannMachine([2, 0])),
        ("rank", lambda: MonotoneBoltzmannMachine([2], rank=0)),
        ("monotonicity", lambda: MonotoneBoltzmannMachine([2], monotonicity=0.0)),
        ("monotonicity", lambda: MonotoneBoltzmannMachine([2], monotonicity=1.0)),
        ("alpha", lambda: MonotoneBoltzmannMachine([2], alpha=0.0)),
        ("tolerance", lambda: MonotoneBoltzmannMachine([2], tolerance=-1.0)),
        ("max_iter", lambda: MonotoneBoltzmannMachine([2], max_iter=0)),
        ("A", lambda: monotone_couplings(torch.zeros(2, 3), [2, 2], 0.1)),
        ("observed", lambda: machine()(torch.zeros(2, 3).double())),
        ("observed", lambda: machine()(0.4 * one_hot())),
        ("observed", lambda: machine()(math.nan * one_hot())),
        ("observed", lambda: machine()(-one_hot() + 2 / 3)),
        ("mask", lambda: machine()(one_hot(), torch.ones(4, 2))),
        ("mask", lambda: machine()(one_hot(), torch.eye(4, SIZE))),
        ("mask", lambda: machine()(None, torch.ones(4, SIZE))),
        ("q", lambda: machine().potentials(torch.zeros(3).double())),
        ("x", lambda: machine().energy(torch.zeros(3).double())),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .*\bexpected"):
        call()
