import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from heterodox.losses.crops import random_boxes, resized_crops
from heterodox.losses.distillation import (
    SoftLabelBank,
    calibrate_soft_labels,
    compress_soft_labels,
    recover_soft_labels,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Teacher(nn.Module):
    """A linear teacher that remembers what it was shown."""

    def __init__(self, pixels, classes):
        super().__init__()
        self.linear = nn.Linear(pixels, classes)
        self.linear.weight.data = torch.randn(classes, pixels, generator=generator(9)) / 4
        self.shown = []

    def forward(self, crops):
        assert not self.training
        self.shown.append(crops)
        return self.linear(crops.flatten(1))


def bank_of(images, num_crops=4, k=3, classes=6, **options):
    teacher = Teacher(images[0].numel(), classes)
    bank = SoftLabelBank.build(teacher, images, num_crops, k, generator=generator(), **options)
    return bank, teacher


@pytest.fixture
def images():
    return torch.rand(5, 2, 8, 10, generator=generator(1))


@pytest.mark.parametrize("out", [(5, 6), (16, 16), (3, 30)])
def test_a_crop_is_the_interpolated_slice(out):
    images = torch.rand(3, 2, 12, 20, generator=generator())
    boxes = random_boxes(3 * 7, 12, 20, generator=generator(1)).view(3, 7, 4)
    flips = torch.rand(3, 7, generator=generator(2)) < 0.5
    crops = resized_crops(images, boxes, flips, out)
    for i in range(3):
        for m in range(7):
            top, left, height, width = (
                (boxes[i, m] * torch.tensor([12, 20, 12, 20])).round().int().tolist()
            )
            height, width = max(1, height), max(1, width)
            top, left = min(top, 12 - height), min(left, 20 - width)
            part = images[i : i + 1, :, top : top + height, left : left + width]
            expected = F.interpolate(part, out, mode="bilinear", antialias=True)[0]
            expected = expected.flip(-1) if flips[i, m] else expected
            torch.testing.assert_close(crops[i, m], expected, rtol=1e-4, atol=1e-5)


def test_the_whole_image_is_a_crop_of_itself():
    image = torch.randint(256, (1, 3, 7, 9), generator=generator(), dtype=torch.uint8)
    whole = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
    crops = resized_crops(image, whole, torch.tensor([[False]]), (7, 9))
    assert torch.equal(crops[0, 0], image[0].float())


def test_boxes_have_areas_and_proportions_of_the_ranges_and_stay_inside():
    boxes = random_boxes(4000, 30, 40, scale=(0.1, 0.5), generator=generator())
    top, left, height, width = boxes.unbind(1)
    assert (
        (boxes >= 0).all() and (top + height <= 1 + 1e-6).all() and (left + width <= 1 + 1e-6).all()
    )
    area, proportion = height * width, width * 40 / (height * 30)
    assert 0.1 <= area.min() < 0.11 and 0.49 < area.max() <= 0.5
    assert abs(area.mean() - 0.3) < 0.01
    assert proportion.min() >= 0.75 - 1e-5 and proportion.max() <= 4 / 3 + 1e-5
    assert abs(proportion.log().mean()) < 0.02


def test_where_no_box_fits_the_middle_is_taken():
    boxes = random_boxes(3, 10, 100, scale=(1.0, 1.0), generator=generator())
    assert torch.allclose(boxes, torch.tensor([0.0, 0.5 - 0.2 / 3, 1.0, 0.4 / 3]).expand(3, 4))


def test_stored_boxes_and_flips_reproduce_the_teachers_crops_to_the_bit(images):
    bank, teacher = bank_of(images, num_crops=4)
    asked = teacher.shown
    for position in range(5):
        crops, soft = bank.crops(images[position], position, 4, generator(3))
        for crop, label in zip(crops, soft, strict=True):
            (match,) = [m for m in range(4) if torch.equal(crop, asked[position][m])]
            p = teacher.linear(asked[position][match].flatten()).softmax(-1).detach()
            kept = recover_soft_labels(compress_soft_labels(p[None], 3))[0]
            torch.testing.assert_close(label, kept, rtol=0, atol=1e-3)
    batch, _ = bank.crops(images, torch.arange(5), 4, generator(4))
    for position in range(5):
        for crop in batch[position]:
            assert any(torch.equal(crop, seen) for seen in asked[position])


def test_crops_of_a_step_are_distinct_and_drawn_evenly(images):
    bank, _ = bank_of(images)
    source, seen = generator(5), []
    for _ in range(200):
        crops, _ = bank.crops(images[1], 1, 2, source)
        assert not torch.equal(crops[0], crops[1])
        seen.extend(float(crop.sum()) for crop in crops)
    counts = [seen.count(value) for value in set(seen)]
    assert len(counts) == 4 and min(counts) > 70


def test_images_may_come_in_any_order_and_from_tuples(images):
    direct, teacher = bank_of(images)
    pairs = [(image, 0) for image in images]
    bank = SoftLabelBank.build(teacher, pairs, 4, 3, generator=generator())
    assert torch.equal(bank.values, direct.values)
    order = torch.tensor([3, 0])
    _, soft = bank.crops(images[order], order, 4, generator())
    means = recover_soft_labels(compress_soft_labels(soft.flatten(0, 1), 6)).view(2, 4, 6).mean(1)
    _, alone = bank.crops(images[3], 3, 4, generator(7))
    torch.testing.assert_close(means[0], alone.mean(0), rtol=0, atol=1e-6)


def test_images_of_different_sizes_share_a_bank():
    mixed = [torch.rand(1, side, side + 3, generator=generator(side)) for side in (6, 9, 14)]
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(25, 4))
    bank = SoftLabelBank.build(teacher, mixed, 3, 2, size=5, generator=generator())
    for position, image in enumerate(mixed):
        assert bank.crops(image, position, 3)[0].shape == (3, 1, 5, 5)


