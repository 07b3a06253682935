"""`heterodox bench`: what a slot's components cost beside the default and other libraries."""

import json
from pathlib import Path
from typing import Annotated

import typer

from heterodox.bench import BENCHES, PEERS, SIZES


def _listed(names: dict[str, tuple[str, ...]]) -> str:
    return "; ".join(f"{slot}: {', '.join(of_slot)}" for slot, of_slot in names.items())


PEER_NAMES = _listed({slot: tuple(peers) for slot, peers in PEERS.items()})


def bench(
    slot: Annotated[str, typer.Argument(metavar="SLOT", help=f"One of {', '.join(BENCHES)}.")],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="PEER,...", help=f"Default: all peers that are installed. {PEER_NAMES}."
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes", "--lengths", metavar="SIZE,...", help=f"Defaults: {_listed(SIZES)}."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or cuda:N.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch; default: one a core.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="Measured time of each contestant, at least, in each case.")
    ] = 2.0,
    repeat: Annotated[
        int, typer.Option(min=1, help="Rounds at least; six are needed for an interval.")
    ] = 7,
    limit: Annotated[
        float, typer.Option(min=0, help="Seconds after which a case begins no further round.")
    ] = 300.0,
    out: Annotated[Path, typer.Option(help="Folder of results: a file a slot and machine.")] = Path(
        "benchmarks/results"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure time and peak memory of a slot's components, turn by turn with the default and peers.

    \b
    Examples:
      heterodox bench attention --lengths 512,2048 --seconds 0.5
      heterodox bench optimizer --against perp-grad-loop --threads 1
    """
    from rich.console import Console

    from heterodox.bench.run import Options, check_writable, run_bench, write_bench
    from heterodox.bench.tables import print_bench, skipped
    from heterodox.training.progress import progress_bar

    options = Options(_split(against), _split(sizes), device, threads, seconds, repeat, limit)
    BENCHES.where(slot)
    check_writable(out)
    with progress_bar(f"bench {slot}"):
        tree = run_bench(slot, options)
    path = write_bench(tree, out)
    for line in skipped(tree):
        typer.echo(f"heterodox: warning: {line}", err=True)
    if as_json:
        typer.echo(json.dumps(tree, indent=1))
        return
    console = Console()
    if not console.is_terminal:
        console.width = 200
    print_bench(tree, console)
    typer.echo(f"\nResults: {path}")


def _split(names: str | None) -> list[str] | None:
    if names is None:
        return None
    return [name.strip() for name in names.split(",") if name.strip()]
