"""`heterodox compare`: alternatives side by side on a task, with the user's own data."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heterodox.cli.reproduce import Device, EngineName, Fresh, Jobs, Out, run_and_report
from heterodox.experiment.scale import Scale
from heterodox.tasks import TASKS, Task

if TYPE_CHECKING:
    from heterodox.experiment.runner import Options

app = typer.Typer(no_args_is_help=True)


@app.callback()
def compare() -> None:
    """Put alternatives side by side on a task, with your own data.

    Names of a slot are separated by commas; the first arm is the baseline.

    \b
    Examples:
      heterodox compare language --attention softmax,sigmoid,softplus --data my.txt
      heterodox compare images --model vit --attention softmax,sigmoid --data my_images/
    """


@dataclass(frozen=True)
class Request:
    """What the user asked for, beside the slots."""

    data: Path | None
    learning_rate: str | None
    changes: Sequence[str]
    seeds: int
    options: "Options"


def compare_task(task: Task, chosen: Mapping[str, list[str]], request: Request) -> int:
    from heterodox.tasks.comparison import arms_of, comparison, tuned_rates, tuning

    changes = dict(_pair(change) for change in request.changes)
    rates = _rates(request.learning_rate)
    shared: dict[str, Any] = {
        "scale": request.options.scale,
        "data": request.data,
        "changes": changes,
    }
    best = None
    if len(rates) > 1:
        from heterodox.experiment.runner import measure_once

        measured = measure_once(
            tuning(task, chosen, rates=rates, **shared), f"tune-{task.name}", request.options
        )
        best = tuned_rates(task, list(arms_of(task, chosen)), rates, measured)
        for arm, rate in best.items():
            typer.echo(
                f"learning rate of {arm}: {rate:g} (best of {request.learning_rate}, seed 0)"
            )
    paper = comparison(task, chosen, rates=rates, best_rates=best, seeds=request.seeds, **shared)
    return run_and_report([paper], replace(request.options, seeds=request.seeds))


def _pair(change: str) -> tuple[str, str]:
    name, separator, value = change.partition("=")
    if not separator:
        raise ValueError(f"set: {change!r} given, NAME=VALUE expected")
    return name.strip(), value.strip()


def _rates(text: str | None) -> list[float]:
    if text is None:
        return []
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or min(rates) <= 0 or len(set(rates)) != len(rates):
        raise ValueError(
            f"learning-rate: {text!r} given, positive numbers separated by commas expected"
        )
    return rates


def _command(task: Task) -> Callable[..., int]:
    """The task's own command, with an option for each of its slots."""

    def run(**given: Any) -> int:
        from heterodox.experiment.runner import Options

        chosen = {
            slot: [name.strip() for name in given[slot].split(",")]
            for slot in task.slots
            if given[slot] is not None
        }
        options = Options(
            scale=given["scale"],
            out=given["out"],
            jobs=given["jobs"],
            engine=given["engine"],
            device=given["device"],
            fresh=given["fresh"],
        )
        request = Request(
            given.get("data"), given["learning_rate"], given["set"] or [], given["seeds"], options
        )
        return compare_task(task, chosen, request)

    parameters: dict[str, tuple[Any, Any]] = {
        slot: (Annotated[str | None, typer.Option(help=", ".join(names))], None)
        for slot, names in task.slots.items()
    }
    if task.data is not None:
        help_text = f"{task.accepts}; default {task.data}."
        parameters["data"] = (Annotated[Path | None, typer.Option(help=help_text)], None)
    parameters |= {
        "learning_rate": (
            Annotated[
                str | None,
                typer.Option(
                    help="One for all arms, or several: each arm picks its best on seed 0."
                ),
            ],
            None,
        ),
        "seeds": (Annotated[int, typer.Option(min=1, help="Paired seeds.")], 3),
        "scale": (
            Annotated[Scale, typer.Option(help="Which of the task's settings.")],
            Scale.LAPTOP,
        ),
        "set": (
            Annotated[
                list[str] | None,
                typer.Option(metavar="NAME=VALUE", help="Change a setting, as in steps=1000."),
            ],
            None,
        ),
        "jobs": (Jobs, None),
        "engine": (EngineName, "local"),
        "device": (Device, "cpu"),
        "fresh": (Fresh, False),
        "out": (Out, Path("heterodox-results")),
    }
    # typer reads its options off the signature.
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
            for name, (annotation, default) in parameters.items()
        ]
    )
    run.__annotations__ = {name: annotation for name, (annotation, _) in parameters.items()}
    first = next(iter(task.slots))
    names = ",".join(list(task.slots[first])[:2])
    data = "" if task.data is None else " --data PATH"
    run.__doc__ = (
        f"{task.summary}\n\nMetric: {task.metric}, {task.better} is better.\n\n"
        "\b\nExamples:\n"
        f"  heterodox compare {task.name} --{first} {names}{data}\n"
        f"  heterodox compare {task.name} --optimizer adamw,perp-grad --learning-rate 1e-3,4e-3\n"
    )
    return run


for _task in TASKS.values():
    app.command(_task.name)(_command(_task))
