import pytest
import torch
from torch import nn

from heterodox.claims.neuro_modulated_hebbian import adapter_for, errors, own_habit, passes_of
from heterodox.learning.test_time import NeuroModulatedAdapter, TentAdapter
from heterodox.training.seeding import seeded


def source():
    with seeded(0):
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("make", [TentAdapter, NeuroModulatedAdapter])
def test_passes_of_one_run_are_the_predictions_before_and_after_the_step(make):
    x = torch.randn(10, 1, 8, 8)
    both, before = make(source(), predict="after"), make(source(), predict="before")
    for _ in range(2):
        with passes_of(both) as seen:
            after = both(x)
        assert len(seen) == 2
        torch.testing.assert_close(seen[0], before(x))
        assert torch.equal(seen[1], after)


@pytest.mark.parametrize("arm", ["source", "BN", "Tent", "Hebbian only", "NHL, first norm", "NHL"])
def test_errors_are_counted_online_from_the_source_on(arm):
    x, y = torch.randn(25, 1, 8, 8), torch.arange(25) % 3
    adapter = adapter_for(arm, source(), 0.01)
    first = errors(adapter, x, y, 10)
    adapter(x)
    assert errors(adapter, x, y, 10) == first
    adapter.reset()
    batches = zip(x.split(10), y.split(10), strict=True)
    missed = [int((adapter(a).argmax(1) != b).sum()) for a, b in batches]
    assert first[1] == 4 * sum(missed)


def test_tent_predicts_before_its_step_and_the_others_after_theirs():
    assert own_habit("Tent", (1.0, 2.0)) == 1.0
    assert own_habit("NHL", (1.0, 2.0)) == 2.0
