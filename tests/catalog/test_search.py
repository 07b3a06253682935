"""Search ranks by where words stand, forgives endings, and takes any text."""

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heterodox.catalog import entry as entry_module
from heterodox.catalog import load_catalog
from heterodox.catalog import search as search_module
from heterodox.catalog.search import search_catalog


def ids(text):
    return [match.paper.id for match in search_catalog(text)]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("grokking", {"softmax-collapse", "lazy-to-rich-grokking"}),
        ("length extrapolation", {"softplus-attention"}),
        ("label noise", {"early-learning-regularization"}),
        ("mamba", {"s-mamba"}),
        ("StableMax", {"softmax-collapse"}),
        ("federated learning rate", {"fedhyper"}),
        ("train without backpropagation", {"forward-gnn", "physical-forward-forward"}),
        ("continual learning forgets", {"rnn-hypernetwork", "hebbian-orthogonal-projection"}),
    ],
)
def test_the_paper_on_a_topic_comes_first(text, first):
    assert ids(text)[0] in first


@pytest.mark.parametrize("paper", load_catalog().values(), ids=lambda paper: paper.id)
def test_a_paper_is_found_first_by_its_title_and_by_its_id(paper):
    assert ids(paper.title)[0] == paper.id
    assert ids(paper.id)[0] == paper.id


def test_word_endings_do_not_matter():
    assert ids("separating speaker") == ids("separates speakers") == ["mossformer2"]


@pytest.mark.parametrize("unfinished", ["gro", "grokk", "grokki", "grokkin", "GROKKING"])
def test_the_last_word_may_be_unfinished(unfinished):
    assert {"softmax-collapse", "lazy-to-rich-grokking"} <= set(ids(unfinished))


@pytest.mark.parametrize("text", ["deep networks", "recurrent network", "convolutional neural"])
def test_words_side_by_side_come_before_the_same_words_apart(text):
    first = search_catalog(text)[0].paper
    assert text in first.title.lower().replace("-", " ")


def test_papers_with_any_word_are_found_only_if_none_has_all():
    assert ids("hopfield network") == ["multitasking-hebbian"]
    assert "multitasking-hebbian" in ids("hopfield zebra")
    assert ids("zebra") == []


def test_matches_are_sorted_by_score_and_unique():
    matches = search_catalog("learning network attention")
    scores = [match.score for match in matches]
    assert scores == sorted(scores, reverse=True) and min(scores) > 0
    assert len({match.paper.id for match in matches}) == len(matches)


def test_a_hit_in_the_title_outweighs_one_in_the_summary():
    spiking = ids("spiking")
    assert spiking.index("learned-delays") < spiking.index("opposing-signals")


def test_claims_are_searched_too(tmp_path, monkeypatch):
    source = '@paper.claim(says="Zebras are striped.", metric="stripes", expects=X)\ndef f(): ...'
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "z_loss.py").write_text(source, encoding="utf-8")
    load_catalog()
    monkeypatch.setattr(entry_module, "files", lambda package: tmp_path)
    search_module._documents.cache_clear()
    try:
        assert ids("striped zebra") == ["z-loss"]
    finally:
        search_module._documents.cache_clear()


@settings(deadline=None)
@given(st.text() | st.lists(st.sampled_from("\"*():^-+{}' ANDORNEAR title")).map("".join))
def test_any_text_is_a_query(text):
    assert set(ids(text)) <= set(load_catalog())


@pytest.mark.parametrize(
    "text", ["", "  ", "***", '"', "NEAR(", "title:", "a AND", "\x00", "_", "NOT"]
)
def test_the_syntax_of_the_engine_is_only_text(text):
    ids(text)


def test_sqlite_without_fts5_is_named_as_the_cause(monkeypatch):
    connect = sqlite3.connect

    class WithoutFts5(sqlite3.Connection):
        def execute(self, *arguments):
            raise sqlite3.OperationalError("no such module: fts5")

    monkeypatch.setattr(sqlite3, "connect", lambda name: connect(name, factory=WithoutFts5))
    with pytest.raises(RuntimeError, match="SQLite with FTS5"):
        search_catalog("attention")
