"""What a claim is made of, and how it is run, stored and judged."""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.experiment.claim import Claim, Measure, Paper
    from heterodox.experiment.expectation import (
        AtLeast,
        AtMost,
        Beats,
        NoWorseThan,
        Ordering,
        RatioAtLeast,
        RatioAtMost,
        Slope,
        Within,
    )
    from heterodox.experiment.measurement import Measurement
    from heterodox.experiment.scale import Scale

_EXPORTS = {
    "AtLeast": "heterodox.experiment.expectation",
    "AtMost": "heterodox.experiment.expectation",
    "Beats": "heterodox.experiment.expectation",
    "Claim": "heterodox.experiment.claim",
    "Measure": "heterodox.experiment.claim",
    "Measurement": "heterodox.experiment.measurement",
    "NoWorseThan": "heterodox.experiment.expectation",
    "Ordering": "heterodox.experiment.expectation",
    "Paper": "heterodox.experiment.claim",
    "RatioAtLeast": "heterodox.experiment.expectation",
    "RatioAtMost": "heterodox.experiment.expectation",
    "Scale": "heterodox.experiment.scale",
    "Slope": "heterodox.experiment.expectation",
    "Within": "heterodox.experiment.expectation",
}

__all__ = [
    "AtLeast",
    "AtMost",
    "Beats",
    "Claim",
    "Measure",
    "Measurement",
    "NoWorseThan",
    "Ordering",
    "Paper",
    "RatioAtLeast",
    "RatioAtMost",
    "Scale",
    "Slope",
    "Within",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
