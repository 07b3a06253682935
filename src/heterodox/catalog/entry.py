"""One paper of the catalogue, and the table of all of them, read from `papers.toml`."""

import difflib
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType


@dataclass(frozen=True)
class PaperEntry:
    """What the catalogue knows about a paper.

    Attributes:
        id: its name in commands and file names, in kebab-case.
        title: as on arXiv.
        arxiv: its number on arXiv.
        year: of its first version on arXiv.
        slot: the default of deep learning that it replaces.
        summary: one line, in words of this library.
        components: `"module:Name"` of each public class or function that implements it.
    """

    id: str
    title: str
    arxiv: str
    year: int
    slot: str
    summary: str
    components: tuple[str, ...]

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"

    @property
    def claims_source(self) -> Traversable:
        """The file of its claims module, which exists only if the paper is available."""
        return files("heterodox") / "claims" / f"{self.id.replace('-', '_')}.py"

    @property
    def available(self) -> bool:
        """Whether this version of heterodox can check the paper's claims."""
        return self.claims_source.is_file()


@functools.cache
def load_catalog() -> Mapping[str, PaperEntry]:
    """All papers by id, in alphabetical order; read-only.

    Example:
        >>> load_catalog()["sigmoid-attention"].slot
        'attention'
    """
    text = (files("heterodox.catalog") / "papers.toml").read_text(encoding="utf-8")
    return MappingProxyType(
        {
            paper: PaperEntry(
                id=paper,
                title=fields["title"],
                arxiv=fields["arxiv"],
                year=fields["year"],
                slot=fields["slot"],
                summary=fields["summary"],
                components=tuple(fields["components"]),
            )
            for paper, fields in tomllib.loads(text).items()
        }
    )


def find(paper: str) -> PaperEntry:
    """The paper with this id.

    Raises:
        ValueError: there is none; the message names the nearest.

    Example:
        >>> find("sigmod-attention")
        Traceback (most recent call last):
        ...
        ValueError: paper: 'sigmod-attention' given, the id of a paper expected (did you mean \
sigmoid-attention?)
    """
    catalog = load_catalog()
    if paper in catalog:
        return catalog[paper]
    near = [known for known in catalog if len(paper) > 2 and paper.lower() in known]
    near = near or difflib.get_close_matches(paper.lower(), catalog, n=1, cutoff=0.5)
    hint = f"did you mean {' or '.join(near[:3])}?" if near else "`heterodox list` shows them"
    raise ValueError(f"paper: {paper!r} given, the id of a paper expected ({hint})")
