"""Ranked full-text search over the catalogue: SQLite's FTS5, in memory.

Words are stemmed (Porter), so that "normalising" finds "normalised"; the last word may be
unfinished. Words that stand side by side, as typed, count more. Only if no paper holds all of
the words are those listed that hold any.
"""

import functools
import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import astuple, dataclass

from heterodox.catalog.claims import read_claims
from heterodox.catalog.entry import PaperEntry, load_catalog

WORD = re.compile(r"[^\W_]+")
# Too common to tell papers apart, yet rare enough in short texts for BM25 to prize them.
STOP_WORDS = frozenset(
    (
        "a",
        "an",
        "and",
        "as",
        "by",
        "for",
        "from",
        "how",
        "in",
        "is",
        "of",
        "on",
        "the",
        "to",
        "with",
    )
)


@dataclass(frozen=True)
class Document:
    """The text of a paper by column; a hit in a column counts by its weight in `WEIGHTS`."""

    id: str
    title: str
    slot: str
    summary: str
    components: str
    claims: str


WEIGHTS = Document(id="8", title="8", slot="4", summary="4", components="2", claims="1")
COLUMNS = ", ".join(Document.__dataclass_fields__)


@dataclass(frozen=True)
class Match:
    """A paper that was found, and its BM25 score: larger is nearer."""

    paper: PaperEntry
    score: float


def search_catalog(text: str) -> list[Match]:
    """The papers that match the words of `text`, best first. Any text is allowed.

    Raises:
        RuntimeError: Python's SQLite was built without FTS5.

    Example:
        >>> search_catalog("length extrapolation")[0].paper.id
        'softplus-attention'
    """
    words = WORD.findall(text.lower())
    if not words:
        return []
    catalog = load_catalog()
    documents = _documents()
    phrase = f'"{" ".join(words)}"'
    terms = [f'"{word}"' for word in words[:-1] if word not in STOP_WORDS]
    terms.append(_completed(words[-1], documents))
    with closing(_index(documents)) as database:
        for query in (f"{phrase} OR ({' AND '.join(terms)})", " OR ".join(terms)):
            rows = database.execute(
                f"SELECT id, -bm25(papers, {', '.join(astuple(WEIGHTS))}) AS score FROM papers "
                "WHERE papers MATCH ? ORDER BY score DESC, id",
                (query,),
            ).fetchall()
            if rows:
                break
    return [Match(catalog[paper], score) for paper, score in rows]


@functools.cache
def _documents() -> tuple[Document, ...]:
    return tuple(_document(paper) for paper in load_catalog().values())


def _document(paper: PaperEntry) -> Document:
    claims = read_claims(paper)
    return Document(
        id=paper.id,
        title=paper.title,
        slot=paper.slot,
        summary=paper.summary,
        components=" ".join(component.partition(":")[2] for component in paper.components),
        claims=" ".join(f"{claim.says} {claim.reported} {claim.metric}" for claim in claims),
    )


def _completed(word: str, documents: Sequence[Document]) -> str:
    """Every word of the prose that begins with `word`, and `word`, as one term of a query.

    FTS5's own prefix search compares stems, and an unfinished "grokki" is no prefix of "grok".
    """
    prose = " ".join(f"{paper.title} {paper.summary} {paper.claims}" for paper in documents)
    vocabulary = {word, *WORD.findall(prose.lower())}
    completions = sorted(known for known in vocabulary if known.startswith(word))
    return "(" + " OR ".join(f'"{completion}"' for completion in completions) + ")"


def _index(documents: Sequence[Document]) -> sqlite3.Connection:
    database = sqlite3.connect(":memory:")
    try:
        database.execute(
            f"CREATE VIRTUAL TABLE papers USING fts5({COLUMNS}, tokenize='porter unicode61')"
        )
    except sqlite3.OperationalError as error:
        database.close()
        raise RuntimeError(
            f"search needs SQLite with FTS5; Python's SQLite {sqlite3.sqlite_version} lacks it"
        ) from error
    slots = ", ".join("?" for _ in Document.__dataclass_fields__)
    database.executemany(f"INSERT INTO papers VALUES ({slots})", map(astuple, documents))
    return database
