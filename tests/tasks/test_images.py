import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from heterodox.data.errors import DataError
from heterodox.data.images import ImageData
from heterodox.experiment.scale import Scale
from heterodox.losses import EarlyLearningLoss
from heterodox.models.vision import MLP
from heterodox.tasks.image_labels import noisy_labels
from heterodox.tasks.images import (
    SETTINGS,
    ImageSettings,
    Normalisation,
    check,
    train,
)
from heterodox.training.seeding import generator_for

TINY = ImageSettings(
    epochs=3,
    batch_size=10,
    learning_rate=1e-2,
    patch=4,
    width=16,
    layers=1,
    heads=2,
    conv_widths=(8,),
    mlp_widths=(16,),
    evaluations=3,
)


def images(train_count=60, test_count=30):
    """Three classes by where the light is, in noise."""
    generator = torch.Generator().manual_seed(0)
    count = train_count + test_count
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 80, (count, 2, 8, 8), generator=generator)
    for index, label in enumerate(labels.tolist()):
        pixels[index, :, 2 * label : 2 * label + 2] += 150
    pixels = pixels.to(torch.uint8)
    train_part, test_part = slice(0, train_count), slice(train_count, None)
    return ImageData(
        "bars",
        pixels[train_part],
        labels[train_part],
        pixels[test_part],
        labels[test_part],
        ("top", "middle", "bottom"),
    )


@pytest.mark.parametrize("model", ["cnn", "vit", "mlp"])
def test_every_model_learns(model):
    run = train(model=model, data=images(), settings=replace(TINY, epochs=10))
    assert run.test_accuracy > 80
    steps = [step for step, _ in run.history.evaluations["test error"]]
    assert steps == [20, 40, 60]


def test_the_accuracy_is_that_of_the_model_on_the_test_images():
    data = images()
    run = train(model="mlp", data=data, settings=TINY)
    predicted = run.model(run.normalise(data.test_images)).argmax(-1)
    share = (predicted == data.test_labels).double().mean().item()
    measurement = run.measurement()
    assert measurement.value == run.test_accuracy == pytest.approx(100 * share)
    assert measurement.curves["test accuracy [%]"][-1] == (18, measurement.value)


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    first, second, other = (
        train(model="vit", data=images(), settings=TINY, seed=seed).history for seed in (1, 1, 2)
    )
    assert first == second
    assert first.loss != other.loss


def test_arms_with_the_same_seed_see_the_same_batches():
    seen = {}

    def spy(name):
        def loss(logits, target):
            seen.setdefault(name, []).append(target)
            return nn.functional.cross_entropy(logits, target)

        return loss

    for attention in ("softmax", "sigmoid"):
        settings = replace(TINY, label_noise=0.3, train_images=40)
        train(
            model="vit", data=images(), settings=settings, attention=attention, loss=spy(attention)
        )
    assert all(map(torch.equal, seen["softmax"], seen["sigmoid"]))
    assert len(seen["softmax"]) == 3 * 4


def test_every_seed_draws_its_own_training_images():
    chosen = {}
    for seed in (0, 1):
        seen = []

        class Spy(nn.Linear):
            def forward(self, x, seen=seen):
                if self.training:
                    seen.extend(x.sum(dim=(1, 2, 3)).tolist())
                return super().forward(x.flatten(1))

        settings = replace(TINY, train_images=20, epochs=1)
        train(model=lambda shape, n: Spy(128, n), data=images(), settings=settings, seed=seed)
        chosen[seed] = set(seen)
    assert len(chosen[0]) == len(chosen[1]) == 20
    assert chosen[0] != chosen[1]


def test_normalised_training_images_have_mean_0_and_deviation_1_in_each_channel():
    data = images().train_images
    data[:, 1] //= 2
    x = Normalisation(data)(data).double()
    assert x.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert x.std(dim=(0, 2, 3)).sub(1).abs().max() < 1e-3


