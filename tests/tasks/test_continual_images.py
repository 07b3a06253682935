from dataclasses import replace

import pytest
import torch

from heterodox.experiment import Scale
from heterodox.tasks.continual_images import METHODS, SETTINGS, train

TINY = replace(SETTINGS[Scale.SMOKE], tasks=2, train_images=300, hidden=24, samples=20)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_better_than_chance(method):
    run = train(method=method, settings=replace(TINY, train_images=600, epochs=10))
    assert run.accuracies.shape == ((1, 2) if method == "joint" else (2, 2))
    assert run.accuracies[-1].mean() > 30
    readings = run.measurement().readings
    assert ("BWT" in readings) == (method != "joint")
    assert ("energy share" in readings) == (method == "HLOP")


def test_projection_forgets_less_than_plain_descent():
    settings = replace(SETTINGS[Scale.SMOKE], train_images=None, epochs=3)
    plain, ours, memory = (
        train(method=method, settings=settings).measurement() for method in ("SGD", "HLOP", "GPM")
    )
    assert plain.readings["BWT"] < -10
    assert ours.readings["BWT"] > plain.readings["BWT"] + 3
    assert memory.readings["BWT"] > plain.readings["BWT"] + 3
    assert 0.7 < ours.readings["energy share"] <= 1
    assert ours.readings["orthonormality"] < 0.1


def test_the_first_task_is_the_same_with_and_without_projection():
    runs = [train(method=method, settings=TINY, seed=2) for method in ("SGD", "HLOP", "GPM")]
    assert len({run.accuracies[0, 0].item() for run in runs}) == 1


def test_lateral_neurons_that_spike_are_used():
    run = train(settings=replace(TINY, lateral=(20.0, 40)))
    assert {layer.subspace.quantization for layer in run.model.layers} == {(20.0, 40)}


def test_runs_repeat_and_seeds_differ():
    first, second, other = (train(settings=TINY, seed=seed) for seed in (1, 1, 2))
    assert first.measurement() == second.measurement()
    assert not torch.equal(first.accuracies, other.accuracies)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("method", {"method": "replay"}),
        ("rule", {"rule": "backprop"}),
        ("batch_size", {"settings": replace(TINY, batch_size=100_000)}),
        ("data", {"data": "no such folder"}),
    ],
)
def test_bad_input_names_the_argument(argument, options):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        train(**{"settings": TINY, **options})
    with pytest.raises(ValueError, match=r"^tasks: .* expected"):
        replace(TINY, tasks=0)
