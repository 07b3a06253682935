"""`heterodox list`, `show` and `search`."""

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heterodox.catalog import entry as entry_module
from heterodox.catalog import load_catalog
from heterodox.cli.main import main

CLAIMS = """
@paper.claim(
    says="It matches softmax.",
    reported="Table 2",
    metric="validation loss [nats/token]",
    expects=NoWorseThan("softmax", margin=0.02),
)
def matches_softmax(arm, seed, scale): ...
"""


@pytest.fixture
def sigmoid_attention_is_available(tmp_path, monkeypatch):
    load_catalog()
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "sigmoid_attention.py").write_text(CLAIMS, encoding="utf-8")
    monkeypatch.setattr(entry_module, "files", lambda package: tmp_path)


def run(capsys, *arguments):
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_list_in_a_pipe_is_a_line_a_paper_with_tabs(capsys):
    code, out, err = run(capsys, "list")
    rows = [line.split("\t") for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [row[0] for row in rows] == list(load_catalog())
    assert {len(row) for row in rows} == {5}
    assert "\x1b" not in out


def test_list_on_a_terminal_is_a_table(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert "\t" not in out and "summary" in out
    assert all(paper in out for paper in load_catalog())


def test_list_filters_by_slot(capsys):
    _, out, _ = run(capsys, "list", "--slot", "attention", "--json")
    papers = json.loads(out)
    assert {paper["slot"] for paper in papers} == {"attention"}
    assert "sigmoid-attention" in {paper["id"] for paper in papers}


@pytest.mark.usefixtures("sigmoid_attention_is_available")
def test_list_filters_by_availability(capsys):
    _, out, _ = run(capsys, "list", "--available", "--json")
    assert [paper["id"] for paper in json.loads(out)] == ["sigmoid-attention"]


def test_list_of_an_unknown_slot_names_the_slots(capsys):
    code, out, err = run(capsys, "list", "--slot", "atention")
    assert (code, out) == (2, "")
    assert err.startswith("heterodox: error: slot: 'atention' given, one of ")
    assert "attention" in err and err.count("\n") == 1


@pytest.mark.usefixtures("sigmoid_attention_is_available")
def test_show_prints_claims_import_lines_and_how_to_run(capsys):
    code, out, _ = run(capsys, "show", "sigmoid-attention")
    assert code == 0
    assert "https://arxiv.org/abs/2409.04431" in out
    assert "NoWorseThan('softmax', margin=0.02)" in out
    assert "heterodox reproduce sigmoid-attention" in out
    [imports] = [line for line in out.splitlines() if "import" in line]
    assert imports.strip().startswith("from heterodox.attention.sigmoid import ")
    assert "SigmoidAttention" in imports
    assert "\x1b" not in out


@pytest.mark.usefixtures("sigmoid_attention_is_available")
def test_show_says_when_a_paper_is_not_available(capsys):
    code, out, _ = run(capsys, "show", "z-loss")
    assert code == 0
    assert "Not available in this version" in out
    assert "heterodox reproduce" not in out and "import" not in out


@pytest.mark.usefixtures("sigmoid_attention_is_available")
def test_show_as_json_holds_the_claims(capsys):
    _, out, _ = run(capsys, "show", "sigmoid-attention", "--json")
    paper = json.loads(out)
    assert paper["available"] is True
    assert paper["claims"][0]["says"] == "It matches softmax."
    assert "heterodox.attention.sigmoid:SigmoidAttention" in paper["components"]


def test_a_mistyped_id_is_answered_with_the_nearest_in_one_line(capsys):
    code, out, err = run(capsys, "show", "sigmod-attention")
    assert (code, out) == (2, "")
    assert "did you mean sigmoid-attention?" in err and err.count("\n") == 1


def test_search_takes_words_with_or_without_quotes(capsys):
    _, quoted, _ = run(capsys, "search", "length extrapolation")
    _, bare, _ = run(capsys, "search", "length", "extrapolation")
    assert quoted == bare and quoted.startswith("softplus-attention\t")


def test_search_as_json_keeps_the_order(capsys):
    _, plain, _ = run(capsys, "search", "attention")
    _, out, _ = run(capsys, "search", "attention", "--json")
    ids = [paper["id"] for paper in json.loads(out)]
    assert ids == [line.split("\t")[0] for line in plain.splitlines()]


def test_a_search_without_result_says_so_on_stderr(capsys):
    code, out, err = run(capsys, "search", "zebra", "--json")
    assert (code, json.loads(out)) == (0, [])
    assert err == "heterodox: no paper matches 'zebra'\n"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(), min_size=1, max_size=3))
def test_any_words_can_be_searched(words):
    assert main(["search", "--json", "--", *words]) == 0
