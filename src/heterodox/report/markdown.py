"""Pages of the documentation, generated from stored results: one a paper, and the scoreboard."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from heterodox.catalog import ClaimText, PaperEntry
from heterodox.experiment.store import slug
from heterodox.report.load import ClaimResult, PaperFacts, PaperResult
from heterodox.report.plots import curve_plot, interval_plot
from heterodox.report.tables import SeedTable, value_table
from heterodox.report.wording import MARKS, arm_means, duration, measured, tally


def paper_page(
    result: PaperResult | None, entry: PaperEntry, claims: Sequence[ClaimText], notes: str = ""
) -> str:
    """The Markdown page of one paper.

    Args:
        result: what was measured; None: nothing yet.
        entry: the paper in the catalogue.
        claims: its claims as written; those without a measurement are listed too.
        notes: Markdown that is put before the claims.

    Example:
        >>> from heterodox.catalog import find
        >>> paper_page(None, find("attention-svm"), []).splitlines()[0]
        '# Transformers as Support Vector Machines'
    """
    parts = [
        f"# {_plain(entry.title)}",
        _plain(entry.summary),
        f"[arXiv {entry.arxiv}]({entry.url}), {entry.year} · replaces: {_plain(entry.slot)}",
    ]
    if entry.components:
        parts.append("\n".join(f"- `{name.replace(':', '.')}`" for name in entry.components))
    if notes:
        parts.append(notes.strip())
    done = {claim.name: claim for claim in result.claims} if result else {}
    names = [*done, *(claim.name for claim in claims if claim.name not in done)]
    if names:
        parts += ["## Claims", f"```\nheterodox reproduce {entry.id}\n```"]
    written = {claim.name: claim for claim in claims}
    for name in names:
        parts += _measured_claim(done[name]) if name in done else _unmeasured_claim(written[name])
    if result and result.claims:
        facts = [f"| {_plain(k)} | {_plain(v)} |" for k, v in result.environment.items()]
        parts.append("\n".join(["## Environment", "", "| | |", "| --- | --- |", *facts]))
        parts.append(f"Measured at {result.scale} scale, {result.written[:10]}.")
    return "\n\n".join(parts) + "\n"


def scoreboard(results: Iterable[PaperResult], catalog: Mapping[str, PaperEntry]) -> str:
    """The Markdown table of all verdicts, papers without results at its end.

    Args:
        results: one or more a paper, any scale.
        catalog: all papers by id.

    Example:
        >>> scoreboard([], {}).splitlines()[0]
        '# Scoreboard'
    """
    results = [result for result in results if result.kind == "paper"]
    claims = [claim for result in results for claim in result.claims]
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in MARKS}
    rows = [
        f"| {_link(result.paper)} | {_plain(result.paper.slot)} | {result.scale} "
        f"| {' '.join(MARKS[claim.verdict] for claim in result.claims)} "
        f"| {tally(result.tally)} |"
        for result in results
    ]
    known = {result.paper.id for result in results}
    rows += [
        f"| {_link(entry)} | {_plain(entry.slot)} | | | not measured |"
        for entry in catalog.values()
        if entry.id not in known
    ]
    head = ["| Paper | Slot | Scale | Claims | |", "| --- | --- | --- | --- | --- |"]
    return "\n".join(
        [
            "# Scoreboard",
            "",
            f"{len(claims)} claims of {len(known)} papers: {tally(counts)}."
            if claims
            else "Nothing is measured yet.",
            "",
            *head,
            *rows,
            "",
        ]
    )


def _measured_claim(claim: ClaimResult) -> Iterator[str]:
    yield f"### {MARKS[claim.verdict]} {claim.verdict}: {_plain(claim.says)}"
    yield _plain(claim.reason) + "."
    if claim.effects:
        yield f"<figure>{interval_plot(claim, f'{slug(claim.name)}-interval')}</figure>"
    reported = _plain(claim.reported) or "no number"
    here = ", ".join(f"{_plain(arm)} {mean}" for arm, mean in arm_means(claim)) or "nothing yet"
    yield "\n".join(
        [
            "| Reported by the paper | Measured here |",
            "| --- | --- |",
            f"| {reported} | {here} ({_plain(claim.metric)}, {claim.better} is better) |",
        ]
    )
    facts = {"Expected": claim.expects, "Our set-up": claim.set_up, "What differs": claim.differs}
    for label, text in facts.items():
        if text:
            yield f"**{label}.** {_plain(text)}"
    for effect in claim.effects if len(claim.effects) > 1 else []:
        yield f"- {_plain(measured(effect))}: {effect.verdict}"
    for job in claim.failed:
        yield f"- broke: {_plain(job.arm)}, seed {job.seed}: {_plain(job.error)}"
    if curves := curve_plot(claim, f"{slug(claim.name)}-curves"):
        yield f"<details><summary>Curves</summary><figure>{curves}</figure></details>"
    if table := value_table(claim):
        yield _seed_table(table)
    yield f"All runs together took {duration(claim.seconds)}."


def _unmeasured_claim(claim: ClaimText) -> Iterator[str]:
    yield f"### Not measured: {_plain(claim.says)}"
    if claim.reported:
        yield f"**Reported.** {_plain(claim.reported)}"
    if claim.expects:
        yield f"**Expected.** `{' '.join(claim.expects.split())}` of {_plain(claim.metric)}"


def _seed_table(table: SeedTable) -> str:
    head = ["arm", *(f"seed {seed}" for seed in table.seeds), "mean"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    lines += [[_plain(arm), *cells, mean] for arm, cells, mean in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _link(paper: PaperEntry | PaperFacts) -> str:
    return f"[{_plain(paper.title)}](papers/{paper.id}.md)"


def _plain(text: str) -> str:
    """`text` on one line, without characters that mean something to Markdown or HTML."""
    line = " ".join(text.split())
    return re.sub(r"[^\w\s.,;:()/%+−?'-]", lambda m: f"&#{ord(m[0])};", line).replace("_", "&#95;")
