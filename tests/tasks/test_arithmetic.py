import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heterodox.experiment.scale import Scale
from heterodox.optim.slot import perp_grad
from heterodox.tasks import arithmetic
from heterodox.tasks.arithmetic import (
    SETTINGS,
    ArithmeticSettings,
    check,
    table,
    together,
    train,
    train_many,
)

TINY = ArithmeticSettings(
    modulus=7,
    fraction=0.6,
    hidden=16,
    epochs=40,
    learning_rate=1e-2,
    monitor_every=10,
    dtype="float64",
    loss_dtype="float64",
)


@pytest.mark.parametrize(
    "operation, result",
    [("+", lambda a, b: a + b), ("-", lambda a, b: a - b), ("*", lambda a, b: a * b)],
)
def test_the_table_is_all_of_arithmetic(operation, result):
    pairs, results = table(operation, 5)
    assert pairs.tolist() == [[a, b] for a in range(5) for b in range(5)]
    assert results.tolist() == [result(a, b) % 5 for a in range(5) for b in range(5)]


def test_training_and_test_pairs_share_the_table_out():
    run = train(settings=replace(TINY, epochs=1), seed=2)
    both = torch.cat([run.train_pairs, run.test_pairs])
    assert len(run.train_pairs) == round(0.6 * 49)
    assert len({tuple(pair) for pair in both.tolist()}) == 49


def test_it_trains_as_linear_layers_on_one_hot_vectors_would():
    run = train(settings=TINY, seed=1)
    untrained = train(settings=replace(TINY, epochs=1, learning_rate=1e-300), seed=1)
    layers = [nn.Linear(*w.shape, bias=False, dtype=torch.float64) for w in untrained.model.weights]
    for layer, weight in zip(layers, untrained.model.weights, strict=True):
        layer.weight.data.copy_(weight.T)
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0)

    def one_hot(pairs):
        return F.one_hot(pairs, 7).flatten(1).double()

    def accuracy(pairs):
        predicted = model(one_hot(pairs)).argmax(-1)
        return 100 * (predicted == pairs.sum(1) % 7).double().mean().item()

    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(one_hot(run.train_pairs)), run.train_pairs.sum(1) % 7).backward()
        optimizer.step()
    for layer, weight in zip(layers, run.model.weights, strict=True):
        assert torch.allclose(layer.weight.T, weight, atol=1e-10)
    assert run.train_accuracy == pytest.approx(accuracy(run.train_pairs))
    assert run.test_accuracy == pytest.approx(accuracy(run.test_pairs))


@pytest.mark.parametrize("loss", ["cross-entropy", "stablemax"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-10), ("float32", 1e-3)])
def test_seeds_trained_together_are_the_seeds_trained_alone(loss, optimizer, dtype, tolerance):
    settings = replace(TINY, dtype=dtype, loss_dtype=dtype, weight_decay=0.1)
    assert together(optimizer, settings)
    choices = {"loss": loss, "optimizer": optimizer, "settings": settings, "operation": "*"}
    batched = train_many((3, 1, 4), **choices)
    for seed, run in zip((3, 1, 4), batched, strict=True):
        alone = train(seed=seed, **choices)
        assert torch.equal(run.train_pairs, alone.train_pairs)
        for ours, theirs in zip(run.model.weights, alone.model.weights, strict=True):
            assert torch.allclose(ours, theirs, atol=tolerance)
        assert run.curves["step"] == alone.curves["step"]
        for name in ("train_loss", "test_loss", "alignment", "weight_norm"):
            assert run.curves[name] == pytest.approx(alone.curves[name], rel=tolerance)


def test_an_optimizer_that_looks_at_whole_tensors_trains_each_seed_alone():
    assert not together("perp-grad", TINY)
    choices = {"optimizer": partial(perp_grad), "settings": TINY}
    assert not together(choices["optimizer"], TINY)
    for seed, run in zip((1, 2), train_many((1, 2), **choices), strict=True):
        alone = train(seed=seed, **choices)
        assert all(map(torch.equal, run.model.weights, alone.model.weights))


def test_large_models_are_trained_one_after_the_other():
    assert together("adamw", SETTINGS[Scale.SMOKE])
    assert not together("adamw", SETTINGS[Scale.LAPTOP])


def test_accuracies_are_recorded_from_the_start_to_the_end():
    run = train(settings=replace(TINY, epochs=45), seed=0)
    assert run.curves["step"] == [0, 10, 20, 30, 40, 45]
    predicted = run.model(run.test_pairs).argmax(-1)
    right = (predicted == run.test_pairs.sum(1) % 7).double().mean().item()
    assert run.test_accuracy == pytest.approx(100 * right)
    assert run.best_test_accuracy == 100 * max(run.curves["test_accuracy"])
    assert run.measurement().value == run.test_accuracy


def test_epochs_count_to_the_first_record_above_95_percent():
    run = train(settings=TINY)
    run.curves["test_accuracy"][:] = [0.1, 0.94, 0.96, 0.9, 0.97]
    assert run.epochs_to_generalise == 20
    run.curves["test_accuracy"][:] = [0.1] * 5
    assert run.measurement().readings["epochs to 95 %"] == math.inf


def test_half_precision_losses_collapse_first():
    collapsed = {}
    for name in ("float16", "float32", "float64"):
        settings = replace(TINY, epochs=150, dtype="float32", loss_dtype=name)
        collapsed[name] = train(settings=settings).collapsed
    assert collapsed["float16"] > collapsed["float32"] == collapsed["float64"] == 0


def test_a_run_that_diverges_measures_nan_and_stops():
    run = train(settings=replace(TINY, learning_rate=1e200), optimizer="sgd")
    assert run.diverged and math.isnan(run.measurement().value)
    assert run.curves["step"][-1] < 40


def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, monkeypatch):
    expected = train(settings=TINY, schedule="cosine", seed=5)
    path = tmp_path / "run"
    calls = []

    def cross_entropy(logits, target):
        calls.append(1)
        if len(calls) == 35:
            raise KeyboardInterrupt
        return F.cross_entropy(logits, target)

    choices = {"settings": TINY, "schedule": "cosine", "seed": 5, "loss": cross_entropy}
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=path, **choices)
    before = len(calls)
    resumed = train(checkpoint=path, **choices)
    assert len(calls) - before < 25
    assert all(map(torch.equal, resumed.model.weights, expected.model.weights))
    assert resumed.curves == expected.curves
    with pytest.raises(ValueError, match=r"^checkpoint: .* of another run"):
        train(checkpoint=path, **{**choices, "seed": 6})


def test_the_callers_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    train(settings=replace(TINY, epochs=2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"operation": "/"}, "operation: '/' given"),
        ({"loss": "hinge"}, "loss: 'hinge' given"),
        ({"optimizer": "lion"}, "optimizer: 'lion' given"),
        ({"schedule": "step"}, "schedule: 'step' given"),
    ],
)
def test_unknown_names_are_refused(change, message):
    for function in (check, train, partial(train_many, (1, 2))):
        with pytest.raises(ValueError, match=f"^{message}"):
            function(settings=TINY, **change)


@pytest.mark.parametrize(
    "name, value",
    [("modulus", 0), ("fraction", 1.0), ("fraction", 0.0), ("hidden", 0), ("dtype", "float16")],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}: {value}|^{name}: '{value}"):
        replace(TINY, **{name: value})


def test_no_seeds_are_refused():
    with pytest.raises(ValueError, match=r"^seeds: none given"):
        train_many((), settings=TINY)


def test_there_are_settings_for_every_scale():
    assert set(arithmetic.SETTINGS) == set(Scale)
