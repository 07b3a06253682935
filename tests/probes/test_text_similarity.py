"""Similarities against sacreBLEU, NLTK, a recursion and each other."""

import functools

import pytest
import torch

from heterodox.probes.text_similarity import bleu, chrf, chrf_matrix, edit_similarity

LINES = [
    "the quick brown fox jumps over the lazy dog",
    "the quick brown fox jumped over a lazy dog",
    "a slow green turtle",
    "the the the the",
    "the",
    "x",
    "",
    "  ",
    "dog lazy the over jumps fox brown quick the",
]


def test_chrf_is_that_of_sacrebleu():
    chrf_of = pytest.importorskip("sacrebleu").sentence_chrf
    for one in LINES:
        for other in LINES:
            if other.strip():  # sacreBLEU refuses to score against nothing
                expected = chrf_of(one, [other]).score / 100
                assert chrf(one, other) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("options", [{}, {"max_n": 1}, {"max_n": 3, "beta": 1.0}])
def test_the_matrix_holds_chrf_of_every_pair(options):
    expected = [[chrf(one, other, **options) for other in LINES] for one in LINES]
    matrix = chrf_matrix(LINES, **options)
    torch.testing.assert_close(matrix, torch.tensor(expected, dtype=torch.float64))
    tokens = [[ord(c) for c in line if c != " "] for line in LINES]
    torch.testing.assert_close(chrf_matrix(tokens, **options), matrix)


def test_the_matrix_of_nothing_is_empty():
    assert chrf_matrix([]).shape == (0, 0)
    assert chrf_matrix(["", ""]).tolist() == [[0, 0], [0, 0]]


def test_recall_weighs_more_than_precision():
    assert chrf("abcdef", "abc") > chrf("abc", "abcdef")
    assert chrf("abcdef", "abc", beta=0.5) < chrf("abc", "abcdef", beta=0.5)


def test_edit_similarity_is_the_recursion_of_levenshtein():
    @functools.cache
    def distance(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(
            distance(a[1:], b) + 1,
            distance(a, b[1:]) + 1,
            distance(a[1:], b[1:]) + (a[0] != b[0]),
        )

    for one in ("", "kitten", "sitting", "abcabc", "the fox"):
        for other in ("", "kitten", "sitting", "cab", "a fox"):
            longest = max(len(one), len(other), 1)
            assert edit_similarity(one, other) == 1 - distance(one, other) / longest
    assert edit_similarity([1, 2, 3], [1, 3]) == pytest.approx(2 / 3)


def test_bleu_is_that_of_nltk():
    score = pytest.importorskip("nltk.translate.bleu_score")
    smooth = score.SmoothingFunction().method1
    words = [line.split() for line in LINES]
    for own in words:
        for references in (words[:2], words[2:5], [words[0]]):
            expected = score.sentence_bleu(references, own, smoothing_function=smooth)
            assert bleu(own, references) == pytest.approx(expected)
    assert bleu(LINES[1], LINES[:1]) == pytest.approx(bleu(words[1], words[:1]))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("max_n", lambda: chrf("a", "a", max_n=0)),
        ("beta", lambda: chrf("a", "a", beta=0.0)),
        ("max_n", lambda: chrf_matrix(["a"], max_n=0)),
        ("max_n", lambda: bleu("a", ["a"], max_n=0)),
        ("references", lambda: bleu("a", [])),
        ("references", lambda: bleu("a b", "a b")),
    ],
)
def test_bad_input_names_the_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
        call()
