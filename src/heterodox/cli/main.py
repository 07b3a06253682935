"""The `heterodox` command: its sub-commands, and what happens to the errors they raise.

Command modules import torch and the floors below inside their functions, so that `--help`, `list`,
`show` and `search` answer at once.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import heterodox
from heterodox.cli import bench, catalog, compare, data, report, reproduce, tune
from heterodox.data.errors import DataError

# Plain help in a pipe, panels on a terminal.
app = typer.Typer(
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Every sub-command, in the order of `heterodox --help`; those with commands of their own in GROUPS.
COMMANDS = (
    ("list", catalog.list_papers),
    ("show", catalog.show),
    ("search", catalog.search),
    ("reproduce", reproduce.reproduce),
    ("report", report.report),
    ("tune", tune.tune),
    ("bench", bench.bench),
)
GROUPS: tuple[tuple[str, typer.Typer], ...] = (("compare", compare.app), ("data", data.app))

for name, function in COMMANDS:
    app.command(name)(function)
for name, group in GROUPS:
    app.add_typer(group, name=name)

# BadParameter, UsageError, ClickException: recent versions of typer bundle the click that older
# ones depend on, and only the first has a name in both.
ClickException = typer.BadParameter.__mro__[2]


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"heterodox {heterodox.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def describe(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Alternatives to the defaults of deep learning, and what their papers claim, measured.

    \b
    Examples:
      heterodox search "length extrapolation"
      heterodox reproduce softplus-attention --scale smoke
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: what the command returned, or else 0.

    Commands raise what went wrong. A `ValueError` or a wrong option is the user's to mend: exit
    code 2. `DataError` and `OSError` explain themselves: 1. Anything else is a defect: 1, with a
    hint to set `HETERODOX_TRACEBACK=1`, which shows the traceback of any error. Ctrl-C: 130.
    """
    try:
        result = app(arguments, prog_name="heterodox", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our pipe has left. Python flushes stdout once more on exit: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return _fail(130, "interrupted")
    except Exception as error:
        if os.environ.get("HETERODOX_TRACEBACK"):
            traceback.print_exc()
        return _explain(error)
    if result == 130:
        return _fail(130, "interrupted")
    return result if isinstance(result, int) else 0


def _explain(error: Exception) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error)  # the help, or nothing if rich has printed it
        return 0
    if isinstance(error, ClickException):
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context else ""
        return _fail(2, f"{error.format_message()}{hint}")  # type: ignore[attr-defined]
    if isinstance(error, ValueError):
        return _fail(2, str(error))
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(1, f"{place}{error.strerror}")
    if isinstance(error, (DataError, OSError)):
        return _fail(1, str(error))
    _fail(1, f"{type(error).__name__}: {error}")
    if not os.environ.get("HETERODOX_TRACEBACK"):
        print("heterodox: set HETERODOX_TRACEBACK=1 to see the traceback", file=sys.stderr)
    return 1


def _fail(code: int, message: str) -> int:
    """One line on stderr, whatever the message holds."""
    print("heterodox: error:", *message.split(), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
