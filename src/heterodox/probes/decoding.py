"""Decision rules over a utility: from how good each next token is to a whole sequence.

    greedy:   y_t = argmax_a u(y_<t, a)
    sequence: log p(y) = Σ_t log softmax(u(y_<t, ·) / τ)_{y_t};  MAP is its argmax
    MBR:      argmax_i Σ_j w_j sim(y_i, y_j)

A utility is `utility(prefix (batch, t)) -> (batch, vocabulary)`; only comparisons of its values for
one prefix mean anything. Greedy decoding needs no more than that; beam search, MAP, sampling and
minimum Bayes risk read exp(u / τ) as a probability. Huang and Fei, "Utility-Probability Duality of
Neural Networks", 2023, arXiv 2305.14859, found that the latter gain from an estimate other than
softmax at τ = 1. The rules are textbook ones; none is the paper's.

Sequences end with `eos`, included, or at `max_length`. Of equal values the lowest token is taken.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from heterodox.probes.beam import beam_search
from heterodox.probes.branch_and_bound import MapSearch, map_search
from heterodox.probes.continuation import draw_from_nucleus
from heterodox.probes.step_scores import StepScores, Utility, check_rule
from heterodox.probes.text_similarity import bleu, chrf, chrf_matrix, edit_similarity

__all__ = [
    "MapSearch",
    "beam_search",
    "bleu",
    "chrf",
    "chrf_matrix",
    "edit_similarity",
    "exact_map",
    "greedy",
    "map_search",
    "minimum_bayes_risk",
    "sample",
    "sequence_log_probability",
]


@torch.no_grad()
def greedy(
    utility: Utility,
    eos: int | None,
    max_length: int,
    context: Sequence[int] | Int[Tensor, "t"] | None = None,
) -> list[int]:
    """The token of the highest utility, again and again: needs comparisons only.

    Args:
        utility: from prefixes (batch, t) to the utility of each next token (batch, vocabulary).
        eos: the token that ends a sequence; None: only `max_length` does.
        max_length: tokens that are added, `eos` included.
        context: what the prefix starts with; it is no part of the result.

    Raises:
        ValueError: an argument is out of range, or the utility's values are no numbers.

    Example:
        >>> countdown = lambda prefix: -(torch.arange(5) - prefix[:, -1:] + 1).abs().float()
        >>> greedy(countdown, eos=0, max_length=9, context=[3])
        [2, 1, 0]
    """
    check_rule(max_length)
    steps = StepScores(utility, eos, 1.0)
    prefix = torch.as_tensor([] if context is None else context, dtype=torch.int64)[None]
    found: list[int] = []
    while len(found) < max_length and (eos is None or found[-1:] != [eos]):
        token = steps.utilities(prefix).argmax(-1, keepdim=True)
        prefix = torch.cat((prefix.to(token.device), token), dim=1)
        found.append(int(token))
    return found


def exact_map(
    utility: Utility,
    eos: int | None,
    max_length: int,
    temperature: float = 1.0,
    max_nodes: int | None = None,
) -> tuple[list[int], float]:
    """The most probable sequence and its log-probability, by branch and bound; see `map_search`.

    Args:
        utility, eos, max_length, temperature: as for `beam_search`.
        max_nodes: prefixes after whose expansion the search is given up and the best sequence so
            far is returned; `map_search` says whether it was. None: never.

    Raises:
        ValueError: as for `beam_search`, or `max_nodes` is not positive.

    Example:
        >>> fair = lambda prefix: torch.zeros(len(prefix), 2)
        >>> exact_map(fair, eos=1, max_length=3)[0]
        [1]
    """
    found = map_search(utility, eos, max_length, temperature, max_nodes)
    return found.sequence, found.log_probability


@torch.no_grad()
def sample(
    utility: Utility,
    eos: int | None,
    max_length: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    count: int = 1,
) -> list[list[int]]:
    """Sequences drawn token by token from softmax(u / τ), all of a step in one call.

    Args:
        utility, eos, max_length, temperature: as for `beam_search`.
        top_p: mass of the nucleus that is drawn from; 1 is ancestral sampling.
        generator: where the numbers come from; None: one that starts from seed 0.
        count: how many sequences.

    Raises:
        ValueError: as for `beam_search`, `top_p` is not in [0, 1], or `count` is negative.

    Example:
        >>> fair = lambda prefix: torch.zeros(len(prefix), 2)
        >>> sequences = sample(fair, eos=1, max_length=3, count=4)
        >>> len(sequences), all(s[-1] == 1 or len(s) == 3 for s in sequences)
        (4, True)
    """
    check_rule(max_length, temperature)
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p: {top_p} given, a number in [0, 1] expected")
    if count < 0:
        raise ValueError(f"count: {count} given, a number that is not negative expected")
    source = torch.Generator().manual_seed(0) if generator is None else generator
    steps = StepScores(utility, eos, temperature)
    found: list[list[int]] = [[] for _ in range(count)]
    live = list(range(count))
    prefix = torch.zeros(count, 0, dtype=torch.int64)
    while live and prefix.shape[1] < max_length:
        token = draw_from_nucleus(steps(prefix), top_p, source)
        prefix = torch.cat((prefix.to(token.device), token[:, None]), dim=1)
        tokens = token.tolist()
        for row, number in zip(live, tokens, strict=True):
            found[row].append(number)
        going = [place for place, number in enumerate(tokens) if number != eos]
        live, prefix = [live[place] for place in going], prefix[going]
    return found


def sequence_log_probability(
    utility: Utility, sequence: Sequence[int] | Int[Tensor, "t"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Σ_t log softmax(u(y_<t, ·) / τ)_{y_t}, in float64; gradients flow into the utility.

    Args:
        utility, temperature: as for `beam_search`.
        sequence: with its `eos`, if it has one. Nothing has log-probability 0.

    Raises:
        ValueError: a token is not in the vocabulary, or as for `beam_search`.

    Example:
        >>> fair = lambda prefix: torch.zeros(len(prefix), 2)
        >>> round(sequence_log_probability(fair, [0, 0, 1]).exp().item(), 6)
        0.125
    """
    check_rule(1, temperature)
    tokens = torch.as_tensor(sequence, dtype=torch.int64)
    steps = StepScores(utility, None, temperature)
    total = torch.zeros((), dtype=torch.float64)
    for t, token in enumerate(tokens.tolist()):
        log_p = steps(tokens[None, :t])[0]
        if not 0 <= token < len(log_p):
            raise ValueError(
                f"sequence: token {token} given, 0 to {len(log_p) - 1} expected, the vocabulary"
            )
        total = total.to(log_p.device) + log_p[token]
    return total


