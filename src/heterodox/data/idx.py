"""The IDX format of MNIST and its relatives: a header of big-endian sizes, then bytes.

0x00 0x00 0x08 n | size_1 ... size_n, uint32 each | size_1 · ... · size_n values, uint8
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from heterodox.data.errors import DataError


def read_idx(path: Path) -> UInt8[Tensor, "..."]:
    """The array in an IDX file of unsigned bytes, gzipped if the name ends in ".gz".

    Raises:
        DataError: the header is not that of an IDX file of bytes, or the length does not fit it.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error})") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError(
            f"{path}: starts with {content[:4].hex() or 'nothing'}, "
            "the header 000008.. of an idx file of bytes expected"
        )
    axes = content[3]
    header = 4 + 4 * axes
    if axes == 0 or len(content) < header:
        raise DataError(f"{path}: idx header cut short, {axes} sizes announced")
    shape = struct.unpack(f">{axes}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{path}: {len(content) - header} values, {math.prod(shape)} expected "
            f"from the shape {shape} in its header"
        )
    values = np.frombuffer(content, dtype=np.uint8, offset=header)
    return torch.from_numpy(values.copy()).reshape(shape)
