"""Smallest matrices under linear constraints: the two programmes behind the attention SVM.

    minimise ‖W‖   subject to   a_kᵀ W z_k ≥ b_k,   or = b_k for some k

Frobenius norm: a least-distance programme, which is a non-negative least-squares problem (Lawson
and Hanson, "Solving Least Squares Problems", 1974, chapter 23), solved exactly by its active set.

Nuclear norm: a pair of semidefinite programmes, solved by a primal-dual interior point method,

    min tr X / 2  over  X = [[·, W], [Wᵀ, ·]] ⪰ 0,
    max bᵀy       over  ‖M‖₂ ≤ 1,  M = Σ_k y_k a_k z_kᵀ,

with y ≥ 0 where it belongs to an inequality. Any feasible W and y bound the optimum from both
sides; their relative distance is the certificate of a solution. About 12 steps, each of time O(k³)
for k constraints.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import lu_factor, lu_solve, solve_triangular
from scipy.optimize import nnls

Array = np.ndarray

# A margin below this part of the longest constraint is none: NNLS cannot tell it from rounding.
SMALLEST_MARGIN = 3e-7


class InfeasibleError(ValueError):
    """No matrix meets the constraints: some selected token cannot be separated from the others."""


@dataclass(frozen=True)
class Constraints:
    """a_kᵀ W z_k ≥ b_k, or = b_k where `equal`; a_k and z_k are rows of `left` and `right`."""

    left: Array
    right: Array
    bound: Array
    equal: Array

    @property
    def rows(self) -> Array:
        """Each constraint as a vector against W's elements, (constraints, d · e)."""
        return (self.left[:, :, None] * self.right[:, None, :]).reshape(len(self.left), -1)

    def values(self, weight: Array) -> Array:
        return ((self.left @ weight) * self.right).sum(-1)

    def combined(self, y: Array) -> Array:
        """Σ_k y_k a_k z_kᵀ."""
        return self.left.T @ (y[:, None] * self.right)


def least_frobenius(constraints: Constraints) -> tuple[Array, Array]:
    """The W of least Frobenius norm, and y with W = Σ_k y_k a_k z_kᵀ.

    Bounds are 1 for inequalities, and beside these 0 for equalities. Raises InfeasibleError.
    """
    rows, equal = constraints.rows, constraints.equal
    y = np.zeros(len(rows))
    shape = constraints.left.shape[1], constraints.right.shape[1]
    weight = np.zeros(rows.shape[1])
    if not equal.any():
        weight, y = _least_distance(rows)
        return weight.reshape(shape), y
    pinned, bound = rows[equal], constraints.bound[equal]
    left, singular, right = np.linalg.svd(pinned, full_matrices=False)
    kept = singular > 1e-10 * max(singular.max(), np.finfo(float).tiny)
    left, singular, right = left[:, kept], singular[kept], right[kept]
    weight = right.T @ (left.T @ bound / singular)
    if not np.allclose(pinned @ weight, bound, rtol=0, atol=1e-8 * max(1.0, np.abs(bound).max())):
        raise InfeasibleError("ratios given that no weight produces, fewer tokens in use expected")
    if not equal.all():
        free = rows[~equal]
        free = free - free @ right.T @ right
        weight, y[~equal] = _least_distance(free)
    rest = weight - rows[~equal].T @ y[~equal]
    y[equal] = left @ (right @ rest / singular)
    return weight.reshape(shape), y


def _least_distance(rows: Array) -> tuple[Array, Array]:
    """The shortest w with rows @ w ≥ 1, and λ ≥ 0 with w = rowsᵀ λ."""
    longest = np.linalg.norm(rows, axis=1).max()
    if not longest > 0:
        raise InfeasibleError("a token like all others given, different tokens expected")
    scaled = rows / longest
    turn = None
    if len(scaled) < scaled.shape[1]:  # the rows' own span, of at most as many dimensions as rows
        turn, triangle = np.linalg.qr(scaled.T)
        scaled = triangle.T
    count = len(scaled)
    target = np.append(np.zeros(scaled.shape[1]), 1.0)
    u, _ = nnls(np.vstack([scaled.T, np.ones(count)]), target, maxiter=100 * count)
    residual = 1.0 - u.sum()  # = 1/(1 + ‖w‖²)
    if residual <= SMALLEST_MARGIN**2:
        raise _inseparable()
    w, lagrange = _on_active_set(scaled, u > 0)
    if not (lagrange.min() >= 0 and (scaled @ w).min() > 1 - 1e-9):
        w, lagrange = scaled.T @ u / residual, u / residual
    least = (scaled @ w).min()
    if not least > 0.5:
        raise _inseparable()
    w, lagrange = w / least, lagrange / least
    return (w if turn is None else turn @ w) / longest, lagrange / longest**2


