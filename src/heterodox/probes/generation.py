"""Measures of generated text and the two ways of generating it, under one name.

What is measured: `type_token_ratio`, `repetition_rate`, `loop_rate`, `self_bleu`,
`predictive_entropy`, `ngram_divergence` (see `diversity`), `overlap_rate`, `longest_overlap`
(`ngrams`). How text is generated: `greedy`, `sample`, `nucleus_mask`, with `CitationBlocker`,
`NoRepeatNgram` and `RepetitionPenalty` (`continuation`).

Carlsson et al., "The Hyperfitting Phenomenon", ICLR 2025, arXiv 2412.04318.
"""

from heterodox.probes.continuation import (
    NoRepeatNgram,
    RepetitionPenalty,
    greedy,
    nucleus_mask,
    sample,
)
from heterodox.probes.diversity import (
    loop_rate,
    ngram_divergence,
    predictive_entropy,
    repetition_rate,
    self_bleu,
    type_token_ratio,
)
from heterodox.probes.ngrams import CitationBlocker, NgramIndex, longest_overlap, overlap_rate

__all__ = [
    "CitationBlocker",
    "NgramIndex",
    "NoRepeatNgram",
    "RepetitionPenalty",
    "greedy",
    "longest_overlap",
    "loop_rate",
    "ngram_divergence",
    "nucleus_mask",
    "overlap_rate",
    "predictive_entropy",
    "repetition_rate",
    "sample",
    "self_bleu",
    "type_token_ratio",
]
