import re

import pytest
import torch

from heterodox.data import load_cifar10n
from heterodox.data.errors import DataError
from heterodox.data.label_noise import (
    CIFAR10_CONFUSIONS,
    asymmetric_noise,
    human_noise,
    other_class_noise,
    symmetric_noise,
)
from heterodox.data.local import locate
from heterodox.data.registry import dataset

LABELS = torch.arange(5000) % 10


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.8, 1.0])
def test_symmetric_noise_redraws_its_share_exactly_from_all_classes(rate):
    noisy, flipped = symmetric_noise(LABELS, rate, 10, generator())
    assert flipped.sum() == round(rate * 5000)
    assert torch.equal(noisy[~flipped], LABELS[~flipped])
    wrong = (noisy != LABELS).sum().item()
    assert abs(wrong - 0.9 * rate * 5000) < 5 * (0.09 * rate * 5000) ** 0.5 + 1e-9
    counts = noisy[flipped].bincount(minlength=10)
    assert (counts - rate * 500).abs().max() <= 5 * (rate * 500) ** 0.5


def test_other_class_noise_makes_its_share_wrong_and_evenly_so():
    noisy, flipped = other_class_noise(LABELS % 3, 0.4, 3, generator())
    assert torch.equal(flipped, noisy != LABELS % 3)
    assert flipped.sum() == 2000
    shifts = ((noisy - LABELS % 3) % 3)[flipped].bincount(minlength=3)
    assert shifts[0] == 0 and abs(shifts[1] - shifts[2]) < 220


def test_asymmetric_noise_confuses_only_what_is_alike_and_by_an_exact_share():
    noisy, flipped = asymmetric_noise(LABELS, 0.4, CIFAR10_CONFUSIONS, generator())
    for true in range(10):
        members = LABELS.eq(true)
        confused = CIFAR10_CONFUSIONS.get(true, true)
        assert set(noisy[members].tolist()) == {true, confused}
        share = 200 if true in CIFAR10_CONFUSIONS else 0
        assert (noisy[members] != true).sum() == share == flipped[members].sum()
    assert (noisy[LABELS == 3] == 5).sum() == (noisy[LABELS == 5] == 3).sum() == 200


def test_labels_that_are_given_stay_and_a_seed_repeats_its_noise():
    labels = LABELS.clone()
    for draw in (
        lambda g: symmetric_noise(labels, 0.5, 10, g),
        lambda g: other_class_noise(labels, 0.5, 10, g),
        lambda g: asymmetric_noise(labels, 0.5, {0: 1}, g),
    ):
        first, again, other = draw(generator(1)), draw(generator(1)), draw(generator(2))
        assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    assert torch.equal(labels, LABELS)


def test_one_class_and_no_examples_are_no_special_case():
    one, none = torch.zeros(4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    noisy, flipped = symmetric_noise(one, 1.0, 1, generator())
    assert torch.equal(noisy, one) and flipped.all()
    for result in (
        symmetric_noise(none, 0.5, 10, generator()),
        other_class_noise(none, 0.5, 10, generator()),
        asymmetric_noise(none, 0.5, CIFAR10_CONFUSIONS, generator()),
    ):
        assert len(result[0]) == len(result[1]) == 0


def here(name):
    return all(locate(dataset(name)).values())


@pytest.mark.skipif(not here("cifar10n"), reason="needs CIFAR-10N in $HETERODOX_DATA")
@pytest.mark.parametrize(
    ("column", "low", "high"),
    [("aggre_label", 0.085, 0.095), ("random_label2", 0.17, 0.19), ("worse_label", 0.40, 0.41)],
)
def test_people_are_wrong_as_often_as_is_reported(column, low, high):
    labels = load_cifar10n()["clean_label"]
    noisy, flipped = human_noise(labels, column)
    assert low < flipped.double().mean() < high
    assert torch.equal(flipped, noisy != labels)
    first, _ = human_noise(labels[:300], column)
    assert torch.equal(first, noisy[:300])


@pytest.mark.skipif(not here("cifar10n"), reason="needs CIFAR-10N in $HETERODOX_DATA")
def test_human_noise_is_refused_for_other_labels():
    labels = load_cifar10n()["clean_label"].clone()
    for other in (labels.flip(0), torch.cat([labels, labels])):
        with pytest.raises(ValueError, match=r"^labels: .*expected"):
            human_noise(other)


def test_without_the_file_it_is_said_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("HETERODOX_DATA", str(tmp_path))
    monkeypatch.setattr("heterodox.data.local.cache_folder", lambda: tmp_path)
    with pytest.raises(DataError, match=r"^cifar10n: .* not in \$HETERODOX_DATA"):
        human_noise(LABELS)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("rate: 1.5 given", lambda: symmetric_noise(LABELS, 1.5, 10, generator())),
        ("rate: -0.1 given", lambda: other_class_noise(LABELS, -0.1, 10, generator())),
        ("rate: nan given", lambda: asymmetric_noise(LABELS, float("nan"), {}, generator())),
        ("labels: 9 given", lambda: symmetric_noise(LABELS, 0.5, 9, generator())),
        ("labels: -1 given", lambda: symmetric_noise(LABELS - 1, 0.5, 10, generator())),
        ("labels: shape", lambda: symmetric_noise(LABELS[None], 0.5, 10, generator())),
        ("num_classes: 1 given", lambda: other_class_noise(LABELS * 0, 0.5, 1, generator())),
        ("mapping: 3 to itself", lambda: asymmetric_noise(LABELS, 0.5, {3: 3}, generator())),
        ("column: 'clean_label' given", lambda: human_noise(LABELS, "clean_label")),
    ],
)
def test_bad_input_names_the_argument(message, call):
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}.*expected"):
        call()