def test_the_teacher_is_asked_in_evaluation_mode_and_left_as_it_was(images):
    teacher = Teacher(160, 6).train()
    bank = SoftLabelBank.build(teacher, images, 2, 3, generator=generator())
    assert teacher.training and not bank.values.requires_grad


def test_its_temperature_softens_the_labels(images):
    sharp, soft = bank_of(images)[0], bank_of(images, temperature=4.0)[0]
    assert (soft.values[..., 0] < sharp.values[..., 0]).all()


def test_a_crop_of_five_entries_takes_29_bytes(images):
    bank, _ = bank_of(images, k=5)
    assert "29 bytes a crop" in repr(bank)


@pytest.mark.parametrize("below", ["smooth", "hard", "discard"])
@pytest.mark.parametrize("mode", ["absolute", "quantile"])
def test_calibrating_the_bank_is_calibrating_its_labels(images, below, mode):
    bank, _ = bank_of(images, k=6)
    labels = torch.tensor([0, 1, 2, 3, 4])
    done = bank.calibrate(labels, lower=0.4, mode=mode, below=below)
    index = torch.arange(5)
    _, soft, _ = bank.draw(images, index, 4, generator())
    _, corrected, weight = done.draw(images, index, 4, generator())
    rows = soft.flatten(0, 1)
    expected, keep = calibrate_soft_labels(
        rows / rows.sum(-1, keepdim=True), labels.repeat_interleave(4), 0.4, mode=mode, below=below
    )
    torch.testing.assert_close(corrected.flatten(0, 1), expected, rtol=0, atol=1e-3)
    assert torch.equal(weight.flatten().bool(), keep)
    assert 0 < (corrected != soft).any(-1).sum() + (~keep).sum() < 20
    untouched = (corrected - soft).abs().amax(-1) == 0
    assert untouched.any()


def test_open_bands_leave_the_bank_as_it_is_to_the_bit(images):
    bank, _ = bank_of(images)
    same = bank.calibrate(torch.zeros(5, dtype=torch.int64), 0.0, 1.0)
    assert torch.equal(same.values, bank.values) and torch.equal(same.indices, bank.indices)
    assert same.keep.all()


def test_a_smoothed_label_survives_compression(images):
    bank, _ = bank_of(images, k=1)
    labels = torch.tensor([5, 4, 3, 2, 1])
    done = bank.calibrate(labels, lower=1.0, mode="absolute", smoothing=0.1)
    _, soft = done.crops(images, torch.arange(5), 4)
    expected = torch.full((5, 6), 0.02).scatter(1, labels[:, None], 0.9)
    torch.testing.assert_close(soft, expected[:, None].expand(5, 4, 6), rtol=0, atol=1e-3)


def test_what_was_saved_is_loaded(images, tmp_path):
    bank = bank_of(images)[0].calibrate(torch.zeros(5, dtype=torch.int64), below="discard")
    bank.save(tmp_path / "bank.safetensors")
    again = SoftLabelBank.load(tmp_path / "bank.safetensors")
    for name in ("boxes", "flips", "indices", "values", "keep"):
        assert torch.equal(getattr(again, name), getattr(bank, name))
    assert (again.num_classes, again.size, len(again)) == (6, (8, 10), 5)
    assert list(tmp_path.iterdir()) == [tmp_path / "bank.safetensors"]
    for drawn, expected in zip(
        again.crops(images[2], 2, 3, generator()),
        bank.crops(images[2], 2, 3, generator()),
        strict=True,
    ):
        assert torch.equal(drawn, expected)


