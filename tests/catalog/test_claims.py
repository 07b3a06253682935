"""Claims are read from source text alone."""

import pytest

from heterodox.catalog import ClaimText, load_catalog, read_claims
from heterodox.catalog import entry as entry_module
from heterodox.catalog.claims import parse_claims

SOURCE = '''
"""Claims of a paper."""

import a_module_that_does_not_exist

paper = Paper.load("sigmoid-attention")


@paper.claim(
    says="Sigmoid attention is as good as softmax, "
    "and that at every length.",
    reported="Table 2: 65.4 against 65.2",
    metric="validation loss [nats/token]",
    expects=NoWorseThan("softmax", margin=0.02),
)
def matches_softmax(arm, seed, scale):
    raise RuntimeError("reading must not run this")


@paper.claim(
    name="faster_forward",
    says="It is faster.",
    metric="ms",
    reads="forward",
    expects=(Beats("softmax"), RatioAtMost("sigmoid", "softmax", 1 / 1.17)),
)
@paper.claim(name="faster_backward", says="So is its gradient.", metric="ms", expects=MARGIN)
@torch.no_grad()
def speed(arm, seed, scale): ...


@paper.many_seeds(matches_softmax, at=(SMOKE,))
def many(arm, seeds, scale): ...


def helper():
    @paper.claim(says="Not a claim of the module.", metric="ms", expects=Beats("softmax"))
    def inner(arm, seed, scale): ...
'''


def test_a_claim_holds_what_its_decorator_says():
    assert parse_claims(SOURCE)[0] == ClaimText(
        name="matches_softmax",
        says="Sigmoid attention is as good as softmax, and that at every length.",
        reported="Table 2: 65.4 against 65.2",
        metric="validation loss [nats/token]",
        expects="NoWorseThan('softmax', margin=0.02)",
        function="matches_softmax",
    )


def test_claims_stacked_on_one_function_are_read_from_top_to_bottom():
    stacked = [claim for claim in parse_claims(SOURCE) if claim.function == "speed"]
    assert [claim.name for claim in stacked] == ["faster_forward", "faster_backward"]
    assert stacked[0].expects == "Beats('softmax'); RatioAtMost('sigmoid', 'softmax', 1 / 1.17)"
    assert stacked[1].expects == "MARGIN"
    assert stacked[1].reported == ""


def test_only_claim_decorators_of_the_module_are_claims():
    assert {claim.function for claim in parse_claims(SOURCE)} == {"matches_softmax", "speed"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_paper_is_read_from_its_claims_module_if_there_is_one(exists, tmp_path, monkeypatch):
    paper = load_catalog()["sigmoid-attention"]
    monkeypatch.setattr(entry_module, "files", lambda package: tmp_path)
    if exists:
        (tmp_path / "claims").mkdir()
        (tmp_path / "claims" / "sigmoid_attention.py").write_text(SOURCE, encoding="utf-8")
    assert paper.available is exists
    assert read_claims(paper) == (parse_claims(SOURCE) if exists else [])
