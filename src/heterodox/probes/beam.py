"""Beam search over a utility, all hypotheses of a step in one call.

    score(y) = Σ_t log softmax(u(y_<t, ·) / τ)_{y_t} / |y|^α

Each round expands all live hypotheses and keeps the best k expansions; those that end leave the
beam and free no place in that round. One call of the utility a round.
"""

import math

import torch

from heterodox.probes.step_scores import StepScores, Utility, check_rule, highest


@torch.no_grad()
def beam_search(
    utility: Utility,
    beam: int,
    eos: int | None,
    max_length: int,
    temperature: float = 1.0,
    length_penalty: float = 0.0,
) -> tuple[list[int], float]:
    """The best sequence that a beam of `beam` hypotheses finds, and its score.

    Stops when nothing is live, or when no live hypothesis can still overtake the best finished one.

    Args:
        utility: from prefixes (batch, t) to the utility of each next token (batch, vocabulary).
        beam: hypotheses that are kept; 1 is greedy decoding.
        eos: the token that ends a sequence; None: only `max_length` does.
        max_length: of a sequence, `eos` included.
        temperature: τ, what utilities are divided by; 0 is the limit, greedy decoding.
        length_penalty: α. 0 ranks by probability, 1 by the mean of the log-probabilities.

    Raises:
        ValueError: an argument is out of range, or the utility's values are no numbers.

    Example:
        >>> def utility(prefix):  # 0 is more likely first, but all that follows 1 is certain
        ...     first = torch.tensor([0.6, 0.4, 1e-9]).log()
        ...     later = torch.tensor([[0.4, 0.3, 0.3], [1e-9, 1e-9, 1.0]]).log()
        ...     return first[None] if prefix.shape[1] == 0 else later[prefix[:, -1]]
        >>> [beam_search(utility, beam, eos=2, max_length=2)[0] for beam in (1, 2)]
        [[0, 0], [1, 2]]
    """
    if beam < 1:
        raise ValueError(f"beam: {beam} given, at least 1 expected")
    check_rule(max_length, temperature)
    if not 0 <= length_penalty < math.inf:
        raise ValueError(
            f"length_penalty: {length_penalty} given, a number that is not negative expected"
        )
    steps = StepScores(utility, eos, temperature)
    prefix = torch.zeros(1, 0, dtype=torch.int64)
    score = torch.zeros(1, dtype=torch.float64)
    best: tuple[list[int], float] = ([], -math.inf)
    for length in range(1, max_length + 1):
        log_p = steps(prefix)
        prefix, score = prefix.to(log_p.device), score.to(log_p.device)
        total = (score[:, None] + log_p).flatten()
        chosen = highest(total, beam)
        token = chosen % log_p.shape[1]
        prefix = torch.cat((prefix[chosen // log_p.shape[1]], token[:, None]), dim=1)
        score = total[chosen]
        ended = token == eos if eos is not None else torch.zeros_like(token, dtype=torch.bool)
        if length == max_length:
            ended = torch.ones_like(ended)
        finished = ended.nonzero()[:1, 0]  # the first is the best of its length
        if len(finished):
            value = score[finished].item() / length**length_penalty
            if value > best[1]:
                best = prefix[finished[0]].tolist(), value
        prefix, score = prefix[~ended], score[~ended]
        # Scores only fall, and dividing by a longer length is what could lift them.
        if len(score) == 0 or best[1] >= score.max().item() / max_length**length_penalty:
            break
    return best
