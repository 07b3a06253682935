"""The file of a soft-label bank: safetensors, with a checksum of every tensor."""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "heterodox soft labels 1"


def write_soft_labels(
    path: Path, tensors: Mapping[str, Tensor], num_classes: int, size: tuple[int, int]
) -> None:
    """Writes all of it or nothing: the file takes its name when it is complete.

    Raises:
        ValueError: there is no folder for it, or a folder of its name.
    """
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"path: {str(path)!r} given, a file in an existing folder expected")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    about = {
        "format": FORMAT,
        "num_classes": str(num_classes),
        "size": json.dumps(size),
        "checksums": json.dumps({name: _checksum(x) for name, x in contiguous.items()}),
    }
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(contiguous, unfinished, metadata=about)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_soft_labels(path: Path) -> dict[str, Any]:
    """The tensors, `num_classes` and `size` that were written.

    Raises:
        ValueError: there is no such file, it is damaged, or it is something else.
    """
    if not path.is_file():
        raise ValueError(f"path: {str(path)!r} given, an existing file of soft labels expected")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise ValueError(f"its format is {about.get('format')!r}, not {FORMAT!r}")
            checksums = json.loads(about["checksums"])
            tensors = {name: file.get_tensor(name) for name in checksums}
        for name, checksum in checksums.items():
            if _checksum(tensors[name]) != checksum:
                raise ValueError(f"the checksum of {name} is wrong")
        height, width = json.loads(about["size"])
        return {**tensors, "num_classes": int(about["num_classes"]), "size": (height, width)}
    except (SafetensorError, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"path: {str(path)!r} given, an undamaged file of soft labels expected ({reason})"
        ) from error


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.view(-1).view(torch.uint8).numpy().data)
