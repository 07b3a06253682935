"""Verdicts as a table on a terminal, and as plain text in a pipe."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from heterodox.experiment.scale import Scale
from heterodox.report.load import ClaimResult, PaperResult
from heterodox.report.wording import MARKS, arm_means, duration, measured, tally

STYLES = {"holds": "bold green", "fails": "bold red", "inconclusive": "bold yellow"}

PLAIN = str.maketrans({"✓": "+", "✗": "x", "−": "-", "–": "-", "·": "|", "∞": "inf"})
"""What stands for our signs where the output's encoding lacks them."""


def print_verdicts(results: Sequence[PaperResult], console: Console) -> None:
    """Prints a table per paper: each claim's verdict, the effect that settled it, each arm's mean.

    Args:
        results: papers and comparisons, in the order in which they are printed.
        console: where to; in a pipe its output has no colours, and no cell is ever cut.

    Example:
        >>> print_verdicts([], Console())
    """
    for result in results:
        table = Table(
            title=Text(_encodable(_title(result), console), style="bold"),
            title_justify="left",
            box=box.HORIZONTALS,
            show_lines=True,
        )
        table.add_column("Verdict", overflow="fold")
        table.add_column("Claim", overflow="fold", ratio=5)
        table.add_column("Measured here", overflow="fold", ratio=6)
        for claim in result.claims:
            mark = f"{MARKS[claim.verdict]} {claim.verdict}"
            table.add_row(
                Text(_encodable(mark, console), style=STYLES[claim.verdict]),
                Text(_encodable(_claim(claim), console)),
                Text(_encodable(_measured(claim), console)),
            )
        console.print()
        console.print(table)
    if results:
        console.print(_encodable(_total(results), console), markup=False, highlight=False)


def _title(result: PaperResult) -> str:
    title = f"{result.paper.title} ({result.scale} scale)"
    if not result.claims:
        return f"{title}: nothing measured yet"
    if result.scale == Scale.SMOKE:
        return f"{title}: shows that it runs; a verdict here says little"
    return title


def _claim(claim: ClaimResult) -> str:
    reported = f"\nReported: {claim.reported}" if claim.reported else ""
    return f"{claim.says}{reported}"


def _measured(claim: ClaimResult) -> str:
    lines = [measured(claim.decisive) if claim.decisive else claim.reason]
    if means := arm_means(claim):
        lines.append(f"{claim.metric}, {claim.better} is better:")
        lines += [f"  {arm}  {mean}" for arm, mean in means]
    lines += [f"failed: {job.arm}, seed {job.seed}: {job.error}" for job in claim.failed]
    return "\n".join(lines)


def _total(results: Sequence[PaperResult]) -> str:
    counts = {verdict: sum(result.tally[verdict] for result in results) for verdict in MARKS}
    seconds = sum(result.seconds for result in results)
    claims = sum(counts.values())
    return f"{claims} claim{'s' * (claims != 1)}: {tally(counts)}; {duration(seconds)} of measuring"


def _encodable(text: str, console: Console) -> str:
    """`text` in characters that the console's stream can take."""
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        text = text.translate(PLAIN).encode(console.encoding, "replace").decode(console.encoding)
    return text
