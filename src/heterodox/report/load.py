"""What the runner stored, read back: `<out>/<scale>/<id>.json`, one file a paper or comparison.

A file is checked while it is read. One that is damaged is named in a warning and left out, so that
a report over many papers never fails because of one of them.
"""

import json
import math
import re
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heterodox.experiment.measurement import Curve, decode_number, encode_number
from heterodox.experiment.scale import Scale

SCHEMA = 1
VERDICTS = ("holds", "fails", "inconclusive")

BySeed = dict[int, float]


def mean(by_seed: BySeed) -> float:
    """The mean over seeds; NaN if one of them is not finite."""
    if not by_seed or not all(map(math.isfinite, by_seed.values())):
        return math.nan
    return math.fsum(by_seed.values()) / len(by_seed)


class DamagedResultWarning(UserWarning):
    """A result file does not have the form that the runner writes; it is left out."""


@dataclass(frozen=True)
class Effect:
    """A quantity over paired seeds: the claim holds if its interval lies wholly on `side` of
    `threshold`."""

    label: str
    per_seed: BySeed
    mean: float
    low: float
    high: float
    side: str
    threshold: float
    method: str
    verdict: str

    @property
    def slack(self) -> float:
        """How far inside its side the interval ends, in its own widths; negative outside."""
        gap = self.threshold - self.high if self.side == "below" else self.low - self.threshold
        width = self.high - self.low
        slack = gap / width if 0 < width < math.inf else gap
        return -math.inf if math.isnan(slack) else slack


@dataclass(frozen=True)
class FailedJob:
    """A run that raised instead of measuring."""

    arm: str
    seed: int
    error: str


@dataclass(frozen=True)
class ClaimResult:
    """One claim of a paper with everything that was measured for it."""

    name: str
    says: str
    reported: str
    metric: str
    better: str
    set_up: str
    differs: str
    expects: str
    arms: list[str]
    verdict: str
    reason: str
    effects: list[Effect]
    values: dict[str, BySeed]
    readings: dict[str, dict[int, dict[str, float]]]
    curves: dict[str, dict[int, dict[str, Curve]]]
    failed: list[FailedJob]
    seconds: float

    @property
    def seeds(self) -> list[int]:
        """Every seed that any arm was run with, in order."""
        return sorted({seed for by_seed in self.values.values() for seed in by_seed})

    @property
    def means(self) -> dict[str, float]:
        """The mean of each arm over its seeds; NaN if one of them diverged."""
        return {arm: mean(by_seed) for arm, by_seed in self.values.items() if by_seed}

    @property
    def decisive(self) -> Effect | None:
        """The effect that settled the verdict: of those that share it, the one with least slack."""
        sharing = [effect for effect in self.effects if effect.verdict == self.verdict]
        return min(sharing or self.effects, key=lambda effect: effect.slack, default=None)


@dataclass(frozen=True)
class PaperFacts:
    """What is known of a paper before anything is measured."""

    id: str
    title: str
    arxiv: str
    year: int | str
    slot: str
    summary: str