def _on_active_set(rows: Array, active: Array) -> tuple[Array, Array]:
    """What the active constraints alone determine, to the last digits that NNLS leaves open."""
    lagrange = np.zeros(len(rows))
    basis, triangle = np.linalg.qr(rows[active].T)
    try:
        inner = solve_triangular(triangle, np.ones(active.sum()), trans="T")
        lagrange[active] = solve_triangular(triangle, inner)
    except np.linalg.LinAlgError:
        return np.zeros(rows.shape[1]), lagrange - 1
    return basis @ inner, lagrange


def _inseparable() -> InfeasibleError:
    return InfeasibleError(
        "tokens given that no weight separates from the others of their sequences, separable ones "
        "expected"
    )


def least_nuclear(
    constraints: Constraints, tol: float, max_steps: int
) -> tuple[Array, Array, float]:
    """The W of least nuclear norm up to a relative gap of `tol`, the dual y, and the gap.

    Of the matrices within `tol` it takes one of least rank. The constraints must be feasible.
    Raises RuntimeError if the gap is still larger after `max_steps` steps, or where rounding ends
    them, which is at a gap of about 1e-7.
    """
    sizes = [
        max(np.linalg.norm(x, axis=1).max(), np.finfo(float).tiny)
        for x in (constraints.left, constraints.right)
    ]
    c = replace(constraints, left=constraints.left / sizes[0], right=constraints.right / sizes[1])
    state = _start(c)
    weight, gap = _certified(c, state.weight, state.y)
    best = weight, state.y, gap
    steps = 0
    while best[2] > tol / 2 and steps < max_steps:
        try:
            state = _step(c, state)
        except np.linalg.LinAlgError:
            break
        steps += 1
        weight, gap = _certified(c, state.weight, state.y)
        if gap < best[2]:
            best = weight, state.y, gap
    weight, y, gap = best
    if not gap <= tol:
        raise RuntimeError(
            f"tol: {tol:g} given, but after {steps} steps a relative gap of {gap:.1e} is left"
        )
    weight, gap = _of_least_rank(c, weight, y, tol, gap)
    return weight / (sizes[0] * sizes[1]), y / (sizes[0] * sizes[1]), gap


@dataclass(frozen=True)
class _State:
    """X with W in its upper right block, the slack s = a_kᵀ W z_k − b_k, and the dual y."""

    x: Array
    slack: Array
    y: Array
    height: int

    @property
    def weight(self) -> Array:
        return self.x[: self.height, self.height :]


def _start(c: Constraints) -> _State:
    height, width = c.left.shape[1], c.right.shape[1]
    y = np.where(c.equal, 0.0, 1.0)
    spectral = np.linalg.norm(c.combined(y), 2)
    y = y * (0.5 / spectral if spectral > 0 else 1.0)
    # As large as W must at least be, so that X is about as far from its boundary as the dual.
    size = max(np.abs(c.bound).max(), c.bound @ y, np.finfo(float).tiny)
    slack = np.where(c.equal, 0.0, size)
    return _State(size * np.eye(height + width), slack, y, height)


