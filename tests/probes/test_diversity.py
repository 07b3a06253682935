"""Measures of generated text against counting by hand, closed forms and NLTK."""

import math
from collections import Counter

import pytest
import torch

from heterodox.probes.diversity import (
    loop_rate,
    ngram_divergence,
    predictive_entropy,
    repetition_rate,
    self_bleu,
    type_token_ratio,
)


def draw(*shape, high=6, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def test_the_type_token_ratio_of_a_constant_is_one_over_the_window():
    assert type_token_ratio(torch.full((2, 200), 7)).tolist() == pytest.approx([1 / 96] * 2)


def test_the_type_token_ratio_of_distinct_tokens_is_one():
    assert type_token_ratio(torch.arange(192).view(2, 96)).tolist() == [1, 1]


def test_the_type_token_ratio_looks_at_the_last_tokens_only():
    tokens = torch.cat((torch.arange(50), torch.tensor([3, 3, 4, 4])))[None]
    assert type_token_ratio(tokens, window=4).item() == 0.5
    assert type_token_ratio(tokens[:, -3:], window=4).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_repetition_is_the_share_of_grams_seen_before(n):
    tokens = draw(6, 30, high=3)
    expected = []
    for row in tokens.tolist():
        seen, again = set(), 0
        for i in range(len(row) - n + 1):
            gram = tuple(row[i : i + n])
            again += gram in seen
            seen.add(gram)
        expected.append(again / (len(row) - n + 1))
    torch.testing.assert_close(repetition_rate(tokens, n), torch.tensor(expected))


@pytest.mark.parametrize(("period", "is_loop"), [(1, True), (5, True), (16, True), (17, False)])
def test_a_loop_is_an_end_of_short_period(period, is_loop):
    start = torch.arange(100, 140)
    loop = torch.arange(period).repeat(64 // period + 2)[:64]
    assert loop_rate(torch.cat((start, loop))[None]).item() == float(is_loop)


def test_a_loop_must_hold_to_the_end():
    tokens = torch.zeros(1, 64, dtype=torch.int64)
    tokens[0, -1] = 1
    assert loop_rate(tokens).item() == 0


def bleu_by_hand(hypothesis, references, max_n):
    """BLEU from its definition, in Python's own numbers."""
    log_precisions = []
    for n in range(1, max_n + 1):
        grams = Counter(tuple(hypothesis[i : i + n]) for i in range(len(hypothesis) - n + 1))
        largest = Counter()
        for reference in references:
            largest |= Counter(tuple(reference[i : i + n]) for i in range(len(reference) - n + 1))
        matches = sum(min(count, largest[gram]) for gram, count in grams.items())
        if n == 1 and matches == 0:
            return 0.0
        total = max(1, len(hypothesis) - n + 1)
        log_precisions.append(math.log((matches or 0.1) / total))
    nearest = min((abs(len(r) - len(hypothesis)), len(r)) for r in references)[1]
    brevity = min(0.0, 1 - nearest / len(hypothesis))
    return math.exp(brevity + sum(log_precisions) / max_n)


def sequences_of_many_lengths(seed, high=4):
    lengths = [5, 9, 1, 12, 7, 9, 3]
    return [draw(length, high=high, seed=seed * 100 + i) for i, length in enumerate(lengths)]


@pytest.mark.parametrize("max_n", [1, 2, 4, 15])
@pytest.mark.parametrize("high", [2, 4, 40])
@pytest.mark.parametrize("seed", range(3))
def test_self_bleu_is_bleu_against_all_others(max_n, high, seed):
    sequences = sequences_of_many_lengths(seed, high)
    lists = [x.tolist() for x in sequences]
    expected = [bleu_by_hand(own, lists[:i] + lists[i + 1 :], max_n) for i, own in enumerate(lists)]
    scores = self_bleu(sequences, max_n, reduction="none")
    assert scores.tolist() == pytest.approx(expected, rel=1e-5)
    assert self_bleu(sequences, max_n).item() == pytest.approx(sum(expected) / 7, rel=1e-5)


def test_self_bleu_is_that_of_nltk():
    score = pytest.importorskip("nltk.translate.bleu_score")
    lists = draw(9, 25, high=5).tolist()
    smooth = score.SmoothingFunction().method1
    expected = [
        score.sentence_bleu(lists[:i] + lists[i + 1 :], own, smoothing_function=smooth)
        for i, own in enumerate(lists)
    ]
    scores = self_bleu(torch.tensor(lists), reduction="none")
    assert scores.tolist() == pytest.approx(expected, rel=1e-5)


def test_self_bleu_of_identical_sequences_is_one_and_of_strangers_zero():
    assert self_bleu(torch.arange(8).expand(3, 8)).item() == pytest.approx(1)
    assert self_bleu(torch.arange(24).view(3, 8)).item() == 0


def test_an_empty_sequence_has_no_self_bleu():
    sequences = [torch.tensor([], dtype=torch.int64), torch.tensor([1, 2]), torch.tensor([1, 2])]
    assert self_bleu(sequences, reduction="none")[0].item() == 0
    assert self_bleu(sequences[:1] * 3, reduction="none").tolist() == [0, 0, 0]


def test_the_entropy_of_the_uniform_distribution_is_the_log_of_its_size():
    torch.testing.assert_close(predictive_entropy(torch.zeros(3, 7)), torch.full((3,), math.log(7)))
    masked = torch.zeros(7).masked_fill(torch.arange(7) > 1, -torch.inf)
    assert predictive_entropy(masked).item() == pytest.approx(math.log(2))
    assert predictive_entropy(torch.tensor([[5.0]])).item() == 0


def test_entropy_is_differentiable():
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(predictive_entropy, logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_entropy_in_half_precision_is_computed_in_single(dtype):
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(0)).to(dtype)
    entropy = predictive_entropy(logits)
    assert entropy.dtype == dtype
    torch.testing.assert_close(
        entropy.float(), predictive_entropy(logits.float()), rtol=1e-2, atol=0
    )


@pytest.mark.parametrize("n", [1, 2])
def test_the_divergence_is_that_of_jensen_and_shannon(n):
    one, other = draw(3, 8, seed=1), draw(5, 6, seed=2)

    def histogram(rows):
        counts = Counter(tuple(r[i : i + n]) for r in rows for i in range(len(r) - n + 1))
        return {gram: count / counts.total() for gram, count in counts.items()}

    p, q = histogram(one.tolist()), histogram(other.tolist())
    mean = {g: (p.get(g, 0) + q.get(g, 0)) / 2 for g in p | q}
    expected = sum(
        sum(v * math.log(v / mean[g]) for g, v in histogram.items()) / 2 for histogram in (p, q)
    )
    assert ngram_divergence(one, other, n).item() == pytest.approx(expected, rel=1e-5)


def test_the_divergence_is_zero_for_the_same_and_log_two_for_strangers():
    tokens = draw(3, 8)
    assert ngram_divergence(tokens, tokens.flip(0), 2).item() == pytest.approx(0, abs=1e-7)
    assert ngram_divergence(tokens, tokens + 10).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("window", lambda x: type_token_ratio(x, 0)),
        ("tokens", lambda x: type_token_ratio(x[:, :0])),
        ("tokens", lambda x: type_token_ratio(x.float())),
        ("tokens", lambda x: type_token_ratio(x[0])),
        ("n", lambda x: repetition_rate(x, 0)),
        ("tokens", lambda x: repetition_rate(x, 9)),
        ("tokens", lambda x: repetition_rate(-1 - x, 2)),
        ("longest_period", lambda x: loop_rate(x, 4, 4)),
        ("tokens", lambda x: loop_rate(x)),
        ("tokens", lambda x: loop_rate(x[:0], 4, 2)),
        ("sequences", lambda x: self_bleu(x[:1])),
        ("sequences", lambda x: self_bleu(x.float())),
        ("reduction", lambda x: self_bleu(x, reduction="sum")),
        ("max_n", lambda x: self_bleu(x, max_n=0)),
        ("logits", lambda x: predictive_entropy(torch.tensor([[0.0, torch.nan]]))),
        ("logits", lambda x: predictive_entropy(torch.tensor([[0.0, torch.inf]]))),
        ("logits", lambda x: predictive_entropy(torch.full((1, 2), -torch.inf))),
        ("logits", lambda x: predictive_entropy(torch.zeros(2, 0))),
        ("logits", lambda x: predictive_entropy(x)),
        ("n", lambda x: ngram_divergence(x, x, 0)),
        ("other", lambda x: ngram_divergence(x, x[:, :1], 2)),
        ("tokens", lambda x: ngram_divergence(x[:0], x)),
    ],
)
def test_bad_input_names_the_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
        call(torch.tensor([[0, 1, 2, 1], [3, 2, 0, 1]]))
