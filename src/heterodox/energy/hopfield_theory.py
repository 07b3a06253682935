"""Multitasking recall in the limit of many neurons: magnetisations, free energy, phase boundary.

    T = tanh(β (a + s z)),  a = Σ_ν n_ν ξ_ν,  s² = ρ Σ_ν n_ν² ξ_ν²,  z ~ N(0, 1);  E over ξ and z
    m_μ = E[ξ_μ T],   n_μ = m_μ / (1 + ρ) + (β ρ / (1 + ρ)) n_μ E[ξ_μ² (1 − T²)]
    −β f = −(β (1 + ρ) / 2) Σ_μ n_μ² + E ln 2 cosh(β (a + s z)),  stationary in n

Agliari, Alessandrelli, Barra and Ricci-Tersenghi, J. Stat. Mech. 2023, arXiv 2308.04106, for K
finite and many examples, supervised or not; in the plain normalisation of the energies, to which
the paper's is mapped by a change of β. ρ = 0 is the network that stores the patterns themselves.
Cost: 3^K times the nodes of a quadrature, for each step.

The average over z is by Gauss and Hermite while β s ≤ 1. Beyond, tanh is too steep for them, and
z and a logistic L change places: tanh x = P(L < 2x) − P(L > 2x), so that E_z T is an average of
erf((a − L / 2β) / √2 s) over L, which tends to the formula without temperature.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from heterodox.energy.diluted_patterns import check_count, check_dilution
from heterodox.energy.sampling import check_beta

# 3^10 states; more would not fit.
MOST_PATTERNS = 10

# Of the rules of Gauss and Hermite.
NODES = 61
SPACING, LARGEST = 0.4, 36.0  # of the logistic's trapezoid rule; its tail is below 1e-15


@dataclass(frozen=True)
class SelfConsistency:
    """A solution of the equations.

    Attributes:
        magnetization: m, one for each pattern, float64; at most 1 − d.
        example_overlap: n, the overlap with the mean of the examples.
        free_energy: f.
        iterations: that were made.
        converged: whether the last one changed n by less than the tolerance.

    Example:
        >>> solve_self_consistency(2, 0.25, math.inf).magnetization
        tensor([0.7500, 0.1875], dtype=torch.float64)
    """

    magnetization: Float[Tensor, "patterns"]
    example_overlap: Float[Tensor, "patterns"]
    free_energy: float
    iterations: int
    converged: bool


def critical_dilution(num_patterns: int) -> float:
    """The dilution below which recall is hierarchical, without noise: 1 − 2d + d^K > 0.

    The pattern that is recalled best, m = 1 − d, must outweigh all others together, d − d^K.

    Raises:
        ValueError: `num_patterns` is below 1.

    Example:
        >>> [round(critical_dilution(k), 3) for k in (1, 2, 3, 5, 100)]
        [1.0, 1.0, 0.618, 0.519, 0.5]
    """
    check_count("num_patterns", num_patterns)
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        # The same after division by 1 − d, whose root at 1 is another.
        if 1 - sum(middle**k for k in range(1, num_patterns)) > 0:
            low = middle
        else:
            high = middle
    return high


def solve_self_consistency(
    num_patterns: int,
    dilution: float,
    beta: float,
    *,
    entropy: float = 0.0,
    initial: Literal["hierarchical", "equal"] | Float[Tensor, "patterns"] | None = None,
    damping: float = 0.5,
    tolerance: float = 1e-10,
    max_iter: int = 20_000,
) -> SelfConsistency:
    """Magnetisations by damped iteration of the equations for n.

    Args:
        num_patterns: K, at most 10, as all 3^K values of an entry of the patterns are visited.
        dilution: d in [0, 1).
        beta: inverse temperature β; `math.inf` for none.
        entropy: ρ, see `dataset_entropy`.
        initial: first n: "hierarchical", (1 − d) d^(k − 1), as for None; "equal", all alike with
            the same sum; or numbers. Solutions that are stable at once are told apart by it.
        damping: share of n that an iteration keeps, in [0, 1).
        tolerance: largest change of an entry of n in the end.
        max_iter: iterations at most; `converged` tells whether they were enough.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> solution = solve_self_consistency(3, 0.3, 40.0)
        >>> [round(m, 3) for m in solution.magnetization.tolist()]
        [0.7, 0.21, 0.062]
    """
    _check(num_patterns, dilution, beta, entropy)
    if not 0 <= damping < 1:
        raise ValueError(f"damping: {damping} given, a number in [0, 1) expected")
    if not tolerance > 0:
        raise ValueError(f"tolerance: {tolerance} given, a positive number expected")
    check_count("max_iter", max_iter)
    n = _initial(initial, num_patterns, dilution)
    xi, weight = _entries(num_patterns, dilution)
    change, iteration = math.inf, 0
    while iteration < max_iter and change > tolerance:
        iteration += 1
        m, new = _updated(n, xi, weight, beta, entropy)
        new = damping * n + (1 - damping) * new
        change = float((new - n).abs().max())
        n = new
    m, _ = _updated(n, xi, weight, beta, entropy)
    f = _free_energy(n, xi, weight, beta, entropy)
    return SelfConsistency(m, n, f, iteration, change <= tolerance)


def recall_free_energy(
    example_overlap: Float[Tensor, "patterns"],
    dilution: float,
    beta: float,
    *,
    entropy: float = 0.0,
) -> float:
    """f as a function of n; its stationary points are the solutions of the equations.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> n = torch.zeros(2, dtype=torch.float64)
        >>> round(recall_free_energy(n, 0.3, 1.0), 4)  # − ln 2
        -0.6931
    """
    n = example_overlap.detach().to("cpu", torch.float64)
    _check(len(n), dilution, beta, entropy)
    return _free_energy(n, *_entries(len(n), dilution), beta, entropy)


def _check(num_patterns: int, dilution: float, beta: float, entropy: float) -> None:
    if not 1 <= num_patterns <= MOST_PATTERNS:
        raise ValueError(
            f"num_patterns: {num_patterns} given, 1 to {MOST_PATTERNS} expected, as all 3^K values "
            "of K patterns are visited"
        )
    check_dilution(dilution)
    check_beta(beta)
    if not 0 <= entropy < math.inf:
        raise ValueError(f"entropy: {entropy} given, a number that is not negative expected")


def _initial(
    initial: str | Tensor | Sequence[float] | None, num_patterns: int, dilution: float
) -> Float[Tensor, "patterns"]:
    powers = torch.arange(num_patterns, dtype=torch.float64)
    hierarchical = (1 - dilution) * torch.tensor(dilution, dtype=torch.float64) ** powers
    if initial is None or (isinstance(initial, str) and initial == "hierarchical"):
        return hierarchical
    if isinstance(initial, str):
        if initial != "equal":
            raise ValueError(
                f"initial: {initial!r} given, 'hierarchical', 'equal' or numbers expected"
            )
        return hierarchical.mean().expand(num_patterns).clone()
    given = torch.as_tensor(initial).detach().to("cpu", torch.float64, copy=True)
    if given.shape != (num_patterns,) or not bool(given.isfinite().all()):
        raise ValueError(
            f"initial: shape {tuple(given.shape)} given, {(num_patterns,)} finite numbers expected"
        )
    return given


def _entries(
    num_patterns: int, dilution: float
) -> tuple[Float[Tensor, "states patterns"], Float[Tensor, "states"]]:
    """All values of one neuron's entries with their probabilities; those that are the negative of
    another are left out, as every average is the same there."""
    axis = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    xi = torch.cartesian_prod(*[axis] * num_patterns).view(-1, num_patterns)
    half = len(xi) // 2  # the middle one is blank everywhere
    xi = xi[half:]
    blank = (xi == 0).sum(1).double()
    weight = ((1 - dilution) / 2) ** (num_patterns - blank) * dilution**blank
    weight[1:] *= 2
    return xi, weight


def _averages(a: Tensor, s: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Over z, for each state: T and β (1 − T²)."""
    steep = beta * s > 1
    if not steep.any():
        return _by_hermite(a, s, beta)
    if steep.all():
        return _by_logistic(a, s, beta)
    t, slope = torch.empty_like(a), torch.empty_like(a)
    t[steep], slope[steep] = _by_logistic(a[steep], s[steep], beta)
    t[~steep], slope[~steep] = _by_hermite(a[~steep], s[~steep], beta)
    return t, slope


