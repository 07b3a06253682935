"""n-grams of token sequences: which occur in a corpus, and forbidding those that do.

    overlap(y) = |{i : y_i..y_{i+n-1} occurs in the corpus}| / (L − n + 1)
    blocked(prefix) = {v : the last n − 1 tokens of the prefix, then v, occur in the corpus}

The measure of copying and the citation blocker of Carlsson et al., "The Hyperfitting Phenomenon",
ICLR 2025, arXiv 2412.04318. An index is a sorted table of 64-bit hashes, each hit compared token by
token: a query takes O(length · log corpus). Longest overlaps come from sorted suffixes.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Corpus = Int[Tensor, "_ _"] | Sequence[Int[Tensor, "_"]]
"""Sequences of equal length as a matrix, or of any length one by one. No n-gram spans two."""

BASE = 6364136223846793005  # odd, so that multiplying by it loses nothing modulo 2^64


class NgramIndex:
    """Which n-grams occur in a corpus, and what follows their first n − 1 tokens.

    Args:
        corpus: token ids; see `Corpus`. Sequences shorter than n hold no n-gram.
        n: at least 1.

    Raises:
        ValueError: `n` is below 1, or the corpus holds anything but integers that are not negative.

    Example:
        >>> index = NgramIndex(torch.tensor([[5, 6, 7, 5, 6, 8]]), n=3)
        >>> index.contains(torch.tensor([[5, 6, 8], [6, 7, 6]]))
        tensor([ True, False])
    """

    def __init__(self, corpus: Corpus, n: int) -> None:
        if n < 1:
            raise ValueError(f"n: {n} given, at least 1 expected")
        self.n = n
        sequences = check_tokens("corpus", corpus)
        windows = [x.long().unfold(0, n, 1) for x in sequences if len(x) >= n]
        device = sequences[0].device if sequences else torch.device("cpu")
        empty = torch.empty(0, n, dtype=torch.int64, device=device)
        grams = torch.unique(torch.cat(windows), dim=0) if windows else empty
        self.grams = grams  # in lexicographic order
        self.largest = int(grams.max()) if len(grams) else -1
        self._grams = _HashTable(grams)
        if n == 1:  # one prefix, of no tokens, that everything follows
            prefixes, counts = grams[:1, :0], grams.new_tensor([len(grams)] * bool(len(grams)))
        else:
            prefixes, counts = torch.unique_consecutive(grams[:, :-1], dim=0, return_counts=True)
        self._prefixes = _HashTable(prefixes)
        self._counts = counts
        self._first = counts.cumsum(0) - counts

    def __len__(self) -> int:
        return len(self.grams)

    def contains(self, grams: Int[Tensor, "*batch n"]) -> Bool[Tensor, "*batch"]:
        """Whether each n-gram occurs in the corpus."""
        return self._grams.find(grams) >= 0

    def following(self, prefix: Int[Tensor, "batch last"], size: int) -> Bool[Tensor, "batch size"]:
        """Which of `size` tokens complete an n-gram of the corpus after n − 1 tokens."""
        found = torch.zeros(len(prefix), size, dtype=torch.bool, device=prefix.device)
        place = self._prefixes.find(prefix)
        rows = (place >= 0).nonzero()[:, 0]
        if len(rows) == 0:
            return found
        self._to(prefix.device)
        counts = self._counts[place[rows]]
        owner = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
        within = torch.arange(len(owner), device=rows.device) - (counts.cumsum(0) - counts)[owner]
        found[rows[owner], self.grams[self._first[place[rows]][owner] + within, -1]] = True
        return found

    def _to(self, device: torch.device) -> None:
        if self.grams.device != device:
            self.grams, self._counts = self.grams.to(device), self._counts.to(device)
            self._first = self._first.to(device)


class _HashTable:
    """Rows of distinct tokens, found by a hash that is never trusted without a comparison."""

    def __init__(self, rows: Int[Tensor, "rows n"]) -> None:
        self.salt = 0
        while True:  # distinct rows must have distinct hashes; chance takes care of it at once
            hashes, order = _hash(rows, self.salt).sort()
            if len(hashes) < 2 or bool((hashes[1:] != hashes[:-1]).all()):
                break
            self.salt += 1
        self.rows, self.hashes, self.order = rows, hashes, order

    def find(self, queries: Int[Tensor, "*batch n"]) -> Int[Tensor, "*batch"]:
        """The number of the row that equals each query, or −1."""
        if len(self.rows) == 0:
            return queries.new_full(queries.shape[:-1], -1, dtype=torch.int64)
        if self.rows.device != queries.device:
            self.rows, self.hashes = self.rows.to(queries.device), self.hashes.to(queries.device)
            self.order = self.order.to(queries.device)
        place = torch.searchsorted(self.hashes, _hash(queries, self.salt))
        row = self.order[place.clamp(max=len(self.order) - 1)]
        return torch.where((self.rows[row] == queries).all(-1), row, -1)


def _hash(rows: Int[Tensor, "*batch n"], salt: int) -> Int[Tensor, "*batch"]:
    """A polynomial in the tokens modulo 2^64, which is how int64 overflows, then mixed."""
    value = torch.full(rows.shape[:-1], salt, dtype=torch.int64, device=rows.device)
    for token in rows.unbind(-1):
        value = value * BASE + token + 1
        value = value ^ (value >> 29)
    return value


def overlap_rate(
    tokens: Int[Tensor, "batch length"], corpus: Corpus, n: int
) -> Float[Tensor, "batch"]:
    """The share of each row's n-grams that occur in the corpus.

    To ask often about one corpus, make a `NgramIndex` and call `contains`.

    Args:
        tokens: generated tokens, at least n a row.
        corpus: see `Corpus`.
        n: 4 and 8 say something about copying.

    Returns:
        One number a row.

    Raises:
        ValueError: rows are shorter than n, or as for `NgramIndex`.

    Example:
        >>> overlap_rate(torch.tensor([[1, 2, 3, 9]]), torch.tensor([[0, 1, 2, 3]]), n=2)
        tensor([0.6667])
    """
    index = NgramIndex(corpus, n)
    check_tokens("tokens", tokens, at_least=n)
    return index.contains(tokens.long().unfold(1, n, 1)).float().mean(1)


def longest_overlap(tokens: Int[Tensor, "batch length"], corpus: Corpus) -> Int[Tensor, "batch"]:
    """The length of the longest run of each row that occurs within one sequence of the corpus.

    Suffixes of corpus and tokens are sorted together, by doubling; the longest match of a suffix is
    with the corpus suffix just before or just after it. O(N log N · log length), N tokens in all.

    Raises:
        ValueError: as for `NgramIndex`.

    Example:
        >>> longest_overlap(torch.tensor([[7, 1, 2, 3], [9, 9, 9, 9]]), torch.tensor([[1, 2, 3]]))
        tensor([3, 0])
    """
    sequences = [x.long() for x in check_tokens("corpus", corpus)]
    check_tokens("tokens", tokens, at_least=0)
    batch, length = tokens.shape
    if not sequences or tokens.numel() == 0 or not any(len(x) for x in sequences):
        return torch.zeros(batch, dtype=torch.int64, device=tokens.device)
    rows = [x.to(tokens.device) for x in sequences] + list(tokens.long())
    # After each row a mark of its own, so that no match runs over its end.
    first_mark = max(int(x.max()) for x in rows if len(x)) + 1
    marks = torch.arange(first_mark, first_mark + len(rows), device=tokens.device)
    text = torch.cat(
        [part for x, mark in zip(rows, marks, strict=True) for part in (x, mark[None])]
    )
    total, own = len(text), batch * (length + 1)

    ranks = [torch.unique(text, return_inverse=True)[1]]
    reach = 1
    while reach < length:
        later = torch.cat((ranks[-1][reach:] + 1, ranks[-1].new_zeros(min(reach, total))))[:total]
        pairs = ranks[-1] * (total + 2) + later
        ranks.append(torch.unique(pairs, return_inverse=True)[1])
        reach *= 2

    order = ranks[-1].argsort(stable=True)
    place = torch.arange(total, device=text.device)
    of_corpus = order < total - own
    before = torch.where(of_corpus, place, -1).cummax(0).values
    after = total - 1 - torch.where(of_corpus.flip(0), place, -1).cummax(0).values.flip(0)
    best = torch.zeros(total, dtype=torch.int64, device=text.device)
    for neighbour in (before, after):
        exists = (neighbour >= 0) & (neighbour < total)
        other = order[neighbour.clamp(0, total - 1)]
        best[order] = torch.maximum(
            best[order], torch.where(exists, _common_prefix(ranks, order, other), 0)
        )
    return best[total - own :].view(batch, length + 1).amax(1)


def _common_prefix(
    ranks: list[Int[Tensor, "total"]], one: Int[Tensor, "total"], other: Int[Tensor, "total"]
) -> Int[Tensor, "total"]:
    """How many tokens the suffixes that start at `one` and `other` share."""
    shared, last = torch.zeros_like(one), len(one) - 1
    for power in reversed(range(len(ranks))):
        here, there = one + shared, other + shared
        inside = torch.maximum(here, there) <= last
        equal = ranks[power][here.clamp(max=last)] == ranks[power][there.clamp(max=last)]
        shared = torch.where(inside & equal, shared + 2**power, shared)
    return shared


class CitationBlocker:
    """Forbids every token that would complete an n-gram of a corpus: generation without citations.

    Args:
        corpus: the sequences that a model was fine-tuned on; see `Corpus`.
        n: length of the shortest citation that is prevented. The paper blocks what repeats its
            training set; 5 is our choice.

    Raises:
        ValueError: as for `NgramIndex`.

    Example:
        >>> blocker = CitationBlocker(torch.tensor([[1, 2, 3]]), n=3)
        >>> blocker.blocked(torch.tensor([[0, 1, 2], [0, 2, 1]]), vocab_size=5)
        tensor([[False, False, False,  True, False],
                [False, False, False, False, False]])
    """

    def __init__(self, corpus: Corpus, n: int = 5) -> None:
        self.index = NgramIndex(corpus, n)

    def blocked(
        self, prefix: Int[Tensor, "batch length"], vocab_size: int
    ) -> Bool[Tensor, "batch vocabulary"]:
        """Which next tokens are forbidden; none in a row in which all would be.

        Args:
            prefix: what has been written so far; n − 1 tokens of it are looked at.
            vocab_size: number of tokens.

        Raises:
            ValueError: the corpus has tokens beyond `vocab_size`, or the prefix is not integers.
        """
        check_tokens("prefix", prefix, at_least=0)
        if vocab_size <= self.index.largest:
            raise ValueError(
                f"vocab_size: {vocab_size} given, more than the corpus's largest token "
                f"{self.index.largest} expected"
            )
        last = self.index.n - 1
        if prefix.shape[1] < last:
            return torch.zeros(len(prefix), vocab_size, dtype=torch.bool, device=prefix.device)
        blocked = self.index.following(prefix.long()[:, prefix.shape[1] - last :], vocab_size)
        return blocked & ~blocked.all(1, keepdim=True)

    def logits_processor(self) -> Callable[[Tensor, Tensor], Tensor]:
        """`(tokens so far, logits) -> logits` with −inf where a token is forbidden.

        For `greedy` and `sample` here, and for `logits_processor=[...]` of Hugging Face's
        `generate`. A row in which no other token is left stays as it is.

        Example:
            >>> process = CitationBlocker(torch.tensor([[1, 2]]), n=2).logits_processor()
            >>> process(torch.tensor([[1]]), torch.zeros(1, 3))
            tensor([[0., 0., -inf]])
        """

        def process(
            input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocabulary"]
        ) -> Float[Tensor, "batch vocabulary"]:
            return forbid(scores, self.blocked(input_ids, scores.shape[1]))

        return process


def forbid(
    logits: Float[Tensor, "batch vocabulary"], blocked: Bool[Tensor, "batch vocabulary"]
) -> Float[Tensor, "batch vocabulary"]:
    """−inf where `blocked`, unless that would leave a row without any token."""
    left = logits.masked_fill(blocked, -torch.inf)
    return torch.where((left == -torch.inf).all(1, keepdim=True), logits, left)


def numbered_grams(tokens: Int[Tensor, "rows length"], n: int) -> list[Int[Tensor, "rows _"]]:
    """For each k from 1 to n a number for every k-gram, equal where and only where they are equal.

    Example:
        >>> [grams.tolist() for grams in numbered_grams(torch.tensor([[7, 9, 7, 9]]), 2)]
        [[[0, 1, 0, 1]], [[0, 1, 0]]]
    """
    grams = [torch.unique(tokens, return_inverse=True)[1]] if n else []
    for k in range(1, n):
        # Both numbers are below the count of tokens, so that the pair fits.
        pairs = grams[-1][:, :-1] * tokens.numel() + grams[0][:, k:]
        grams.append(torch.unique(pairs, return_inverse=True)[1])
    return grams


def check_tokens(name: str, tokens: Corpus, at_least: int | None = None) -> list[Tensor]:
    """The sequences one by one, or a ValueError that names the argument.

    Args:
        at_least: tokens that a sequence must have; given, `tokens` must be a matrix.
    """
    whole = tokens if isinstance(tokens, Tensor) else None
    if whole is None and at_least is not None:
        raise ValueError(
            f"{name}: {type(tokens).__name__} given, a tensor (batch, length) expected"
        )
    if whole is not None and whole.ndim != 2:
        raise ValueError(f"{name}: shape {tuple(whole.shape)} given, (sequences, length) expected")
    parts = [whole] if whole is not None else list(tokens)
    for part in parts:
        if not isinstance(part, Tensor) or part.ndim != (1 if whole is None else 2):
            raise ValueError(f"{name}: {type(part).__name__} given, vectors of token ids expected")
        if part.is_floating_point() or part.is_complex() or part.dtype == torch.bool:
            raise ValueError(f"{name}: {part.dtype} given, integer token ids expected")
        if part.numel() and part.device.type != "meta" and int(part.min()) < 0:
            raise ValueError(f"{name}: {int(part.min())} given, ids that are not negative expected")
    if at_least is not None and whole is not None and whole.shape[1] < at_least:
        raise ValueError(
            f"{name}: length {whole.shape[1]} given, at least {at_least} tokens expected"
        )
    return list(whole) if whole is not None else parts
