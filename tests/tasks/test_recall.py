"""The generator of associative recall by its definition, and training on it."""

from dataclasses import replace

import pytest
import torch

from heterodox.experiment.scale import Scale
from heterodox.tasks.recall import NO_ANSWER, SETTINGS, check, recall_sequences, train

SMALL = replace(SETTINGS[Scale.SMOKE], vocabulary=64, length=40, pairs=5)


def drawn(count=500, settings=SMALL, seed=0):
    return recall_sequences(count, settings, torch.Generator().manual_seed(seed))


def test_pairs_come_first_with_keys_and_values_from_their_halves():
    tokens, _ = drawn()
    keys, values = tokens[:, 0:10:2], tokens[:, 1:10:2]
    assert keys.min() == 1 and keys.max() == 31
    assert values.min() == 32 and values.max() == 63
    for row in (*keys, *values):
        assert len(set(row.tolist())) == 5


def test_each_key_is_asked_for_once_and_its_value_is_the_answer():
    for tokens, answers in zip(*drawn(), strict=True):
        value_of = dict(zip(tokens[0:10:2].tolist(), tokens[1:10:2].tolist(), strict=True))
        asked = (answers != NO_ANSWER).nonzero().flatten().tolist()
        assert sorted(tokens[asked].tolist()) == sorted(value_of)
        assert all(answers[at] == value_of[int(tokens[at])] for at in asked)
        rest = set(range(10, 40)) - set(asked)
        assert all(at >= 10 and at % 2 == 0 for at in asked)
        assert not tokens[sorted(rest)].any()


def test_distances_follow_the_power_law():
    one_pair = replace(SMALL, pairs=1, length=22)
    _, answers = drawn(40_000, one_pair)
    gaps = ((answers != NO_ANSWER).nonzero()[:, 1] - 2) / 2
    share = torch.bincount(gaps.long(), minlength=10) / len(gaps)
    law = torch.arange(1.0, 11.0) ** (one_pair.power - 1)
    torch.testing.assert_close(share, law / law.sum(), rtol=0, atol=0.01)


def test_the_first_key_is_asked_for_soonest():
    tokens, _ = drawn(4000, SMALL)
    first, last = tokens[:, 0], tokens[:, 8]
    after = tokens[:, 10:]
    where_first = (after == first[:, None]).float().argmax(1).float().mean()
    where_last = (after == last[:, None]).float().argmax(1).float().mean()
    assert where_first + 3 < where_last


def test_seeds_give_other_sequences_and_the_same_seed_the_same():
    assert torch.equal(drawn(seed=1)[0], drawn(seed=1)[0])
    assert not torch.equal(drawn(seed=1)[0], drawn(seed=2)[0])


def test_softmax_learns_to_recall_a_pair_and_repeats_itself():
    easy = replace(SETTINGS[Scale.SMOKE], vocabulary=16, length=12, pairs=1)
    first, second = (train(seed=3, settings=easy) for _ in range(2))
    assert first.accuracy == second.accuracy
    assert first.accuracy > 80  # chance is 100 / 8
    measurement = first.measurement()
    assert measurement.value == first.accuracy
    assert measurement.readings["best accuracy"] >= first.accuracy


def test_a_run_that_was_stopped_goes_on_to_the_same_result(tmp_path):
    tiny = replace(SETTINGS[Scale.SMOKE], training_sequences=256, epochs=2, test_sequences=50)
    whole = train(seed=1, settings=tiny)
    path = tmp_path / "run.ckpt"
    train(seed=1, settings=tiny, checkpoint=path)
    again = train(seed=1, settings=tiny, checkpoint=path)
    assert whole.accuracy == again.accuracy


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("length", {"length": 7}),
        ("vocabulary", {"vocabulary": 31}),
        ("vocabulary", {"vocabulary": 4}),
        ("pairs", {"pairs": 0}),
        ("epochs", {"epochs": 0}),
        ("power", {"power": 0.0}),
    ],
)
def test_sizes_that_do_not_fit_are_named(name, changes):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        replace(SETTINGS[Scale.SMOKE], **changes)


def test_bad_choices_are_named():
    with pytest.raises(ValueError, match=r"^attention: 'sofmax' given"):
        check(attention="sofmax")
    with pytest.raises(ValueError, match=r"^attention: 3 layers given, 2 expected"):
        check(attention=["softmax"] * 3)
    with pytest.raises(ValueError, match=r"^batch_size: 32 given"):
        check(settings=replace(SETTINGS[Scale.SMOKE], training_sequences=10))
    with pytest.raises(ValueError, match=r"^mlp: 'relu'"):
        check(settings=replace(SETTINGS[Scale.SMOKE], mlp="relu"))
