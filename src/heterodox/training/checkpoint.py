"""Checkpoints that are either whole or absent, and that execute nothing when they are read."""

import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(path: Path | str, state: dict[str, Any]) -> None:
    """Writes `state`, replacing what is at `path` in one step.

    A crash at any moment leaves the previous file or the new one, never a part of either.

    Args:
        path: its folder must exist.
        state: a tree of dicts, lists and tuples with tensors, numbers, strings, booleans and None.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> save_checkpoint(f"{folder}/run.ckpt", {"step": 3, "weight": torch.ones(2)})
        >>> load_checkpoint(f"{folder}/run.ckpt")
        {'step': 3, 'weight': tensor([1., 1.])}
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote, its tensors onto `device`.

    Raises:
        FileNotFoundError: nothing is at `path`.
        ValueError: the file is not a checkpoint, or is damaged; the message names the file.
    """
    path = Path(path)
    try:
        # torch.load does not compare the checksums that torch.save wrote; zipfile does.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"its part {damaged} is damaged")
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except (
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        raise ValueError(f"checkpoint: {path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"checkpoint: {path} holds a {type(state).__name__}, a dict expected")
    return state


def _sync_folder(folder: Path) -> None:
    """Makes the renaming itself survive a power cut, where the system offers that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
