"""The most probable sequence, exactly: branch and bound on log-probabilities, which only fall.

    log p(y_≤t) ≥ log p(y)      so a prefix below the best sequence known is never expanded

Depth first with the best children first, from the bound that a beam search gives (Stahlberg and
Byrne, "On NMT Search Errors and Model Errors", 2019, arXiv 1908.10090). Prefixes of one length are
expanded in blocks, one call of the utility each; the search stays exact.
"""

import math
from dataclasses import dataclass

import torch

from heterodox.probes.beam import beam_search
from heterodox.probes.step_scores import StepScores, Utility, check_rule

FIRST_BEAM = 5
BLOCK = 128  # prefixes in one call


@dataclass(frozen=True)
class MapSearch:
    """What a search has found.

    Attributes:
        sequence: the most probable sequence, or the best one found.
        log_probability: of it.
        nodes: prefixes that were expanded.
        proven: whether nothing is more probable; False if `max_nodes` ended the search.
    """

    sequence: list[int]
    log_probability: float
    nodes: int
    proven: bool


@torch.no_grad()
def map_search(
    utility: Utility,
    eos: int | None,
    max_length: int,
    temperature: float = 1.0,
    max_nodes: int | None = None,
) -> MapSearch:
    """The most probable sequence with a record of the search.

    Args:
        utility, eos, max_length, temperature: as for `beam_search`.
        max_nodes: prefixes after whose expansion the search is given up, about; None: never.

    Of sequences that are equally probable the first in the order of their tokens is taken.

    Raises:
        ValueError: as for `beam_search`, or `max_nodes` is not positive.

    Example:
        >>> fair = lambda prefix: torch.zeros(len(prefix), 2)
        >>> map_search(fair, eos=1, max_length=3).sequence
        [1]
    """
    check_rule(max_length, temperature)
    if max_nodes is not None and max_nodes < 1:
        raise ValueError(f"max_nodes: {max_nodes} given, a positive number or None expected")
    best, bound = beam_search(utility, FIRST_BEAM, eos, max_length, temperature)
    steps = StepScores(utility, eos, temperature)
    nodes = 0
    stack = [(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, dtype=torch.float64))]
    while stack:
        prefix, score = stack.pop()
        alive = score >= bound
        if not bool(alive.any()):
            continue
        if max_nodes is not None and nodes >= max_nodes:
            return MapSearch(best, bound, nodes, proven=False)
        prefix, score = prefix[alive], score[alive]
        nodes += len(prefix)
        log_p = steps(prefix)
        prefix, score = prefix.to(log_p.device), score.to(log_p.device)
        total = score[:, None] + log_p
        last = prefix.shape[1] + 1 == max_length
        ends = total if last else total[:, [] if eos is None else [eos]]
        if ends.numel() and (highest := ends.max().item()) >= bound:
            for row, column in (ends == highest).nonzero().tolist():
                token = column if last or eos is None else eos
                found = [*prefix[row].tolist(), token]
                if highest > bound or found < best:
                    best, bound = found, highest
        if last:
            continue
        if eos is not None:
            total[:, eos] = -torch.inf
        places = ((total >= bound) & (total > -math.inf)).nonzero()
        scores = total[places[:, 0], places[:, 1]]
        order = scores.argsort(descending=True, stable=True)
        places, scores = places[order], scores[order]
        children = torch.cat((prefix[places[:, 0]], places[:, 1:]), dim=1)
        blocks = zip(children.split(BLOCK), scores.split(BLOCK), strict=True)
        stack.extend(reversed([block for block in blocks if len(block[1])]))
    return MapSearch(best, bound, nodes, proven=True)
