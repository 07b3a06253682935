"""`heterodox data`: which datasets there are, where they lie, and fetching them."""

import json
from typing import Annotated

import typer

from heterodox.data.local import availability, cache_folder, data_folders, locate
from heterodox.data.registry import Dataset, dataset, datasets

app = typer.Typer(no_args_is_help=True)


@app.callback()
def describe() -> None:
    """Datasets: list them, fetch them, find their files.

    \b
    Examples:
      heterodox data list
      heterodox data fetch fashion-mnist tinyshakespeare
    """


@app.command("list")
def list_datasets(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every field.")] = False,
) -> None:
    """List the datasets: size, task, licence, and where each would come from now.

    \b
    embedded     with an installed package
    local        from a folder in $HETERODOX_DATA
    cached       downloaded before
    to download  fetched when it is first needed
    by hand      has no address; put its file into a folder in $HETERODOX_DATA

    \b
    Examples:
      heterodox data list
      heterodox data list --json
    """
    rows = [(entry, availability(entry)) for entry in datasets()]
    if as_json:
        typer.echo(json.dumps([_fields(entry, where) for entry, where in rows], indent=2))
        return
    table = [("NAME", "SIZE", "TASK", "WHERE", "LICENCE")]
    table += [(entry.name, _size(entry), entry.task, where, entry.licence) for entry, where in rows]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    for name, size, task, where, licence in table:
        line = (name.ljust(widths[0]), size.rjust(widths[1]), task.ljust(widths[2]))
        typer.echo("  ".join((*line, where.ljust(widths[3]), licence)))


@app.command()
def fetch(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Names from `heterodox data list`.")
    ],
) -> None:
    """Make datasets available: what is not on this computer yet is downloaded and verified.

    Prints the path of each file; terms of use, where there are any, go to standard error.

    \b
    Examples:
      heterodox data fetch fashion-mnist
      HETERODOX_DATA=~/datasets heterodox data fetch cifar10 ptb
    """
    entries = [dataset(name) for name in names]
    from heterodox.data.download import fetch as fetch_files

    for entry in entries:
        for path in fetch_files(entry.name).values():
            typer.echo(path)
        if entry.terms:
            typer.echo(f"{entry.name}: {entry.terms} (licence: {entry.licence})", err=True)


@app.command()
def where(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `heterodox data list`.")],
) -> None:
    """Say where the files of a dataset lie, or where they would come from.

    \b
    Examples:
      heterodox data where fashion-mnist
      HETERODOX_DATA=~/datasets heterodox data where cifar10
    """
    entry = dataset(name)
    paths = locate(entry)
    if entry.embedded:
        typer.echo(f"{entry.name}: embedded, {entry.citation}")
    for file in entry.files:
        missing = f"missing, to come from {', '.join(file.urls)}" if file.urls else "missing"
        typer.echo(f"{file.name}: {paths[file.name] or missing}")
    if not all(paths.values()):
        searched = ", ".join(str(folder) for folder in [*data_folders(), cache_folder()])
        typer.echo(f"searched {searched}", err=True)
        if entry.by_hand:
            typer.echo(f"{entry.name}: {entry.by_hand}", err=True)


def _fields(entry: Dataset, where: str) -> dict[str, object]:
    return {
        "name": entry.name,
        "title": entry.title,
        "task": entry.task,
        "bytes": entry.bytes,
        "where": where,
        "splits": entry.splits,
        "licence": entry.licence,
        "terms": entry.terms,
        "citation": entry.citation,
        "files": [
            {"path": file.path, "bytes": file.bytes, "sha256": file.sha256, "urls": file.urls}
            for file in entry.files
        ],
    }


def _size(entry: Dataset) -> str:
    return "-" if entry.embedded else f"{entry.bytes / 1e6:.1f} MB"
