import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from heterodox.data.images import ImageData
from heterodox.experiment.scale import Scale
from heterodox.tasks.images import (
    SETTINGS,
    ImageSettings,
    Normalisation,
    check,
    noisy_labels,
    train,
)

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


def test_noisy_labels_are_wrong_in_the_share_that_was_asked_and_evenly_so():
    labels = torch.arange(3000) % 3
    noisy = noisy_labels(labels, 3, 0.4, torch.Generator().manual_seed(0))
    wrong = noisy != labels
    assert wrong.sum() == 1200
    shifts = ((noisy - labels) % 3)[wrong].bincount(minlength=3)
    assert shifts[0] == 0 and abs(shifts[1] - shifts[2]) < 120
    assert torch.equal(noisy_labels(labels, 3, 0.0, torch.Generator()), labels)


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
        ({"model": "vit", "settings": replace(TINY, patch=3)}, "patch: 3 given"),
    ],
)
def test_bad_input_names_the_argument_before_any_work(change, message):
    for function in (check, train):
        with pytest.raises(ValueError, match=f"^{message}"):
            function(**{"data": images(), "settings": TINY, **change})


@pytest.mark.parametrize("name, value", [("epochs", 0), ("label_noise", 1.5), ("train_images", 0)])
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}: {value} given"):
        replace(TINY, **{name: value})


def test_there_are_settings_for_every_scale():
    assert set(SETTINGS) == set(Scale)
