"""How diverse generated tokens are: type-token ratio, repetition, self-BLEU, entropy.

    TTR(y) = |{y_i}| / |y|                         over the last 96 tokens
    repetition(y) = 1 − |distinct n-grams| / |n-grams|
    self-BLEU(y_i) = BLEU-4 of y_i against all y_j, j ≠ i;  low where continuations differ
    H(p) = −Σ_v p_v log p_v                        in nats

The measures of Carlsson et al., "The Hyperfitting Phenomenon", ICLR 2025, arXiv 2412.04318, on
token ids; self-BLEU is that of Zhu et al., "Texygen", arXiv 1802.01886. n-grams are numbered once,
exactly, and counted by sorting: O(n N log N) for N tokens, no pair of sequences is compared.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from heterodox.probes.ngrams import Corpus, check_tokens, numbered_grams

# What stands for a numerator of 0, as in NLTK's first smoothing method.
NO_MATCH = 0.1


def type_token_ratio(
    tokens: Int[Tensor, "batch length"], window: int = 96
) -> Float[Tensor, "batch"]:
    """Distinct tokens per token, over the last `window` tokens of each row or over all if fewer.

    Args:
        tokens: generated tokens without their context.
        window: 96 in the paper.

    Raises:
        ValueError: `window` is not positive, or there are no tokens.

    Example:
        >>> type_token_ratio(torch.tensor([[4, 4, 4, 4], [1, 2, 3, 1]]))
        tensor([0.2500, 0.7500])
    """
    if window < 1:
        raise ValueError(f"window: {window} given, a positive number expected")
    check_tokens("tokens", tokens, at_least=1)
    last = tokens[:, -window:].sort(dim=1).values
    return (1 + (last[:, 1:] != last[:, :-1]).sum(1)) / last.shape[1]


def repetition_rate(tokens: Int[Tensor, "batch length"], n: int = 4) -> Float[Tensor, "batch"]:
    """The share of each row's n-grams that have occurred in the row before.

    Args:
        tokens: generated tokens without their context, at least n a row.
        n: tokens that must repeat together.

    Raises:
        ValueError: `n` is not positive, or rows are shorter.

    Example:
        >>> repetition_rate(torch.tensor([[1, 2, 1, 2, 1]]), n=2)
        tensor([0.5000])
    """
    if n < 1:
        raise ValueError(f"n: {n} given, at least 1 expected")
    check_tokens("tokens", tokens, at_least=n)
    grams = numbered_grams(tokens.long(), n)[-1].sort(dim=1).values
    return (grams[:, 1:] == grams[:, :-1]).sum(1) / grams.shape[1]


def loop_rate(
    tokens: Int[Tensor, "batch length"], window: int = 64, longest_period: int = 16
) -> Float[Tensor, ""]:
    """The share of rows that end in a loop: their last `window` tokens have a short period.

    Args:
        tokens: generated tokens without their context, at least `window` a row.
        window: tokens looked at.
        longest_period: tokens after which a loop must start again, below `window`.

    Raises:
        ValueError: `longest_period` is not in [1, window), or rows are none or shorter than
            `window`.

    Example:
        >>> loop_rate(torch.tensor([[9, 1, 2, 1, 2], [1, 2, 3, 4, 5]]), window=4, longest_period=2)
        tensor(0.5000)
    """
    if not 1 <= longest_period < window:
        raise ValueError(
            f"longest_period: {longest_period} given, from 1 to below the window {window} expected"
        )
    check_tokens("tokens", tokens, at_least=window)
    if len(tokens) == 0:
        raise ValueError("tokens: no sequences given, at least one expected")
    last = tokens[:, -window:]
    loops = [(last[:, p:] == last[:, :-p]).all(1) for p in range(1, longest_period + 1)]
    return torch.stack(loops).any(0).float().mean()


def self_bleu(sequences: Corpus, max_n: int = 4, reduction: str = "mean") -> Float[Tensor, "*rows"]:
    """BLEU of each sequence with all the others as references: high if they are alike.

    n-gram precisions are clipped by the largest count in any one reference and weighted equally; a
    numerator of 0 counts as 0.1; the brevity penalty takes the reference of the nearest length, of
    two the shorter; a sequence that shares no token has 0. This is NLTK's `sentence_bleu` with its
    smoothing method 1.

    Args:
        sequences: two or more, a matrix or vectors of any length.
        max_n: the longest n-gram, 4 in BLEU-4.
        reduction: "mean", or "none" for one number a sequence.

    Raises:
        ValueError: fewer than two sequences, `max_n` is not positive, or `reduction` is neither.

    Example:
        >>> self_bleu(torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]]))
        tensor(1.)
        >>> self_bleu(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), reduction="none")
        tensor([0., 0.])
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction: {reduction!r} given, 'mean' or 'none' expected")
    if max_n < 1:
        raise ValueError(f"max_n: {max_n} given, at least 1 expected")
    rows = [x.long() for x in check_tokens("sequences", sequences)]
    if len(rows) < 2:
        raise ValueError(f"sequences: {len(rows)} given, at least 2 expected")
    device = rows[0].device
    lengths = torch.tensor([len(row) for row in rows], device=device)
    logs = torch.zeros(len(rows), dtype=torch.float64, device=device)
    shares_a_token = torch.zeros(len(rows), dtype=torch.bool, device=device)
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    for n, grams in enumerate(numbered_grams(padded, min(max_n, padded.shape[1])), start=1):
        matches = _clipped_by_the_others(grams, lengths - n + 1)
        if n == 1:
            shares_a_token = matches > 0
        logs += _log_precision(matches, lengths - n + 1)
    for n in range(padded.shape[1] + 1, max_n + 1):
        logs += _log_precision(torch.zeros_like(lengths), lengths - n + 1)
    bleu = (logs / max_n + _log_brevity(lengths)).exp() * shares_a_token
    bleu = bleu.to(torch.get_default_dtype())
    return bleu.mean() if reduction == "mean" else bleu