def minimum_bayes_risk(
    similarity: Float[Tensor, "n n"], log_weights: Float[Tensor, "n"] | None = None
) -> tuple[int, Float[Tensor, "n"]]:
    """The candidate that is most similar to all, in expectation: the consensus.

        expected_i = Σ_j w_j sim_ij,   w = softmax(log_weights)

    Args:
        similarity: of candidate i, as the hypothesis, to candidate j; see `chrf_matrix`.
        log_weights: log-probabilities of the candidates. None: equal weights, as for samples, which
            have been drawn in proportion to their probability already.

    Returns:
        The index of the best candidate, of several the first, and the expected similarities.

    Raises:
        ValueError: `similarity` is not square, has no rows or is not finite; `log_weights` has
            another length, or no finite largest value.

    Example:
        >>> minimum_bayes_risk(torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.9], [0.5, 0.9, 1.0]]))
        (2, tensor([0.5000, 0.6333, 0.8000]))
    """
    shape = tuple(similarity.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(f"similarity: shape {shape} given, (n, n) with n at least 1 expected")
    if not bool(similarity.isfinite().all()):
        raise ValueError("similarity: NaN or infinite values given, finite values expected")
    if log_weights is None:
        log_weights = similarity.new_zeros(len(similarity))
    if log_weights.shape != shape[:1]:
        raise ValueError(
            f"log_weights: shape {tuple(log_weights.shape)} given, {shape[:1]} expected"
        )
    if not math.isfinite(log_weights.max().item()):
        raise ValueError(
            "log_weights: NaN, +inf or nothing but -inf given, a finite largest value expected"
        )
    expected = similarity @ log_weights.softmax(0).to(similarity.dtype)
    return int(expected.argmax()), expected
