"""The example of docs/add-a-paper.md, put where it says, does what it says."""

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console
from tests.contract import training_specimens
from tests.contract.specimen import Draw

import heterodox.claims
import heterodox.losses
from heterodox.catalog import entry as catalog_entry
from heterodox.catalog.claims import parse_claims
from heterodox.experiment.runner import Options, run
from heterodox.experiment.scale import Scale

PAGE = (Path(__file__).parent.parent / "docs" / "add-a-paper.md").read_text(encoding="utf-8")
BLOCKS = {
    title: block
    for title, block in re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE, re.M | re.S)
}


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The library with the paper of the page; returns its entry in the catalogue."""
    for title, block in BLOCKS.items():
        path = tmp_path / title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block, encoding="utf-8")
    source = tmp_path / "src" / "heterodox"
    for package in (heterodox.losses, heterodox.claims):
        folder = source / package.__name__.partition(".")[2]
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    ((paper, fields),) = tomllib.loads(BLOCKS["src/heterodox/catalog/papers.toml"]).items()
    components = tuple(fields.pop("components"))
    new = catalog_entry.PaperEntry(id=paper, **fields, components=components)
    known = catalog_entry.load_catalog()
    monkeypatch.setattr(catalog_entry, "load_catalog", lambda: {**known, paper: new})
    yield new
    for name in ("heterodox.losses.poly", "heterodox.claims.poly_loss"):
        sys.modules.pop(name, None)
    for package, name in ((heterodox.losses, "poly"), (heterodox.claims, "poly_loss")):
        vars(package).pop(name, None)


def test_the_test_of_the_component_passes(added):
    tests: dict = {}
    exec(BLOCKS["tests/losses/test_poly.py"], tests)
    names = [name for name in tests if name.startswith("test_")]
    assert len(names) == 3
    for name in names:
        tests[name]()


def test_the_entry_names_what_the_component_s_file_defines(added):
    for component in added.components:
        module, _, name = component.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_the_claims_run_and_are_judged(added, tmp_path):
    module = importlib.import_module("heterodox.claims.poly_loss")
    out = tmp_path / "results"
    console = Console(file=sys.stderr)
    outcome = run([module.paper], Options(Scale.SMOKE, out, seeds=2, jobs=1), console)
    assert not outcome.broken
    (claim,) = outcome.trees[0]["claims"]
    (read,) = parse_claims(BLOCKS["src/heterodox/claims/poly_loss.py"])
    assert claim["says"] == read.says and len(claim["effects"][0]["per_seed"]) == 2
    assert claim["differs"].startswith("ImageNet")
    (tuning,) = module.TUNED
    assert set(tuning.chosen) == set(claim["arms"])
    assert set(tuning.chosen.values()) <= set(tuning.grid)


def test_the_specimen_meets_the_component(added):
    specimen = eval(BLOCKS["tests/contract/training_specimens.py"], vars(training_specimens))
    component, inputs = specimen.build(Draw()), specimen.inputs(Draw())
    assert specimen.call(component, *inputs).shape == ()
    for argument, call in specimen.bad:
        with pytest.raises(ValueError, match=f"^{argument}: "):
            call(component, inputs)
