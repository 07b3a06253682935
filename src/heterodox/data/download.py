"""Fetching a registered dataset: what lies here already is used, the rest downloaded and verified.

A download goes to a temporary file in the cache; it takes its final name, atomically, only once
its size and SHA-256 are right. Mirrors are tried in the order of the registry.
"""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests
from tqdm import tqdm

from heterodox.data.errors import DataError
from heterodox.data.local import cache_folder, data_folders, is_intact, locate
from heterodox.data.registry import DataFile, Dataset, dataset

# seconds: to connect, and between two pieces of a body
TIMEOUT = (10, 60)


def fetch(name: str) -> dict[str, Path]:
    """The files of a registered dataset, downloaded if they are not on this computer yet.

    `$HETERODOX_DATA` is searched first, by checksum, then the user's cache; then the mirrors are
    tried and the files put into the cache. A set that comes with a package has no files.

    Returns:
        file name -> path of a verified file, in the order of the registry.

    Raises:
        ValueError: no dataset has this name, or `$HETERODOX_DATA` names a folder that is not there.
        DataError: a file cannot be had: no network, every mirror failed or served something else,
            no space, the cache cannot be written, or there is no address to download it from.

    Example:
        >>> fetch("python-docs")
        {}
    """
    entry = dataset(name)
    paths: dict[str, Path] = {}
    for file, path in zip(entry.files, locate(entry).values(), strict=True):
        paths[file.name] = path or _download(file, entry)
    return paths


def _download(file: DataFile, entry: Dataset) -> Path:
    if not file.urls:
        raise DataError(
            f"{entry.name}: {file.path} is not in $HETERODOX_DATA{_damaged(file)}; {entry.by_hand}"
        )
    target = cache_folder() / file.path
    failures = []
    for url in file.urls:
        try:
            _download_from(url, file, target)
            return target
        except (_WrongBody, requests.RequestException, ConnectionError, TimeoutError) as error:
            failures.append(f"{urlsplit(url).hostname}: {_reason(error)}")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(
                    f"{entry.name}: no space left in {target.parent} for {file.name} "
                    f"({file.bytes / 1e6:.1f} MB)"
                ) from error
            raise DataError(
                f"{entry.name}: cannot write to the cache {cache_folder()} ({_reason(error)})"
            ) from error
    raise DataError(f"{entry.name}: {file.name} could not be downloaded ({'; '.join(failures)})")


class _WrongBody(Exception):
    """A mirror answered, with something else than the registered file."""


def _download_from(url: str, file: DataFile, target: Path) -> None:
    def download(url: str, output_file: str, _pooch: object) -> None:
        with tqdm(total=file.bytes, desc=file.name, unit="B", unit_scale=True, disable=None) as bar:
            # identity: a compressed transfer would be counted and measured by its compressed size
            pooch.HTTPDownloader(
                progressbar=bar,
                chunk_size=1 << 16,
                timeout=TIMEOUT,
                headers={"Accept-Encoding": "identity"},
            )(url, output_file, None)
        size = Path(output_file).stat().st_size
        if size != file.bytes:
            kind = "truncated" if size < file.bytes else "too long"
            raise _WrongBody(f"{kind}, {size} of {file.bytes} bytes")
        if not is_intact(Path(output_file), file):
            raise _WrongBody("wrong checksum, not the registered file")

    with _quiet_pooch():
        pooch.retrieve(url, file.sha256, target.name, target.parent, downloader=download)


@contextmanager
def _quiet_pooch() -> Iterator[None]:
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reason(error: Exception) -> str:
    if isinstance(error, _WrongBody):
        return str(error)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "truncated, the connection broke"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate was not accepted"
    if isinstance(error, (requests.Timeout, TimeoutError)):
        return "no answer in time"
    if isinstance(error, (requests.ConnectionError, ConnectionError)):
        return "no connection, is there a network?"
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def _damaged(file: DataFile) -> str:
    for folder in data_folders():
        if (folder / file.path).exists():
            return f" (what lies at {folder / file.path} has another checksum)"
    return ""
