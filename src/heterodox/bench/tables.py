"""Stored benchmarks made readable: Markdown for the documentation, a table for the terminal."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MISSING = "–"
MARKS = {True: "✓ met", False: "✗ missed", None: "not measured"}


def benchmark_tables(folder: Path) -> str:
    """The Markdown of every benchmark stored in `folder`: targets, times and memory.

    Raises:
        ValueError: a file is not one that `heterodox bench` wrote.

    Example:
        >>> benchmark_tables(Path("no-such-folder"))
        'No benchmark is stored yet.\\n'
    """
    parts: list[str] = []
    for path in sorted(folder.glob("*.json")):
        try:
            parts += _section(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"folder: {path} is not a stored benchmark ({error!r})") from error
    return "\n\n".join(parts or ["No benchmark is stored yet."]) + "\n"


def print_bench(tree: Mapping[str, Any], console: Console) -> None:
    """A row for every contestant in every case, then the targets."""
    table = Table("case", "contestant", title=f"{tree['slot']}, {_machine(tree)}")
    for heading in ("median", "quartiles", f"of {tree['default']}", "95 %", "peak memory", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for case in tree["cases"]:
        for index, (name, result) in enumerate(case["results"].items()):
            label = "" if index else case["label"]
            if "skipped" in result:
                table.add_row(label, name, MISSING, *5 * [""])
                continue
            time, ratio = result["seconds"], result["time_ratio"]
            table.add_row(
                label,
                name,
                duration(time["median"]),
                f"{duration(time['lower_quartile'])} to {duration(time['upper_quartile'])}",
                MISSING if ratio is None else _number(ratio["median"]),
                MISSING if ratio is None else _interval(ratio),
                size(result["peak_bytes"]),
                _number(result["memory_ratio"]),
            )
        table.add_section()
    console.print(table)
    for target in tree["targets"]:
        ratio = target["measured"]
        measured = "" if ratio is None else f", {_number(ratio['median'])} {_interval(ratio)}"
        line = f"{MARKS[target['met']]}: {target['says']} ({target['case']}{measured})"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def skipped(tree: Mapping[str, Any]) -> list[str]:
    """One line for every contestant and reason that it was left out of cases."""
    cases: dict[tuple[str, str], list[str]] = {}
    for case in tree["cases"]:
        for name, result in case["results"].items():
            if "skipped" in result:
                cases.setdefault((name, result["skipped"]), []).append(case["label"])
    return [
        f"{name} left out ({reason}): {'; '.join(labels)}"
        for (name, reason), labels in cases.items()
    ]


def duration(seconds: float) -> str:
    """Seconds in a unit that keeps them above one.

    Example:
        >>> duration(0.01234), duration(2.5e-6), duration(75.0)
        ('12.3 ms', '2.50 µs', '75.0 s')
    """
    for unit, length in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= length:
            return f"{_number(seconds / length)} {unit}"
    return f"{_number(seconds / 1e-6)} µs"


def size(count: int | None) -> str:
    """Bytes in a unit that keeps them above one.

    Example:
        >>> size(16_800_000), size(2_147_483_648), size(None)
        ('16.8 MB', '2.15 GB', '–')
    """
    if count is None:
        return MISSING
    return f"{_number(count / 1e9)} GB" if count >= 1e9 else f"{_number(count / 1e6)} MB"


def _section(tree: Mapping[str, Any]) -> Iterable[str]:
    yield f"## {tree['slot'].capitalize()}: {_machine(tree)}"
    load, cores = tree["load_average"], tree["environment"]["cores"]
    facts = {
        **tree["facts"],
        "measured": f"{tree['started'][:10]}, heterodox {tree['environment']['heterodox']}, "
        f"torch {tree['environment']['torch']}",
        "busy cores before": "unknown" if load is None else f"{load:.1f} of {cores}",
    }
    yield "\n".join(f"- {name}: {text}" for name, text in facts.items())
    if tree["targets"]:
        yield _markdown(
            ["target", "case", "limit", "measured", ""],
            [
                [t["says"], t["case"], f"{t['limit']:g}", _ratio(t["measured"]), MARKS[t["met"]]]
                for t in tree["targets"]
            ],
        )
    groups = dict.fromkeys((case["variant"], case["passes"]) for case in tree["cases"])
    for variant, passes in groups:
        cases = [c for c in tree["cases"] if (c["variant"], c["passes"]) == (variant, passes)]
        what = ", ".join(filter(None, (variant, passes)))
        yield f"### Time, {what}"
        yield _by_size(tree, cases, _time)
        yield f"### Peak memory above the inputs, {what}"
        yield _by_size(tree, cases, _memory)
    if lines := skipped(tree):
        yield "\n".join(f"- {line}" for line in lines)


def _by_size(tree: Mapping[str, Any], cases: Sequence[Mapping[str, Any]], cell: Any) -> str:
    rows = [
        [name, *(cell(case["results"][name]) for case in cases)] for name in tree["contestants"]
    ]
    return _markdown(["", *(case["size"] for case in cases)], rows)


def _time(result: Mapping[str, Any]) -> str:
    if "skipped" in result:
        return MISSING
    time = result["seconds"]
    quartiles = f"{duration(time['lower_quartile'])} to {duration(time['upper_quartile'])}"
    return f"{_ratio(result['time_ratio'])}<br>{duration(time['median'])} ({quartiles})"


def _memory(result: Mapping[str, Any]) -> str:
    if "skipped" in result:
        return MISSING
    return f"{_number(result['memory_ratio'])}<br>{size(result['peak_bytes'])}"


def _ratio(ratio: Mapping[str, float | None] | None) -> str:
    if ratio is None:
        return MISSING
    return f"{_number(ratio['median'])} {_interval(ratio)}".rstrip()


def _interval(ratio: Mapping[str, float | None]) -> str:
    if ratio["low"] is None:
        return ""
    return f"[{_number(ratio['low'])}, {_number(ratio['high'])}]"


def _number(value: float | None) -> str:
    """Three significant digits, and all digits before the point."""
    if value is None:
        return MISSING
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f}"


def _machine(tree: Mapping[str, Any]) -> str:
    facts = tree["environment"]
    threads = f"{tree['threads']} thread{'s' if tree['threads'] > 1 else ''}"
    return f"{facts['processor']}, {threads}" if tree["device"] == "cpu" else facts["device"]


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
