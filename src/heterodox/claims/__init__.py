"""Claims: one module a paper. `load` gives a paper with its claims."""

import importlib

from heterodox.catalog import find, load_catalog
from heterodox.experiment.claim import Paper


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
    module = importlib.import_module(f"heterodox.claims.{paper_id.replace('-', '_')}")
    return module.paper
