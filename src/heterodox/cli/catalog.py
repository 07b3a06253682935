"""`heterodox list`, `show` and `search`: the catalogue, read without importing torch."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Annotated, Any

import typer

from heterodox.catalog import PaperEntry, find, load_catalog, read_claims, search_catalog

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def list_papers(
    slot: Annotated[
        str | None, typer.Option(help="Only papers that replace this default of deep learning.")
    ] = None,
    available: Annotated[
        bool, typer.Option("--available", help="Only papers whose claims can be run.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the papers, and which of them can be run.

    \b
    Examples:
      heterodox list --available
      heterodox list --slot attention --json
    """
    papers = load_catalog().values()
    slots = sorted({paper.slot for paper in papers})
    if slot is not None and slot not in slots:
        raise ValueError(f"slot: {slot!r} given, one of {', '.join(slots)} expected")
    chosen = [
        paper
        for paper in papers
        if (slot is None or paper.slot == slot) and (paper.available or not available)
    ]
    _print_papers(chosen, as_json)


def search(
    words: Annotated[
        list[str],
        typer.Argument(metavar="WORDS...", help="What to look for; the last may be unfinished."),
    ],
    as_json: Json = False,
) -> None:
    """Search papers, components and claims by words.

    \b
    Examples:
      heterodox search "length extrapolation"
      heterodox search label noise --json
    """
    matches = search_catalog(" ".join(words))
    _print_papers([match.paper for match in matches], as_json)
    if not matches:
        typer.echo(f"heterodox: no paper matches {' '.join(words)!r}", err=True)


def show(
    paper: Annotated[str, typer.Argument(metavar="ID", help="A paper's id from `heterodox list`.")],
    as_json: Json = False,
) -> None:
    """Show a paper, its claims and its components.

    \b
    Examples:
      heterodox show sigmoid-attention
      heterodox show softmax-collapse --json
    """
    entry = find(paper)
    claims = read_claims(entry)
    if as_json:
        _print_json(_record(entry) | {"claims": [asdict(claim) for claim in claims]})
        return
    _heading(f"{entry.id} ({entry.slot}, {entry.year})")
    typer.echo(f"{entry.title}\n{entry.url}\n\n{entry.summary}\n")
    if not entry.available:
        typer.echo("Not available in this version: its claims cannot be run yet.\n")
        _heading("Planned components")
        for component in entry.components:
            typer.echo(f"  {component}")
        return
    _heading("Claims")
    for claim in claims:
        typer.echo(f"  {claim.name}")
        for label in ("says", "reported", "metric", "expects"):
            if getattr(claim, label):
                typer.echo(f"    {label:<10}{getattr(claim, label)}")
    typer.echo()
    _heading("Components")
    for line in _import_lines(entry.components):
        typer.echo(f"  {line}")
    typer.echo()
    _heading("Run")
    typer.echo(f"  heterodox reproduce {entry.id}")


def _import_lines(components: Sequence[str]) -> list[str]:
    """One `from module import Name, ...` a module; `components` are sorted."""
    pairs = [component.split(":") for component in components]
    return [
        f"from {module} import {', '.join(name for _, name in group)}"
        for module, group in groupby(pairs, key=lambda pair: pair[0])
    ]


def _print_papers(papers: Sequence[PaperEntry], as_json: bool) -> None:
    """A table on a terminal, tab-separated lines in a pipe, or JSON."""
    if as_json:
        _print_json([_record(paper) for paper in papers])
        return
    rows = [
        (paper.id, paper.slot, str(paper.year), "yes" if paper.available else "no", paper.summary)
        for paper in papers
    ]
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo("\t".join(row))
    elif rows:
        _print_table(rows)


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("id", "slot", "year", "runs"):
        table.add_column(column, no_wrap=True)
    table.add_column("summary", overflow="fold")
    for row in rows:
        table.add_row(*row, style=None if row[3] == "yes" else "dim")
    Console(highlight=False, markup=False).print(table)


def _heading(text: str) -> None:
    typer.secho(text, bold=True)  # typer drops the style in a pipe


def _record(paper: PaperEntry) -> dict[str, Any]:
    return asdict(paper) | {"url": paper.url, "available": paper.available}


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
