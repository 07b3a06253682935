"""The page in headless Chromium, as a reader uses it."""

import os
import shutil
import time
from functools import partial

import pytest
from tests.report import fake_results

from heterodox.report import page as page_module
from heterodox.report import plots

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on the path")

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
VISIBLE = "table.index tbody tr:not([hidden])"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, gallery_folder):
    """Opens the report; at the end nothing may have been complained about or fetched."""
    contexts, complaints, requests = [], [], []

    def open_page(place="", folder=gallery_folder, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((folder / "report.html").as_uri() + place)
        return page

    yield open_page
    assert complaints == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
    for context in contexts:
        context.close()


def titles(page):
    return [row.strip().split("\n")[0].strip() for row in page.locator(VISIBLE).all_inner_texts()]


def test_it_loads_in_silence_and_runs_no_script_of_the_results(open_page):
    page = open_page()
    assert page.title() == "heterodox: what the papers claim, measured"
    assert page.evaluate("window.hacked") is None
    assert page.locator("#count").inner_text() == f"{page.locator(VISIBLE).count()} shown"


def test_a_verdict_filters_rows_and_sections(open_page):
    page = open_page()
    page.select_option("#verdict", "fails")
    assert page.locator(VISIBLE).count() == 3
    assert page.locator("section.paper:visible").count() == 3
    assert page.locator("#laptop-z-loss").is_hidden()
    page.select_option("#verdict", "not measured")
    assert page.locator(VISIBLE).count() == page.locator("tr.missing").count() > 50
    assert page.locator("section.paper:visible").count() == 0


def test_slot_scale_and_search_narrow_together_and_clear_brings_all_back(open_page):
    page = open_page()
    everything = page.locator(VISIBLE).count()
    page.select_option("#slot", "attention")
    page.select_option("#scale", "laptop")
    page.fill("#q", "SIGMOID normalised")
    assert [title[:8] for title in titles(page)] == ["language", "Theory, "]
    page.fill("#q", "no such words")
    assert page.locator("#none").is_visible()
    page.click("#clear")
    assert page.locator(VISIBLE).count() == everything
    assert page.locator("#clear").is_hidden()


def test_the_address_keeps_the_filters(open_page):
    page = open_page()
    page.select_option("#slot", "loss")
    page.fill("#q", "z-loss & more")
    address = page.evaluate("location.href")
    assert address.endswith("#q=z-loss+%26+more&slot=loss")
    again = open_page(address[address.index("#") :])
    assert again.input_value("#q") == "z-loss & more"
    assert again.input_value("#slot") == "loss"


def test_an_unknown_value_in_the_address_is_ignored(open_page):
    page = open_page("#slot=nonsense&verdict=%E0%A4%A")
    assert page.input_value("#slot") == page.input_value("#verdict") == ""
    assert page.locator(VISIBLE).count() > 50


def test_a_link_leads_to_its_paper_even_if_a_filter_hides_it(open_page):
    page = open_page()
    page.click("table.index a[href='#laptop-z-loss']")
    top = page.locator("#laptop-z-loss").bounding_box()["y"]
    assert -5 < top < 100
    page.select_option("#verdict", "fails")
    page.evaluate("location.hash = 'laptop-z-loss:diverging'")
    page.locator("#laptop-z-loss").wait_for(state="visible")
    assert page.input_value("#verdict") == ""


def test_a_claim_can_be_addressed(open_page):
    page = open_page("#laptop-sigmoid-attention:vision_parity")
    box = page.locator("[id='laptop-sigmoid-attention:vision_parity']").bounding_box()
    assert -5 < box["y"] < 100


def test_slash_leads_to_the_search_and_is_a_letter_in_it(open_page):
    page = open_page()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.type("a/b")
    assert page.input_value("#q") == "a/b"


def test_the_keyboard_reaches_everything_in_order_and_shows_where_it_is(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    seen = []
    for _ in range(8):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
    assert seen == ["theme", "SUMMARY", "q", "slot", "verdict", "scale", "A", "A"]
    details = page.locator("#laptop-z-loss details").first
    details.locator("summary").focus()
    page.keyboard.press("Enter")
    assert details.get_attribute("open") is not None


def test_the_skip_link_skips(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "index"


def ground(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_it_follows_the_systems_colours_until_the_reader_chooses(open_page):
    light, dark = (open_page(color_scheme=scheme) for scheme in ("light", "dark"))
    assert ground(light) == "rgb(253, 253, 251)"
    assert ground(dark) == "rgb(21, 24, 27)"
    light.click("#theme")
    assert ground(light) == ground(dark)
    light.reload()
    assert ground(light) == ground(dark)
    assert light.locator("#theme").inner_text() == "Light"


def test_plots_take_the_colours_of_the_page(open_page):
    colours = []
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme)
        text = page.locator("#laptop-z-loss .plot text", has_text="sigmoid − softmax").first
        colours.append(text.evaluate("element => getComputedStyle(element).fill"))
        assert colours[-1] == page.evaluate("getComputedStyle(document.body).color")
    assert colours[0] != colours[1]


@pytest.mark.parametrize("width", [320, 375, 640, 900])
def test_a_narrow_window_scrolls_nothing_but_wide_tables(open_page, width):
    page = open_page(viewport={"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_paper_shows_every_detail_and_no_controls(open_page, tmp_path):
    page = open_page(color_scheme="dark")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.emulate_media(media="print")
    assert page.locator("#filters").is_hidden() and page.locator("#theme").is_hidden()
    assert page.locator("#laptop-z-loss table.numbers").first.is_visible()
    assert ground(page) == "rgb(253, 253, 251)"
    page.emulate_media(media="screen")
    pdf = page.pdf(path=tmp_path / "report.pdf")
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") > 5
    assert page.locator("details[open]").count() == 0


def test_without_scripts_it_is_a_plain_page(open_page):
    page = open_page(java_script_enabled=False)
    assert page.locator("#filters").is_hidden()
    assert page.locator("section.paper").last.is_visible()


def test_all_papers_of_the_catalogue_make_a_page_that_stays_quick(
    open_page, gallery, tmp_path, monkeypatch
):
    claim = gallery["laptop-sigmoid-attention"].claims[0]
    for draw in (plots.interval_plot, plots.curve_plot):
        drawn = draw(claim, "NAME")  # once, and as often as needed under other names
        copy = partial(lambda drawn, _, name: drawn.replace("NAME", name), drawn)
        monkeypatch.setattr(page_module, draw.__name__, copy)
    out = fake_results.write(tmp_path, fake_results.many())
    page_module.write_report(out)
    assert (out / "report.html").stat().st_size < 25e6
    start = time.monotonic()
    page = open_page(folder=out)
    assert page.locator("section.paper").count() == 57
    assert time.monotonic() - start < 30
    page.select_option("#slot", "loss")
    assert page.locator("section.paper:visible").count() == 8
