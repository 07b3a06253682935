import hashlib
import math
import os
import pydoc_data.topics
import sys
from pathlib import Path

import pytest
import torch

from heterodox.data import TextData, load_text
from heterodox.data.text import STDLIB_BYTES

needs_data = pytest.mark.skipif(
    not os.environ.get("HETERODOX_DATA"), reason="HETERODOX_DATA is not set"
)
MIXED = "aé€😀\r\n\0" * 50


@pytest.fixture
def own_file(tmp_path):
    def write(content: bytes) -> Path:
        path = tmp_path / "own.txt"
        path.write_bytes(content)
        return path

    return write


def test_a_file_is_cut_ninety_to_ten_without_loss(own_file):
    content = MIXED.encode()
    text = load_text(own_file(content))
    assert text.train + text.validation == MIXED
    assert len(text.train) == 315
    assert text.test is None
    assert text.sha256 == hashlib.sha256(content).hexdigest()
    assert load_text(str(own_file(content))) == text


@pytest.mark.parametrize("kind", ["byte", "char"])
def test_decoding_inverts_encoding(own_file, kind):
    text = load_text(own_file(MIXED.encode()))
    encoded = text.encode(kind)
    assert encoded.decode(encoded.train) == text.train
    assert encoded.decode(encoded.validation) == text.validation


@pytest.mark.parametrize("kind", ["byte", "char"])
def test_the_tokens_of_a_part_account_for_all_its_bytes(kind):
    text = TextData("ours", "aé€", "😀é€ab\0", "é😀", "", "")
    encoded = text.encode(kind)
    for tokens, part in (
        (encoded.train, text.train),
        (torch.cat([encoded.validation, encoded.test]), text.validation + text.test),
    ):
        assert encoded.count_bytes(tokens) == pytest.approx(len(part.encode()))


def test_a_uniform_model_of_bytes_costs_log_256_nats_per_byte_and_of_characters_less():
    text = TextData("ours", "aé€" * 10, "aé€", None, "", "")
    costs = []
    for kind in ("byte", "char"):
        encoded = text.encode(kind)
        losses = torch.full(encoded.validation.shape, math.log(encoded.vocabulary_size))
        costs.append(losses.sum().item() / encoded.count_bytes(encoded.validation))
    assert costs == pytest.approx([math.log(256), 3 * math.log(3) / 6])


def test_the_vocabulary_comes_from_the_training_text_alone():
    encoded = TextData("ours", "cab", "abz", "Q", "", "").encode("char")
    assert encoded.vocabulary == ("a", "b", "c", None)
    assert encoded.train.tolist() == [2, 0, 1]
    assert encoded.validation.tolist() == [0, 1, 3]
    assert encoded.test.tolist() == [3]
    assert encoded.decode(encoded.validation) == "ab\ufffd"
    assert TextData("ours", "cab", "ab", None, "", "").encode("char").vocabulary_size == 3


def test_an_unknown_tokenisation_is_refused():
    with pytest.raises(ValueError, match=r"^kind: 'line' given"):
        load_text("python-docs").encode("line")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"good \xff bad", "byte 0xff at offset 5"),
        ("caf\u00e9".encode("latin-1"), "byte 0xe9 at offset 3"),
        ("text".encode("utf-16"), "byte 0xff at offset 0"),
    ],
    ids=["empty", "blank", "bad byte", "latin-1", "utf-16"],
)
def test_a_file_that_is_no_text_is_refused(own_file, content, says):
    path = own_file(content)
    with pytest.raises(ValueError, match=rf"^data: '.*own.txt' .*{says}"):
        load_text(path)


def test_a_path_may_be_a_name_where_there_is_no_such_file(own_file, monkeypatch):
    assert load_text(Path("python-docs")) == load_text("python-docs")
    path = own_file(b"text of my own" * 9)
    path.rename(path.with_name("python-docs"))
    monkeypatch.chdir(path.parent)
    assert load_text(Path("python-docs")).train.startswith("text of my own")
    assert load_text("python-docs").name == "python-docs"
    assert not load_text("python-docs").train.startswith("text of my own")


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^data: .* is a folder"):
        load_text(tmp_path)
    with pytest.raises(ValueError, match=r"^data: '.*gone.txt' given"):
        load_text(tmp_path / "gone.txt")
    with pytest.raises(ValueError, match=r"^data: 'tinyshakespear' .*mean 'tinyshakespeare'"):
        load_text("tinyshakespear")


def test_a_text_that_is_too_short_names_the_part_and_the_length(own_file):
    text = load_text(own_file(b"0123456789" * 10))
    text.require_length(10)
    with pytest.raises(ValueError, match=r"^data: .* 10 characters for validation, at least 11"):
        text.require_length(11)


def test_pythons_documentation_holds_every_topic_and_names_its_version():
    text = load_text("python-docs")
    whole = text.train + text.validation
    assert all(topic in whole for topic in pydoc_data.topics.topics.values())
    assert text.description.endswith(f"Python {sys.version.split()[0]}")


def test_pythons_library_is_real_source_of_a_few_megabytes():
    text = load_text("python-stdlib")
    size = len((text.train + text.validation).encode())
    assert STDLIB_BYTES - 400_000 < size <= STDLIB_BYTES
    assert "def namedtuple" not in text.train  # packages are left out
    assert "class ArgumentParser" in text.train
    assert load_text("python-stdlib").sha256 == text.sha256


@needs_data
def test_tiny_shakespeare_has_65_characters():
    text = load_text("tinyshakespeare")
    assert text.encode("char").vocabulary_size == 65
    assert (len(text.train), len(text.validation)) == (1_003_854, 111_540)


@needs_data
def test_penn_treebank_keeps_its_official_split():
    text = load_text("ptb")
    words = [len(part.split()) + part.count("\n") for part in (text.train, text.validation)]
    assert words == [929_589, 73_760]
    assert len(text.test.split()) + text.test.count("\n") == 82_430
