"""An acoustic cavity as it was measured: what was sent into it, and what came out."""

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from heterodox.data.download import fetch


def load_acoustic_cavity() -> tuple[
    Float32[Tensor, "samples frequencies"], Float32[Tensor, "samples frequencies"]
]:
    """Ten thousand inputs of 20 amplitudes from 0 to 1, and the 20 amplitudes that were measured.

    A cavity with nonlinear scatterers, of Momeni et al., 2023, arXiv 2304.11042. The authors fit a
    network to the first 9000, choose it by the next 300 and test it with the rest. A row of zeros
    that stands first is read by them as a heading, and is left out here too.

    Raises:
        DataError: the files cannot be had, see `heterodox.data.fetch`.
    """
    sent, read = (
        torch.from_numpy(np.loadtxt(path, delimiter=",", skiprows=1, dtype=np.float32))
        for path in fetch("acoustic-cavity").values()
    )
    return sent, read
