from dataclasses import replace

import pytest
import torch

from heterodox.data.spikes import timing_patterns
from heterodox.experiment import Scale
from heterodox.layers.delays import DelayedSNN
from heterodox.tasks import spoken_words
from heterodox.tasks.spoken_words import SETTINGS, build, one_cycle, synapses, train

SMOKE = replace(SETTINGS[Scale.SMOKE], epochs=2)


def test_the_cycle_is_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=20)
    for epoch in range(20):
        assert one_cycle(epoch, 20) == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        if epoch < 19:
            schedule.step()


@pytest.mark.parametrize("scale", Scale)
def test_networks_without_learned_delays_are_as_large(scale):
    settings, data = SETTINGS[scale], timing_patterns(8)
    learned, fixed, none = (
        build(kind, data, settings, wider=True) for kind in ("learned", "fixed", "none")
    )
    sizes = [
        sum(p.numel() for p in model.parameters() if p.requires_grad)
        for model in (learned, fixed, none)
    ]
    assert sizes[1] == sizes[2]
    assert abs(sizes[1] / sizes[0] - 1) < 0.05
    assert synapses(8, settings.hidden, 4, settings.layers) == sum(
        w.numel() for w in learned.weights()
    )
    narrow = build("fixed", data, settings, wider=False)
    assert narrow.layers()[0].out_features == settings.hidden


def test_fixed_delays_are_whole_and_stay():
    run = train(delays="fixed", data="timing-patterns", settings=SMOKE)
    for layer in run.model.layers():
        assert torch.equal(layer.delay, layer.delay.round())
        assert layer.max_delay == 9
    # Trained without blur: rounding costs next to nothing.
    assert abs(run.measurement().readings["drop"]) < 5
    assert (
        train(delays="none", data="timing-patterns", settings=SMOKE).model.layers()[0].max_delay
        == 1
    )


def test_learned_delays_move_within_their_window_and_the_blur_shrinks():
    run = train(data="timing-patterns", settings=SMOKE, seed=3)
    start = build_with_seed(3)
    for layer, first in zip(run.model.layers(), start.layers(), strict=True):
        assert layer.delay.min() >= 0 and layer.delay.max() <= 8
        assert (layer.delay - first.delay).abs().mean() > 0.05
        assert layer.sigma.item() == pytest.approx(0.23)
    assert train(data="timing-patterns", settings=SMOKE, shrinking=False).model.layers()[
        0
    ].sigma.item() == pytest.approx(0.23)


def build_with_seed(seed: int) -> DelayedSNN:
    with spoken_words.seeded(spoken_words.derived_seed(seed, "initialisation")):
        return build("learned", timing_patterns(8), SMOKE, wider=True)


def test_sparse_neurons_keep_their_inputs():
    run = train(inputs_a_neuron=3, data="timing-patterns", settings=SMOKE)
    *hidden, readout = run.model.layers()
    for layer in hidden:
        assert ((layer.weight != 0).sum((1, 2)) == 3).all()
        assert layer.out_features == SMOKE.hidden
    assert (readout.weight != 0).all()


def test_delays_tell_patterns_that_differ_in_timing_only():
    settings = replace(SMOKE, epochs=12, hidden=24, learning_rate=3e-3)
    data = timing_patterns(640)
    learned, none = (
        train(delays=kind, data=data, settings=settings) for kind in ("learned", "none")
    )
    assert learned.test_accuracy > none.test_accuracy + 10
    assert learned.test_accuracy > 75


def test_runs_repeat():
    first, second = (train(data="timing-patterns", settings=SMOKE, seed=2) for _ in range(2))
    assert first.measurement() == second.measurement()


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("delays", {"delays": "random"}),
        ("inputs_a_neuron", {"inputs_a_neuron": 0}),
        ("batch_size", {"settings": replace(SMOKE, batch_size=100_000)}),
        ("data", {"data": "no such folder"}),
    ],
)
def test_bad_input_names_the_argument(argument, options):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        train(**{"data": "timing-patterns", "settings": SMOKE, **options})
    with pytest.raises(ValueError, match=r"^epochs: .* expected"):
        replace(SMOKE, epochs=0)
