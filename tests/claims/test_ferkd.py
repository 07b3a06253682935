"""How FerKD's claims measure."""

import pytest
import torch

from heterodox.claims.ferkd import ACROSS, WITHIN, OnCrops, mix, reached
from heterodox.experiment import Measurement
from heterodox.losses.soft_label_bank import DrawnCrops


def test_an_accuracy_is_reached_where_the_curve_first_crosses_it():
    run = Measurement(80.0, {}, {"test accuracy [%]": [(1.0, 50.0), (2.0, 40.0), (3.0, 80.0)]})
    assert reached(run, 30.0, chance=10.0) == pytest.approx(0.5)
    assert reached(run, 50.0, chance=10.0) == 1.0
    assert reached(run, 60.0, chance=10.0) == pytest.approx(2.5)
    assert reached(run, 80.1, chance=10.0) == 6.0


def test_mixing_across_images_differs_from_within_only_in_the_partner():
    number = torch.arange(12.0).view(4, 3)
    crops = number[..., None, None, None].expand(4, 3, 1, 8, 8)
    soft = torch.stack([number, 12 - number], -1) / 12
    drawn = DrawnCrops(crops, soft, torch.ones(4, 3))
    for arm in (ACROSS, WITHIN):
        largest = 0.0
        for seed in range(6):
            mixed = mix(drawn, arm, torch.Generator().manual_seed(seed))
            torch.testing.assert_close(mixed.crops.mean((2, 3, 4)) / 12, mixed.soft[..., 0])
            largest = max(largest, float((mixed.crops - crops).abs().max()))
        assert (2 < largest <= 9) if arm == ACROSS else (0 < largest <= 2)


def test_a_network_sees_whole_images_when_it_is_evaluated():
    x = torch.rand(3, 1, 6, 6)
    network = OnCrops(torch.nn.Identity(), 6)
    torch.testing.assert_close(network.eval()(x), x)
    assert not torch.allclose(network.train()(x), x)
