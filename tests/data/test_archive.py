import io
import os
import stat
import tarfile
import zipfile

import pytest

from heterodox.data import DataError, extract


def make_tar(path, *members: tuple[tarfile.TarInfo, bytes]):
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def tar_member(name: str, type: bytes = tarfile.REGTYPE, linkname: str = ""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, linkname
    return info, b"text" if type == tarfile.REGTYPE else b""


def make_zip(path, *members: tuple[str, int]):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            file.writestr(info, "text")
    return path


def test_a_tar_of_files_and_folders_is_unpacked(tmp_path):
    archive = make_tar(tmp_path / "a", tar_member("in", tarfile.DIRTYPE), tar_member("in/a..b.txt"))
    folder = extract(archive, tmp_path / "new" / "folder")
    assert (folder / "in" / "a..b.txt").read_text() == "text"
    assert os.listdir(tmp_path / "new") == ["folder"]


def test_a_zip_of_files_and_folders_is_unpacked(tmp_path):
    archive = make_zip(tmp_path / "a", ("in/a.txt", 0), ("b.txt", stat.S_IFREG | 0o644))
    folder = extract(archive, tmp_path / "folder")
    assert (folder / "in" / "a.txt").read_text() == (folder / "b.txt").read_text() == "text"


BAD_TARS = {
    "absolute": [tar_member("/tmp/heterodox-evil")],
    "windows": [tar_member("C:\\evil")],
    "up": [tar_member("../evil")],
    "up inside": [tar_member("a/../../evil")],
    "backslash": [tar_member("a\\..\\..\\evil")],
    "symlink": [tar_member("a", tarfile.SYMTYPE, "/etc")],
    "hard link": [tar_member("a", tarfile.LNKTYPE, "../evil")],
    "write through a link": [tar_member("a", tarfile.SYMTYPE, ".."), tar_member("a/evil")],
    "device": [tar_member("a", tarfile.CHRTYPE)],
    "pipe": [tar_member("a", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("members", BAD_TARS.values(), ids=BAD_TARS.keys())
def test_a_tar_that_reaches_outside_is_refused_before_anything_is_written(tmp_path, members):
    archive = make_tar(tmp_path / "a.tar.gz", tar_member("good.txt"), *members)
    with pytest.raises(DataError, match=r"refused, '.*' (is|leads)"):
        extract(archive, tmp_path / "in" / "folder")
    assert [path.name for path in tmp_path.rglob("*")] == ["a.tar.gz", "in"]


BAD_ZIPS = {
    "absolute": ("/tmp/heterodox-evil", 0),
    "windows": ("C:/evil", 0),
    "up": ("../evil", 0),
    "up inside": ("a/../../evil", 0),
    "backslash": ("..\\evil", 0),
    "symlink": ("a", stat.S_IFLNK | 0o777),
    "device": ("a", stat.S_IFCHR | 0o644),
}


@pytest.mark.parametrize("member", BAD_ZIPS.values(), ids=BAD_ZIPS.keys())
def test_a_zip_that_reaches_outside_is_refused_before_anything_is_written(tmp_path, member):
    archive = make_zip(tmp_path / "a.zip", ("good.txt", 0), member)
    with pytest.raises(DataError, match=r"refused, '.*' (is|leads)"):
        extract(archive, tmp_path / "in" / "folder")
    assert [path.name for path in tmp_path.rglob("*")] == ["a.zip", "in"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_damaged_archive_is_one_clear_line_and_leaves_nothing(tmp_path, kind):
    noise = bytes(range(256)) * 40
    archive = tmp_path / "a"
    if kind == "tar":
        info = tarfile.TarInfo("noise")
        make_tar(archive, (info, noise))
        archive.write_bytes(archive.read_bytes()[:-40])
    else:
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("noise", noise)
        archive.write_bytes(archive.read_bytes().replace(b"\x07\x08\x09", b"\x07\x07\x09", 1))
    with pytest.raises(DataError, match="damaged archive"):
        extract(archive, tmp_path / "folder")
    assert os.listdir(tmp_path) == ["a"]


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "a.zip").write_text("no")
    with pytest.raises(DataError, match="neither a tar nor a zip"):
        extract(tmp_path / "a.zip", tmp_path / "folder")


def test_an_existing_folder_is_not_written_into(tmp_path):
    with pytest.raises(ValueError, match=r"^folder: .* exists"):
        extract(make_zip(tmp_path / "a.zip", ("a", 0)), tmp_path)
