"""The passages that are continued, and how a model is read."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from heterodox.experiment.scale import Scale
from heterodox.tasks.ngram_judge import NgramJudge
from heterodox.tasks.open_ended import (
    SETTINGS,
    load_passages,
    read_model,
    temperature_of_entropy,
)
from heterodox.training.seeding import generator_for

SMOKE = SETTINGS[Scale.SMOKE]


@pytest.fixture(scope="module")
def passages():
    return load_passages(SMOKE, seed=1)


def test_contexts_are_followed_by_their_true_continuations(passages):
    whole = torch.cat((passages.contexts, passages.continuations), dim=1)
    from heterodox.data.text import load_text

    validation = load_text(SMOKE.data).validation
    for row in whole:
        # A passage may begin and end within a character.
        assert passages.pairs.decode(row).strip("\ufffd") in validation


def test_the_seed_decides_the_contexts_and_not_the_text(passages):
    other = load_passages(SMOKE, seed=2)
    assert not torch.equal(other.contexts, passages.contexts)
    assert torch.equal(other.learned, passages.learned) and torch.equal(other.pool, passages.pool)
    assert torch.equal(load_passages(SMOKE, seed=1).contexts, passages.contexts)


def test_hyperfitted_sequences_are_no_part_of_what_was_learned(passages):
    sequences = passages.drawn(SMOKE.sequences, generator_for(1, "sequences"))
    assert sequences.shape == (SMOKE.sequences, SMOKE.length)
    assert len({tuple(row) for row in sequences.tolist()}) == SMOKE.sequences
    learned = passages.pairs.decode(passages.learned)
    texts = [passages.pairs.decode(row).strip("\ufffd") for row in sequences]
    assert not any(text in learned for text in texts)


def test_a_text_that_is_too_short_is_refused():
    for name in ("sequences", "contexts"):
        with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
            load_passages(replace(SMOKE, **{name: 10**6}), seed=1)


class Unigram(nn.Module):
    """Says the same everywhere: half of its mass on token 0."""

    def __init__(self, tokens):
        super().__init__()
        p = torch.full((tokens,), 0.5 / (tokens - 1))
        p[0] = 0.5
        self.log_p = nn.Parameter(p.log())

    def forward(self, tokens):
        return self.log_p.expand(*tokens.shape, -1)


def test_a_model_is_read_by_its_definitions():
    windows = torch.tensor([[3, 0, 0, 1], [3, 2, 0, 1]])
    reading = read_model(Unigram(5), windows)
    expected = (3 * math.log(2) + 3 * math.log(8)) / 6
    assert reading.loss == pytest.approx(expected, rel=1e-6)
    assert reading.entropy == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(8), rel=1e-6)
    assert (reading.accuracy, reading.confident) == (50.0, 0.0)
    assert read_model(Unigram(5), windows, temperature=0.1).confident == 100.0


def test_the_temperature_is_found_that_gives_an_entropy():
    model, windows = Unigram(5), torch.zeros(1, 4, dtype=torch.int64)
    wanted = read_model(model, windows, temperature=0.6).entropy
    assert temperature_of_entropy(model, windows, wanted) == pytest.approx(0.6, rel=1e-3)


def test_the_judge_interpolates_by_witten_and_bell():
    judge = NgramJudge(torch.tensor([0, 1, 0, 2, 0, 1]), vocabulary=4, n=2)
    unigram = [(c + 3 / 4) / (6 + 3) for c in (3, 2, 1, 0)]
    for token in range(4):
        assert judge.probability((), token) == pytest.approx(unigram[token])
        after_0 = ({1: 2, 2: 1}.get(token, 0) + 2 * unigram[token]) / (3 + 2)
        assert judge.probability((3, 0), token) == pytest.approx(after_0)
        assert judge.probability((3,), token) == pytest.approx(unigram[token])
    for history in ((), (0,), (1, 2), (3,)):
        assert sum(judge.probability(history, token) for token in range(4)) == pytest.approx(1)


def test_the_judges_loss_leaves_the_context_out():
    judge = NgramJudge(torch.tensor([0, 1, 0, 2, 0, 1]), vocabulary=4, n=2)
    expected = -math.log(judge.probability((0,), 2)) - math.log(judge.probability((2,), 0))
    assert judge.loss(torch.tensor([[1, 0, 2, 0]]), start=2) == pytest.approx(expected / 2)
