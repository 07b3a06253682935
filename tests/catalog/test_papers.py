"""The table of papers is complete and consistent, and agrees with the code."""

import importlib
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

import heterodox
from heterodox.catalog import find, load_catalog, read_claims

SOURCE = Path(heterodox.__file__).parent
CATALOG = load_catalog()
AVAILABLE = [paper for paper in CATALOG.values() if paper.available]

SLOTS = {
    "architecture",
    "attention",
    "compression",
    "continual learning",
    "energy model",
    "head",
    "infinite width",
    "layer",
    "learning rule",
    "loss",
    "optimizer",
    "probe",
    "schedule",
    "sequence mixer",
}


def test_there_are_at_least_57_papers_sorted_by_id():
    text = (SOURCE / "catalog" / "papers.toml").read_text(encoding="utf-8")
    assert len(CATALOG) >= 57
    assert list(CATALOG) == sorted(CATALOG) == list(tomllib.loads(text))


def test_no_two_papers_share_a_number_a_title_or_a_summary():
    for field in ("arxiv", "title", "summary"):
        assert len({getattr(paper, field) for paper in CATALOG.values()}) == len(CATALOG)


def test_the_slots_in_use_are_those_of_the_vocabulary():
    assert {paper.slot for paper in CATALOG.values()} == SLOTS


@pytest.mark.parametrize("paper", CATALOG.values(), ids=lambda paper: paper.id)
def test_every_field_of_a_paper_is_well_formed(paper):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", paper.id)
    assert re.fullmatch(r"\d{4}\.\d{4,5}", paper.arxiv)
    assert paper.year == 2000 + int(paper.arxiv[:2])  # arXiv numbers begin with year and month
    assert paper.url == f"https://arxiv.org/abs/{paper.arxiv}"
    assert paper.title == " ".join(paper.title.split()) != ""
    assert "\n" not in paper.summary and 40 <= len(paper.summary) <= 160
    assert paper.summary.endswith(".")
    assert paper.components == tuple(sorted(set(paper.components))) != ()
    for component in paper.components:
        assert re.fullmatch(r"heterodox\.[a-z0-9_]+\.[a-z0-9_]+:[A-Za-z]\w*", component)


def test_a_paper_is_available_exactly_if_its_claims_module_exists():
    modules = {path.stem for path in (SOURCE / "claims").glob("*.py")} - {"__init__"}
    assert {paper.id.replace("-", "_") for paper in AVAILABLE} == modules


def test_the_catalogue_cannot_be_changed():
    with pytest.raises(TypeError):
        CATALOG["another"] = CATALOG["z-loss"]
    with pytest.raises(AttributeError):
        CATALOG["z-loss"].slot = "layer"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("sigmod-attention", "sigmoid-attention"),
        ("softmax-colapse", "softmax-collapse"),
        ("sigmoid", "sigmoid-attention"),
        ("Grokking", "lazy-to-rich-grokking"),
        ("zloss", "z-loss"),
        ("kernel", "deep-kernel-machine or neural-tangent-kernel"),
    ],
)
def test_an_unknown_id_raises_with_the_nearest(typed, meant):
    with pytest.raises(ValueError, match=f"^paper: '{typed}' given, .*did you mean .*{meant}"):
        find(typed)


@pytest.mark.parametrize("typed", ["", "q", "%%%", "no paper is called like this at all"])
def test_an_id_near_to_none_refers_to_the_list(typed):
    with pytest.raises(ValueError, match=r"^paper: .*`heterodox list` shows them"):
        find(typed)


@pytest.mark.parametrize("paper", AVAILABLE, ids=lambda paper: paper.id)
def test_every_component_of_an_available_paper_can_be_imported(paper):
    for component in paper.components:
        assert callable(pkgutil.resolve_name(component))


@pytest.mark.parametrize("paper", AVAILABLE, ids=lambda paper: paper.id)
def test_claims_read_from_the_source_are_those_that_the_module_registers(paper):
    registered = importlib.import_module(f"heterodox.claims.{paper.id.replace('-', '_')}").paper
    assert registered.id == paper.id
    fields = ("name", "says", "reported", "metric")
    read = [tuple(getattr(claim, field) for field in fields) for claim in read_claims(paper)]
    assert read == [tuple(getattr(claim, field) for field in fields) for claim in registered.claims]
