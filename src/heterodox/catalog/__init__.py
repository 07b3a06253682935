"""The catalogue of papers: what each proposes, what it claims, where its components are.

Everything here is read from text, so that listing and searching never import torch.
"""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.catalog.claims import ClaimText, read_claims
    from heterodox.catalog.entry import PaperEntry, find, load_catalog
    from heterodox.catalog.search import Match, search_catalog

_EXPORTS = {
    "ClaimText": "heterodox.catalog.claims",
    "Match": "heterodox.catalog.search",
    "PaperEntry": "heterodox.catalog.entry",
    "find": "heterodox.catalog.entry",
    "load_catalog": "heterodox.catalog.entry",
    "read_claims": "heterodox.catalog.claims",
    "search_catalog": "heterodox.catalog.search",
}

__all__ = [
    "ClaimText",
    "Match",
    "PaperEntry",
    "find",
    "load_catalog",
    "read_claims",
    "search_catalog",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
