"""Word embeddings of a text from its own counts: real vectors without a trained model.

    x_w = V_w √|λ|,   V λ Vᵀ ≈ max(0, log P(w, c) / (P(w) P(c)))

the leading eigenvectors of positive pointwise mutual information. Levy and Goldberg, "Neural Word
Embedding as Implicit Matrix Factorization", NeurIPS 2014.
"""

import re
from collections import Counter
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float64
from sklearn.decomposition import PCA
from torch import Tensor

from heterodox.data.text import load_text

VOCABULARY, REACH, LEADING = 1000, 4, 32


@lru_cache(maxsize=8)
def embedded_words(data: str = "python-docs", dim: int = 4) -> Float64[Tensor, "words dim"]:
    """Every word and punctuation mark of a training text, in order, as a vector.

    The 1000 most frequent words have a vector each, all others share one; words within four places
    of each other count as a pair; of the 32 leading eigenvectors, the first `dim` principal
    components over the text are kept.

    Args:
        data: see `heterodox.data.load_text`.
        dim: 1 to 32.

    Raises:
        ValueError: `dim` is out of range, or the text has fewer words than components.

    Example:
        >>> embedded_words(dim=4).shape[1]
        4
    """
    if not 1 <= dim <= LEADING:
        raise ValueError(f"dim: {dim} given, 1 to {LEADING} expected")
    words = re.findall(r"\w+|[^\w\s]", load_text(data).train)
    if len(set(words)) < LEADING:
        raise ValueError(f"data: {data!r} has {len(set(words))} words, at least {LEADING} expected")
    frequent = [word for word, _ in Counter(words).most_common(VOCABULARY)]
    number = {word: n for n, word in enumerate(frequent)}
    tokens = np.array([number.get(word, len(frequent)) for word in words])
    size = len(frequent) + 1
    counts = np.zeros((size, size))
    for distance in range(1, REACH + 1):
        pairs = tokens[:-distance] * size + tokens[distance:]
        counts += np.bincount(pairs, minlength=size**2).reshape(size, size)
    counts += counts.T
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    # A text without rare words leaves the shared vector uncounted.
    ratio = np.divide(counts, expected, out=np.zeros_like(counts), where=expected > 0)
    values, vectors = np.linalg.eigh(np.log(np.maximum(ratio, 1)))
    embedding = vectors[:, -LEADING:] * np.sqrt(np.abs(values[-LEADING:]))
    return torch.from_numpy(PCA(dim, svd_solver="covariance_eigh").fit_transform(embedding[tokens]))
