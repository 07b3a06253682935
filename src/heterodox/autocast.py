"""Leaving autocast where half precision would spoil a result."""

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: str) -> AbstractContextManager[None]:
    """Turns autocast off, also where there is none to turn off, as on "meta".

    Args:
        device: its type, such as "cuda".

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), without_autocast("cpu"):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    known = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if known else nullcontext()
