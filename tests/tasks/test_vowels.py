"""Lines and their sources, and the model that restores them."""

from dataclasses import replace

import pytest
import torch

from heterodox.experiment.scale import Scale
from heterodox.models.transducer import MonotonicTransducer, TransducerReader
from heterodox.probes.decoding import beam_search, greedy
from heterodox.tasks.vowels import (
    EDGE,
    NO_TARGET,
    SETTINGS,
    VOWELS,
    load_lines,
    restore,
    shifted,
    truncated,
)
from heterodox.training.seeding import seeded

SMOKE = SETTINGS[Scale.SMOKE]


@pytest.fixture(scope="module")
def data():
    return load_lines(SMOKE, seed=1)


def test_a_source_is_its_line_without_vowels(data):
    for lines in (data.training, data.fitting, data.testing):
        for source, target in zip(lines.sources[:50].tolist(), lines.targets[:50], strict=False):
            line = data.text(target.tolist())
            assert data.text(source) == "".join(c for c in line if c not in VOWELS)
            assert 12 <= len(line) <= 48


def test_lines_for_fitting_and_testing_are_drawn_apart_by_the_seed(data):
    fitting, testing = (
        {data.text(row.tolist()) for row in lines.targets} for lines in (data.fitting, data.testing)
    )
    assert len(data.fitting) == len(data.testing) == SMOKE.lines
    assert fitting != testing
    other = load_lines(SMOKE, seed=2)
    assert not torch.equal(other.testing.targets, data.testing.targets)
    assert torch.equal(other.training.targets, data.training.targets)


def test_a_share_of_targets_is_cut_before_its_end(data):
    targets = data.training.targets
    lengths = (targets != EDGE).sum(1)
    cut = truncated(targets, 0.25, torch.Generator().manual_seed(0))
    left = (cut != EDGE).sum(1)
    shorter = left < lengths
    assert shorter.float().mean().item() == pytest.approx(0.25, abs=0.05)
    # Uniform from nothing to one character less.
    assert (left / lengths)[shorter].mean().item() == pytest.approx(0.48, abs=0.05)
    kept = torch.arange(targets.shape[1]) < left[:, None]
    assert torch.equal(cut, torch.where(kept, targets, EDGE))
    assert torch.equal(truncated(targets, 0.0, torch.Generator()), targets)


def test_every_character_and_one_end_are_wanted():
    prefix, wanted = shifted(torch.tensor([[5, 6, 0, 0], [7, 8, 9, 5]]))
    assert prefix.tolist() == [[0, 5, 6, 0, 0], [0, 7, 8, 9, 5]]
    assert wanted.tolist() == [[5, 6, 0, NO_TARGET, NO_TARGET], [7, 8, 9, 5, 0]]


def transducer():
    uses = torch.tensor([False, True, True, False, True])
    with seeded(0):
        return MonotonicTransducer(uses, 6, 7).double().eval()


def test_padding_of_the_source_changes_nothing():
    model, target = transducer(), torch.tensor([[0, 1, 3, 2, 3]])
    alone = model(torch.tensor([[1, 2]]), target)
    padded = model(torch.tensor([[1, 2, 0, 0, 0], [4, 4, 4, 1, 2]]), target.expand(2, -1))
    torch.testing.assert_close(padded[:1], alone)
    assert not torch.allclose(padded[1:], alone)


def test_later_tokens_do_not_matter():
    model, source = transducer(), torch.tensor([[1, 2, 4]])
    one = model(source, torch.tensor([[0, 1, 3, 2]]))
    other = model(source, torch.tensor([[0, 1, 4, 4]]))
    torch.testing.assert_close(one[:, :2], other[:, :2])
    assert not torch.allclose(one[:, 2:], other[:, 2:])


def test_only_symbols_of_the_source_move_the_place():
    model = transducer()
    memory = model.encode(torch.tensor([[1, 2, 4]]))
    start = torch.zeros(1, dtype=torch.int64)
    for tokens, place in (([0], 0), ([0, 3, 3], 0), ([0, 1, 3, 2], 2), ([0, 1, 2, 4, 4, 4], 5)):
        assert model.read(memory, torch.tensor([tokens]), start)[1].item() == place


def test_pieces_give_what_the_whole_gives():
    model, source = transducer(), torch.tensor([[1, 2, 4]])
    target = torch.tensor([[0, 3, 1, 3, 2], [0, 1, 1, 3, 3]])
    expected = model(source.expand(2, -1), target)
    reader = TransducerReader(model, model.encode(source))
    reader.next_logits(target[:, :2])
    reader.reorder(torch.tensor([1, 0, 1]))
    rows = torch.tensor([1, 0, 1])
    torch.testing.assert_close(reader.next_logits(target[rows, 2:]), expected[rows, -1])


def test_a_restorer_decodes_and_its_checkpoints_are_averaged():
    tiny = replace(SMOKE, steps=8, checkpoints=2)
    restorer = restore(tiny, seed=1, rate=1e-2, noise=0.5)
    source = restorer.data.testing.sources[0]
    assert beam_search(restorer.utility(source), 1, EDGE, 20)[0] == greedy(
        restorer.utility(source), EDGE, 20
    )
    assert len(restorer.checkpoints) == 2
    prefix = torch.tensor([[1, 2], [3, 4]])
    log_p = restorer.averaged(source)(prefix)
    p = torch.stack(
        [
            model(
                source[source > 0].expand(2, -1), torch.nn.functional.pad(prefix, (1, 0))
            ).softmax(-1)[:, -1]
            for model in restorer.checkpoints
        ]
    )
    torch.testing.assert_close(log_p.softmax(-1), p.mean(0))
    assert not torch.allclose(p[0], p[1])


def test_the_seed_decides_the_run():
    tiny = replace(SMOKE, steps=4, checkpoints=2)
    runs = [restore(tiny, seed, 1e-2, noise=0.5).validation[-1][1] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_a_text_with_too_few_lines_is_refused():
    with pytest.raises(ValueError, match=r"^lines: .*expected"):
        load_lines(replace(SMOKE, lines=10**6), seed=1)