def damaged(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        content = content[:-20]
    elif kind == "a flipped bit":
        content[-50] ^= 4
    elif kind == "no header":
        content[:8] = bytes(8)
    elif kind == "text":
        content = bytearray(b"hello")
    elif kind == "empty":
        content = bytearray()
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("kind", ["truncated", "a flipped bit", "no header", "text", "empty"])
def test_a_damaged_file_is_refused(images, tmp_path, kind):
    path = tmp_path / "bank.safetensors"
    bank_of(images)[0].save(path)
    damaged(path, kind)
    with pytest.raises(
        ValueError, match=r"^path: .*bank\.safetensors.* undamaged .*expected"
    ) as caught:
        SoftLabelBank.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_foreign_file_are_refused(images, tmp_path):
    with pytest.raises(ValueError, match=r"^path: .*none.* given, an existing file .*expected"):
        SoftLabelBank.load(tmp_path / "none")
    with pytest.raises(ValueError, match=r"^path: .* existing file .*expected"):
        SoftLabelBank.load(tmp_path)
    save_file({"x": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"^path: .*its format is None"):
        SoftLabelBank.load(tmp_path / "model.safetensors")
    path = tmp_path / "bank.safetensors"
    bank_of(images)[0].save(path)
    save_file(load_file(path), path)  # the same tensors, without what is said about them
    with pytest.raises(ValueError, match=r"^path: .*format"):
        SoftLabelBank.load(path)


def test_what_is_said_about_the_tensors_may_be_damaged_too(images, tmp_path):
    path = tmp_path / "bank.safetensors"
    bank_of(images)[0].save(path)
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    for change in ({"checksums": "[]"}, {"checksums": "{}"}, {"size": "5"}, {"num_classes": "six"}):
        save_file(tensors, path, metadata=about | change)
        with pytest.raises(ValueError, match=r"^path: .*bank\.safetensors.*expected"):
            SoftLabelBank.load(path)


def test_a_file_is_saved_in_an_existing_folder_only(images, tmp_path):
    bank = bank_of(images)[0]
    for path in (tmp_path / "none" / "bank.safetensors", tmp_path):
        with pytest.raises(ValueError, match=r"^path: .* existing folder expected"):
            bank.save(path)
    assert not list(tmp_path.iterdir())


def test_one_image_with_one_crop_of_one_class():
    image = torch.rand(1, 1, 4, 4)
    bank = SoftLabelBank.build(lambda crops: crops.flatten(1)[:, :1], image, num_crops=1, k=1)
    crops, soft = bank.crops(image[0], 0, 1)
    assert crops.shape == (1, 1, 4, 4) and torch.equal(soft, torch.ones(1, 1))
    assert bank.calibrate(torch.tensor([0])).keep.all()


IMAGES = torch.rand(3, 1, 8, 8, generator=generator(1))


def linear(classes=6):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def build(**options):
    return SoftLabelBank.build(linear(), **{"dataset": IMAGES, "num_crops": 4, "k": 3, **options})


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("num_crops", lambda: build(num_crops=0)),
        ("k", lambda: build(k=7)),
        ("k", lambda: build(k=0)),
        ("temperature", lambda: build(temperature=0.0)),
        ("scale", lambda: build(scale=(0.0, 1.0))),
        ("scale", lambda: build(scale=(0.5, 0.2))),
        ("size", lambda: build(size=0)),
        ("dataset", lambda: build(dataset=[])),
        ("dataset", lambda: build(dataset=IMAGES[0])),
        ("teacher", lambda: SoftLabelBank.build(lambda x: x, IMAGES, 2, 1)),
        ("teacher", lambda: SoftLabelBank.build(lambda x: x.flatten(1) * torch.nan, IMAGES, 2, 1)),
        ("count", lambda: build().crops(IMAGES[0], 0, 5)),
        ("count", lambda: build().crops(IMAGES[0], 0, 0)),
        ("index", lambda: build().crops(IMAGES[0], 3, 1)),
        ("index", lambda: build().crops(IMAGES[0], -1, 1)),
        ("index", lambda: build().crops(IMAGES, torch.tensor([0, 1]), 1)),
        ("labels", lambda: build().calibrate(torch.tensor([0, 1]))),
        ("labels", lambda: build().calibrate(torch.tensor([0, 1, 6]))),
        ("lower", lambda: build().calibrate(torch.tensor([0, 1, 2]), 0.9, 0.5)),
        ("below", lambda: build().calibrate(torch.tensor([0, 1, 2]), below="drop")),
    ],
)
def test_bad_input_names_the_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
        call()
