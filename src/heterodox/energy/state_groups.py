"""Variables of different numbers of states in one vector: variable by variable, and grouped."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn


class StateGroups(nn.Module):
    """The layout of stacked one-hot states, those of one variable side by side.

    Attributes:
        states: how many states each variable has.
        variable: which variable each column belongs to.
        dim: the axis of a variable's states in what `split` returns.
    """

    dim = -1
    columns: Tensor
    order: Tensor
    variable: Tensor

    def __init__(self, states: Sequence[int]) -> None:
        super().__init__()
        check_states(states)
        self.states = tuple(states)
        device = torch.device("cpu")
        groups = columns_by_states(states, device)
        self.shapes = [(group.shape[0], group.shape[1]) for group in groups]
        columns = torch.cat([group.flatten() for group in groups])
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("order", columns.argsort(), persistent=False)
        self.register_buffer("variable", variable_of_column(states, device), persistent=False)

    def split(
        self, x: Shaped[Tensor, "batch total"]
    ) -> list[Shaped[Tensor, "batch variables states"]]:
        """Variables of as many states together."""
        groups = x[:, self.columns].split([v * s for v, s in self.shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(groups, self.shapes, strict=True)]

    def join(self, parts: Sequence[Tensor]) -> Shaped[Tensor, "batch total"]:
        """The inverse of `split`."""
        return torch.cat([part.flatten(1) for part in parts], 1)[:, self.order]

    def uniform(self, like: Tensor) -> Float[Tensor, "total"]:
        """Every state of a variable alike, in the dtype and on the device of `like`."""
        counts = torch.bincount(self.variable)
        return (1 / counts.to(like.dtype))[self.variable]


def columns_by_states(
    states: Sequence[int], device: torch.device
) -> list[Int[Tensor, "variables states"]]:
    """For each number of states that occurs, the columns of the variables that have it."""
    starts: dict[int, list[int]] = {}
    start = 0
    for number in states:
        starts.setdefault(number, []).append(start)
        start += number
    return [
        torch.tensor(first, device=device)[:, None] + torch.arange(number, device=device)
        for number, first in starts.items()
    ]


def variable_of_column(states: Sequence[int], device: torch.device) -> Int[Tensor, "total"]:
    """Which variable each column belongs to."""
    variables = [v for v, number in enumerate(states) for _ in range(number)]
    return torch.tensor(variables, device=device)


def check_states(states: Sequence[int]) -> None:
    if len(states) == 0 or not all(isinstance(s, int) and s >= 1 for s in states):
        raise ValueError(
            f"states: {list(states)} given, one number of at least 1 for each variable expected"
        )
