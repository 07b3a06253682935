import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from tests.report import fake_results

from heterodox.catalog import load_catalog
from heterodox.report.load import PaperResult, load_results
from heterodox.report.page import render, write_report

VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """The elements and text of a page; fails if its tags do not nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.words, self._open = [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text(gallery_folder):
    return (gallery_folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def strict(text):
    def refuse(token):
        raise AssertionError(token)

    return json.loads(text, parse_constant=refuse)


def test_results_json_is_strict_and_holds_every_number_but_the_curves(gallery_folder):
    tree = strict((gallery_folder / "results.json").read_text(encoding="utf-8"))
    assert tree["schema"] == 1 and len(tree["papers"]) == 5
    wanted = {(tree["scale"], tree["paper"]["id"]): tree for tree in fake_results.gallery()}
    for found in tree["papers"]:
        source = wanted[found["scale"], found["paper"]["id"]]
        for claim in source["claims"]:
            del claim["curves"]
        assert found == source


def test_ids_are_unique_and_every_inner_link_leads_to_one(page):
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    inner = [a["href"][1:] for a in page.all("a") + page.all("use") if a["href"][0] == "#"]
    assert inner and set(inner) <= set(ids)
    for _, attributes in page.elements:
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in ids


def test_nothing_is_fetched(text, page):
    assert page.all("img") == page.all("iframe") == []
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    assert all("src" not in script for script in page.all("script"))
    assert "@import" not in text and "url(http" not in text
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv")]
    assert policy.startswith("default-src 'none';")


def test_the_policy_lets_exactly_our_script_run(text):
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_markup_in_results_stays_text(page):
    hostile = fake_results.gallery()[3]["paper"]["title"]
    assert len(page.all("script")) == 1 and len(page.all("style")) == 1
    assert sum(hostile in words for words in page.words) >= 8


@pytest.mark.parametrize(
    "needle",
    [
        "Reported by the paper",
        "Measured here",
        "1B parameters on RedPajama",
        "10 000 times fewer parameters",
        "A two-layer transformer",
        "sigmoid no worse than softmax + 0.02",
        "95% t interval over 5 paired seeds",
        "2 runs broke, so nothing is concluded",
        "RuntimeError: shape (2, 3) is invalid",
        "No interval: some runs diverged (5 paired seeds)",
        "AMD EPYC 7B13",
        "loss at 8x",
        "10 claims: 3 hold, 3 fail, 4 inconclusive.",
    ],
)
def test_the_page_tells(page, needle):
    assert needle in re.sub(r"\s+", " ", " ".join(page.words))


def test_papers_without_results_are_listed_as_not_measured(page):
    rows = [row for row in page.all("tr") if row.get("class") == "missing"]
    assert len(rows) == len(load_catalog()) - 2
    assert {row["data-verdicts"] for row in rows} == {"not measured"}


def test_the_page_depends_on_the_results_only(gallery_folder, text):
    assert render(load_results(gallery_folder), load_catalog().values()) == text


def test_a_comparison_has_no_number_of_a_paper_beside_it():
    tree = fake_results.gallery()[4]
    page = Page(render([PaperResult.from_json(tree)], []))
    assert "Measured here" in page.words and "Reported by the paper" not in page.words


def test_pictures_have_a_text_alternative(page):
    pictures = page.all("svg")
    assert pictures and all(p["role"] == "img" and p["aria-label"] for p in pictures)
    assert any("sigmoid − softmax: " in p["aria-label"] for p in pictures)


def test_a_second_report_replaces_the_first_and_leaves_nothing_behind(tmp_path):
    out = fake_results.write(tmp_path, [fake_results.paper("a", [fake_results.claim("c")])])
    (out / "report.html").write_text("old")
    write_report(out)
    assert sorted(path.name for path in out.iterdir()) == ["laptop", "report.html", "results.json"]
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_an_empty_folder_gives_an_error_and_no_page(tmp_path):
    with pytest.raises(ValueError, match=r"^out: no results"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def contrast(one, other):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_its_ground_as_wcag_aa_asks(text, scheme):
    colours = {
        name: pair[scheme]
        for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", text)
    }
    for name in ("ink", "quiet", "link"):
        assert contrast(colours[name], colours["paper"]) >= 4.5
        assert contrast(colours[name], colours["raised"]) >= 4.5
    for verdict in ("holds", "fails", "inconclusive"):
        assert contrast(colours[verdict], colours[f"{verdict}-ground"]) >= 4.5
    for ground in ("paper", "plot-holds"):
        assert contrast(colours["ink"], colours[ground]) >= 4.5
        assert contrast(colours["quiet"], colours[ground]) >= 4.5
    for i in range(1, 7):
        assert contrast(colours[f"plot-{i}"], colours["paper"]) >= 4.5
    assert contrast(colours["field"], colours["paper"]) >= 3
