"""`heterodox tune`: the grid behind the learning rates that a claims module states."""

from pathlib import Path
from typing import Annotated

import typer

from heterodox.cli.reproduce import Device, EngineName, Fresh, Jobs, Out
from heterodox.experiment.scale import Scale


def tune(
    paper: Annotated[str, typer.Argument(metavar="ID", help="A paper's id from `heterodox list`.")],
    scale: Annotated[Scale, typer.Option(help="At which scale to tune.")] = Scale.LAPTOP,
    jobs: Jobs = None,
    engine: EngineName = "local",
    device: Device = "cpu",
    fresh: Fresh = False,
    out: Out = Path("heterodox-results"),
) -> None:
    """Try the grid of every arm on seed 0, and say what is best.

    Verdicts use other seeds. The best values stand in the paper's claims module.

    \b
    Examples:
      heterodox tune sigmoid-attention --out results
      heterodox tune softplus-attention --scale smoke
    """
    from heterodox.claims import load, tunings
    from heterodox.experiment.runner import Options
    from heterodox.experiment.tuning import tune as run

    load(paper)
    chosen = tunings(paper)
    if not chosen:
        raise ValueError(f"id: {paper!r} given, whose claims have nothing to tune")
    options = Options(scale, out, None, jobs, engine, device, fresh)
    tree = run(paper, chosen, options)
    for tuning in chosen:
        result = tree["measures"][tuning.name]
        for arm, values in result["tried"].items():
            line = ", ".join(f"{rate}: {value}" for rate, value in values.items())
            best = result["best"][arm]
            note = "" if best == tuning.chosen[arm] else f" (the module has {tuning.chosen[arm]:g})"
            typer.echo(f"{tuning.name}, {arm}: {line} -> {best:g}{note}")
