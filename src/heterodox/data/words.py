r"""Words: a text cut into words without loss, and its most frequent words as a vocabulary.

A word takes the space before it along, as GPT-2's do; runs of punctuation and of white space are
words too, so that the words together are the text.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

_WORDS = re.compile(r" ?\w+| ?[^\w\s]+|\s+(?!\S)|\s+")
_SEPARATED = re.compile(r" ?\S+|\s+(?!\S)|\s+")


def split_words(text: str, separated: bool = False) -> list[str]:
    r"""The words of a text, in order.

    Args:
        text: any.
        separated: whether the text has been cut into words already, with white space between them,
            as the Penn Treebank has.

    Example:
        >>> split_words("It's a cat.\n")
        ['It', "'", 's', ' a', ' cat', '.', '\n']
        >>> split_words(" it 's a <unk> \n", separated=True)
        [' it', " 's", ' a', ' <unk>', ' \n']
    """
    return (_SEPARATED if separated else _WORDS).findall(text)


def number_words(
    parts: Sequence[Sequence[str]], limit: int | None
) -> tuple[list[Int64[Tensor, "_"]], tuple[str | None, ...], Float64[Tensor, "words"]]:
    """Numbers for words, by how frequent they are in the first part.

    Args:
        parts: training words, then those of other parts.
        limit: so many of the most frequent training words are told apart; None: all.

    Returns:
        The numbers of each part; what they stand for, the most frequent word first, with a last
        None for all words that are not told apart, if there are any; and the bytes of UTF-8 of
        each. Those of None are the mean over its occurrences in the other parts, where losses are
        evaluated, or in the first if there are none.

    Raises:
        ValueError: `limit` is not positive.

    Example:
        >>> numbers, words, _ = number_words([["a", "b", "a"], ["c", "a"]], limit=None)
        >>> words, [x.tolist() for x in numbers]
        (('a', 'b', None), [[0, 1, 0], [2, 0]])
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: {limit} given, a positive number or None expected")
    frequent = [word for word, _ in Counter(parts[0]).most_common(limit)]
    number = {word: n for n, word in enumerate(frequent)}
    unknown = len(frequent)
    numbers = [
        torch.from_numpy(np.fromiter((number.get(w, unknown) for w in part), np.int64, len(part)))
        for part in parts
    ]
    vocabulary: list[str | None] = list(frequent)
    sizes = [float(len(word.encode("utf-8"))) for word in frequent]
    other = [word for part in parts[1:] for word in part if word not in number]
    unseen = other or [word for word in parts[0] if word not in number]
    if unseen:
        vocabulary.append(None)
        sizes.append(len("".join(unseen).encode("utf-8")) / len(unseen))
    return numbers, tuple(vocabulary), torch.tensor(sizes, dtype=torch.float64)
