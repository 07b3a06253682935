"""What one run of one arm with one seed brings home."""

import math
from dataclasses import dataclass, field
from typing import Any

Curve = list[tuple[float, float]]
"""Points (x, y) of a learning curve or of any other line that a reader would want to see."""


@dataclass(frozen=True)
class Measurement:
    """The numbers of one run.

    Args:
        value: the metric; NaN or infinite if the run diverged.
        readings: other numbers read off the same run, by name; a claim may judge one of them
            instead.
        curves: lines to plot, by name.

    Example:
        >>> run = Measurement(1.62, readings={"loss at 8x": 1.71})
        >>> run.read(None), run.read("loss at 8x")
        (1.62, 1.71)
    """

    value: float
    readings: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)

    def read(self, name: str | None) -> float:
        """The reading called `name`, or the metric itself for None."""
        if name is None:
            return self.value
        if name not in self.readings:
            raise ValueError(f"reads: {name!r} given, one of {sorted(self.readings)} expected")
        return self.readings[name]

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.value)

    def to_json(self) -> dict[str, Any]:
        """A tree that strict JSON can hold: numbers that are not finite become strings."""
        return {
            "value": encode_number(self.value),
            "readings": {name: encode_number(v) for name, v in self.readings.items()},
            "curves": {
                name: [[encode_number(x), encode_number(y)] for x, y in points]
                for name, points in self.curves.items()
            },
        }

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "Measurement":
        """The inverse of `to_json`; ValueError, KeyError or TypeError if `tree` is no such tree."""
        return cls(
            value=decode_number(tree["value"]),
            readings={str(name): decode_number(v) for name, v in tree["readings"].items()},
            curves={
                str(name): [(decode_number(x), decode_number(y)) for x, y in points]
                for name, points in tree["curves"].items()
            },
        )


def encode_number(number: float) -> float | str:
    """A float, or "NaN", "Infinity", "-Infinity", which JSON's numbers leave out."""
    number = float(number)
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return number


def decode_number(number: float | str) -> float:
    """The inverse of `encode_number`."""
    if isinstance(number, bool) or not isinstance(number, int | float | str):
        raise TypeError(f"number: {number!r} given, a number expected")
    return float(number)
