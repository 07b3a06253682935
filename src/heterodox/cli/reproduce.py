"""`heterodox reproduce`: runs what papers claim and says which of it holds here."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heterodox.experiment.scale import Scale

if TYPE_CHECKING:
    from heterodox.experiment.claim import Paper
    from heterodox.experiment.runner import Options

Seeds = Annotated[
    int | None, typer.Option(min=1, help="Paired seeds; default: each claim's own number.")
]
Jobs = Annotated[
    int | None, typer.Option(min=1, help="Processes at once; default: one a core, or 1 on a GPU.")
]
EngineName = Annotated[
    str,
    typer.Option(
        help="local; or ray / dask: the cluster that RAY_ADDRESS / DASK_SCHEDULER_ADDRESS names."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or cuda:N.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Measure again what is stored already.")]
Out = Annotated[
    Path, typer.Option(help="Folder of results; a later run resumes from what it holds.")
]


def reproduce(
    ids: Annotated[
        list[str],
        typer.Argument(metavar="ID...", help="Papers' ids from `heterodox list`, or all."),
    ],
    claim: Annotated[
        list[str] | None, typer.Option(help="Measure this claim only; may be repeated.")
    ] = None,
    scale: Annotated[
        Scale,
        typer.Option(help="smoke: seconds; laptop: minutes; paper: the paper's own, on a GPU."),
    ] = Scale.LAPTOP,
    seeds: Seeds = None,
    jobs: Jobs = None,
    engine: EngineName = "local",
    device: Device = "cpu",
    fresh: Fresh = False,
    out: Out = Path("heterodox-results"),
) -> int:
    """Run papers' claims, and say with numbers which hold here.

    Exit code 0 when every run ended, whatever the verdicts; 1 when a run broke; 2 for wrong input.

    \b
    Examples:
      heterodox reproduce sigmoid-attention --scale smoke
      heterodox reproduce all --seeds 3 --jobs 8 --out results
    """
    from heterodox.catalog import load_catalog
    from heterodox.claims import load
    from heterodox.experiment.runner import Options

    if "all" in ids:
        ids = [entry.id for entry in load_catalog().values() if entry.available]
    papers = [load(paper_id) for paper_id in dict.fromkeys(ids)]
    options = Options(scale, out, seeds, jobs, engine, device, fresh)
    return run_and_report(papers, options, claim or [])


def run_and_report(
    papers: "Sequence[Paper]", options: "Options", claims: Sequence[str] = ()
) -> int:
    """Runs, prints the verdicts, writes the page; the exit code."""
    from rich.console import Console

    from heterodox.cli.report import write_page
    from heterodox.experiment.runner import run
    from heterodox.report.load import PaperResult
    from heterodox.report.terminal import print_verdicts

    progress = Console(stderr=True)
    try:
        outcome = run(papers, options, progress, claims)
    except KeyboardInterrupt:
        progress.print(f"Stopped. What is done is in {options.out}; run the same again to go on.")
        raise
    print_verdicts([PaperResult.from_json(tree) for tree in outcome.trees], Console())
    typer.echo(f"\nReport: {write_page(options.out)}")
    if outcome.broken:
        typer.echo(f"heterodox: {len(outcome.broken)} job(s) broke; see above", err=True)
        return 1
    return 0
