"""From utilities back to probabilities: three estimators. All are our reconstruction.

    boltzmann:  P(a | s) = softmax(u / τ)_a                         τ fitted by the decision metric
    rank:       P(a | s) = φ_r,  r the rank of u_a in its context   φ: how often the truth had rank
    dynamics:   mean_t π_t + (u_T − u_0) / (η T)                    the frequencies of training data

Huang and Fei, "Utility-Probability Duality of Neural Networks", 2023, arXiv 2305.14859, turn
utilities into a new probability estimate, and report that decision rules which need probabilities
gain by double digits. Their equation was not accessible to us: these three follow from what the
abstract says (utilities are ordinal; learning is an iteration that compares choices with the
policy), and none can be called the paper's. Each applies to one step of a sequence at a time.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from heterodox.losses.utility_loss import check_temperature

LOWEST, HIGHEST = 0.05, 1.0  # temperatures that are searched
GRID, REFINEMENTS = 12, 12
GOLDEN = (math.sqrt(5) - 1) / 2


def utility_to_probability(
    utility: Float[Tensor, "*batch alternatives"],
    method: str = "boltzmann",
    temperature: float = 1.0,
    rank_frequencies: Float[Tensor, "alternatives"] | None = None,
) -> Float[Tensor, "*batch alternatives"]:
    """A probability estimate from utilities, along the last axis. A reconstruction; see the module.

    "boltzmann" is softmax(u / τ), with τ from `fit_temperature` in place of 1. Small τ makes every
    deviation from the best alternative expensive, so that the most probable sequence becomes the
    greedy one. "rank" gives the alternative of rank r the frequency φ_r with which the truth has
    had rank r: it reads nothing but order, and is unchanged by any increasing map of u.

    Args:
        utility: any shape; −inf is worse than everything, with probability 0 under "boltzmann".
        method: "boltzmann" or "rank".
        temperature: τ of "boltzmann"; 0 is the limit, in which alternatives tied for the maximum
            share all probability.
        rank_frequencies: φ of "rank", from `fit_rank_frequencies`: not negative, of sum 1. Tied
            alternatives share the mean of their φ.

    Raises:
        ValueError: `method` is neither; `temperature` is negative; `rank_frequencies` is missing
            for "rank", given for "boltzmann", or no distribution over the alternatives; or a row of
            `utility` has NaN, +inf or nothing but −inf.

    Example:
        >>> u = torch.tensor([2.0, 0.0, 1.0])
        >>> utility_to_probability(u, temperature=0.1)
        tensor([9.9995e-01, 2.0611e-09, 4.5398e-05])
        >>> utility_to_probability(u, "rank", rank_frequencies=torch.tensor([0.7, 0.2, 0.1]))
        tensor([0.7000, 0.1000, 0.2000])
    """
    if method not in ("boltzmann", "rank"):
        raise ValueError(f"method: {method!r} given, 'boltzmann' or 'rank' expected")
    check_temperature(temperature)
    if (rank_frequencies is None) == (method == "rank"):
        given = "None" if rank_frequencies is None else "a tensor"
        expected = "frequencies" if method == "rank" else "None"
        raise ValueError(f"rank_frequencies: {given} given, {expected} expected with {method!r}")
    _check_utility(utility)
    u = utility.to(torch.promote_types(utility.dtype, torch.float32))
    if rank_frequencies is not None:
        _check_frequencies(rank_frequencies, utility.shape[-1])
        return _by_rank(u, rank_frequencies.to(u)).to(utility.dtype)
    if temperature == 0:
        best = (u == u.amax(-1, keepdim=True)).to(u.dtype)
        return (best / best.sum(-1, keepdim=True)).to(utility.dtype)
    return (u / temperature).softmax(-1).to(utility.dtype)


def _check_utility(utility: Tensor) -> None:
    if utility.ndim == 0 or utility.shape[-1] == 0:
        raise ValueError(
            f"utility: shape {tuple(utility.shape)} given, alternatives on the last axis expected"
        )
    if utility.device.type == "meta" or torch.compiler.is_compiling():
        return
    if not bool(utility.amax(-1).isfinite().all()):
        raise ValueError(
            "utility: NaN, +inf or a row of -inf alone given, a finite largest value expected"
        )


def _check_frequencies(frequencies: Tensor, alternatives: int) -> None:
    if frequencies.shape != (alternatives,):
        raise ValueError(
            f"rank_frequencies: shape {tuple(frequencies.shape)} given, ({alternatives},) expected"
        )
    if frequencies.device.type == "meta" or torch.compiler.is_compiling():
        return
    total = float(frequencies.double().sum())
    if not bool((frequencies >= 0).all()) or not abs(total - 1) < 1e-2:
        raise ValueError(
            f"rank_frequencies: a sum of {total:g} given, numbers that are not negative and of sum "
            "1 expected"
        )


def _ranks(
    utility: Float[Tensor, "*batch alternatives"], queries: Float[Tensor, "*batch queries"]
) -> tuple[Int[Tensor, "*batch queries"], Int[Tensor, "*batch queries"]]:
    """How many alternatives are better than each query, and how many at least as good."""
    ascending = utility.sort(dim=-1).values.contiguous()
    queries = queries.contiguous()
    total = utility.shape[-1]
    at_least = total - torch.searchsorted(ascending, queries, right=False)
    better = total - torch.searchsorted(ascending, queries, right=True)
    return better, at_least


def _by_rank(
    utility: Float[Tensor, "*batch alternatives"], frequencies: Float[Tensor, "alternatives"]
) -> Float[Tensor, "*batch alternatives"]:
    better, at_least = _ranks(utility, utility)
    # Sums of the first frequencies, whose differences are the sums over tied ranks.
    sums = torch.cat((frequencies.new_zeros(1), (frequencies / frequencies.sum()).cumsum(0)))
    return (sums[at_least] - sums[better]) / (at_least - better)


def fit_temperature(
    utility: Float[Tensor, "examples alternatives"],
    target: Int[Tensor, "examples"],
    metric: Callable[[Tensor, Tensor], float],
) -> float:
    """The τ in [0.05, 1] at which softmax(u / τ) does best by a metric. A reconstruction.

    Args:
        utility, target: of validation data, not of the data that is judged.
        metric: `(probabilities, target) -> number`, higher is better: what the decision rule is
            judged by, such as the expected accuracy of sampling.

    Raises:
        ValueError: there are no examples, shapes disagree, or a target or utility is out of range.

    Example:
        >>> u = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
        >>> def likelihood(p, target):
        ...     return p.gather(1, target[:, None]).log().mean().item()
        >>> tau = fit_temperature(u, torch.tensor([0, 1, 1]), likelihood)
        >>> tau == 1.0  # two of three right, for odds of 2 : 1, would need more than 1
        True
    """
    _check_examples(utility, target)
    return best_temperature(
        lambda tau: metric(utility_to_probability(utility, temperature=tau), target)
    )


def best_temperature(score: Callable[[float], float]) -> float:
    """The τ in [0.05, 1] of the highest score: the best of a grid, even in log τ, then refined by
    golden section between its neighbours. Of equals the first that was tried.

    Raises:
        ValueError: a score is NaN.

    Example:
        >>> round(best_temperature(lambda tau: -(tau - 0.3) ** 2), 2)
        0.3
    """
    scores: dict[float, float] = {}

    def at(log_tau: float) -> float:
        tau = math.exp(log_tau)
        if tau not in scores:
            scores[tau] = float(score(tau))
            if math.isnan(scores[tau]):
                raise ValueError(f"score: NaN given at temperature {tau:g}, a number expected")
        return scores[tau]

    low, high = math.log(LOWEST), math.log(HIGHEST)
    grid = [low + (high - low) * i / (GRID - 1) for i in range(GRID - 1)] + [high]
    best = max(range(GRID), key=lambda i: at(grid[i]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    for _ in range(REFINEMENTS):
        if at(left) >= at(right):
            high, right = right, left
            left = high - GOLDEN * (high - low)
        else:
            low, left = left, right
            right = low + GOLDEN * (high - low)
    return max(scores, key=lambda tau: scores[tau])


def fit_rank_frequencies(
    utility: Float[Tensor, "examples alternatives"], target: Int[Tensor, "examples"]
) -> Float[Tensor, "alternatives"]:
    """φ_r: how often the truth has rank r among the utilities, smoothed. A reconstruction.

    Half an example is spread evenly over all ranks, and an isotonic fit makes φ non-increasing. An
    example whose truth is tied counts for each of the tied ranks in equal parts.

    Args:
        utility, target: of validation data.

    Returns:
        φ in the dtype of the utilities, of sum 1, best rank first.

    Raises:
        ValueError: there are no examples, shapes disagree, or a target or utility is out of range.

    Example:
        >>> u = torch.tensor([[3.0, 2.0, 1.0]]).expand(9, 3)
        >>> fit_rank_frequencies(u, torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 2]))
        tensor([0.6491, 0.2281, 0.1228])
    """
    _check_examples(utility, target)
    alternatives = utility.shape[1]
    u = utility.to(torch.promote_types(utility.dtype, torch.float32))
    better, at_least = (x[:, 0] for x in _ranks(u, u.gather(1, target.long()[:, None])))
    # A step up where the tied ranks begin and a step down where they end.
    share = 1 / (at_least - better).double()
    steps = torch.zeros(alternatives + 1, dtype=torch.float64, device=u.device)
    steps.scatter_add_(0, better, share).scatter_add_(0, at_least, -share)
    counts = steps.cumsum(0)[:-1] + 0.5 / alternatives
    frequencies = (counts / counts.sum()).cpu().numpy()
    fitted = torch.from_numpy(isotonic_regression(frequencies, increasing=False).copy())
    return (fitted / fitted.sum()).to(utility)


def _check_examples(utility: Tensor, target: Tensor) -> None:
    if utility.ndim != 2 or len(utility) == 0 or target.shape != utility.shape[:1]:
        raise ValueError(
            f"utility: shape {tuple(utility.shape)} with targets {tuple(target.shape)} given, "
            "(examples, alternatives) and (examples,) with at least one example expected"
        )
    _check_utility(utility)
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= utility.shape[1]:
        wrong = low if low < 0 else high
        raise ValueError(f"target: {wrong} given, 0 to {utility.shape[1] - 1} expected")


def frequencies_from_dynamics(
    initial: Float[Tensor, "*batch alternatives"],
    final: Float[Tensor, "*batch alternatives"],
    mean_probability: Float[Tensor, "*batch alternatives"],
    learning_rate: float | Float[Tensor, "*batch #alternatives"],
    steps: int | Int[Tensor, "*batch #alternatives"],
) -> Float[Tensor, "*batch alternatives"]:
    """The frequencies of choices that a table of utilities was trained on, from its training alone.

        u_T − u_0 = η Σ_t (e_{a_t} − π_t),   so   1/T Σ_t e_{a_t} = mean_t π_t + (u_T − u_0) / (η T)

    An identity for SGD on cross-entropy with one free utility an alternative in each context, and
    our reconstruction of what the duality can mean at its most literal. For a network, whose
    utilities share weights, the second term fades with T and the mean of its softmax outputs over
    training is an estimate.

    Args:
        initial, final: utilities before and after training.
        mean_probability: mean of softmax(u) over the steps, each before its update; with rates that
            vary, weighted by them.
        learning_rate: η; with rates that vary, their mean.
        steps: T, of each context.

    Raises:
        ValueError: shapes differ; a rate or number of steps is not positive.

    Example:
        >>> before = torch.zeros(2)
        >>> pi = before.softmax(0)
        >>> after = before + 0.1 * (torch.tensor([1.0, 0.0]) - pi)  # one step, alternative 0 chosen
        >>> frequencies_from_dynamics(before, after, pi, 0.1, 1)
        tensor([1., 0.])
    """
    for name, given in (("final", final), ("mean_probability", mean_probability)):
        if given.shape != initial.shape:
            raise ValueError(
                f"{name}: shape {tuple(given.shape)} given, {tuple(initial.shape)} expected"
            )
    for name, amount in (("learning_rate", learning_rate), ("steps", steps)):
        on_meta = isinstance(amount, Tensor) and amount.device.type == "meta"
        if not on_meta and not bool((torch.as_tensor(amount) > 0).all()):
            raise ValueError(f"{name}: {amount} given, positive numbers expected")
    return mean_probability + (final - initial) / (learning_rate * steps)
