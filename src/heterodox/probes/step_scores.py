"""What one step of decoding asks a utility, checked: log softmax(u / τ) of the next token."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Utility = Callable[[Tensor], Tensor]
"""`utility(prefix (batch, t)) -> (batch, vocabulary)`; t may be 0."""


class StepScores:
    """log softmax(utility(prefix) / temperature), in float64.

    At temperature 0 the token of the highest utility, of several the lowest, has probability 1.

    Args:
        eos: the token that ends a sequence; None: none does.

    Raises:
        ValueError: when called: the utility gives another shape, NaN, +inf, or −inf for all tokens,
            or has no token `eos`.

    Example:
        >>> steps = StepScores(lambda prefix: torch.zeros(len(prefix), 2), eos=1, temperature=1.0)
        >>> steps(torch.zeros(3, 0, dtype=torch.int64)).exp()[0].tolist()
        [0.5, 0.5]
    """

    def __init__(self, utility: Utility, eos: int | None, temperature: float) -> None:
        self.utility = utility
        self.eos = eos
        self.temperature = temperature

    def utilities(self, prefix: Int[Tensor, "batch t"]) -> Float[Tensor, "batch vocabulary"]:
        """The utility's own values, checked."""
        values = self.utility(prefix)
        if values.ndim != 2 or len(values) != len(prefix) or values.shape[1] == 0:
            raise ValueError(
                f"utility: shape {tuple(values.shape)} given, ({len(prefix)}, vocabulary) expected"
            )
        if self.eos is not None and not 0 <= self.eos < values.shape[1]:
            raise ValueError(
                f"eos: {self.eos} given, a token from 0 to {values.shape[1] - 1} expected"
            )
        if not bool(values.amax(-1).isfinite().all()):
            raise ValueError(
                "utility: NaN, +inf or nothing but -inf given, a finite largest value expected"
            )
        return values

    def __call__(self, prefix: Int[Tensor, "batch t"]) -> Float[Tensor, "batch vocabulary"]:
        values = self.utilities(prefix).double()
        if self.temperature > 0:
            return (values / self.temperature).log_softmax(-1)
        certain = torch.full_like(values, -torch.inf)
        return certain.scatter(-1, values.argmax(-1, keepdim=True), 0.0)


def check_rule(max_length: int, temperature: float = 1.0) -> None:
    """Raises ValueError unless a decision rule can have these."""
    if max_length < 1:
        raise ValueError(f"max_length: {max_length} given, a positive number expected")
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"temperature: {temperature} given, a number that is not negative expected"
        )


def highest(values: Float[Tensor, "n"], count: int) -> Int[Tensor, "chosen"]:
    """The places of the `count` highest values above −inf, highest first, of equals the first.

    `torch.topk` leaves open which of several equal values it takes.

    Example:
        >>> highest(torch.tensor([1.0, 3.0, 3.0, 3.0, -torch.inf]), 2)
        tensor([1, 2])
    """
    least = values.topk(min(count, len(values))).values[-1]
    places = ((values >= least) & (values > -torch.inf)).nonzero()[:, 0]
    return places[values[places].argsort(descending=True, stable=True)[:count]]
