from typing import Literal

import pytest
from tests.experiment import toy_claims

from heterodox.catalog import PaperEntry
from heterodox.experiment import AtMost, Beats, Measurement, Paper, Scale


@pytest.fixture
def paper():
    return Paper(PaperEntry("p", "P", "", 2026, "attention", "s", ()))


def test_arms_come_from_the_annotation():
    claim = toy_claims.paper.claims[0]
    assert claim.arms == ("base", "better", "equal", "diverges")


def test_stacked_claims_share_runs_and_are_listed_as_read():
    first, second, third = toy_claims.paper.claims
    assert [first.name, second.name, third.name] == ["losses", "also_read", "joint"]
    assert first.measure is second.measure
    assert len(toy_claims.paper.measures) == 2


def test_the_docstring_is_the_set_up_and_says_what_differs():
    claim = toy_claims.paper.claims[0]
    assert claim.set_up == "A normal number around the arm's mean."
    assert claim.differs == "there is no paper."


def test_a_measure_without_arm_measures_all_in_one_run():
    joint = toy_claims.paper.claims[2].measure
    assert joint.joint
    runs = joint.run(None, 3, Scale.SMOKE, "cpu")
    assert runs == {"a": Measurement(1.03), "b": Measurement(0.5)}


def test_the_decorated_function_is_still_a_function():
    assert toy_claims.losses("base", 1, Scale.SMOKE).readings["twice"] == pytest.approx(
        2 * toy_claims.losses("base", 1, Scale.SMOKE).value
    )


def test_a_measure_that_knows_no_device_refuses_another_than_the_cpu():
    with pytest.raises(ValueError, match=r"^device: 'cuda'"):
        toy_claims.paper.claims[0].measure.run("base", 1, Scale.SMOKE, "cuda")


def test_device_reaches_a_measure_that_asks_for_it(paper):
    @paper.claim(says="s", metric="m", expects=AtMost("a", 1))
    def measure(arm: Literal["a"], seed: int, scale: Scale, device: str) -> float:
        return float(device == "cuda:1")

    assert paper.claims[0].measure.run("a", 1, Scale.SMOKE, "cuda:1")["a"].value == 1.0


def test_two_claims_of_one_name_are_refused(paper):
    def measure(arm: Literal["a", "b"], seed: int, scale: Scale) -> float:
        return 0.0

    paper.claim(says="s", metric="m", expects=Beats("a"))(measure)
    with pytest.raises(ValueError, match=r"^name: 'measure' given twice"):
        paper.claim(says="s", metric="m", expects=Beats("a"))(measure)


@pytest.mark.parametrize(
    ("wrong", "argument"), [({"seeds": 2}, "seeds"), ({"arms": ("z",)}, "arms")]
)
def test_bad_input_names_the_argument(paper, wrong, argument):
    def measure(arm: Literal["a", "b"], seed: int, scale: Scale) -> float:
        return 0.0

    with pytest.raises(ValueError, match=f"^{argument}: "):
        paper.claim(says="s", metric="m", expects=Beats("a"), **wrong)(measure)


def test_a_measure_without_arms_at_all_is_refused(paper):
    def measure(seed: int, scale: Scale) -> dict[str, float]:
        return {}

    with pytest.raises(ValueError, match=r"^arms: none given"):
        paper.claim(says="s", metric="m", expects=Beats("a"))(measure)


def test_an_unknown_paper_suggests_the_nearest():
    with pytest.raises(ValueError, match="sigmoid-attention"):
        Paper.load("sigmoid-atention")


def test_an_unknown_reading_lists_those_there_are():
    with pytest.raises(ValueError, match=r"^reads: 'x' given, one of \['r'\] expected"):
        Measurement(1.0, {"r": 2.0}).read("x")
