"""A judge of text that shares nothing with the network it judges: an interpolated n-gram model.

    p(v | h) = (c(h v) + T(h) p(v | h')) / (c(h) + T(h)),   h' = h without its first token

c counts in the training text, T(h) is the number of distinct tokens after h, and below the unigrams
stands the uniform distribution. Witten and Bell, 1991, as in Chen and Goodman, 1998.
"""

import math
from collections import Counter

from jaxtyping import Int
from torch import Tensor


class NgramJudge:
    """An n-gram model of a text of tokens.

    Args:
        tokens: the text.
        vocabulary: number of tokens.
        n: the longest n-gram.

    Example:
        >>> import torch
        >>> judge = NgramJudge(torch.tensor([0, 1, 0, 1, 0, 1]), vocabulary=2, n=2)
        >>> fluent, odd = torch.tensor([[0, 1, 0, 1]]), torch.tensor([[0, 0, 0, 0]])
        >>> judge.loss(fluent, start=1) < judge.loss(odd, start=1)
        True
    """

    def __init__(self, tokens: Int[Tensor, "tokens"], vocabulary: int, n: int = 4) -> None:
        self.vocabulary = vocabulary
        text = tokens.tolist()
        self.grams: list[Counter[tuple[int, ...]]] = []
        self.followed: list[Counter[tuple[int, ...]]] = []  # c(h), of h at which an n-gram starts
        self.distinct: list[Counter[tuple[int, ...]]] = []
        for order in range(1, n + 1):
            counts = Counter(zip(*(text[i:] for i in range(order)), strict=False))
            self.grams.append(counts)
            self.distinct.append(Counter(gram[:-1] for gram in counts))
            followed: Counter[tuple[int, ...]] = Counter()
            for gram, count in counts.items():
                followed[gram[:-1]] += count
            self.followed.append(followed)

    def probability(self, history: tuple[int, ...], token: int) -> float:
        """p(token | history)."""
        p = 1 / self.vocabulary
        for order in range(len(self.grams)):
            if order > len(history):
                break
            h = history[len(history) - order :]
            types = self.distinct[order][h]
            if types == 0:
                break
            p = (self.grams[order][(*h, token)] + types * p) / (self.followed[order][h] + types)
        return p

    def loss(self, sequences: Int[Tensor, "rows length"], start: int) -> float:
        """Mean of −log p over the tokens of each row from place `start` on [nats/token]."""
        reach = len(self.grams) - 1
        losses = [
            -math.log(self.probability(tuple(row[max(0, t - reach) : t]), row[t]))
            for row in sequences.tolist()
            for t in range(start, len(row))
        ]
        return sum(losses) / len(losses)
