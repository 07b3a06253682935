import gzip
import io
import os
import struct
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from heterodox.data import DataError, load_cifar10n, load_images
from heterodox.data.cifar import read_cifar10_binary
from heterodox.data.idx import read_idx

needs_data = pytest.mark.skipif(
    not os.environ.get("HETERODOX_DATA"), reason="HETERODOX_DATA is not set"
)


def test_digits_are_cut_so_that_every_class_is_in_both_parts_alike():
    data = load_images("digits")
    assert data.train_images.shape == (1437, 1, 8, 8)
    assert data.train_images.dtype == torch.uint8
    assert (data.train_images.min(), data.train_images.max()) == (0, 255)
    share = data.test_labels.bincount() / data.train_labels.bincount()
    assert (share - 0.25).abs().max() < 0.02
    assert torch.equal(load_images("digits").train_images, data.train_images)
    assert data.class_names == tuple("0123456789")


def test_limit_keeps_the_first_of_each_part():
    data, few = load_images("digits"), load_images("digits", limit=7)
    assert torch.equal(few.train_images, data.train_images[:7])
    assert torch.equal(few.train_labels, data.train_labels[:7])
    assert torch.equal(few.test_images, data.test_images[:7])
    assert torch.equal(few.test_labels, data.test_labels[:7])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"^data: 'digit' given.*mean 'digits'"):
        load_images("digit")
    with pytest.raises(ValueError, match=r"^limit: 0 given"):
        load_images("digits", limit=0)
    with pytest.raises(ValueError, match=r"^size: 0 given"):
        load_images("digits", size=0)


def idx(*shape: int, values: bytes, magic: bytes = b"\0\0\x08") -> bytes:
    return magic + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values


def test_an_idx_file_is_read_row_by_row(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(idx(2, 3, values=bytes(range(6)))))
    assert read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (idx(2, values=b"ab", magic=b"\0\0\x0d"), "starts with 00000d01"),
        (b"", "starts with nothing"),
        (b"<!DOCTYPE html>", "starts with 3c21444f"),
        (b"\0\0\x08\x03\0\0\0\x01", "header cut short"),
        (b"\0\0\x08\0", "header cut short"),
        (idx(2, 3, values=b"abcde"), "5 values, 6 expected"),
        (idx(2, 3, values=b"abcdefg"), "7 values, 6 expected"),
        (idx(2**32 - 1, 2**32 - 1, values=b"abc"), "3 values, 18446744065119617025 expected"),
    ],
)
def test_a_bad_idx_header_is_refused(tmp_path, content, says):
    path = tmp_path / "a.idx"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_idx(path)


def test_a_damaged_gzip_is_refused(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(idx(2, values=b"ab"))[:-5])
    with pytest.raises(DataError, match="damaged gzip"):
        read_idx(path)


def cifar_archive(path, batches: dict[str, bytes]):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in batches.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_the_binary_archive_is_read_as_label_red_green_blue(tmp_path):
    planes = np.arange(3 * 32 * 32, dtype=np.uint32).reshape(3, 32, 32) % 251
    record = planes.astype(np.uint8).tobytes()
    batches = {f"data_batch_{k}": bytes([k]) + record for k in range(1, 6)}
    archive = cifar_archive(tmp_path / "a.tar.gz", {**batches, "test_batch": b"\x09" + record})
    images, labels = read_cifar10_binary(archive, "train")
    assert labels.tolist() == [1, 2, 3, 4, 5]
    assert np.array_equal(images[4].numpy(), planes)
    assert read_cifar10_binary(archive, "test")[1].tolist() == [9]


def test_a_wrong_binary_archive_is_refused(tmp_path):
    short = cifar_archive(tmp_path / "short", {"test_batch": b"\0" * 3072})
    with pytest.raises(DataError, match=r"test_batch.bin has 3072 bytes, a multiple of 3073"):
        read_cifar10_binary(short, "test")
    with pytest.raises(DataError, match="damaged archive"):
        read_cifar10_binary(short, "train")


@pytest.fixture
def cats_and_dogs(tmp_path):
    """folder/<class>/<k>.png: 10 cats of 6x4 pixels and 5 dogs, each of a colour of its own."""

    def write(folder, counts=(10, 5)):
        for name, count, red in (("cats", counts[0], 0), ("dogs", counts[1], 200)):
            (folder / name).mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (6, 4), (red + k, 100, 50)).save(folder / name / f"{k}.png")
        return folder

    write.folder = tmp_path / "pets"
    return write


def test_a_folder_is_cut_in_each_class(cats_and_dogs):
    folder = cats_and_dogs(cats_and_dogs.folder)
    (folder / "cats" / "notes.txt").write_text("passed over")
    (folder / ".hidden").mkdir()
    data = load_images(folder, size=5)
    assert data.class_names == ("cats", "dogs")
    assert data.train_images.shape == (12, 3, 5, 5)
    assert data.train_labels.bincount().tolist() == [8, 4]
    assert data.test_labels.bincount().tolist() == [2, 1]
    reds = torch.cat([data.train_images, data.test_images])[:, 0, 0, 0].tolist()
    assert sorted(reds) == [*range(10), *range(200, 205)]  # each image once
    assert ((data.train_images[:, 0, 0, 0] >= 200) == (data.train_labels == 1)).all()
    again = load_images(str(folder), size=5)
    assert torch.equal(again.train_images, data.train_images)


