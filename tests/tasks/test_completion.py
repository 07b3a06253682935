"""Completion of images: what is hidden, what is counted, and that both machines learn."""

from dataclasses import replace

import pytest
import torch

from heterodox.experiment.scale import Scale
from heterodox.tasks import completion

SMOKE = completion.SETTINGS[Scale.SMOKE]


def test_images_are_grey_levels_and_hidden_pixels_depend_on_the_seed_only():
    images = completion.load(SMOKE, 1)
    assert images.train.min() == 0 and images.train.max() == SMOKE.grey_levels - 1
    assert images.seen.double().mean().item() == pytest.approx(SMOKE.observed, abs=0.02)
    assert torch.equal(images.seen, completion.load(SMOKE, 1).seen)
    assert not torch.equal(images.seen, completion.load(SMOKE, 2).seen)


class Oracle(torch.nn.Module):
    """Knows the images, but takes hidden pixels and labels of some of them for another."""

    def __init__(self, images, wrong):
        super().__init__()
        self.parameter = torch.nn.Parameter(torch.zeros(()))
        self.images, self.wrong = images, wrong
        self.machine = type("Machine", (), {"info": None})()

    def complete(self, pixels, seen):
        levels, classes = self.images.grey_levels, self.images.classes
        labels = self.images.test_labels.clone()
        labels[: self.wrong] = (labels[: self.wrong] + 1) % classes
        found = pixels.clone()
        found[: self.wrong] = (found[: self.wrong] + 1) % levels
        one_hot = torch.nn.functional.one_hot
        return one_hot(found, levels).float(), one_hot(labels, classes).float()


def test_errors_are_shares_of_labels_and_of_hidden_pixels():
    images = completion.load(SMOKE, 1)
    found = completion.errors(Oracle(images, 64), images)
    hidden = ~images.seen
    assert found["label error"] == pytest.approx(100 * 64 / len(images.test))
    share = hidden[:64].sum() / hidden.sum()
    assert found["pixel error"] == pytest.approx(100 * share.item())
    assert completion.errors(Oracle(images, 0), images)["pixel error"] == 0


@pytest.mark.parametrize("model", ["monotone", "restricted"])
def test_training_lowers_the_error_of_hidden_pixels(model):
    settings = replace(SMOKE, epochs=6, rbm_epochs=6)
    run = completion.train(model=model, settings=settings, learning_rate=1e-2)
    measured = run.measurement()
    assert measured.curves["pixel error [%]"][-1][1] < 45
    assert 0 <= measured.value <= 100
    again = completion.train(model=model, settings=settings, learning_rate=1e-2)
    assert again.measurement() == measured


def test_the_nearest_image_fills_in_much():
    measured = completion.nearest(1, SMOKE)
    assert measured.readings["pixel error"] < 35 and measured.value < 40


def test_the_observed_share_of_an_image_does_not_tell_the_restricted_machine_its_label():
    images = completion.load(SMOKE, 1)
    run = completion.train(model="restricted", settings=SMOKE)
    pixels, seen = images.test[:4], images.seen[:4]
    image, label = run.completer.complete(pixels, seen)
    chosen = image.gather(-1, pixels[..., None])[..., 0]
    assert (chosen[seen] == 1).all()
    torch.testing.assert_close(label.sum(-1), torch.ones(4))


def test_an_unknown_model_is_named():
    with pytest.raises(ValueError, match=r"^model: .* expected"):
        completion.train(model="deep")