def _step(c: Constraints, now: _State) -> _State:
    """Mehrotra's predictor and corrector along the direction of Helmberg, Kojima and Monteiro."""
    x, s, y, free = now.x, now.slack, now.y, ~c.equal
    inverse_y = np.where(free, 1 / np.where(free, y, 1.0), 0.0)
    z = _dual_slack(c.combined(y))
    z_inverse = np.linalg.inv(z)
    schur = _schur(c, x, z_inverse) + np.diag(s * inverse_y)
    schur[np.diag_indices_from(schur)] *= 1 + 1e-14
    factors = lu_factor(schur)
    pull = c.values(z_inverse[: now.height, now.height :])
    measure = len(x) + free.sum()

    def direction(mu: float, bend: Array, bend_slack: Array) -> tuple[Array, Array, Array, Array]:
        target = c.bound - mu * (pull - inverse_y)
        target += c.values(bend[: now.height, now.height :]) - bend_slack
        dx, ds = mu * z_inverse - x - bend, np.where(free, mu * inverse_y - s - bend_slack, 0.0)
        dy = np.zeros_like(y)
        for _ in range(2):
            more = lu_solve(factors, target)
            dy = dy + more
            dx = dx + _symmetric(x @ _off_diagonal(c.combined(more)) @ z_inverse)
            ds = ds - s * inverse_y * more
            # Zero but for rounding, which Z⁻¹ magnifies.
            target = c.bound + s + ds - c.values((x + dx)[: now.height, now.height :])
        return dx, ds, dy, -_off_diagonal(c.combined(dy))

    def lengths(dx: Array, ds: Array, dy: Array, dz: Array) -> tuple[float, float]:
        primal = min(_to_boundary(x, dx), _to_zero(s[free], ds[free]))
        return primal, min(_to_boundary(z, dz), _to_zero(y[free], dy[free]))

    mu = ((x * z).sum() + s[free] @ y[free]) / measure
    dx, ds, dy, dz = direction(0.0, np.zeros_like(x), np.zeros_like(s))
    primal, dual = (min(1.0, length) for length in lengths(dx, ds, dy, dz))
    left = ((x + primal * dx) * (z + dual * dz)).sum()
    left += (s + primal * ds)[free] @ (y + dual * dy)[free]
    centring = min(1.0, max(left / (measure * mu), 1e-6)) ** 2
    dx, ds, dy, dz = direction(centring * mu, _symmetric(dx @ dz @ z_inverse), dy * ds * inverse_y)
    primal, dual = (min(1.0, 0.95 * length) for length in lengths(dx, ds, dy, dz))
    return _State(x + primal * dx, s + primal * ds, y + dual * dy, now.height)


def _dual_slack(m: Array) -> Array:
    """Z = (I − [[0, M], [Mᵀ, 0]])/2, positive where ‖M‖₂ < 1."""
    return np.eye(sum(m.shape)) / 2 - _off_diagonal(m)


def _off_diagonal(m: Array) -> Array:
    """[[0, M], [Mᵀ, 0]]/2, whose product with X is ⟨M, W⟩."""
    height = len(m)
    square = np.zeros((sum(m.shape), sum(m.shape)))
    square[:height, height:], square[height:, :height] = m / 2, m.T / 2
    return square


def _schur(c: Constraints, x: Array, inverse: Array) -> Array:
    """tr(A_k X A_l Z⁻¹) for A_k = _off_diagonal(a_k z_kᵀ)."""
    height = c.left.shape[1]

    def blocks(square: Array) -> tuple[Array, Array, Array]:
        return (
            c.left @ square[:height, :height] @ c.left.T,
            c.right @ square[height:, height:] @ c.right.T,
            c.left @ square[:height, height:] @ c.right.T,
        )

    upper, lower, cross = blocks(x)
    upper_inverse, lower_inverse, cross_inverse = blocks(inverse)
    mixed = cross * cross_inverse.T
    return (upper * lower_inverse + lower * upper_inverse + mixed + mixed.T) / 4


def _symmetric(square: Array) -> Array:
    return (square + square.T) / 2


def _to_boundary(x: Array, dx: Array) -> float:
    """How far x + length · dx stays positive definite."""
    root = np.linalg.cholesky(x)
    half = solve_triangular(root, dx, lower=True)
    least = np.linalg.eigvalsh(solve_triangular(root, half.T, lower=True)).min()
    return -1 / least if least < 0 else np.inf


def _to_zero(x: Array, dx: Array) -> float:
    falling = dx < 0
    return (x[falling] / -dx[falling]).min() if falling.any() else np.inf


def _certified(c: Constraints, weight: Array, y: Array) -> tuple[Array, float]:
    """`weight` moved and scaled until it is feasible, and its relative gap to y's lower bound."""
    if c.equal.any():
        rows = c.rows[c.equal]
        missed = c.bound[c.equal] - c.values(weight)[c.equal]
        weight = weight + np.linalg.lstsq(rows, missed, rcond=1e-10)[0].reshape(weight.shape)
    if not c.equal.all():
        least = (c.values(weight)[~c.equal] / c.bound[~c.equal]).min()
        if least <= 0:
            return weight, np.inf
        weight = weight / least
    upper = np.linalg.norm(weight, "nuc")
    lower = c.bound @ y / max(1.0, np.linalg.norm(c.combined(y), 2))
    return weight, float(max(1 - lower / upper, 0.0))


def _of_least_rank(
    c: Constraints, weight: Array, y: Array, tol: float, gap: float
) -> tuple[Array, float]:
    """Inside X ⪰ 0 all singular values are above 0; those that the certificate can spare go."""
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    for rank in range(1, len(s)):
        shorter, its_gap = _certified(c, (u[:, :rank] * s[:rank]) @ vt[:rank], y)
        if its_gap <= tol:
            return shorter, its_gap
    return weight, gap