def test_a_channel_without_contrast_stays_finite():
    data = torch.full((5, 1, 4, 4), 7, dtype=torch.uint8)
    assert Normalisation(data)(data).abs().max() == 0


def noise(**settings):
    changed = replace(TINY, **settings)
    generator = torch.Generator().manual_seed(0)
    return noisy_labels(images(600), torch.arange(600), changed, generator)


def test_labels_are_noisy_in_the_way_that_was_asked():
    true = images(600).train_labels
    assert torch.equal(noise(), true)
    assert (noise(label_noise=0.4) != true).sum() == 240
    symmetric = noise(label_noise=0.4, noise_kind="symmetric")
    assert 130 < (symmetric != true).sum() < 190  # two thirds of 240
    shift = (noise(label_noise=0.4, noise_kind="asymmetric") - true) % 3
    assert shift.bincount().tolist() == [360, 240]


def test_noise_of_other_classes_is_drawn_as_it_always_was():
    generator = torch.Generator().manual_seed(0)
    true = images(600).train_labels
    chosen_ones = torch.randperm(600, generator=generator)[:240]
    shift = torch.randint(1, 3, (240,), generator=generator)
    true[chosen_ones] = (true[chosen_ones] + shift) % 3
    assert torch.equal(noise(label_noise=0.4), true)


def test_human_noise_is_refused_for_images_that_nobody_has_labelled():
    for function in (check, train):
        with pytest.raises((ValueError, DataError), match=r"^(labels|cifar10n): "):
            function(data=images(), settings=replace(TINY, noise_kind="human"))


@pytest.mark.parametrize("made", ["elr", partial(EarlyLearningLoss, strength=1.0)])
def test_a_loss_that_asks_for_examples_gets_the_index_of_each(made):
    run = train(model="mlp", loss=made, data=images(), settings=replace(TINY, epochs=10))
    assert run.test_accuracy > 80
    assert set(run.model.state_dict()) == set(MLP((2, 8, 8), 3, widths=(16,)).state_dict())


def test_indices_are_those_of_the_images_of_the_run():
    seen = {}

    def make(num_examples, num_classes):
        assert (num_examples, num_classes) == (40, 3)

        def loss(logits, target, index):
            for label, i in zip(target.tolist(), index.tolist(), strict=True):
                assert seen.setdefault(i, label) == label
            return nn.functional.cross_entropy(logits, target)

        return loss

    settings = replace(TINY, label_noise=0.5, train_images=40)
    train(model="mlp", loss=make, data=images(), settings=settings)
    assert sorted(seen) == list(range(40))


def test_what_is_memorised_is_the_share_of_wrong_labels_that_the_network_gives():
    data = images()
    settings = replace(TINY, label_noise=0.4, epochs=200, mlp_widths=(64,), evaluations=2)
    run = train(model="mlp", data=data, settings=settings, seed=3)
    picked = torch.randperm(60, generator=generator_for(3, "subset"))
    noisy = noisy_labels(data, picked, settings, generator_for(3, "label noise"))
    wrong = noisy != data.train_labels[picked]
    given = run.model(run.normalise(data.train_images[picked][wrong])).argmax(-1)
    share = 100 * (given == noisy[wrong]).double().mean().item()
    reading = run.measurement().readings["memorised"]
    assert reading == pytest.approx(share) and share > 90
    assert "memorised" not in train(data=data, settings=TINY).measurement().readings


def test_held_out_images_are_not_trained_on_and_tell_when_to_stop():
    data, seen = images(), set()

    class Spy(nn.Linear):
        def forward(self, x):
            if self.training:
                seen.update(round(v, 3) for v in x.sum(dim=(1, 2, 3)).tolist())
            return super().forward(x.flatten(1))

    settings = replace(TINY, held_out=0.25, label_noise=0.2, batch_size=9, epochs=4)
    run = train(model=lambda shape, n: Spy(128, n), data=data, settings=settings, seed=2)
    assert len(seen) == 45
    errors = [error for _, error in run.history.evaluations["held-out error"]]
    accuracies = [100 - error for _, error in run.history.evaluations["test error"]]
    stopped = run.measurement().readings["early-stopped accuracy"]
    assert stopped == accuracies[errors.index(min(errors))]
    assert run.measurement().readings["drop"] == max(accuracies) - accuracies[-1]


