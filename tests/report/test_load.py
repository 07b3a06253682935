import copy
import json
import math
import warnings
from dataclasses import replace

import pytest
from rich.console import Console
from tests.experiment import toy_claims
from tests.report import fake_results

from heterodox.experiment import Scale
from heterodox.experiment.runner import Options, run
from heterodox.report.load import DamagedResultWarning, PaperResult, load_results, mean


def test_reads_what_the_runner_writes(tmp_path):
    options = Options(scale=Scale.SMOKE, out=tmp_path, jobs=1)
    outcome = run([toy_claims.paper], options, Console(quiet=True))
    (result,) = load_results(tmp_path)
    assert repr(result) == repr(PaperResult.from_json(outcome.trees[0]))  # NaN differs from itself
    assert [claim.name for claim in result.claims] == [c.name for c in toy_claims.paper.claims]
    assert all(claim.values and claim.effects for claim in result.claims)


def test_numbers_that_are_not_finite_are_read_back(gallery):
    claim = gallery["laptop-z-loss"].claims[0]
    assert math.isnan(claim.values["sigmoid"][2])
    assert claim.values["sigmoid"][3] == math.inf
    assert claim.effects[0].low == -math.inf
    assert math.isnan(claim.means["sigmoid"]) and math.isfinite(claim.means["softmax"])


def test_the_mean_is_that_of_the_finite_numbers_only_if_all_are_finite():
    assert mean({1: 1.0, 2: 4.0}) == 2.5
    assert math.isnan(mean({1: 1.0, 2: math.inf}))
    assert math.isnan(mean({}))


def test_results_are_sorted_by_title_with_the_largest_scale_first(tmp_path):
    trees = [
        fake_results.paper("b", [], title="beta", scale="smoke"),
        fake_results.paper("b", [], title="beta", scale="paper"),
        fake_results.paper("a", [], title="Alpha"),
    ]
    found = load_results(fake_results.write(tmp_path, trees))
    assert [result.key for result in found] == ["laptop-a", "paper-b", "smoke-b"]


def test_the_effect_nearest_to_its_threshold_decides():
    tree = fake_results.claim("two", "holds")
    roomy = copy.deepcopy(tree["effects"][0]) | {"threshold": 5.0, "label": "roomy"}
    tree["effects"].insert(0, roomy)
    (claim,) = PaperResult.from_json(fake_results.paper("x", [tree])).claims
    assert claim.decisive.label == "sigmoid − softmax"


def test_a_failing_effect_decides_over_one_that_holds():
    tree = fake_results.claim("two", "fails")
    tree["effects"].insert(0, fake_results.claim("other", "holds")["effects"][0])
    (claim,) = PaperResult.from_json(fake_results.paper("x", [tree])).claims
    assert claim.decisive.verdict == "fails"


def test_other_files_and_folders_are_ignored(tmp_path):
    fake_results.write(tmp_path, [fake_results.paper("a", [])])
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "x.json").write_text("{")
    (tmp_path / "results.json").write_text("{")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_results(tmp_path)) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda tree: tree | {"schema": 2},
        lambda tree: tree | {"scale": "huge"},
        lambda tree: tree | {"scale": "smoke"},
        lambda tree: tree | {"claims": {}},
        lambda tree: tree | {"paper": tree["paper"] | {"id": '"><b>'}},
        lambda tree: tree | {"paper": tree["paper"] | {"title": None}},
        lambda tree: tree | {"claims": [tree["claims"][0], tree["claims"][0]]},
        lambda tree: tree | {"claims": [tree["claims"][0] | {"verdict": "maybe"}]},
        lambda tree: tree | {"claims": [tree["claims"][0] | {"values": {"a": {"one": 1}}}]},
        lambda tree: tree | {"claims": [tree["claims"][0] | {"values": {"a": {"1": True}}}]},
        lambda tree: tree | {"claims": [tree["claims"][0] | {"values": {"a": {"1": 10**400}}}]},
        lambda tree: tree | {"claims": [tree["claims"][0] | {"seconds": "long"}]},
        lambda tree: tree | {"seconds": "long"},
        lambda tree: tree | {"claims": [tree["claims"][0] | {"effects": [3]}]},
        lambda tree: tree | {"claims": [tree["claims"][0] | {"says": "\ud800"}]},
        lambda tree: (
            tree | {"claims": [tree["claims"][0] | {"curves": {"a": {"1": {"loss": [[1, 2, 3]]}}}}]}
        ),
        lambda tree: [tree],
        lambda tree: None,
    ],
)
def test_a_damaged_file_is_named_in_a_warning_and_left_out(tmp_path, damage):
    sound = fake_results.paper("a", [fake_results.claim("c")])
    fake_results.write(tmp_path, [sound])
    (tmp_path / "laptop" / "b.json").write_text(
        json.dumps(damage(copy.deepcopy(sound | {"paper": sound["paper"] | {"id": "b"}})))
    )
    with pytest.warns(DamagedResultWarning, match=r"b\.json left out: ") as caught:
        assert [result.paper.id for result in load_results(tmp_path)] == ["a"]
    assert len(caught) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_json_is_left_out(tmp_path, content):
    (tmp_path / "laptop").mkdir()
    (tmp_path / "laptop" / "a.json").write_bytes(content)
    with pytest.warns(DamagedResultWarning, match=r"a\.json left out: "):
        assert load_results(tmp_path) == []


def test_what_is_written_is_read_back_equal_but_for_the_curves(gallery):
    for result in gallery.values():
        tree = json.loads(json.dumps(result.to_json(), allow_nan=False))
        assert all("curves" not in claim for claim in tree["claims"])
        with_curves = [claim | {"curves": {}} for claim in tree["claims"]]
        again = PaperResult.from_json(tree | {"claims": with_curves})
        bare = replace(result, claims=[replace(claim, curves={}) for claim in result.claims])
        assert repr(again) == repr(bare)