@dataclass(frozen=True)
class PaperResult:
    """The claims of one paper, or one comparison, measured at one scale.

    Attributes:
        seconds: of all runs, each counted once however many claims share it; NaN if not written.

    Example:
        >>> tree = {
        ...     "schema": 1, "kind": "paper", "scale": "laptop", "written": "", "claims": [],
        ...     "paper": {"id": "z-loss", "title": "The Z-loss", "arxiv": "1604.08859",
        ...               "year": 2016, "slot": "loss", "summary": ""},
        ...     "environment": {"torch": "2.13.0"},
        ... }
        >>> PaperResult.from_json(tree).key
        'laptop-z-loss'
    """

    kind: str
    paper: PaperFacts
    scale: str
    written: str
    environment: dict[str, str]
    claims: list[ClaimResult]
    seconds: float

    @property
    def key(self) -> str:
        """A name that is unique among all results: the anchor of its part of the page."""
        return f"{self.scale}-{self.paper.id}"

    @property
    def tally(self) -> dict[str, int]:
        """How many claims got each verdict."""
        found = [claim.verdict for claim in self.claims]
        return {verdict: found.count(verdict) for verdict in VERDICTS}

    @classmethod
    def from_json(cls, tree: Any) -> "PaperResult":
        """Reads the tree of one result file.

        Raises:
            ValueError: `tree` is not of the form that the runner writes; the message says where.
        """
        tree = _object(tree, "the file")
        if tree.get("schema") != SCHEMA:
            raise ValueError(f"schema: {tree.get('schema')!r} given, {SCHEMA} expected")
        paper = _object(tree.get("paper"), "paper")
        identity = _text(paper, "id", "paper")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", identity):
            raise ValueError(f"paper.id: {identity!r} given, letters, digits and - expected")
        year = paper.get("year", "")
        claims = [
            _claim(claim, f"claims[{i}]")
            for i, claim in enumerate(_list(tree.get("claims"), "claims"))
        ]
        names = [claim.name for claim in claims]
        if len(set(names)) < len(names):
            raise ValueError(f"claims: names {', '.join(names)} given, different ones expected")
        return cls(
            kind=_one_of(tree, "kind", "the file", ("paper", "comparison")),
            paper=PaperFacts(
                id=identity,
                title=_text(paper, "title", "paper"),
                arxiv=_text(paper, "arxiv", "paper"),
                year=year if isinstance(year, int | str) else "",
                slot=_text(paper, "slot", "paper"),
                summary=_text(paper, "summary", "paper"),
            ),
            scale=_one_of(tree, "scale", "the file", tuple(Scale)),
            written=_text(tree, "written", "the file"),
            environment={
                name: str(fact)
                for name, fact in _object(tree.get("environment"), "environment").items()
            },
            claims=claims,
            seconds=_number(tree.get("seconds", math.nan), "seconds"),
        )

    def to_json(self) -> dict[str, Any]:
        """The tree as strict JSON can hold it, without the learning curves."""
        tree = {"schema": SCHEMA, **asdict(self)}
        for claim in tree["claims"]:
            del claim["curves"]
        return _encoded(tree)


def read_result(path: Path) -> PaperResult:
    """Reads one result file.

    Raises:
        ValueError: it is no JSON, or not of the form that the runner writes.
        OSError: it cannot be read.
    """
    text = path.read_text(encoding="utf-8")
    tree = json.loads(text)
    if re.search(r"\\u[dD][89a-fA-F]", text):
        json.dumps(tree, ensure_ascii=False).encode()  # half a surrogate pair could not be written
    return PaperResult.from_json(tree)


def load_results(out: Path) -> list[PaperResult]:
    """Every result under `out`, sorted by title, the largest scale first.

    Warns with `DamagedResultWarning` about a file that has another form, and leaves it out.

    Args:
        out: the folder that the runner wrote to.

    Raises:
        FileNotFoundError: `out` is not a folder.
    """
    if not out.is_dir():
        raise FileNotFoundError(f"out: {out} given, a folder with results expected")
    results = []
    for scale in reversed(Scale):
        for path in sorted((out / scale).glob("*.json")):
            try:
                result = read_result(path)
                if (result.scale, result.paper.id) != (scale, path.stem):
                    raise ValueError(f"{result.scale}/{result.paper.id}.json was its place")
            except (ValueError, OSError, RecursionError) as problem:
                warnings.warn(f"{path} left out: {problem}", DamagedResultWarning, stacklevel=2)
            else:
                results.append(result)
    return sorted(results, key=lambda result: result.paper.title.casefold())


