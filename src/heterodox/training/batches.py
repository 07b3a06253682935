"""Batches with an exact state: where training stands in its data can be saved and restored."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int, Integer
from torch import Tensor
from torch.utils.data import Dataset


@runtime_checkable
class Batches(Protocol):
    """What `fit` draws from: it never ends, and its state holds all that decides what is next."""

    def __next__(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class RandomWindows:
    """Windows at random places of a text, for next-token prediction.

    Args:
        tokens: the text, any integer type; kept as it is.
        length: tokens in a window.
        batch_size: windows in a batch.
        generator: on the CPU; decides the places.

    Each batch is a pair (inputs, targets) of shape (batch_size, length), int64; targets are the
    inputs one token later.

    Raises:
        ValueError: `length` or `batch_size` is not positive, or the text has no `length + 1`
            tokens.

    Example:
        >>> windows = RandomWindows(torch.arange(100), 4, 2, torch.Generator().manual_seed(0))
        >>> inputs, targets = next(windows)
        >>> inputs.shape, torch.equal(inputs + 1, targets)
        (torch.Size([2, 4]), True)
    """

    def __init__(
        self,
        tokens: Integer[Tensor, "tokens"],
        length: int,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        if length < 1:
            raise ValueError(f"length: {length} given, a positive number expected")
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size} given, a positive number expected")
        if len(tokens) <= length:
            raise ValueError(
                f"tokens: {len(tokens)} tokens given, more than the window's {length} expected"
            )
        self.tokens = tokens
        self.batch_size = batch_size
        self.generator = generator
        self._offsets = torch.arange(length + 1)
        self._places = len(tokens) - length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
        starts = torch.randint(self._places, (self.batch_size, 1), generator=self.generator)
        windows = self.tokens[starts + self._offsets].long()
        return windows[:, :-1], windows[:, 1:]

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


class Indexed(Dataset[tuple[Any, ...]]):
    """A data set whose examples end with their index, for losses and labels kept for each example.

    With tensors, `Shuffled((x, y, torch.arange(len(x))), ...)` does the same.

    Args:
        dataset: any with a length and places from 0; its examples are tuples.

    Example:
        >>> pairs = [(torch.zeros(2), 0), (torch.ones(2), 1)]
        >>> loader = torch.utils.data.DataLoader(Indexed(pairs), batch_size=2)
        >>> next(iter(loader))
        [tensor([[0., 0.],
                [1., 1.]]), tensor([0, 1]), tensor([0, 1])]
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return (*self.dataset[index], index)


class Shuffled:
    """Minibatches from tensors of equal length, in a new random order each epoch.

    Args:
        tensors: share their first axis, the examples. To get each example's index, pass
            `torch.arange(n)` among them.
        batch_size: examples in a batch. An incomplete last batch is left out, so that all batches
            are of one size; who is left out changes with the order.
        generator: on the CPU; decides the order.

    `len` is the number of batches in an epoch.

    Raises:
        ValueError: no tensors, lengths that differ, or a batch larger than the data.

    Example:
        >>> batches = Shuffled((torch.arange(6),), 2, torch.Generator().manual_seed(0))
        >>> len(batches), sorted(torch.cat([next(batches)[0] for _ in range(3)]).tolist())
        (3, [0, 1, 2, 3, 4, 5])
    """

    def __init__(
        self, tensors: tuple[Tensor, ...], batch_size: int, generator: torch.Generator
    ) -> None:
        if not tensors:
            raise ValueError("tensors: none given, at least one expected")
        lengths = [len(tensor) for tensor in tensors]
        if len(set(lengths)) > 1:
            raise ValueError(f"tensors: lengths {lengths} given, equal lengths expected")
        if not 1 <= batch_size <= lengths[0]:
            raise ValueError(
                f"batch_size: {batch_size} given, between 1 and the {lengths[0]} examples expected"
            )
        self.tensors = tensors
        self.batch_size = batch_size
        self.generator = generator
        self._start_epoch()

    def _start_epoch(self) -> None:
        self._epoch_state = self.generator.get_state()
        self._order = torch.randperm(len(self.tensors[0]), generator=self.generator)
        self._position = 0

    def __len__(self) -> int:
        return len(self.tensors[0]) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        if self._position == len(self):
            self._start_epoch()
        start = self._position * self.batch_size
        chosen = self._order[start : start + self.batch_size]
        self._position += 1
        return tuple(tensor[chosen] for tensor in self.tensors)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._epoch_state, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self._start_epoch()
        self._position = state["position"]
