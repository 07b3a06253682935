"""Where a dataset's files already lie: the folders in `$HETERODOX_DATA`, then the user's cache.

Files are recognised by size and SHA-256, not by name, so that any layout of a folder will do.
"""

import hashlib
import os
from pathlib import Path

import platformdirs

from heterodox.data.registry import DataFile, Dataset


def cache_folder() -> Path:
    """The folder that downloads go to, for example `~/.cache/heterodox` on Linux."""
    return Path(platformdirs.user_cache_dir("heterodox", appauthor=False))


def data_folders() -> list[Path]:
    """The folders listed in `$HETERODOX_DATA`, separated as in `$PATH`.

    Raises:
        ValueError: one of them does not exist.
    """
    listed = os.environ.get("HETERODOX_DATA", "").split(os.pathsep)
    folders = [Path(folder).expanduser() for folder in listed if folder.strip()]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"HETERODOX_DATA: {str(folder)!r} given, an existing folder expected")
    return folders


def is_intact(path: Path, file: DataFile) -> bool:
    """Whether the file at `path` has the size and the checksum of `file`."""
    try:
        if not path.is_file() or path.stat().st_size != file.bytes:
            return False
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
    except OSError:
        return False


def locate(dataset: Dataset) -> dict[str, Path | None]:
    """Where each file of `dataset` lies on this computer, verified by checksum.

    Returns:
        file name -> path, or None where the file is not to be found; in the order of the registry.

    Raises:
        ValueError: `$HETERODOX_DATA` names a folder that does not exist.
    """
    folders = data_folders()
    roots = [*folders, cache_folder()]
    found: dict[str, Path | None] = {
        file.name: next(
            (root / file.path for root in roots if is_intact(root / file.path, file)), None
        )
        for file in dataset.files
    }
    missing = [file for file in dataset.files if found[file.name] is None]
    if missing:
        by_size = _files_by_size(folders, {file.bytes for file in missing})
        for file in missing:
            same_size = by_size.get(file.bytes, [])
            found[file.name] = next((path for path in same_size if is_intact(path, file)), None)
    return found


def _files_by_size(folders: list[Path], sizes: set[int]) -> dict[int, list[Path]]:
    by_size: dict[int, list[Path]] = {}
    for folder in folders:
        for parent, subfolders, names in os.walk(folder):
            subfolders.sort()
            for name in sorted(names):
                path = Path(parent, name)
                try:
                    size = path.stat().st_size
                except OSError:  # a dangling link
                    continue
                if size in sizes:
                    by_size.setdefault(size, []).append(path)
    return by_size


def availability(dataset: Dataset) -> str:
    """Where `dataset` would come from now.

    Returns:
        "embedded" (with a package), "local" (all in `$HETERODOX_DATA`), "cached" (on this computer,
        some or all in the cache), "to download", or "by hand" (missing, and there is no address).

    Raises:
        ValueError: `$HETERODOX_DATA` names a folder that does not exist.

    Example:
        >>> from heterodox.data import dataset
        >>> availability(dataset("digits"))
        'embedded'
    """
    if dataset.embedded:
        return "embedded"
    paths = locate(dataset)
    if all(paths.values()):
        cache = cache_folder()
        return (
            "cached"
            if any(path.is_relative_to(cache) for path in paths.values() if path)
            else "local"
        )
    return "to download" if all(file.urls for file in dataset.files) else "by hand"
