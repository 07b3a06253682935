"""A matplotlib figure as an SVG element that lives inside a page.

Its colours follow the page (light, dark, print): every colour of `PALETTE` becomes the CSS variable
of that name, with the colour itself where the page sets none; its text takes the page's font. The
same figure gives the same bytes, and the ids of two figures never clash.
"""

import io
import re
import warnings
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

PALETTE = {
    "plot-ink": "#24292e",
    "plot-quiet": "#656d76",
    "plot-rule": "#cdd2d8",
    "plot-holds": "#e2efe7",
    "plot-1": "#0b62a4",
    "plot-2": "#b2480c",
    "plot-3": "#00765b",
    "plot-4": "#97437f",
    "plot-5": "#7a5c00",
    "plot-6": "#4b4fb0",
}
"""The colours that a plot may use, by role, as on white paper. The six colours of lines stay apart
for colour-blind readers, and each comes with a line style of its own."""

RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "heterodox",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
}
"""matplotlib's settings for every plot: text stays text, and "$" is a dollar."""


def inline_svg(figure: Figure, name: str, says: str) -> str:
    """`figure` as one line of SVG.

    Args:
        figure: drawn with colours of `PALETTE` only, under the settings `RC`.
        name: prefix of its ids; unique on the page.
        says: the text that stands for the picture where it cannot be seen.
    """
    stream = io.StringIO()
    figure.patch.set_visible(False)
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        # A reader's browser has other fonts than the one that matplotlib lays text out with.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    svg = ElementTree.fromstring(stream.getvalue())
    used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", stream.getvalue()))
    for parent in list(svg.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)  # its rule for every element would reach the whole page
    for element in svg.iter():
        element.tag = element.tag.split("}")[-1]
        element.tail = None
        if element.tag != "text":
            element.text = None
        element.attrib = {
            key.split("}")[-1]: _attribute(key, value, name)
            for key, value in element.attrib.items()
            if key != "id" or value in used
        }
    width, height = (float(svg.attrib[side].removesuffix("pt")) for side in ("width", "height"))
    svg.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "role": "img",
        "aria-label": says,
        "viewBox": f"0 0 {width:g} {height:g}",
        "width": f"{width * 4 / 3:g}",
        "height": f"{height * 4 / 3:g}",
    }
    return ElementTree.tostring(svg, encoding="unicode")


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key.endswith("href"):
        return f"#{name}-{value.removeprefix('#')}"
    if key == "clip-path":
        return value.replace("url(#", f"url(#{name}-")
    if key == "style":
        value = re.sub(r"font-family: [^;]*", "font-family: inherit", value)
        value = re.sub(r"(font: [^;]*?px) [^;]*", r"\1 sans-serif; font-family: inherit", value)
        for role, colour in PALETTE.items():
            outside = "currentColor" if role == "plot-ink" else colour
            value = value.replace(colour, f"var(--{role}, {outside})")
    return value
