"""What a slot's benchmark is made of: the cases, how a contestant is put to work, the targets."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Case:
    """One problem, the same for every contestant.

    Attributes:
        size: as on the command line.
        passes: what is timed: "forward", "forward and backward" or "step".
        variant: "causal" or "full", for attention.

    Example:
        >>> Case("2048", "forward", "causal").label
        '2048, causal, forward'
    """

    size: str
    passes: str
    variant: str = ""

    @property
    def label(self) -> str:
        return ", ".join(filter(None, (self.size, self.variant, self.passes)))


@dataclass(frozen=True)
class Target:
    """How much a contestant may cost at most, in every variant of one size.

    Attributes:
        contestant: its name.
        quantity: "time" of a call, or "memory": the peak above the inputs.
        size, passes: of the case.
        limit: of the ratio to the default's cost, or to `reference`.
        device: the type of device that it is for.
        reference: bytes that memory is compared with in place of the default's.
    """

    contestant: str
    quantity: Literal["time", "memory"]
    size: str
    passes: str
    limit: float
    device: str = "cpu"
    reference: int | None = None

    def says(self, default: str) -> str:
        """The target as a sentence.

        Example:
            >>> Target("sigmoid", "time", "2048", "forward", 1.3).says("softmax")
            'sigmoid takes at most 1.3 times the time of softmax'
        """
        if self.reference is not None:
            return f"{self.contestant} takes at most {self.limit * self.reference / 1e9:g} GB"
        return (
            f"{self.contestant} takes at most {self.limit:g} times the {self.quantity} of {default}"
        )


@dataclass(frozen=True)
class Workload:
    """The benchmark of one slot.

    Attributes:
        facts: what all its cases share, for the reader.
        cases: from sizes to cases; ValueError for a size it does not know.
        prepare: from a contestant's function, a case and a device to the call that is timed. Inputs
            are the same for every contestant, and made here.
        targets: judged when their case is measured.
    """

    facts: Mapping[str, str]
    cases: Callable[[Sequence[str]], list[Case]]
    prepare: Callable[[Callable[..., Any], Case, str], Callable[[], object]]
    targets: tuple[Target, ...] = ()


def check_sizes(sizes: Sequence[str], form: str, example: str) -> None:
    """Raises ValueError unless every size is as many positive numbers as the form has words.

    Args:
        sizes: as on the command line.
        form: what the numbers are, such as "batch x classes".
        example: a size that will do.

    Example:
        >>> check_sizes(["128x10"], "batch x classes", "64x100")
        >>> check_sizes(["128"], "batch x classes", "64x100")
        Traceback (most recent call last):
        ValueError: sizes: '128' given, batch x classes such as 64x100 expected
    """
    pattern = "x".join([r"[1-9]\d*"] * len(form.split(" x ")))
    for size in sizes:
        if not re.fullmatch(pattern, size):
            raise ValueError(f"sizes: {size!r} given, {form} such as {example} expected")
