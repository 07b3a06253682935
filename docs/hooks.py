"""What the documentation takes from code and results: pages when it is built, and the README.

`mkdocs build` calls `on_config` and `on_files`, which write nothing into docs/;
`python docs/hooks.py --readme` refreshes the scoreboard of README.md and docs/images/verdict.png.
"""

import argparse
import importlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from heterodox.bench import benchmark_tables
from heterodox.catalog import PaperEntry, load_catalog, read_claims
from heterodox.report.load import DamagedResultWarning, PaperResult, load_results
from heterodox.report.markdown import paper_page, scoreboard
from heterodox.report.plots import save_png
from heterodox.report.wording import MARKS, tally

ROOT = Path(__file__).parent.parent
SCALE = "laptop"
PICTURED = "sigmoid-attention"
MARKERS = ("<!-- scoreboard:start -->", "<!-- scoreboard:end -->")

# Pages of the reference: package -> what is on its page.
REFERENCE = {
    "attention": "Attention functions and layers",
    "losses": "Losses",
    "optim": "Optimizers and schedules",
    "probes": "What to measure while a network trains",
    "sequence": "Recurrences and state spaces, and every mixer as a dynamical system",
    "compression": "Low-rank adapters and low-rank attention",
    "layers": "Normalisation and other building blocks",
    "models": "Whole architectures",
    "swapping": "Another attention in an existing model",
    "integrations.transformers": "Attention for Hugging Face Transformers",
    "tasks": "Problems with data, model, training and metric",
    "experiment": "Claims, expectations and measurements",
    "training": "The training loop and its parts",
    "data": "Datasets, and your own files",
}


def on_config(config: Any) -> Any:
    """Adds the generated pages to the navigation."""
    for section in config.nav:
        if "Papers" in section:
            section["Papers"] += [{entry.id: f"papers/{entry.id}.md"} for entry in _available()]
        if "Reference" in section:
            section["Reference"] += [
                {f"heterodox.{name}": f"reference/{name}.md"} for name in REFERENCE
            ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages to the site."""
    from mkdocs.structure.files import File

    for uri, content in pages(ROOT / config.extra["results"]).items():
        files.append(File.generated(config, uri, content=content))
    return files


def pages(results_folder: Path) -> dict[str, str]:
    """The Markdown of every generated page, by its place in the documentation."""
    results = committed(results_folder)
    found = {
        "papers/index.md": papers_index(load_catalog().values()),
        "scoreboard.md": scoreboard(results.values(), {entry.id: entry for entry in _available()}),
        "benchmarks.md": "# Benchmarks\n\n[How it is measured](benchmarks-how.md)\n\n"
        + benchmark_tables(ROOT / "benchmarks" / "results"),
        "reference/index.md": reference_index(),
    }
    for entry in _available():
        found[f"papers/{entry.id}.md"] = _paper(entry, results.get(entry.id))
    for name in REFERENCE:
        found[f"reference/{name}.md"] = _reference(name)
    return found


def committed(folder: Path) -> dict[str, PaperResult]:
    """paper id -> its results at laptop scale; an exception if one is damaged."""
    if not folder.is_dir():
        return {}
    known = {entry.id for entry in _available()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", DamagedResultWarning)
        results = load_results(folder)
    return {
        result.paper.id: result
        for result in results
        if result.scale == SCALE and result.kind == "paper" and result.paper.id in known
    }


def papers_index(papers: Iterable[PaperEntry]) -> str:
    rows = [
        f"| {f'[{p.id}]({p.id}.md)' if p.available else p.id} | {p.title} "
        f"| [{p.arxiv}]({p.url}) | {p.slot} | {'yes' if p.available else 'not yet'} |"
        for p in papers
    ]
    return "\n".join(
        [
            "# Papers",
            "",
            f"{len(rows)} papers, each with the default that it replaces. `heterodox list` prints "
            "the same table, `heterodox search WORDS` searches it.",
            "",
            "| id | title | arXiv | replaces | available |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def readme_scoreboard(results: Mapping[str, PaperResult]) -> str:
    """README.md's table: a row a paper that has been measured."""
    if not results:
        return "Nothing is measured yet."
    rows = [
        f"| [{r.paper.title}](https://arxiv.org/abs/{r.paper.arxiv}) | {r.paper.slot} "
        f"| {' '.join(MARKS[claim.verdict] for claim in r.claims)} | {tally(r.tally)} |"
        for r in results.values()
    ]
    return "\n".join(["| Paper | Replaces | Claims | |", "| --- | --- | --- | --- |", *rows])


def with_scoreboard(readme: str, table: str) -> str:
    """`readme` with `table` between its markers.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    start, end = MARKERS
    head, found, rest = readme.partition(start)
    _, found_end, tail = rest.partition(end)
    if not (found and found_end) or start in rest or end in tail:
        raise ValueError(f"readme: {start} and {end} expected, once each")
    return f"{head}{start}\n{table}\n{end}{tail}"


def reference_index() -> str:
    rows = [f"| [heterodox.{name}]({name}.md) | {text} |" for name, text in REFERENCE.items()]
    return "\n".join(
        [
            "# Reference",
            "",
            "Everything public, by package, from the docstrings. Each name can be imported from "
            "the package that it is listed under.",
            "",
            "| | |",
            "| --- | --- |",
            *rows,
            "",
        ]
    )


def _paper(entry: PaperEntry, result: PaperResult | None) -> str:
    path = ROOT / "docs" / "notes" / f"{entry.id}.md"
    notes = path.read_text(encoding="utf-8") if path.exists() else ""
    # The reference is where links to these names lead.
    blocks = [_block(name.replace(":", "."), 3, here=True) for name in entry.components]
    page = paper_page(result, entry, read_claims(entry), notes)
    return "\n".join([page, "## Components", "", *blocks])


def _reference(name: str) -> str:
    package = importlib.import_module(f"heterodox.{name}")
    if not hasattr(package, "__path__"):
        return f"{_block(package.__name__, 1)}\n"
    names = getattr(package, "__all__", ())
    head = [f"# {package.__name__}", "", package.__doc__ or "", ""]
    return "\n".join([*head, *(_block(f"{package.__name__}.{public}", 2) for public in names)])


def _block(path: str, heading_level: int, here: bool = False) -> str:
    """What mkdocstrings replaces by the docstring of `path`; `here`: no link leads to it."""
    lines = [f"::: {path}", "    options:", f"      heading_level: {heading_level}"]
    lines += ["      skip_local_inventory: true"] if here else []
    return "\n".join([*lines, ""])


def _available() -> list[PaperEntry]:
    return [entry for entry in load_catalog().values() if entry.available]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--readme", action="store_true", required=True)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    results = committed(parser.parse_args(arguments).results)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(with_scoreboard(text, readme_scoreboard(results)), encoding="utf-8")
    if PICTURED in results:
        save_png(results[PICTURED], ROOT / "docs" / "images" / "verdict.png")


if __name__ == "__main__":
    main()
