"""A paper with quick claims, as a claims module has them; the tests run it in other processes."""

import math
import os
import time
from pathlib import Path
from typing import Literal

import numpy as np

from heterodox.catalog import PaperEntry
from heterodox.experiment import Beats, Measurement, NoWorseThan, Paper, Scale

paper = Paper(
    PaperEntry(
        id="toy",
        title="A toy",
        arxiv="0000.00000",
        year=2026,
        slot="attention",
        summary="Numbers from a generator.",
        components=(),
    )
)


def _gap(arm: str) -> float:
    return {"base": 1.0, "better": 0.5, "equal": 1.0, "diverges": math.nan}[arm]


@paper.claim(
    says="The better arm is better.",
    reported="Table 1",
    metric="loss [nats]",
    expects=Beats("base", arm="better"),
)
@paper.claim(
    name="also_read",
    says="A reading of the same runs.",
    metric="twice the loss [nats]",
    expects=NoWorseThan("base", 0.1, arm="better"),
    reads="twice",
    arms=("base", "better"),
)
def losses(
    arm: Literal["base", "better", "equal", "diverges"], seed: int, scale: Scale
) -> Measurement:
    """A normal number around the arm's mean.

    Differs from the paper: there is no paper.
    """
    noise = np.random.default_rng(seed).normal(0, 0.05)
    own = np.random.default_rng([seed, len(arm)]).normal(0, 0.01)
    value = _gap(arm) + noise + own
    return Measurement(
        value, readings={"twice": 2 * value}, curves={"loss": [(0, 2.0), (1, value)]}
    )


@paper.claim(
    says="One run measures both.", metric="x", expects=Beats("a"), arms=("a", "b"), seeds=3
)
def joint(seed: int, scale: Scale) -> dict[str, float]:
    """Both arms at once."""
    return {"a": 1.0 + 0.01 * seed, "b": 0.5}


slow = Paper(
    PaperEntry(
        id="slow",
        title="Slow",
        arxiv="",
        year=2026,
        slot="attention",
        summary="Takes a while and says when it runs.",
        components=(),
    )
)


@slow.claim(says="Slow.", metric="x", expects=Beats("a"), seeds=3)
def sleeper(arm: Literal["a", "b"], seed: int, scale: Scale) -> float:
    """Sleeps, and leaves a line for each time that it is run."""
    time.sleep(float(os.environ.get("TOY_SECONDS", "0.2")))
    with Path(os.environ["TOY_LOG"]).open("a") as log:
        log.write(f"{arm} {seed}\n")
    return {"a": 1.0, "b": 0.5}[arm] + 0.01 * seed


faulty = Paper(
    PaperEntry(
        id="faulty",
        title="Faulty",
        arxiv="",
        year=2026,
        slot="attention",
        summary="Some runs break.",
        components=(),
    )
)


@faulty.claim(says="One seed raises.", metric="x", expects=Beats("a"), seeds=3)
def raising(arm: Literal["a", "b"], seed: int, scale: Scale) -> float:
    """Raises for one arm and seed."""
    if arm == "b" and seed == 2:
        raise RuntimeError("no luck")
    return 1.0


@faulty.claim(says="One seed kills its process.", metric="x", expects=Beats("a"), seeds=3)
def dying(arm: Literal["a", "b"], seed: int, scale: Scale) -> float:
    """Ends the whole process for one arm and seed, as a lack of memory would."""
    if arm == "b" and seed == 2:
        os._exit(9)
    return 1.0 if arm == "a" else 0.5 + 0.001 * seed
