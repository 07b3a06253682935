import pytest
import torch

from heterodox.data.text import TextData, load_text
from heterodox.data.words import number_words, split_words

TEXT = "It's a cat.\n\n    a  cat — ätsch!\t\r\n\0 \n"
DOCS = load_text("python-docs").train


@pytest.mark.parametrize("separated", [False, True])
@pytest.mark.parametrize("text", [TEXT, "", " ", "\n", "x", " x", "x  ", DOCS])
def test_words_together_are_the_text(text, separated):
    assert "".join(split_words(text, separated)) == text


def test_a_word_takes_one_space_along_and_white_space_is_a_word():
    assert split_words("def f(x):\n    return x\n") == [
        *("def", " f", "(", "x", "):", "\n   ", " return", " x", "\n"),
    ]
    assert split_words(" the <unk> 's n't \n a", separated=True) == [
        *(" the", " <unk>", " 's", " n't", " \n", " a"),
    ]


def test_words_are_numbered_by_how_frequent_they_are():
    (train, other), vocabulary, sizes = number_words([list("abcabab"), list("cxaä")], None)
    assert vocabulary == ("a", "b", "c", None)
    assert train.tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert other.tolist() == [2, 3, 0, 3]
    assert sizes.tolist() == [1, 1, 1, 1.5]


def test_beyond_the_limit_words_are_one():
    (train, other), vocabulary, sizes = number_words([["a", "a", "a", "bb", "ccc"], ["a"]], 1)
    assert vocabulary == ("a", None)
    assert train.tolist() == [0, 0, 0, 1, 1] and other.tolist() == [0]
    assert sizes.tolist() == [1, 2.5]
    assert number_words([["a", "b"], ["a"]], 9)[1] == ("a", "b")


def test_a_text_in_words_decodes_to_itself_but_for_unknown_words():
    text = TextData("ours", TEXT, "a cat, a dog", "It", "", "")
    encoded = text.encode("word")
    assert encoded.kind == "word" and encoded.decode(encoded.train) == TEXT
    assert encoded.decode(encoded.validation) == "\ufffd cat\ufffd a\ufffd"
    held_out = torch.cat([encoded.validation, encoded.test])
    assert encoded.count_bytes(held_out) == pytest.approx(len("a cat, a dogIt"))
    assert text.encode("word", vocabulary=2).vocabulary_size == 3


def test_the_source_of_python_has_more_than_thirty_thousand_words():
    encoded = load_text("python-stdlib").encode("word")
    assert encoded.vocabulary_size > 30_000
    counts = encoded.train.bincount(minlength=encoded.vocabulary_size)
    assert (counts[:-2] >= counts[1:-1]).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda text: text.encode("word", vocabulary=0), "vocabulary: 0 given, a positive number"),
        (lambda text: text.encode("char", vocabulary=9), "vocabulary: 9 given, None with tokens"),
        (lambda text: text.require_length(9, "word"), "data: 'ours' has 3 words for validation"),
        (lambda text: number_words([["a"]], -1), "limit: -1 given"),
    ],
)
def test_bad_input_names_the_argument(call, message):
    with pytest.raises(ValueError, match=f"^{message}.* expected"):
        call(TextData("ours", TEXT, "a long-", None, "", ""))
