import re

import pytest

from heterodox.catalog import ClaimText, find, load_catalog
from heterodox.report.markdown import paper_page, scoreboard


def html(text):
    markdown = pytest.importorskip("markdown", reason="Python-Markdown is not installed")
    return markdown.markdown(text, extensions=["tables", "attr_list", "md_in_html"])


def test_a_measured_paper_shows_each_verdict_with_its_numbers_and_pictures(gallery):
    result = gallery["laptop-sigmoid-attention"]
    page = html(paper_page(result, find("sigmoid-attention"), [], notes="A *note*."))
    assert page.count("<svg") == 8 and "&lt;svg" not in page
    assert "<h3>✗ fails: Properly normalised" in page
    assert "Table 2: 1B parameters on RedPajama" in page
    assert "A <em>note</em>." in page
    assert page.count("<th") > 20 and "|" not in re.sub("<svg.*?</svg>", "", page)


def test_a_paper_without_results_shows_what_is_claimed():
    claim = ClaimText("c", "It is *better*.", "Table 1", "loss", "Beats('a', by=1)", "c")
    page = html(paper_page(None, find("z-loss"), [claim]))
    assert "Not measured: It is &#42;better&#42;." in page
    assert "<code>Beats('a', by=1)</code>" in page


def test_markup_in_results_stays_text(gallery):
    page = html(paper_page(gallery["laptop-hostile"], find("z-loss"), []))
    assert "<script" not in page and "<em>" not in page
    assert "&#60;script&#62;" in page


def test_ids_of_the_pictures_on_a_page_are_unique(gallery):
    page = paper_page(gallery["laptop-sigmoid-attention"], find("sigmoid-attention"), [])
    ids = re.findall(r' id="([^"]+)"', page)
    assert ids and len(ids) == len(set(ids))


def test_the_scoreboard_has_a_row_for_every_paper(gallery):
    page = scoreboard(gallery.values(), load_catalog())
    assert page.count("](papers/") == len(load_catalog()) + 2  # one more scale, one fake paper
    assert "comparison" not in page and "compare" not in page
    assert "9 claims of 3 papers: 3 hold, 2 fail, 4 inconclusive." in page
    assert html(page).count("<tr>") == len(load_catalog()) + 3
