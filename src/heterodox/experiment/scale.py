"""How large a run is: the same claim in seconds, in minutes, or as the paper did it."""

from enum import StrEnum


class Scale(StrEnum):
    """The size at which a claim is measured."""

    SMOKE = "smoke"
    """Seconds: shows that everything runs. A verdict at this scale says little."""

    LAPTOP = "laptop"
    """Minutes on two cores; the default."""

    PAPER = "paper"
    """The paper's data and settings, on a GPU."""
