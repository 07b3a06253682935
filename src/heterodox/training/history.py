"""What a training run leaves behind besides its weights."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

Curve = list[tuple[float, float]]


@dataclass
class History:
    """The curves of a run and how it ended.

    Args:
        steps: optimizer steps made; of a diverged run, the step whose loss was not finite.
        loss: (step, mean training loss since the point before).
        evaluations: metric name -> (step, value).
        diverged: a loss or the watched metric was not finite, and the run stopped there.
        stopped_early: the watched metric did not improve for `patience` evaluations.
        best: lowest value of the watched metric so far.
        evaluations_since_best: how many evaluations ago that was.
    """

    steps: int = 0
    loss: Curve = field(default_factory=list)
    evaluations: dict[str, Curve] = field(default_factory=dict)
    diverged: bool = False
    stopped_early: bool = False
    best: float = math.inf
    evaluations_since_best: int = 0

    def last(self, metric: str) -> float:
        """The latest value of an evaluated metric; NaN if the run diverged.

        Raises:
            ValueError: no metric of that name was evaluated.

        Example:
            >>> History(evaluations={"error": [(10, 0.5), (20, 0.25)]}).last("error")
            0.25
        """
        if self.diverged:
            return math.nan
        if metric not in self.evaluations:
            names = ", ".join(self.evaluations) or "none"
            raise ValueError(f"metric: {metric!r} given, one of those evaluated expected: {names}")
        return self.evaluations[metric][-1][1]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> "History":
        return cls(**tree)