def test_targets_are_part_of_a_checkpoint(tmp_path):
    choices = {"data": images(), "settings": replace(TINY, label_noise=0.3)}
    expected = train(loss="elr", **choices).history
    calls = []

    class Interrupted(EarlyLearningLoss):
        def forward(self, *batch):
            calls.append(1)
            if len(calls) == 11:
                raise KeyboardInterrupt
            return super().forward(*batch)

    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=tmp_path / "run", loss=Interrupted, **choices)
    assert train(checkpoint=tmp_path / "run", loss=Interrupted, **choices).history == expected
    assert len(calls) == 11 + 8  # the last checkpoint is of step 10


def test_a_run_that_diverges_measures_nan():
    settings = replace(TINY, learning_rate=1e30, clip=None)
    run = train(model="mlp", data=images(), settings=settings, optimizer="sgd")
    assert run.history.diverged
    measurement = run.measurement()
    assert math.isnan(measurement.value) and math.isnan(measurement.readings["test loss"])


def test_an_interrupted_run_resumes_to_the_same_accuracy_curve(tmp_path):
    expected = train(data=images(), settings=TINY).history
    calls = []

    def cross_entropy(logits, target):
        calls.append(1)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(logits, target)

    choices = {"data": images(), "settings": TINY, "loss": cross_entropy}
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=tmp_path / "run", **choices)
    assert train(checkpoint=tmp_path / "run", **choices).history == expected
    assert len(calls) == 11 + 8  # the last checkpoint is of step 10


def test_the_data_is_known_by_its_content():
    data = images()
    same, changed = images(), images()
    changed.test_images[0, 0, 0, 0] ^= 1
    assert check(data=data, settings=TINY) == check(data=same, settings=TINY)
    assert check(data=data, settings=TINY) != check(data=changed, settings=TINY)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": "resnet"}, "model: 'resnet' given, one of cnn, vit, mlp"),
        ({"model": "vit", "attention": "sofmax"}, "attention: 'sofmax' given"),
        ({"model": "cnn", "attention": "sigmoid"}, "attention: 'sigmoid' given, but only"),
        ({"model": "mlp", "norm": "rms"}, "norm: 'rms' given, but only"),
        ({"loss": "hinge"}, "loss: 'hinge' given"),
        ({"data": "no-such-images"}, "data: 'no-such-images' given"),
        ({"settings": replace(TINY, batch_size=61)}, "batch_size: 61 given, at most the 60"),
        ({"settings": replace(TINY, batch_size=50, held_out=0.2)}, "batch_size: 50 given, at most"),
        ({"model": "vit", "settings": replace(TINY, patch=3)}, "patch: 3 given"),
    ],
)
def test_bad_input_names_the_argument_before_any_work(change, message):
    for function in (check, train):
        with pytest.raises(ValueError, match=f"^{message}"):
            function(**{"data": images(), "settings": TINY, **change})


@pytest.mark.parametrize(
    "name, value",
    [
        ("epochs", 0),
        ("label_noise", 1.5),
        ("train_images", 0),
        ("noise_kind", "pairwise"),
        ("human_labels", "clean_label"),
        ("held_out", 1.0),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}: {value!r} given"):
        replace(TINY, **{name: value})


def test_the_share_of_human_noise_cannot_be_chosen():
    with pytest.raises(ValueError, match=r"^label_noise: 0.4 given, 0 with human noise expected"):
        replace(TINY, label_noise=0.4, noise_kind="human")


def test_there_are_settings_for_every_scale():
    assert set(SETTINGS) == set(Scale)
