import errno
import io
import logging.handlers
import os
from pathlib import Path

import pooch
import pytest

from heterodox.data import DataError, availability, download, fetch, locate

BODY = b"one hundred thousand words\n" * 4000


def leftovers(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def test_a_file_is_downloaded_verified_and_kept(cache, register, server, capfd):
    chatter = logging.handlers.BufferingHandler(1000)
    pooch.get_logger().addHandler(chatter)
    entry = register(BODY, (f"{server.url}/ours.txt",))
    server.pages["/ours.txt"] = (200, BODY, len(BODY))
    assert availability(entry) == "to download"
    paths = fetch("ours")
    assert paths == {"ours.txt": cache / "ours" / "ours.txt"}
    assert paths["ours.txt"].read_bytes() == BODY
    assert leftovers(cache) == [cache / "ours" / "ours.txt"]
    assert availability(entry) == "cached"
    assert fetch("ours") == paths
    assert server.requests == ["/ours.txt"]
    assert capfd.readouterr() == ("", "")  # not a terminal: no bar
    pooch.get_logger().removeHandler(chatter)
    assert chatter.buffer == []


def test_a_damaged_file_in_the_cache_is_downloaded_again(cache, register, server):
    entry = register(BODY, (f"{server.url}/ours.txt",))
    server.pages["/ours.txt"] = (200, BODY, len(BODY))
    (cache / "ours").mkdir(parents=True)
    (cache / "ours" / "ours.txt").write_bytes(BODY[:-1] + b"!")
    assert locate(entry) == {"ours.txt": None}
    assert fetch("ours")["ours.txt"].read_bytes() == BODY


def test_files_are_found_by_checksum_whatever_they_are_called(
    cache, register, server, tmp_path, monkeypatch
):
    entry = register(BODY, (f"{server.url}/ours.txt",))
    first, second = tmp_path / "first", tmp_path / "second" / "deep" / "down"
    first.mkdir()
    second.mkdir(parents=True)
    (first / "ours.txt").write_bytes(BODY[:-1] + b"!")  # right size and name, wrong content
    (second / "renamed.bin").write_bytes(BODY)
    monkeypatch.setenv("HETERODOX_DATA", f"{first}{os.pathsep}{tmp_path / 'second'}")
    assert fetch("ours") == {"ours.txt": second / "renamed.bin"}
    assert availability(entry) == "local"
    assert server.requests == []


def test_the_users_folders_go_before_the_cache(cache, register, tmp_path, monkeypatch):
    register(BODY)
    for folder in (cache, tmp_path / "own"):
        (folder / "ours").mkdir(parents=True)
        (folder / "ours" / "ours.txt").write_bytes(BODY)
    monkeypatch.setenv("HETERODOX_DATA", str(tmp_path / "own"))
    assert fetch("ours")["ours.txt"].is_relative_to(tmp_path / "own")


def test_a_listed_folder_that_is_not_there_is_an_error(cache, register, monkeypatch):
    register(BODY)
    monkeypatch.setenv("HETERODOX_DATA", "/not/here")
    with pytest.raises(ValueError, match=r"^HETERODOX_DATA: '/not/here' given"):
        fetch("ours")


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ((200, BODY[:-1] + b"!", len(BODY)), "wrong checksum"),
        ((200, BODY[:-9], None), f"truncated, {len(BODY) - 9} of {len(BODY)} bytes"),
        ((200, BODY[:-9], len(BODY)), "truncated, the connection broke"),
        ((200, BODY + b"!", len(BODY) + 1), "too long"),
        ((404, b"", 0), "HTTP 404"),
        ((503, b"", 0), "HTTP 503"),
    ],
    ids=["checksum", "short", "cut", "long", "missing", "busy"],
)
def test_a_bad_answer_is_one_clear_line_and_leaves_nothing(cache, register, server, page, says):
    register(BODY, (f"{server.url}/ours.txt",))
    server.pages["/ours.txt"] = page
    with pytest.raises(DataError, match=says) as error:
        fetch("ours")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("ours: ours.txt could not be downloaded (127.0.0.1: ")
    assert leftovers(cache) == []


@pytest.mark.parametrize("page", [(404, b"", 0), (200, b"<html>", 6), (200, BODY[:99], len(BODY))])
def test_the_next_mirror_is_tried_when_one_fails(cache, register, server, page):
    register(BODY, (f"{server.url}/first", f"{server.url}/second"))
    server.pages["/first"] = page
    server.pages["/second"] = (200, BODY, len(BODY))
    assert fetch("ours")["ours.txt"].read_bytes() == BODY
    assert server.requests == ["/first", "/second"]
    assert leftovers(cache) == [cache / "ours" / "ours.txt"]


def test_without_a_network_the_message_says_so_for_every_mirror(cache, register, server):
    register(BODY, (f"{server.url}/first", f"{server.url}/second"))
    server.close()
    with pytest.raises(DataError, match=r"no connection, is there a network\?; .*no connection"):
        fetch("ours")
    assert leftovers(cache) == []


def test_a_silent_server_is_given_up(cache, register, server, monkeypatch):
    register(BODY, (f"{server.url}/ours.txt",))
    server.pages["/ours.txt"] = (200, b"", len(BODY))
    monkeypatch.setattr(download, "TIMEOUT", (1, 0.05))
    monkeypatch.setattr(type(server._http), "shutdown_request", lambda *_: None)  # keep it open
    with pytest.raises(DataError, match=r"127.0.0.1: "):
        fetch("ours")
    assert leftovers(cache) == []


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(cache, register, server, monkeypatch):
    register(BODY, (f"{server.url}/first", f"{server.url}/second"))
    server.pages["/first"] = (200, BODY, len(BODY))

    class FullDisk(io.FileIO):
        def write(self, chunk):
            super().write(chunk[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(
        pooch.downloaders, "open", lambda path, mode: FullDisk(path, "w"), raising=False
    )
    with pytest.raises(DataError, match=r"^ours: no space left in .* for ours.txt \(0.1 MB\)$"):
        fetch("ours")
    assert server.requests == ["/first"]  # another mirror would not help
    assert leftovers(cache) == []


def test_a_cache_that_cannot_be_written_is_one_clear_line(cache, register, server):
    register(BODY, (f"{server.url}/ours.txt",))
    server.pages["/ours.txt"] = (200, BODY, len(BODY))
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"^ours: cannot write to the cache .*\)$") as error:
        fetch("ours")
    assert "\n" not in str(error.value)


def test_a_dataset_without_an_address_says_how_it_can_be_had(cache, register):
    entry = register(BODY)
    assert availability(entry) == "by hand"
    with pytest.raises(DataError, match=r"is not in \$HETERODOX_DATA; ask us$"):
        fetch("ours")


def test_a_damaged_copy_of_a_dataset_without_an_address_is_named(
    cache, register, tmp_path, monkeypatch
):
    register(BODY)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "ours.txt").write_bytes(BODY[:-1])
    monkeypatch.setenv("HETERODOX_DATA", str(tmp_path))
    with pytest.raises(DataError, match="has another checksum"):
        fetch("ours")


def test_an_unknown_name_is_the_users_mistake(cache):
    with pytest.raises(ValueError, match=r"^name: 'cifar-10' given.*mean 'cifar10'"):
        fetch("cifar-10")