def _by_hermite(a: Tensor, s: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    if math.isinf(beta):  # s is 0
        return a.sign(), torch.zeros_like(a)
    z, weight = _hermite(NODES) if s.any() else (a.new_zeros(1), a.new_ones(1))
    t = torch.tanh(torch.addcmul(beta * a[:, None], s[:, None], z, value=beta))
    return t @ weight, beta * (1 - t.square() @ weight)


@cache
def _hermite(count: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def _logistic(beta: float) -> tuple[Tensor, Tensor]:
    """L / 2β and its weights."""
    if math.isinf(beta):
        return torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    l = torch.arange(-LARGEST, LARGEST + SPACING / 2, SPACING, dtype=torch.float64)
    return l / (2 * beta), SPACING / 4 / torch.cosh(l / 2).square()


def _by_logistic(a: Tensor, s: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    l, weight = _logistic(beta)
    c = (a[:, None] - l) / (math.sqrt(2) * s[:, None])
    density = torch.exp(-c.square()) @ weight
    return torch.special.erf(c) @ weight, math.sqrt(2 / math.pi) / s * density


def _field(n: Tensor, xi: Tensor, entropy: float) -> tuple[Tensor, Tensor]:
    return xi @ n, (entropy * (xi.square() @ n.square())).sqrt()


def _updated(
    n: Tensor, xi: Tensor, weight: Tensor, beta: float, entropy: float
) -> tuple[Tensor, Tensor]:
    """m, and what the equation makes of n."""
    tanh, slope = _averages(*_field(n, xi, entropy), beta)
    m = (weight * tanh) @ xi
    response = (weight * slope) @ xi.square()
    return m, (m + entropy * n * response) / (1 + entropy)


def _free_energy(n: Tensor, xi: Tensor, weight: Tensor, beta: float, entropy: float) -> float:
    if beta == 0:
        return -math.inf
    a, s = (x[:, None] for x in _field(n, xi, entropy))
    z, weight_z = _hermite(NODES)
    x = beta * (a + s * z)
    gentle = torch.logaddexp(x, -x) @ weight_z / beta if beta < math.inf else a[:, 0].abs()
    # ln 2 cosh x is the mean of |x − L / 2|, and over z that of |c + s z| is known.
    l, weight_l = _logistic(beta)
    c = a - l
    width = math.sqrt(2) * torch.where(s > 0, s, 1)
    distance = c * torch.special.erf(c / width) + width / math.sqrt(math.pi) * torch.exp(
        -(c / width).square()
    )
    log_cosh = torch.where(beta * s[:, 0] > 1, distance @ weight_l, gentle)
    return float((1 + entropy) / 2 * n.square().sum() - weight @ log_cosh)
