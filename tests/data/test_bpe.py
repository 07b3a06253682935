"""Byte pairs: exact both ways, and learned as the definition says."""

import pytest

pytest.importorskip("tokenizers")

from heterodox.data.bpe import learn_byte_pairs
from heterodox.data.text import load_text


def test_every_text_comes_back():
    pairs = learn_byte_pairs("the cat sat on the mat. " * 20, vocabulary=280)
    for text in ("the cat", "", "  tabs\tand\nlines ", "naïve — 日本語 🙂"):
        assert pairs.decode(pairs.encode(text)) == text


def test_the_most_frequent_pair_becomes_a_token():
    pairs = learn_byte_pairs("ababab xyxy", vocabulary=257)
    assert pairs.vocabulary_size == 257
    assert len(pairs.encode("ab")) == 1 and len(pairs.encode("xy")) == 2


def test_the_same_text_gives_the_same_tokens():
    text = load_text("python-docs").train[:50_000]
    one, other = learn_byte_pairs(text, 512), learn_byte_pairs(text, 512)
    assert one.tokenizer.to_str() == other.tokenizer.to_str()
    assert one.vocabulary_size == 512
    assert len(one.encode(text)) < 0.5 * len(text.encode())


def test_bad_input_names_the_argument():
    with pytest.raises(ValueError, match=r"^vocabulary: .*expected"):
        learn_byte_pairs("abc", vocabulary=255)
