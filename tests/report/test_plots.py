import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from tests.report import fake_results

from heterodox.report import plots
from heterodox.report.inline_svg import PALETTE
from heterodox.report.load import Effect, PaperResult


def claim_with(**changes):
    tree = fake_results.claim("c") | changes
    return PaperResult.from_json(fake_results.paper("x", [tree])).claims[0]


def effect_of(numbers, **changes):
    effect = Effect(
        "a − b", dict(enumerate(numbers, 1)), 0.0, -1.0, 1.0, "below", 2.0, "t", "holds"
    )
    return replace(effect, **changes)


def ids(svg):
    return re.findall(r' id="([^"]+)"', svg)


def x_of(svg, name):
    """Where markers of a kind were put: the abscissae of `use` elements by the path they show."""
    root = ElementTree.fromstring(re.sub(r' xmlns="[^"]+"', "", svg))
    shapes = {path.get("id"): path.get("d") for path in root.iter("path") if path.get("id")}
    found = []
    for use in root.iter("use"):
        shape = shapes[use.get("href")[1:]]
        kind = "ring" if "C" in shape else "diamond" if shape.count("L") == 3 else "other"
        if kind == name:
            found.append(float(use.get("x")))
    return found


def test_the_same_claim_gives_the_same_bytes():
    claim = claim_with()
    assert plots.interval_plot(claim, "p") == plots.interval_plot(claim, "p")
    assert plots.curve_plot(claim, "p") == plots.curve_plot(claim, "p")


def test_ids_of_two_pictures_never_clash():
    first, second = (plots.curve_plot(claim_with(), name) for name in ("p", "q"))
    assert ids(first) and not set(ids(first)) & set(ids(second))
    assert len(ids(first)) == len(set(ids(first)))


def test_every_reference_inside_a_picture_leads_somewhere():
    for svg in (plots.interval_plot(claim_with(), "p"), plots.curve_plot(claim_with(), "p")):
        targets = set(re.findall(r'href="#([^"]+)"', svg)) | set(
            re.findall(r"url\(#([^)]+)\)", svg)
        )
        assert targets == set(ids(svg))


def test_colours_are_those_of_the_page():
    for svg in (plots.interval_plot(claim_with(), "p"), plots.curve_plot(claim_with(), "p")):
        without_fallbacks = re.sub(r"var\(--plot-[a-z0-9]+, [^)]+\)", "", svg)
        assert not re.findall(r"#[0-9a-f]{6}\b", without_fallbacks)
        assert {name for name in PALETTE if f"var(--{name}," in svg} >= {"plot-ink", "plot-1"}


def test_a_ring_stands_at_each_seed_and_the_diamond_at_their_mean():
    claim = replace(claim_with(), effects=[effect_of([-1.0, 0.5, 1.0], mean=0.25)])
    svg = plots.interval_plot(claim, "p")
    rings, (diamond,) = x_of(svg, "ring"), x_of(svg, "diamond")
    left, middle, right = rings
    assert middle - left == pytest.approx(3 * (right - middle))
    assert diamond == pytest.approx(left + 0.625 * (right - left))


@pytest.mark.parametrize(("side", "first"), [("below", True), ("above", False)])
def test_the_side_on_which_the_claim_holds_is_shaded(side, first):
    claim = replace(claim_with(), effects=[effect_of([0.0], side=side, threshold=0.0)])
    svg = plots.interval_plot(claim, "p")
    shade = next(d for d, style in paths(svg) if "plot-holds" in style)
    xs = [float(x) for x in re.findall(r"[ML] ([\d.]+)", shade)]
    line = next(d for d, style in paths(svg) if "plot-quiet" in style and "dasharray" in style)
    threshold = float(re.search(r"M ([\d.]+)", line)[1])
    assert (max(xs) if first else min(xs)) == pytest.approx(threshold, abs=0.01)
    assert (min(xs) < threshold - 50) == first


def paths(svg):
    root = ElementTree.fromstring(re.sub(r' xmlns="[^"]+"', "", svg))
    return [(path.get("d"), path.get("style") or "") for path in root.iter("path")]


