"""Shape types: with jaxtyping and beartype at work, wrong tensors are refused by their type."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.contract.specimen import Draw, Specimen
from tests.contract.test_contract import tries
from torch import nn

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, str]]:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.contract.shape_types"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=280,  # seconds on a quiet computer
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@tries()
def test_right_input_passes_its_types(specimen, outcomes):
    assert outcomes[specimen.name]["as it is"] == "accepted"


@tries("shape types")
def test_another_kind_of_number_is_refused(specimen, outcomes):
    assert outcomes[specimen.name]["another kind of number"] == "refused by its type"


@tries("shape types")
def test_another_rank_is_refused(specimen, outcomes):
    if takes_any_rank(specimen) and "shape types" not in specimen.limits:
        pytest.skip("takes tensors of any rank")
    assert outcomes[specimen.name]["another rank"] == "refused by its type"


def takes_any_rank(specimen: Specimen) -> bool:
    """Whether no tensor of its signature has a fixed number of axes."""
    thing = specimen.build(Draw())
    function = type(thing).forward if isinstance(thing, nn.Module) else specimen.resolve()
    annotations = [p.annotation for p in inspect.signature(function).parameters.values()]
    shapes = [a.dim_str for a in annotations if hasattr(a, "dim_str")]
    return bool(shapes) and all("*" in shape or "..." in shape for shape in shapes)
