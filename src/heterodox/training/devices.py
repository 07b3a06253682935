"""From a device's name to the Lightning Fabric that places model and data there."""

from typing import Any

import torch
from lightning_fabric import Fabric


def fabric_on(device: str = "cpu", precision: Any = "32-true") -> Fabric:
    """One device, as `torch.device` names it.

    For several GPUs, build and launch a `Fabric` yourself and hand it to `fit`.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps", ...
        precision: as for `lightning_fabric.Fabric`; "bf16-mixed" halves the cost of a GPU's
            matmuls.

    Raises:
        ValueError: the device is unknown or not present.

    Example:
        >>> fabric_on("cpu").device
        device(type='cpu')
    """
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: {device!r} given, a device of torch expected") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {device!r} given, but no CUDA device is present here")
    if place.type == "cpu":
        return Fabric(accelerator="cpu", devices=1, precision=precision)
    devices = 1 if place.index is None else [place.index]
    return Fabric(accelerator=place.type, devices=devices, precision=precision)
