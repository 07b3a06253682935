import pytest
import torch

from heterodox.losses.distillation import self_mix
from heterodox.losses.mixing import mixing_weight


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_package_exports_the_function_and_no_module():
    from heterodox import losses

    assert losses.self_mix is self_mix


def marked(batch=5, crops=4, side=8):
    """Crop m of image i is 10 i + m everywhere, and so its label, shared between two classes."""
    number = 10.0 * torch.arange(batch)[:, None] + torch.arange(crops)
    images = number[:, :, None, None, None].expand(batch, crops, 3, side, side).contiguous()
    soft = torch.stack([number / 100, 1 - number / 100], dim=-1)
    return images, soft


@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
@pytest.mark.parametrize("seed", range(8))
def test_crops_are_mixed_with_another_of_their_image_and_labels_by_the_share_of_pixels(mode, seed):
    images, soft = marked()
    mixed, labels = self_mix(images, soft, alpha=1.0, mode=mode, generator=generator(seed))
    assert mixed.shape == images.shape and labels.shape == soft.shape
    for image in range(5):
        for crop in range(4):
            values = mixed[image, crop].unique()
            assert (values >= 10 * image).all() and (values <= 10 * image + 3 + 1e-5).all()
            # The label is the mean of the numbers that the pixels are marked with.
            expected = mixed[image, crop].mean() / 100
            torch.testing.assert_close(labels[image, crop, 0], expected, rtol=0, atol=1e-6)
            torch.testing.assert_close(labels[image, crop].sum(), torch.tensor(1.0))


def test_no_crop_is_its_own_partner_and_each_is_once_a_partner():
    images, soft = marked(batch=50)
    # Almost nothing is left of the crop itself if its weight is small.
    seed = next(s for s in range(1000) if mixing_weight(0.05, generator(s)) < 1e-6)
    mixed, _ = self_mix(images, soft, alpha=0.05, generator=generator(seed))
    partner = mixed[:, :, 0, 0, 0].round() % 10
    assert (partner != torch.arange(4)).all()
    assert torch.equal(partner.sort(1).values, torch.arange(4.0).expand(50, 4))
    shifts = (partner[:, 0]).unique()
    assert shifts.tolist() == [1.0, 2.0, 3.0]  # every shift occurs


def test_cutmix_pastes_one_box():
    images, soft = marked(batch=1, crops=2, side=16)
    shares = []
    for seed in range(20):
        mixed, _ = self_mix(images, soft, mode="cutmix", generator=generator(seed))
        pasted = mixed[0, 0, 0] != images[0, 0, 0]
        rows, columns = pasted.any(1), pasted.any(0)
        assert torch.equal(pasted, rows[:, None] & columns)
        assert rows.int().diff().abs().sum() <= 2
        shares.append(pasted.float().mean().item())
    assert min(shares) < 0.1 and max(shares) > 0.4


def test_with_axes_exchanged_it_mixes_across_images():
    images, soft = marked()
    mixed, _ = self_mix(images.transpose(0, 1), soft.transpose(0, 1), generator=generator())
    number = mixed.transpose(0, 1)[:, :, 0, 0, 0] - torch.arange(4.0)
    weight = max(w := mixing_weight(1.0, generator()), 1 - w)
    for crop in range(4):  # l i + (1 − l) j for images i and j, and the same crop of both
        pairs = [(weight * i + (1 - weight) * j) * 10 for i in range(5) for j in range(5)]
        pairs += [((1 - weight) * i + weight * j) * 10 for i in range(5) for j in range(5)]
        distance = (number[:, crop, None] - torch.tensor(pairs)).abs().amin(1)
        assert distance.max() < 1e-4
    assert (number / 10 - (number / 10).round()).abs().max() > 0.01


def test_the_same_generator_gives_the_same_mixture():
    images, soft = torch.rand(3, 2, 1, 6, 6), torch.rand(3, 2, 4).softmax(-1)
    for mode in ("mixup", "cutmix"):
        a, b = (self_mix(images, soft, mode=mode, generator=generator(3)) for _ in range(2))
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_weights_follow_the_beta_distribution():
    source = generator()
    weights = torch.tensor([mixing_weight(0.8, source) for _ in range(4000)])
    assert abs(weights.mean() - 0.5) < 0.02
    assert abs(weights.var() - 1 / (4 * 2.6)) < 0.01  # 1 / (4 (2 α + 1))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("images", lambda: self_mix(torch.zeros(2, 1, 1, 4, 4), torch.ones(2, 1, 3))),
        ("images", lambda: self_mix(torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 3))),
        ("images", lambda: self_mix(torch.zeros(2, 2, 1, 4, 4).byte(), torch.ones(2, 2, 3))),
        ("soft", lambda: self_mix(torch.zeros(2, 2, 1, 4, 4), torch.ones(2, 3, 3))),
        ("mode", lambda: self_mix(torch.zeros(2, 2, 1, 4, 4), torch.ones(2, 2, 3), mode="paste")),
        ("alpha", lambda: self_mix(torch.zeros(2, 2, 1, 4, 4), torch.ones(2, 2, 3), alpha=0.0)),
        ("alpha", lambda: mixing_weight(-1.0)),
    ],
)
def test_bad_input_names_the_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
        call()