def test_the_first_images_of_a_folder_are_of_all_classes(cats_and_dogs):
    data = load_images(cats_and_dogs(cats_and_dogs.folder), limit=3)
    assert data.train_labels.tolist() == [0, 1, 0]
    assert data.test_images.shape == (3, 3, 32, 32)


def test_grey_images_have_one_channel_of_luminance(cats_and_dogs):
    data = load_images(cats_and_dogs(cats_and_dogs.folder), grey=True, size=2)
    assert data.test_images.shape == (3, 1, 2, 2)
    colours = [(k, 100, 50) for k in range(10)]
    luminances = {round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in colours}
    assert set(data.test_images[data.test_labels == 0].flatten().tolist()) <= luminances


def test_the_users_own_cut_is_kept(cats_and_dogs):
    cats_and_dogs(cats_and_dogs.folder / "train", (3, 2))
    cats_and_dogs(cats_and_dogs.folder / "test", (1, 4))
    data = load_images(cats_and_dogs.folder)
    assert data.train_labels.bincount().tolist() == [3, 2]
    assert data.test_labels.bincount().tolist() == [1, 4]


def test_the_orientation_in_a_photo_is_honoured(cats_and_dogs):
    folder = cats_and_dogs(cats_and_dogs.folder, (2, 2))
    upside_down = Image.Exif()
    upside_down[0x0112] = 3
    for k in range(2):
        image = Image.new("L", (16, 16))
        image.paste(255, (0, 0, 16, 8))  # white above
        image.save(folder / "cats" / f"{k}.png", exif=upside_down)
    data = load_images(folder, size=16)
    cat = data.train_images[data.train_labels == 0][0]
    assert cat[:, 0].max() == 0 and cat[:, 15].min() == 255


def test_a_folder_that_is_no_classification_is_refused(cats_and_dogs, tmp_path):
    folder = cats_and_dogs(cats_and_dogs.folder)
    (tmp_path / "one" / "cats").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^data: one class, 'cats', in .*one'"):
        load_images(tmp_path / "one")
    with pytest.raises(ValueError, match=r"^data: no folders in .*cats'"):
        load_images(folder / "cats")
    (folder / "eels").mkdir()
    with pytest.raises(ValueError, match=r"^data: no images in .*eels'"):
        load_images(folder)
    Image.new("L", (2, 2)).save(folder / "eels" / "only.bmp")
    with pytest.raises(ValueError, match=r"^data: one image in .*eels'"):
        load_images(folder)


def test_a_test_class_that_was_never_trained_is_refused(cats_and_dogs):
    cats_and_dogs(cats_and_dogs.folder / "train")
    (cats_and_dogs(cats_and_dogs.folder / "test") / "eels").mkdir()
    with pytest.raises(ValueError, match=r"^data: class 'eels' is in .*test', not in train"):
        load_images(cats_and_dogs.folder)


def test_an_unreadable_image_is_named(cats_and_dogs):
    folder = cats_and_dogs(cats_and_dogs.folder)
    whole = (folder / "dogs" / "3.png").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        (folder / "dogs" / "3.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"^data: '.*dogs.3\.png' cannot be read as an image"):
            load_images(folder)


def test_an_image_of_16_bits_is_refused_rather_than_clipped(cats_and_dogs):
    folder = cats_and_dogs(cats_and_dogs.folder)
    Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(folder / "dogs" / "3.png")
    with pytest.raises(ValueError, match=r"^data: '.*dogs.3\.png' has 16 bits a channel"):
        load_images(folder)


def test_without_pillow_the_message_says_what_to_install(cats_and_dogs, monkeypatch):
    folder = cats_and_dogs(cats_and_dogs.folder)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'pip install "heterodox\[images\]"'):
        load_images(folder)


@needs_data
def test_fashion_mnist_has_its_official_parts_balanced():
    data = load_images("fashion-mnist")
    assert data.train_images.shape == (60000, 1, 28, 28)
    assert data.train_labels.bincount().tolist() == [6000] * 10
    assert data.test_labels.bincount().tolist() == [1000] * 10
    # the mean that is used everywhere to normalise it
    assert data.train_images.float().mean().item() / 255 == pytest.approx(0.2860, abs=5e-5)


@needs_data
def test_the_jpeg_images_are_the_original_ones_up_to_the_re_encoding():
    jpeg, exact = load_images("cifar10-jpeg", limit=200), load_images("cifar10-first4000")
    assert torch.equal(jpeg.train_labels, exact.train_labels[:200])
    difference = jpeg.train_images.float() - exact.train_images[:200].float()
    assert 1 < difference.abs().mean() < 8
    assert exact.test_images.shape == (800, 3, 32, 32)


@needs_data
def test_the_human_labels_line_up_with_the_images():
    labels = load_cifar10n()
    images = load_images("cifar10-first4000")
    assert torch.equal(labels["clean_label"][:3200], images.train_labels)
    wrong = (labels["worse_label"] != labels["clean_label"]).float().mean().item()
    assert wrong == pytest.approx(0.402, abs=1e-3)
