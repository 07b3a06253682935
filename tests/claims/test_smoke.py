"""Every claim of every available paper runs at smoke scale, and what comes of it is well formed."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from heterodox.catalog import load_catalog, read_claims
from heterodox.claims import load, tunings
from heterodox.experiment.measurement import decode_number
from heterodox.experiment.runner import Options, Outcome, run
from heterodox.experiment.scale import Scale
from heterodox.experiment.tuning import best_of, candidate, tuning_path
from heterodox.report.load import load_results

ROOT = Path(__file__).parents[2]
PAPERS = [paper.id for paper in load_catalog().values() if paper.available]

# Claims whose metric may be infinite or undefined, and when.
NOT_FINITE = {
    "perp_grad_is_faster_than_weight_decay": "infinite if the epoch never comes",
    "collapse_comes_earlier_with_fewer_bits": "infinite if the epoch never comes",
    "time_to_the_same_error": "infinite if the error is never reached",
    "plain_training_only_scales_the_weights": "undefined if the training set is never fitted",
}

TREE = {"schema", "kind", "paper", "scale", "written", "environment", "seconds", "claims"}
PAPER = {"id", "title", "arxiv", "year", "slot", "summary"}
CLAIM = {
    *("name", "says", "reported", "metric", "better", "set_up", "differs", "expects", "arms"),
    *("verdict", "reason", "effects", "values", "readings", "curves", "failed", "seconds"),
}
EFFECT = {
    *("label", "per_seed", "mean", "low", "high"),
    *("side", "threshold", "method", "verdict"),
}
VERDICTS = {"holds", "fails", "inconclusive"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> "dict[str, tuple[Outcome, Path]]":
    """Paper -> what one seed came to, filled as the tests ask for it."""
    return {}


@pytest.fixture(params=PAPERS)
def paper_id(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def ran(
    paper_id: str,
    runs: dict[str, tuple[Outcome, Path]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Outcome, Path]:
    if paper_id not in runs:
        out = tmp_path_factory.mktemp(paper_id)
        with open(os.devnull, "w") as nowhere:
            options = Options(scale=Scale.SMOKE, out=out, seeds=1, jobs=2)
            outcome = run([load(paper_id)], options, Console(file=nowhere, force_terminal=False))
        runs[paper_id] = outcome, out
    return runs[paper_id]


@pytest.mark.timeout(600)
def test_every_arm_of_every_claim_yields_a_number(paper_id, ran):
    outcome, _ = ran
    assert [done.error for done in outcome.broken] == []
    (tree,) = outcome.trees
    claims = {claim["name"]: claim for claim in tree["claims"]}
    assert list(claims) == [claim.name for claim in load(paper_id).claims]
    for claim in load(paper_id).claims:
        values = claims[claim.name]["values"]
        assert set(values) == set(claim.arms), claim.name
        for arm, seeds in values.items():
            assert set(seeds) == {"1"}, (claim.name, arm)
            finite = math.isfinite(decode_number(seeds["1"]))
            assert finite or claim.name in NOT_FINITE, (claim.name, arm, seeds)


def test_the_summary_has_the_form_that_reports_read(paper_id, ran):
    outcome, out = ran
    tree = json.loads((out / "smoke" / f"{paper_id}.json").read_text(), parse_constant=refuse)
    assert tree == outcome.trees[0]
    assert set(tree) == TREE and set(tree["paper"]) == PAPER
    assert (tree["schema"], tree["kind"], tree["scale"]) == (1, "paper", "smoke")
    assert tree["paper"]["id"] == paper_id
    assert all(isinstance(value, str) for value in tree["environment"].values())
    for claim in tree["claims"]:
        assert set(claim) == CLAIM, claim["name"]
        assert claim["verdict"] in VERDICTS and claim["better"] in ("lower", "higher")
        assert claim["set_up"] and claim["expects"] and claim["reason"]
        assert claim["effects"], claim["name"]
        for effect in claim["effects"]:
            assert set(effect) == EFFECT
            assert effect["side"] in ("below", "above") and effect["verdict"] in VERDICTS
        assert all_numbers(claim["values"]) and all_numbers(claim["readings"])
        assert all_numbers(claim["curves"])
    (result,) = load_results(out)
    assert [claim.name for claim in result.claims] == [claim["name"] for claim in tree["claims"]]


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not strict JSON")


def all_numbers(tree: Any) -> bool:
    """Whether the leaves of dicts and lists are numbers, or words for numbers."""
    if isinstance(tree, dict | list):
        return all(map(all_numbers, tree.values() if isinstance(tree, dict) else tree))
    return isinstance(decode_number(tree), float)


def test_what_the_catalogue_shows_is_what_is_registered(paper_id):
    shown = [
        (claim.name, claim.function, claim.says, claim.reported, claim.metric)
        for claim in read_claims(load_catalog()[paper_id])
    ]
    assert shown == [
        (claim.name, claim.measure.name, claim.says, claim.reported, claim.metric)
        for claim in load(paper_id).claims
    ]


def test_every_claim_says_what_is_measured_and_what_differs(paper_id):
    for claim in load(paper_id).claims:
        assert claim.says.endswith(".") and claim.reported and claim.set_up and claim.differs
        assert claim.seeds >= 3


def test_tuned_values_are_the_best_of_what_was_tried(paper_id):
    path = tuning_path(ROOT / "results", paper_id)
    if not path.is_file():
        pytest.skip(f"{path.relative_to(ROOT)} is not there")
    tree = json.loads(path.read_text())
    assert (tree["schema"], tree["seed"]) == (1, 0)
    assert set(tree["measures"]) == {tuning.name for tuning in tunings(paper_id)}
    for tuning in tunings(paper_id):
        measure = tree["measures"][tuning.name]
        assert measure["better"] == tuning.better and measure["what"] == tuning.what
        assert set(measure["tried"]) == set(tuning.chosen)
        metric = {}
        for arm, tried in measure["tried"].items():
            assert set(map(float, tried)) == set(tuning.grid), arm
            for value, number in tried.items():
                metric[candidate(arm, float(value))] = decode_number(number)
        best = best_of(tuning.chosen, tuning.grid, metric, tuning.better)
        assert dict(tuning.chosen) == best == measure["best"]


def test_what_is_tuned_is_tuned_on_a_grid_that_holds_the_choice(paper_id):
    for tuning in tunings(paper_id):
        assert len(tuning.grid) > 1
        assert set(tuning.chosen.values()) <= set(tuning.grid)
        assert tuning.name in {measure.name for measure in load(paper_id).measures}


def test_exceptions_to_finite_values_belong_to_a_claim():
    assert set(NOT_FINITE) <= {claim.name for paper in PAPERS for claim in load(paper).claims}
