"""The most bytes that tensors hold at once during a call, counted as torch makes and drops them.

Unlike the resident memory of `heterodox.bench.memory` it is the same on every run and system and
needs no process of its own, and it leaves out what a kernel allocates and frees inside itself.
"""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveStorages(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        known = {_address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and _address(x) not in known:
                self._note(x)
        return result

    def _note(self, x: Tensor) -> None:
        address, storage = _address(x), x.untyped_storage()
        if address in self.sizes:
            return
        self.sizes[address] = storage.nbytes()
        weakref.finalize(storage, self.sizes.pop, address, 0)
        self.peak = max(self.peak, sum(self.sizes.values()))


def _address(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def peak_of_live_tensors(call: Callable[[], object]) -> int:
    """Bytes, without those of tensors that were there before; the call's results count.

    Example:
        >>> import torch
        >>> x = torch.zeros(1000)
        >>> peak_of_live_tensors(lambda: (x + 1).exp().sum())
        8000
    """
    with _LiveStorages() as storages:
        call()
    return storages.peak
