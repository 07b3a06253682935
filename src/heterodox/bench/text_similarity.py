"""Similarities within a set of texts: counted for all at once, and pair by pair."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from heterodox.bench.workload import Case, Target, Workload, check_sizes
from heterodox.probes.generation import self_bleu
from heterodox.probes.text_similarity import bleu, chrf, chrf_matrix

SYMBOLS = 300  # few enough that texts share n-grams
SELF_BLEU, CHRF = "self-BLEU", "chrF of all pairs"


def workload() -> Workload:
    return Workload(
        facts={
            "texts": f"random tokens of a vocabulary of {SYMBOLS}, frequent ones more often",
            "size": "texts x tokens",
        },
        cases=cases,
        prepare=prepare,
        targets=(
            Target("at-once", "time", "128x96", SELF_BLEU, 0.05),
            Target("at-once", "time", "30x48", CHRF, 0.05),
        ),
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """Both measures at every size.

    Raises:
        ValueError: a size is not of the form 128x96.
    """
    check_sizes(sizes, "texts x tokens", "128x96")
    return [Case(size, measure) for size in sizes for measure in (SELF_BLEU, CHRF)]


def prepare(function: Callable[..., Any], case: Case, device: str) -> Callable[[], object]:
    """A call of `function(tokens, measure)`."""
    texts, length = map(int, case.size.split("x"))
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(texts, length, generator=generator)
    tokens = (SYMBOLS * uniform**2).long().to(device)
    return lambda: function(tokens, case.passes)


def at_once(tokens: Int[Tensor, "texts length"], measure: str) -> Float[Tensor, "texts *others"]:
    if measure == SELF_BLEU:
        return self_bleu(tokens, reduction="none")
    return chrf_matrix(tokens.tolist())


def pair_by_pair(
    tokens: Int[Tensor, "texts length"], measure: str
) -> Float[Tensor, "texts *others"]:
    """The definitions in Python, as one would write them."""
    texts = tokens.tolist()
    if measure == SELF_BLEU:
        scores = [bleu(own, texts[:i] + texts[i + 1 :]) for i, own in enumerate(texts)]
        return torch.tensor(scores)
    pairs = [[chrf(own, other) for other in texts] for own in texts]
    return torch.tensor(pairs, dtype=torch.float64)


def nltk(tokens: Int[Tensor, "texts length"], measure: str) -> Float[Tensor, "texts *others"]:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from nltk.translate.chrf_score import sentence_chrf

    texts = tokens.tolist()
    if measure == SELF_BLEU:
        smooth = SmoothingFunction().method1
        scores = [
            sentence_bleu(texts[:i] + texts[i + 1 :], own, smoothing_function=smooth)
            for i, own in enumerate(texts)
        ]
        return torch.tensor(scores)
    lines = ["".join(chr(0x4E00 + token) for token in text) for text in texts]
    pairs = [[sentence_chrf(other, own, beta=2.0) for other in lines] for own in lines]
    return torch.tensor(pairs, dtype=torch.float64)
