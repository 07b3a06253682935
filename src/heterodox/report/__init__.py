"""Verdicts made readable: a terminal table, results.json, one self-contained page, pictures."""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.report.load import PaperResult, load_results
    from heterodox.report.page import write_report
    from heterodox.report.plots import save_png
    from heterodox.report.terminal import print_verdicts

_EXPORTS = {
    "PaperResult": "heterodox.report.load",
    "load_results": "heterodox.report.load",
    "print_verdicts": "heterodox.report.terminal",
    "save_png": "heterodox.report.plots",
    "write_report": "heterodox.report.page",
}

__all__ = ["PaperResult", "load_results", "print_verdicts", "save_png", "write_report"]

__getattr__ = lazy_exports(__name__, _EXPORTS)
