"""`heterodox report`: the page and results.json, made again from the stored results."""

import warnings
from pathlib import Path
from typing import Annotated

import typer


def report(
    out: Annotated[
        Path, typer.Option(help="The folder that `heterodox reproduce` or `compare` wrote.")
    ] = Path("heterodox-results"),
    open_browser: Annotated[
        bool, typer.Option("--open", help="Show the page in the browser.")
    ] = False,
) -> None:
    """Write report.html and results.json from the results that are stored.

    \b
    Examples:
      heterodox report --open
      heterodox report --out results
    """
    if not out.is_dir():
        raise ValueError(f"out: {out} given, a folder with results expected")
    page = write_page(out)
    typer.echo(page)
    if open_browser:
        typer.launch(page.absolute().as_uri())


def write_page(out: Path) -> Path:
    """Writes the page of `out`; a damaged result is left out with a line on standard error."""
    from heterodox.report.load import DamagedResultWarning
    from heterodox.report.page import write_report

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DamagedResultWarning)
        try:
            return write_report(out)
        finally:
            for warning in caught:
                typer.echo(f"heterodox: warning: {warning.message}", err=True)
