"""Embedded words: what they are made of, and what they are good for."""

import re

import pytest
import torch

from heterodox.data import load_text
from heterodox.data.word_embeddings import embedded_words


def test_every_word_has_its_vector_and_the_same_word_the_same():
    words = re.findall(r"\w+|[^\w\s]", load_text("python-docs").train)
    x = embedded_words(dim=3)
    assert x.shape == (len(words), 3) and x.dtype == torch.float64
    places = [n for n, word in enumerate(words) if word == "function"]
    assert len(places) > 100 and (x[places] == x[places[0]]).all()


def test_components_are_centred_uncorrelated_and_in_order():
    x = embedded_words(dim=4)
    torch.testing.assert_close(x.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)
    covariance = x.T @ x / len(x)
    variances = covariance.diagonal()
    assert (covariance - torch.diag(variances)).abs().max() < 1e-9 * variances.max()
    assert (variances[:-1] > variances[1:]).all()


def test_words_of_a_kind_are_near_each_other():
    words = re.findall(r"\w+|[^\w\s]", load_text("python-docs").train)
    x = embedded_words(dim=32)
    vector = {word: x[words.index(word)] for word in ("is", "are", "(", ")")}

    def cosine(a, b):
        return torch.cosine_similarity(vector[a], vector[b], dim=0)

    assert cosine("is", "are") > cosine("is", ")")
    assert cosine("(", ")") > cosine("(", "are")


def test_bad_input_names_the_argument(tmp_path):
    with pytest.raises(ValueError, match=r"^dim: 33"):
        embedded_words(dim=33)
    (tmp_path / "short.txt").write_text("three words only " * 20)
    with pytest.raises(ValueError, match=r"^data: .* has 3 words"):
        embedded_words(str(tmp_path / "short.txt"))
