"""Claims: one module a paper. `load` gives a paper with its claims."""

import importlib
from typing import TYPE_CHECKING

from heterodox.catalog import find, load_catalog
from heterodox.experiment.claim import Paper

if TYPE_CHECKING:
    from heterodox.experiment.tuning import Tuning


def load(paper_id: str) -> Paper:
    """The paper `paper_id` with its claims.

    Raises:
        ValueError: the id is not in the catalogue, or its claims are not in this version.

    Example:
        >>> [claim.name for claim in load("softmax-collapse").claims][0]
        'perp_grad_removes_the_delay'
    """
    entry = find(paper_id)
    if not entry.available:
        names = ", ".join(paper.id for paper in load_catalog().values() if paper.available)
        raise ValueError(
            f"id: {paper_id!r} given, whose claims are not in this version; one of {names} expected"
        )
    return importlib.import_module(_module(paper_id)).paper


def tunings(paper_id: str) -> "tuple[Tuning, ...]":
    """What the arms of a paper's claims chose on the tuning seed: the module's `TUNED`, if any."""
    return getattr(importlib.import_module(_module(paper_id)), "TUNED", ())


def _module(paper_id: str) -> str:
    return f"heterodox.claims.{paper_id.replace('-', '_')}"
