"""How alike two texts are: chrF, edit similarity, BLEU; and chrF of all pairs at once.

    chrF = (1 + β²) P R / (β² P + R),   P, R: mean n-gram precision and recall, n = 1..6
    edit = 1 − Levenshtein(a, b) / max(|a|, |b|)

chrF: Popović, 2015, as sacreBLEU computes it, but from 0 to 1. All functions take strings or
sequences of anything that can be compared, such as token ids.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from scipy import sparse
from torch import Tensor

from heterodox.probes.ngrams import numbered_grams

# What stands for a numerator of 0, as in NLTK's first smoothing method.
NO_MATCH = 0.1

Text = str | Sequence[Hashable]


def chrf(hypothesis: Text, reference: Text, max_n: int = 6, beta: float = 2.0) -> float:
    """Character n-gram F-score from 0 to 1.

    Args:
        hypothesis, reference: a string is its characters without white space; of any other sequence
            the elements count.
        max_n: the longest n-gram; orders that one of the two is too short for do not count.
        beta: how many times more recall weighs than precision; 2 in chrF2.

    Raises:
        ValueError: `max_n` is below 1, or `beta` is not positive.

    Example:
        >>> chrf("the cat", "the cat"), chrf("dog", "cat")
        (1.0, 0.0)
        >>> round(chrf("the mat", "the cat"), 3)
        0.281
    """
    _check_chrf(max_n, beta)
    ours, theirs = _characters(hypothesis), _characters(reference)
    precisions, recalls = [], []
    for n in range(1, min(max_n, len(ours), len(theirs)) + 1):
        own, other = _count_grams(ours, n), _count_grams(theirs, n)
        matches = (own & other).total()
        precisions.append(matches / own.total())
        recalls.append(matches / other.total())
    if not precisions or not any(precisions):
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


def chrf_matrix(
    texts: Sequence[Text], max_n: int = 6, beta: float = 2.0
) -> Float64[Tensor, "texts texts"]:
    """`chrf` of all pairs: row i is text i as the hypothesis against each text as the reference.

    A count of c becomes c ones, so that clipped matches of all pairs are one sparse product.

    Raises:
        ValueError: as for `chrf`.

    Example:
        >>> chrf_matrix(["the cat", "the mat", "a dog"]).round(decimals=3)[0]
        tensor([1.0000, 0.2810, 0.0570], dtype=torch.float64)
    """
    _check_chrf(max_n, beta)
    rows = [_characters(text) for text in texts]
    count = len(rows)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    if count == 0 or lengths.max() == 0:
        return torch.zeros(count, count, dtype=torch.float64)
    number = {symbol: i for i, symbol in enumerate(dict.fromkeys(s for row in rows for s in row))}
    tokens = np.zeros((count, lengths.max()), dtype=np.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = [number[symbol] for symbol in row]
    orders = np.minimum(lengths[:, None], lengths).clip(max=max_n)
    precision, recall = np.zeros((2, count, count))
    for n, grams in enumerate(numbered_grams(torch.from_numpy(tokens), int(orders.max())), start=1):
        totals = np.maximum(lengths - n + 1, 0)
        matches = _matches(grams.numpy(), totals)
        precision += matches / totals.clip(min=1)[:, None]
        recall += matches / totals.clip(min=1)
    precision, recall = precision / orders.clip(min=1), recall / orders.clip(min=1)
    divisor = beta**2 * precision + recall
    score = (1 + beta**2) * precision * recall / np.where(divisor > 0, divisor, 1)
    return torch.from_numpy(score)


def _matches(grams: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Σ_g min(count in row i, count in row j) for all pairs; row i has its first totals_i grams."""
    rows, places = grams.shape
    real = np.arange(places) < totals[:, None]
    owner = np.broadcast_to(np.arange(rows)[:, None], grams.shape)[real]
    key = owner * (grams.max() + 1) + grams[real]
    order = key.argsort(kind="stable")
    key, owner, gram = key[order], owner[order], grams[real][order]
    first = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(key) else key
    which = np.arange(len(key)) - np.repeat(first, np.diff(np.r_[first, len(key)]))
    feature = np.unique(gram * places + which, return_inverse=True)[1]
    table = sparse.csr_matrix((np.ones(len(key)), (owner, feature)), shape=(rows, len(key) + 1))
    return np.asarray((table @ table.T).todense())


def edit_similarity(one: Text, other: Text) -> float:
    """1 − the least number of insertions, deletions and substitutions over the longer length.

    Example:
        >>> round(edit_similarity("kitten", "sitting"), 3), edit_similarity("", "")
        (0.571, 1.0)
    """
    if not len(one) and not len(other):
        return 1.0
    previous = list(range(len(other) + 1))
    for i, symbol in enumerate(one, start=1):
        current = [i]
        for j, candidate in enumerate(other, start=1):
            change = previous[j - 1] + (symbol != candidate)
            current.append(min(change, previous[j] + 1, current[j - 1] + 1))
        previous = current
    return 1 - previous[-1] / max(len(one), len(other))


def bleu(hypothesis: Text, references: Sequence[Text], max_n: int = 4) -> float:
    """BLEU of one sentence from 0 to 1, as NLTK's `sentence_bleu` with its smoothing method 1.

    n-gram precisions are clipped by the largest count in any one reference and weighted equally; a
    numerator of 0 counts as 0.1; the brevity penalty takes the reference of the nearest length, of
    two the shorter; without a common word the score is 0.

    Args:
        hypothesis, references: a string is its words, cut at white space.
        max_n: the longest n-gram.

    Raises:
        ValueError: there are no references, or `max_n` is below 1.

    Example:
        >>> bleu("the cat sat on the mat", ["the cat sat on the mat"])
        1.0
        >>> round(bleu("the cat sat on a mat", ["the cat sat on the mat"]), 3)
        0.537
    """
    if max_n < 1:
        raise ValueError(f"max_n: {max_n} given, at least 1 expected")
    if isinstance(references, str) or not len(references):
        given = "a string" if isinstance(references, str) else "none"
        raise ValueError(f"references: {given} given, a list of at least one expected")
    ours, theirs = _words(hypothesis), [_words(reference) for reference in references]
    logs = 0.0
    for n in range(1, max_n + 1):
        own, largest = _count_grams(ours, n), Counter[tuple[Hashable, ...]]()
        for reference in theirs:
            largest |= _count_grams(reference, n)
        matches = (own & largest).total()
        if n == 1 and matches == 0:
            return 0.0
        logs += math.log((matches or NO_MATCH) / max(1, own.total()))
    nearest = min((abs(len(r) - len(ours)), len(r)) for r in theirs)[1]
    return math.exp(min(0.0, 1 - nearest / len(ours)) + logs / max_n)


def _characters(text: Text) -> Sequence[Hashable]:
    return "".join(text.split()) if isinstance(text, str) else list(text)


def _words(text: Text) -> Sequence[Hashable]:
    return text.split() if isinstance(text, str) else list(text)


def _count_grams(row: Sequence[Hashable], n: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(tuple(row[i : i + n]) for i in range(len(row) - n + 1))


def _check_chrf(max_n: int, beta: float) -> None:
    if max_n < 1:
        raise ValueError(f"max_n: {max_n} given, at least 1 expected")
    if not 0 < beta < math.inf:
        raise ValueError(f"beta: {beta} given, a positive number expected")
