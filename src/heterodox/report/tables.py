"""The numbers of every arm and seed, laid out as rows of text."""

from dataclasses import dataclass

from heterodox.report.load import BySeed, ClaimResult, mean
from heterodox.report.wording import numbers

MISSING = "–"


@dataclass(frozen=True)
class SeedTable:
    """A row per arm: its number for each of `seeds`, or `MISSING`, and their mean."""

    caption: str
    seeds: list[int]
    rows: list[tuple[str, list[str], str]]


def value_table(claim: ClaimResult) -> SeedTable | None:
    """The claim's metric for every arm and seed; None if nothing was measured."""
    return _table(claim.metric, claim.values)


def reading_tables(claim: ClaimResult) -> list[SeedTable]:
    """A table for every other number that was read off the same runs."""
    by_name: dict[str, dict[str, BySeed]] = {}
    for arm, by_seed in claim.readings.items():
        for seed, named in sorted(by_seed.items()):
            for name, value in named.items():
                by_name.setdefault(name, {}).setdefault(arm, {})[seed] = value
    tables = [_table(name, by_arm) for name, by_arm in by_name.items()]
    return [table for table in tables if table]


def _table(caption: str, by_arm: dict[str, BySeed]) -> SeedTable | None:
    seeds = sorted({seed for by_seed in by_arm.values() for seed in by_seed})
    if not seeds:
        return None
    every = [value for by_seed in by_arm.values() for value in (*by_seed.values(), mean(by_seed))]
    text = iter(numbers(every))
    rows = []
    for arm, by_seed in by_arm.items():
        cells = {seed: next(text) for seed in by_seed}
        rows.append((arm, [cells.get(seed, MISSING) for seed in seeds], next(text)))
    return SeedTable(caption, seeds, rows)
