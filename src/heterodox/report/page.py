"""The report as one HTML file that needs no network, and all its numbers as `results.json`."""

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from heterodox.catalog import PaperEntry, load_catalog
from heterodox.experiment.scale import Scale
from heterodox.experiment.store import slug, write_json, write_text
from heterodox.report import tables, wording
from heterodox.report.load import SCHEMA, VERDICTS, ClaimResult, PaperResult, load_results
from heterodox.report.plots import curve_plot, interval_plot

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class ClaimSection:
    """A claim, its place on the page and its pictures."""

    claim: ClaimResult
    anchor: str
    interval: Markup
    curves: Markup
    values: tables.SeedTable | None
    readings: list[tables.SeedTable]


@dataclass(frozen=True)
class Section:
    """A paper or comparison at one scale: a row of the index and a part of the page."""

    result: PaperResult
    claims: list[ClaimSection]

    @property
    def searched(self) -> str:
        """The text that the search box looks through."""
        paper = self.result.paper
        words = [paper.id, paper.title, paper.summary, paper.slot]
        words += [claim.says for claim in self.result.claims]
        return " ".join(words).casefold()

    @property
    def verdicts(self) -> list[str]:
        found = [verdict for verdict, count in self.result.tally.items() if count]
        return found or [NOT_MEASURED]


def write_report(out: Path) -> Path:
    """Writes `<out>/report.html` and `<out>/results.json` from the results under `out`.

    Both are replaced whole: whoever reads them meanwhile sees the old file or the new one.

    Args:
        out: the folder that the runner wrote to.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: `out` is not a folder.
        ValueError: it holds no result.
    """
    results = load_results(out)
    if not results:
        raise ValueError(
            f"out: no results in {out}, a folder that `heterodox reproduce` wrote expected"
        )
    page = out / "report.html"
    write_text(page, render(results, load_catalog().values()))
    write_json(
        out / "results.json", {"schema": SCHEMA, "papers": [result.to_json() for result in results]}
    )
    return page


def render(results: list[PaperResult], catalog: Iterable[PaperEntry]) -> str:
    """The page over `results`; the papers of `catalog` that have none are listed as not measured.

    Example:
        >>> render([], []).splitlines()[0]
        '<!doctype html>'
    """
    environment = Environment(
        loader=PackageLoader("heterodox", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "MARKS": wording.MARKS,
        "arm_means": wording.arm_means,
        "duration": wording.duration,
        "measured": wording.measured,
        "tally": wording.tally,
    }
    sections = [_section(result) for result in results]
    measured = {result.paper.id for result in results}
    missing = [entry for entry in catalog if entry.id not in measured]
    claims = [claim for result in results for claim in result.claims]
    folder = files("heterodox.report")
    script = (folder / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        sections=sections,
        missing=sorted(missing, key=lambda entry: entry.title.casefold()),
        slots=sorted(
            {*(s.result.paper.slot for s in sections), *(entry.slot for entry in missing)}
        ),
        scales=[scale for scale in Scale if any(s.result.scale == scale for s in sections)],
        verdicts=[*VERDICTS, NOT_MEASURED],
        claims=len(claims),
        counts={v: sum(claim.verdict == v for claim in claims) for v in VERDICTS},
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _section(result: PaperResult) -> Section:
    return Section(result, [_claim_section(result, claim) for claim in result.claims])


def _claim_section(result: PaperResult, claim: ClaimResult) -> ClaimSection:
    anchor = f"{result.key}:{slug(claim.name)}"
    return ClaimSection(
        claim=claim,
        anchor=anchor,
        interval=Markup(interval_plot(claim, f"{anchor}:interval")),
        curves=Markup(curve_plot(claim, f"{anchor}:curves")),
        values=tables.value_table(claim),
        readings=tables.reading_tables(claim),
    )
