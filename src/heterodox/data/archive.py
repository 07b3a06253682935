"""Unpacking tar and zip archives that may come from anywhere, without writing outside a folder.

Every member is checked before the first is written; then the archive is unpacked beside the folder
and moved into place, so that a failure leaves nothing behind.
"""

import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from heterodox.data.errors import DataError

_CORRUPT = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


def extract(archive: Path, folder: Path) -> Path:
    """Unpack a tar (plain, gzip, bzip2, xz) or zip archive of plain files and folders.

    Args:
        archive: the file; what it is decides, not its suffix.
        folder: where to; it must not exist yet, its parent is created.

    Returns:
        `folder`.

    Raises:
        ValueError: `folder` exists.
        DataError: the archive is damaged, is neither tar nor zip, or has a member that is absolute,
            leads outside (`..`), or is a link or a device; or the disk is full.
    """
    if folder.exists():
        raise ValueError(f"folder: {str(folder)!r} exists, a new folder expected")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            unpacked = Path(temporary, "unpacked")
            unpacked.mkdir()
            if zipfile.is_zipfile(archive):
                _unpack_zip(archive, unpacked)
            elif tarfile.is_tarfile(archive):
                _unpack_tar(archive, unpacked)
            else:
                raise DataError(f"{archive}: neither a tar nor a zip archive")
            unpacked.rename(folder)
    except _CORRUPT as error:
        raise DataError(f"{archive}: damaged archive ({error})") from error
    except OSError as error:
        raise DataError(f"{archive}: cannot unpack: {error.strerror or error}") from error
    return folder


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        for member in members:
            _check_name(archive, member.name)
            if not (member.isfile() or member.isdir()):
                kind = "a link" if member.issym() or member.islnk() else "a device"
                raise DataError(f"{archive}: refused, {member.name!r} is {kind}")
        tar.extractall(folder, members=members, filter="data")


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        for member in members:
            _check_name(archive, member.filename)
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "a link" if stat.S_ISLNK(mode) else "a device"
                raise DataError(f"{archive}: refused, {member.filename!r} is {kind}")
            if member.flag_bits & 1:
                raise DataError(f"{archive}: refused, {member.filename!r} is encrypted")
        for member in members:
            target = folder / member.filename
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)


def _check_name(archive: Path, name: str) -> None:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.drive or windows.root:
        raise DataError(f"{archive}: refused, {name!r} is an absolute path")
    if ".." in posix.parts or ".." in windows.parts:
        raise DataError(f"{archive}: refused, {name!r} leads outside the folder")