def _claim(tree: Any, where: str) -> ClaimResult:
    tree = _object(tree, where)
    name = _text(tree, "name", where)
    where = f"claim {name!r}"
    return ClaimResult(
        name=name,
        says=_text(tree, "says", where),
        reported=_text(tree, "reported", where),
        metric=_text(tree, "metric", where),
        better=_one_of(tree, "better", where, ("lower", "higher")),
        set_up=_text(tree, "set_up", where),
        differs=_text(tree, "differs", where),
        expects=_text(tree, "expects", where),
        arms=[str(arm) for arm in _list(tree.get("arms"), f"{where}: arms")],
        verdict=_one_of(tree, "verdict", where, VERDICTS),
        reason=_text(tree, "reason", where),
        effects=[
            _effect(effect, f"{where}: effects[{i}]")
            for i, effect in enumerate(_list(tree.get("effects"), f"{where}: effects"))
        ],
        values={
            arm: _by_seed(by_seed, f"{where}: values of {arm!r}")
            for arm, by_seed in _object(tree.get("values"), f"{where}: values").items()
        },
        readings={
            arm: {
                _seed(seed, where): {
                    name: _number(number, f"{where}: readings of {arm!r}")
                    for name, number in _object(named, f"{where}: readings of {arm!r}").items()
                }
                for seed, named in _object(by_seed, f"{where}: readings of {arm!r}").items()
            }
            for arm, by_seed in _object(tree.get("readings"), f"{where}: readings").items()
        },
        curves={
            arm: {
                _seed(seed, where): {
                    name: _curve(points, f"{where}: curve {name!r} of {arm!r}")
                    for name, points in _object(named, f"{where}: curves of {arm!r}").items()
                }
                for seed, named in _object(by_seed, f"{where}: curves of {arm!r}").items()
            }
            for arm, by_seed in _object(tree.get("curves"), f"{where}: curves").items()
        },
        failed=[
            _failed_job(job, f"{where}: failed[{i}]")
            for i, job in enumerate(_list(tree.get("failed"), f"{where}: failed"))
        ],
        seconds=_number(tree.get("seconds"), f"{where}: seconds"),
    )


def _effect(tree: Any, where: str) -> Effect:
    tree = _object(tree, where)
    return Effect(
        label=_text(tree, "label", where),
        per_seed=_by_seed(tree.get("per_seed"), f"{where}: per_seed"),
        mean=_number(tree.get("mean"), f"{where}: mean"),
        low=_number(tree.get("low"), f"{where}: low"),
        high=_number(tree.get("high"), f"{where}: high"),
        side=_one_of(tree, "side", where, ("below", "above")),
        threshold=_number(tree.get("threshold"), f"{where}: threshold"),
        method=_text(tree, "method", where),
        verdict=_one_of(tree, "verdict", where, VERDICTS),
    )


def _failed_job(tree: Any, where: str) -> FailedJob:
    tree = _object(tree, where)
    return FailedJob(
        arm=_text(tree, "arm", where),
        seed=_seed(tree.get("seed"), where),
        error=_text(tree, "error", where),
    )


def _object(tree: Any, where: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise ValueError(f"{where}: {type(tree).__name__} given, an object expected")
    return tree


def _list(tree: Any, where: str) -> list[Any]:
    if not isinstance(tree, list):
        raise ValueError(f"{where}: {type(tree).__name__} given, a list expected")
    return tree


def _text(tree: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(tree.get(key), str):
        raise ValueError(f"{where}: {key} is {tree.get(key)!r:.40}, a text expected")
    return tree[key]


def _one_of(tree: dict[str, Any], key: str, where: str, choices: tuple[str, ...]) -> str:
    if tree.get(key) not in choices:
        raise ValueError(
            f"{where}: {key} is {tree.get(key)!r:.40}, one of {', '.join(choices)} expected"
        )
    return str(tree[key])


def _number(number: Any, where: str) -> float:
    try:
        return decode_number(float(number) if type(number) is int else number)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where}: {number!r:.40} given, a number expected") from None


def _seed(seed: Any, where: str) -> int:
    try:
        return int(seed)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where}: seed {seed!r:.40} given, a whole number expected") from None


def _by_seed(tree: Any, where: str) -> BySeed:
    read = {_seed(seed, where): _number(n, where) for seed, n in _object(tree, where).items()}
    return dict(sorted(read.items()))


def _curve(points: Any, where: str) -> Curve:
    curve = []
    for point in _list(points, where):
        if not isinstance(point, list) or len(point) != 2:
            raise ValueError(f"{where}: {point!r:.40} given, a point [x, y] expected")
        curve.append((_number(point[0], where), _number(point[1], where)))
    return curve


def _encoded(tree: Any) -> Any:
    if isinstance(tree, float):
        return encode_number(tree)
    if isinstance(tree, dict):
        return {str(key): _encoded(branch) for key, branch in tree.items()}
    if isinstance(tree, list | tuple):
        return [_encoded(branch) for branch in tree]
    return tree