def _log_precision(
    matches: Int[Tensor, "rows"], grams: Int[Tensor, "rows"]
) -> Float[Tensor, "rows"]:
    return torch.where(matches > 0, matches.double(), NO_MATCH).log() - grams.clamp(min=1).log()


def _clipped_by_the_others(
    grams: Int[Tensor, "rows places"], counts: Int[Tensor, "rows"]
) -> Int[Tensor, "rows"]:
    """Σ over a row's n-grams of min(own count, largest count in any one other row).

    Args:
        grams: a number for each n-gram; of row i the first counts_i are its own.
    """
    rows, places = grams.shape
    real = torch.arange(places, device=grams.device) < counts[:, None]
    owner = torch.arange(rows, device=grams.device)[:, None].expand_as(grams)[real]
    # One entry for each n-gram that a row has, with how often: sorted by n-gram, largest first.
    entries, count = torch.unique(grams[real] * rows + owner, return_counts=True)
    gram, owner = entries // rows, entries % rows
    order = (gram * (places + 1) + places - count).argsort(stable=True)
    gram, owner, count = gram[order], owner[order], count[order]
    starts = torch.ones_like(gram, dtype=torch.bool)
    starts[1:] = gram[1:] != gram[:-1]
    group = starts.cumsum(0) - 1
    first = starts.nonzero()[:, 0]
    second = (first + 1).clamp(max=max(len(gram) - 1, 0))
    runner_up = torch.where((second != first) & (gram[second] == gram[first]), count[second], 0)
    is_first = torch.arange(len(gram), device=gram.device) == first[group]
    others = torch.where(is_first, runner_up[group], count[first][group])
    return torch.zeros_like(counts).scatter_add(0, owner, torch.minimum(count, others))


def _log_brevity(lengths: Int[Tensor, "rows"]) -> Float[Tensor, "rows"]:
    """min(0, 1 − r / c), r the nearest length among the others, of two the shorter."""
    gaps = 2 * (lengths[:, None] - lengths).abs() + (lengths > lengths[:, None])
    gaps.fill_diagonal_(2 * int(lengths.max()) + 2)
    nearest = lengths[gaps.argmin(1)]
    return (1 - nearest / lengths.clamp(min=1)).clamp(max=0).double()


def predictive_entropy(logits: Float[Tensor, "*shape vocabulary"]) -> Float[Tensor, "*shape"]:
    """Entropy of softmax(logits) in nats, along the last axis; −inf is a token without probability.

    Raises:
        ValueError: there are no tokens, logits are integers, or a row holds NaN, +inf or nothing
            but −inf.

    Example:
        >>> predictive_entropy(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]]))
        tensor([0.6931, 0.0000])
    """
    check_logits("logits", logits)
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    # Not log p alone: its −inf times a probability of 0 is no number.
    entropy = 0.0 - (log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0)).sum(-1)
    return entropy.clamp(min=0).to(logits.dtype)


def ngram_divergence(
    tokens: Int[Tensor, "batch length"], other: Int[Tensor, "others other_length"], n: int = 1
) -> Float[Tensor, ""]:
    """Jensen-Shannon divergence in nats between the n-gram histograms of two sets of sequences.

    0 if both use every n-gram equally often, log 2 if they share none. A cheap distance between
    generated and true continuations, in the spirit of MAUVE, which needs a model's embeddings.

    Raises:
        ValueError: `n` is not positive, rows are shorter than n, or there are none.

    Example:
        >>> ngram_divergence(torch.tensor([[1, 2]]), torch.tensor([[3, 4]]))
        tensor(0.6931)
    """
    if n < 1:
        raise ValueError(f"n: {n} given, at least 1 expected")
    for name, given in (("tokens", tokens), ("other", other)):
        check_tokens(name, given, at_least=n)
        if len(given) == 0:
            raise ValueError(f"{name}: no sequences given, at least one expected")
    ours, theirs = (x.long().unfold(1, n, 1).reshape(-1, n) for x in (tokens, other))
    numbers = torch.unique(torch.cat((ours, theirs)), dim=0, return_inverse=True)[1]
    histograms = [
        part.bincount(minlength=int(numbers.max()) + 1).double()
        for part in (numbers[: len(ours)], numbers[len(ours) :])
    ]
    p, q = (h / h.sum() for h in histograms)
    middle = (p + q) / 2
    entropy = torch.special.entr
    js = entropy(middle).sum() - (entropy(p).sum() + entropy(q).sum()) / 2
    return js.clamp(min=0).to(torch.get_default_dtype())


def check_logits(name: str, logits: Tensor) -> None:
    """Raises ValueError unless each row of the last axis has a softmax."""
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(
            f"{name}: shape {tuple(logits.shape)} given, tokens on the last axis expected"
        )
    if not logits.is_floating_point():
        raise ValueError(f"{name}: {logits.dtype} given, floating-point numbers expected")
    if logits.device.type == "meta" or torch.compiler.is_compiling():
        return
    if not bool(logits.amax(-1).isfinite().all()):
        raise ValueError(
            f"{name}: NaN, +inf or a row of -inf alone given, a finite largest logit in each row "
            "expected"
        )
