import os

import pytest
from rich.console import Console

from heterodox.experiment import Measurement, Scale
from heterodox.experiment.fingerprint import fingerprint
from heterodox.experiment.runner import Options, run
from heterodox.tasks import TASKS
from heterodox.tasks.comparison import arms_of, changed, comparison, tuned_rates, tuning

LANGUAGE = TASKS["language"]
TINY = {
    "steps": "2",
    "width": "12",
    "heads": "1",
    "length": "16",
    "evaluations": "1",
    "evaluation_windows": "1",
}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "my.txt"
    path.write_text("To be, or not to be, that is the question. " * 200)
    return path


def test_the_grid_is_every_combination_and_labels_say_what_varies():
    arms = arms_of(
        LANGUAGE,
        {"attention": ["softmax", "sigmoid"], "norm": ["rms"], "optimizer": ["adamw", "sgd"]},
    )
    assert list(arms) == ["softmax, adamw", "softmax, sgd", "sigmoid, adamw", "sigmoid, sgd"]
    assert arms["sigmoid, sgd"] == {"attention": "sigmoid", "norm": "rms", "optimizer": "sgd"}


def test_a_comparison_runs_and_judges_each_alternative_against_the_first(text, tmp_path):
    paper = comparison(
        LANGUAGE,
        {"attention": ["softmax", "sigmoid", "softplus"]},
        scale=Scale.SMOKE,
        data=text,
        changes=TINY,
    )
    options = Options(Scale.SMOKE, tmp_path / "out", seeds=3, jobs=1)
    with open(os.devnull, "w") as nowhere:
        (tree,) = run([paper], options, Console(file=nowhere)).trees
    assert tree["kind"] == "comparison"
    assert [claim["arms"] for claim in tree["claims"]] == [
        ["softmax", "sigmoid"],
        ["softmax", "softplus"],
    ]
    assert tree["claims"][0]["effects"][0]["label"] == "sigmoid − softmax"
    assert set(tree["claims"][0]["values"]["softmax"]) == {"1", "2", "3"}
    assert "my.txt" in tree["claims"][0]["says"]


def test_arms_differ_only_in_what_was_chosen(text):
    paper = comparison(
        LANGUAGE,
        {"attention": ["softmax", "sigmoid"]},
        scale=Scale.SMOKE,
        data=text,
        rates=[1e-3],
        changes=TINY,
    )
    measure = paper.claims[0].measure
    (own,) = measure.run("softmax", 1, Scale.SMOKE, "cpu").values()
    settings = changed(LANGUAGE.load_settings()[Scale.SMOKE], TINY | {"learning_rate": "1e-3"})
    direct = LANGUAGE.load_train()(attention="softmax", data=text, seed=1, settings=settings)
    assert own.value == direct.measurement().value


def test_another_text_is_another_comparison(text):
    def of(path):
        return comparison(
            LANGUAGE,
            {"norm": ["layer", "rms"]},
            scale=Scale.SMOKE,
            data=path,
            changes=TINY,
        )

    before = of(text)
    text.write_text(text.read_text().replace("question", "answer"))
    after = of(text)
    prints = [
        fingerprint(p.claims[0].measure.function, p.claims[0].measure.settings)
        for p in (before, after)
    ]
    assert before.id != after.id and prints[0] != prints[1]


def test_each_arm_picks_its_own_rate_on_the_tuning_seed(text):
    measure = tuning(
        LANGUAGE,
        {"norm": ["layer", "rms"]},
        scale=Scale.SMOKE,
        rates=[1e-3, 1e-2],
        data=text,
        changes=TINY,
    )
    assert measure.arms == ("layer @ 0.001", "layer @ 0.01", "rms @ 0.001", "rms @ 0.01")
    measured = {
        "layer @ 0.001": Measurement(2.0),
        "layer @ 0.01": Measurement(1.0),
        "rms @ 0.001": Measurement(3.0),
        "rms @ 0.01": Measurement(float("nan")),
    }
    best = tuned_rates(LANGUAGE, ["layer", "rms"], [1e-3, 1e-2], measured)
    assert best == {"layer": 1e-2, "rms": 1e-3}


def test_an_arm_that_diverges_with_every_rate_is_named():
    measured = {"a @ 1": Measurement(float("inf"))}
    with pytest.raises(ValueError, match="a diverged with each"):
        tuned_rates(LANGUAGE, ["a"], [1.0], measured)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"atention": ["softmax", "sigmoid"]}, r"^atention: not a slot of language"),
        ({"attention": ["softmax", "sigmod"]}, r"^attention: 'sigmod'.*did you mean 'sigmoid'"),
        ({"position": ["rotary", "spiral"]}, r"^position: 'spiral' given, one of rotary"),
        ({"attention": ["softmax", "softmax"]}, r"^attention: .*each name once expected"),
        ({"attention": ["softmax"]}, r"^slots: nothing to compare"),
        ({}, r"^slots: nothing to compare"),
    ],
)
def test_a_wrong_grid_names_the_slot(chosen, message):
    with pytest.raises(ValueError, match=message):
        comparison(LANGUAGE, chosen, scale=Scale.SMOKE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": "3"}, r"^set: 'stepz' given, one of length"),
        ({"steps": "many"}, r"^set: steps=many given, a value like steps="),
        ({"steps": "2.5"}, r"^set: steps=2.5 given"),
        ({"tie_embeddings": "3"}, r"^set: tie_embeddings=3 given"),
        ({"heads": "5"}, r"^heads: "),
    ],
)
def test_a_wrong_setting_names_it(changes, message):
    with pytest.raises(ValueError, match=message):
        comparison(LANGUAGE, {"norm": ["layer", "rms"]}, scale=Scale.SMOKE, changes=changes)


def test_settings_are_read_as_the_type_that_they_have():
    settings = LANGUAGE.load_settings()[Scale.SMOKE]
    new = changed(
        settings,
        {"clip": "none", "tokens": "byte", "evaluate_lengths": "[1, 3]", "tie_embeddings": "False"},
    )
    assert (new.clip, new.tokens, new.evaluate_lengths, new.tie_embeddings) == (
        None,
        "byte",
        (1, 3),
        False,
    )


def test_data_for_a_task_without_data_is_refused():
    with pytest.raises(ValueError, match=r"^data: x.txt given, but arithmetic takes none"):
        comparison(
            TASKS["arithmetic"],
            {"loss": ["cross-entropy", "stablemax"]},
            scale=Scale.SMOKE,
            data="x.txt",
        )