def test_two_bounds_of_one_interval_share_a_row():
    bounds = [
        effect_of([0.0, 0.1], side="below", threshold=2.0),
        effect_of([0.0, 0.1], side="above", threshold=-2.0),
    ]
    one = plots.interval_plot(replace(claim_with(), effects=bounds[:1]), "p")
    both = plots.interval_plot(replace(claim_with(), effects=bounds), "p")
    height = re.compile(r' height="([\d.]+)"')
    assert height.search(one)[1] == height.search(both)[1]
    assert "holds below 2 and above −2" in both


@pytest.mark.parametrize(
    "effect",
    [
        effect_of([math.nan, 1.0], mean=math.nan, low=-math.inf, high=math.inf),
        effect_of([math.inf], mean=math.inf, low=math.inf, high=math.inf),
        effect_of([], mean=math.nan, low=math.nan, high=math.nan),
        effect_of([1e308, -1e308], mean=0.0, low=-1e308, high=1e308),
        effect_of([1e-300, 1e-299], mean=5e-300, low=1e-300, high=1e-299, threshold=1e-290),
        effect_of([1.0, 1.0], mean=1.0, low=1.0, high=1.0, threshold=1.0),
        effect_of([0.01, 1e6], mean=100.0, low=0.01, high=1e7, threshold=1.0),
        effect_of([5.0], mean=5.0, low=4.0, high=6.0, threshold=math.inf),
    ],
)
@pytest.mark.filterwarnings("error")
def test_numbers_at_the_edge_can_be_drawn(effect):
    svg = plots.interval_plot(replace(claim_with(), effects=[effect]), "p")
    ElementTree.fromstring(svg)
    assert "nan" not in re.sub(r'aria-label="[^"]*"|<text.*?</text>', "", svg).lower()


def test_text_of_the_claim_is_text_in_the_picture():
    label = '<b>&amp; $x_1$ \\frac "q"'
    svg = plots.interval_plot(replace(claim_with(), effects=[effect_of([0.0], label=label)]), "p")
    root = ElementTree.fromstring(svg)
    assert label in [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert label in root.get("aria-label")


@pytest.mark.parametrize(
    "curves",
    [
        {},
        {"a": {}},
        {"a": {"1": {}}},
        {"a": {"1": {"loss": []}}},
        {"a": {"1": {"loss": [["NaN", 1], [2, "Infinity"]]}}},
        {"a": {"1": {"loss": [[0, 1]]}}},
        {"a": {"1": {"loss": [[0, 1], [1, 1e300]]}, "2": {"loss": [[5, 1], [6, -1e300]]}}},
        {"a": {"1": {"loss": [[0, 1e9], [1, 1e-9]]}}, "b": {"1": {"other": [[1, 2], [2, 3]]}}},
        {f"arm {i}": {"1": {"loss": [[0, i], [1, i + 1]]}} for i in range(14)},
        {"a": {"1": {"loss": [[2**i, i + 1] for i in range(12)]}}},
        {"a": {"1": {"loss": [[i, i % 7] for i in range(5000)]}}},
    ],
)
@pytest.mark.filterwarnings("error")
def test_any_curves_can_be_drawn(curves):
    svg = plots.curve_plot(claim_with(curves=curves), "p")
    assert not svg or ElementTree.fromstring(svg) is not None
    assert len(svg) < 60_000


def test_no_curves_and_no_effects_give_no_picture():
    claim = claim_with(curves={}, effects=[])
    assert plots.curve_plot(claim, "p") == plots.interval_plot(claim, "p") == ""


def test_the_mean_line_is_where_all_seeds_are_and_has_gaps_where_one_diverged():
    nan = math.nan
    first = plots._thinned([(0.0, 0.0), (2.0, 2.0), (4.0, nan)])
    second = plots._thinned([(1.0, 3.0), (2.0, 4.0), (4.0, 8.0), (9.0, 9.0)])
    x, y = plots._mean_line([first, second])
    assert x.tolist() == [1.0, 2.0, 4.0]
    assert y[:2].tolist() == [2.0, 3.0] and math.isnan(y[2])


def test_fourteen_arms_have_fourteen_looks():
    looks = {(plots.COLOURS[i % 6], str(plots._dashes(i))) for i in range(14)}
    assert len(looks) == 14


def test_the_picture_of_a_paper_is_a_png(tmp_path, gallery):
    for result in gallery.values():
        plots.save_png(result, tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
