"""Catalogue, claims, components, notes, specimens, slots and exports agree with one another."""

import ast
import importlib
import inspect
import pkgutil
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from importlinter.cli import lint_imports
from tests.contract.specimens import SPECIMENS
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import heterodox
from heterodox.attention import ATTENTION, ATTENTION_FUNCTIONS
from heterodox.catalog import load_catalog
from heterodox.claims import load
from heterodox.layers import HEADS, NORMS
from heterodox.losses import LOSSES, REGRESSION_LOSSES
from heterodox.optim import OPTIMIZERS, SCHEDULES
from heterodox.slots import Slot
from heterodox.tasks import TASKS
from heterodox.tasks.tabular import takes_code

ROOT = Path(__file__).parents[1]
NOTES = ROOT / "docs" / "notes"
SOURCE = Path(heterodox.__file__).parent

AVAILABLE = [paper for paper in load_catalog().values() if paper.available]
SLOTS = (
    *(ATTENTION, ATTENTION_FUNCTIONS, LOSSES, REGRESSION_LOSSES, OPTIMIZERS, SCHEDULES),
    *(NORMS, HEADS),
)
PACKAGES = [
    importlib.import_module(f"heterodox.{found.name}")
    for found in pkgutil.iter_modules([str(SOURCE)])
    if found.ispkg
]
# Packages of components: what a user builds from.
COMPONENT_PACKAGES = (
    *("attention", "layers", "losses", "optim", "probes", "models", "sequence"),
    "compression",
)

# Public components of which the contract has nothing to try.
NO_SPECIMEN = {
    **dict.fromkeys(("alibi_slopes", "retention_decay"), "takes no tensor"),
    **dict.fromkeys(("AttentionPath", "AttentionSVM", "HeadProbe"), "a record"),
    "InfeasibleError": "an exception",
}

# Public names whose docstrings need no example, and why.
RECORD = "a record, which a function returns that has an example"
RESULTS = "reads or draws the results of runs"
NO_EXAMPLE = {
    "DataError": "an exception",
    "Scale": "an enumeration",
    "cache_folder": "differs between computers",
    "extract": "needs an archive",
    **dict.fromkeys(("human_noise", "load_cifar10n"), "needs files that must be downloaded"),
    "load_acoustic_cavity": "needs files that must be downloaded",
    "load_checkpoint": "shown by the example of save_checkpoint",
    "locate": "differs between computers",
    "report": "shown by the example of listening",
    "SwappedMultiheadAttention": "made by swap, whose example shows it",
    "SwappedSelfAttention": "made by swap, whose example shows it",
    **dict.fromkeys(("load_results", "save_png", "write_report", "write_bench"), RESULTS),
    **dict.fromkeys(("ClaimText", "Match", "PaperEntry"), RECORD),
    **dict.fromkeys(("AttentionPath", "AttentionSVM", "HeadProbe"), RECORD),
    "InfeasibleError": "an exception",
    **dict.fromkeys(("DataFile", "Dataset", "ImageData", "SeriesData"), RECORD),
    **dict.fromkeys(("TabularData", "TabularSplit", "TrainedPair"), RECORD),
    **dict.fromkeys(("GraphData", "LinkData"), RECORD),
    **dict.fromkeys(("ImageTask", "Recording", "SpeechData", "SpikeData"), RECORD),
    "load_speech": "needs recordings",
    **dict.fromkeys(("Replaced", "Skipped", "SwapReport", "Claim", "Measure"), RECORD),
}


def of_papers(values: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("paper", values, ids=lambda paper: paper.id)


def of_packages(packages: list[ModuleType]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("package", packages, ids=lambda package: package.__name__)


def of_names(*slots: Slot) -> pytest.MarkDecorator:
    pairs = [(slot, name) for slot in slots for name in slot]
    return pytest.mark.parametrize(("slot", "name"), pairs, ids=lambda x: getattr(x, "name", x))


@of_papers(AVAILABLE)
def test_an_available_paper_has_claims(paper):
    assert load(paper.id).claims


@of_papers(AVAILABLE)
def test_an_available_paper_has_notes_in_the_docs(paper):
    assert (NOTES / f"{paper.id}.md").is_file()


def test_notes_belong_to_available_papers():
    assert {page.stem for page in NOTES.glob("*.md")} <= {paper.id for paper in AVAILABLE}


@of_papers(AVAILABLE)
def test_every_component_of_an_available_paper_has_a_specimen(paper):
    assert set(paper.components) <= {specimen.component for specimen in SPECIMENS}


@of_packages([p for p in PACKAGES if p.__name__.rpartition(".")[2] in COMPONENT_PACKAGES])
def test_every_public_component_has_a_specimen(package):
    tried = {specimen.resolve() for specimen in SPECIMENS}
    public = {name: getattr(package, name) for name in package.__all__}
    missing = {name for name, value in public.items() if is_code(value) and value not in tried}
    assert missing <= set(NO_SPECIMEN)


def is_code(value: Any) -> bool:
    return inspect.isclass(value) or inspect.isfunction(value)


@of_names(*SLOTS)
def test_every_name_of_a_slot_leads_to_something_callable(slot, name):
    assert callable(slot[name])


@of_names(ATTENTION)
@pytest.mark.parametrize("position", ["rotary", "alibi", None])
def test_attention_layers_are_built_and_called_alike(slot, name, position):
    try:
        layer = slot[name](8, 2, sequence_length=4, position=position)
    except ValueError as refusal:
        assert str(refusal).startswith("position: ")
        return
    x = torch.randn(3, 4, 8)  # 2 x 2, for layers that need a square grid
    padding = torch.ones(3, 1, 1, 4, dtype=torch.bool)
    ran = 0
    for keywords in ({}, {"is_causal": True}, {"attn_mask": padding, "is_causal": True}):
        try:
            assert layer(x, **keywords).shape == x.shape
            ran += 1
        except ValueError as refusal:
            assert str(refusal).startswith(("is_causal: ", "attn_mask: ", "decay: "))
    assert ran


@of_names(ATTENTION_FUNCTIONS)
def test_attention_functions_are_called_like_torchs(slot, name):
    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind()[:3]
    mask = torch.ones(5, 5, dtype=torch.bool)
    output = slot[name](query, key, value, attn_mask=mask, dropout_p=0.0, is_causal=False)
    assert output.shape == query.shape
    grouped = slot[name](query, key[:, :2], value[:, :2], enable_gqa=True)
    assert grouped.shape == query.shape


@of_names(LOSSES)
def test_losses_are_called_alike_and_their_reductions_agree(slot, name):
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 4
    each = slot[name](logits, labels, reduction="none")
    assert each.shape == (6,)
    torch.testing.assert_close(slot[name](logits, labels), each.mean())
    torch.testing.assert_close(slot[name](logits, labels, reduction="sum"), each.sum())


@of_names(REGRESSION_LOSSES)
def test_losses_for_numbers_are_called_alike(slot, name):
    output, target = torch.randn(6, 1), torch.randn(6, 1)
    inputs = {"x": torch.randn(6, 3), "t": output} if takes_code(slot[name]) else {}
    assert slot[name](output, target, **inputs).shape == ()
    assert slot[name](output, output, **inputs) < slot[name](output, output + 5, **inputs)


@of_names(OPTIMIZERS)
def test_optimizers_are_built_alike(slot, name):
    model = nn.Linear(3, 2)
    optimizer = slot[name](model.parameters(), 0.1, weight_decay=0.01)
    assert isinstance(optimizer, Optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1]
    before = model.weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)


@of_names(SCHEDULES)
def test_schedules_are_built_alike(slot, name):
    optimizer = OPTIMIZERS["sgd"](nn.Linear(3, 2).parameters(), 0.1)
    schedule = slot[name](optimizer, 10, warmup_steps=2)
    assert isinstance(schedule, LRScheduler)
    assert schedule.get_last_lr() == [pytest.approx(0.05)]


@of_names(NORMS)
def test_norms_are_built_alike(slot, name):
    x = torch.randn(3, 5, 8)
    assert slot[name](8)(x).shape == x.shape


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_everything_that_a_task_names_exists(task):
    assert callable(task.load_train()) and callable(task.load_check())
    assert set(task.slots) <= set(inspect.signature(task.load_train()).parameters)
    assert set(task.load_settings()) == {"smoke", "laptop", "paper"}


@of_packages([heterodox, *PACKAGES])
def test_every_public_name_exists(package):
    for name in getattr(package, "__all__", ()):
        assert getattr(package, name) is not None


@of_packages([package for package in [heterodox, *PACKAGES] if hasattr(package, "__getattr__")])
def test_lazy_names_are_those_that_type_checkers_see(package):
    tree = ast.parse(inspect.getsource(package))
    seen = {
        alias.name: node.module
        for branch in tree.body
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in branch.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    lazy = inspect.getclosurevars(inspect.unwrap(package.__getattr__)).nonlocals["names"]
    assert {name: resolved_module(package, name) for name in lazy} == {
        name: resolved_module(importlib.import_module(module), name)
        for name, module in seen.items()
    }
    assert set(lazy) <= set(package.__all__)


def resolved_module(package: ModuleType, name: str) -> Any:
    """The module that defines it; of a constant, which does not know, the constant itself."""
    value = getattr(package, name)
    return getattr(value, "__module__", value)


@of_packages([heterodox, *PACKAGES])
def test_public_functions_and_classes_have_a_docstring_with_an_example(package):
    public = {name: getattr(package, name) for name in getattr(package, "__all__", ())}
    code = {name: value for name, value in public.items() if is_code(value)}
    assert {name for name, value in code.items() if not inspect.getdoc(value)} == set()
    lacking = {name for name, value in code.items() if not has_example(value)}
    assert lacking <= set(NO_EXAMPLE)


@of_papers(AVAILABLE)
def test_components_have_a_docstring_with_an_example(paper):
    components = {name: pkgutil.resolve_name(name) for name in paper.components}
    assert {name for name, value in components.items() if not has_example(value)} == set()


def has_example(value: Any) -> bool:
    """In its own docstring, or for a class in one of its methods'."""
    members = vars(value).values() if inspect.isclass(value) else ()
    return any(">>>" in (inspect.getdoc(x) or "") for x in (value, *members) if x is not None)


def test_exceptions_to_the_rules_are_still_needed():
    public = {name: getattr(p, name) for p in PACKAGES for name in getattr(p, "__all__", ())}
    assert set(NO_SPECIMEN) | set(NO_EXAMPLE) <= set(public)
    assert {name for name in NO_EXAMPLE if has_example(public[name])} == set()


def test_every_package_stands_on_a_floor():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    floors = {name.strip() for floor in contract["layers"] for name in floor.split("|")}
    assert {package.__name__ for package in PACKAGES} <= floors


def test_each_floor_imports_only_the_floors_below_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True) == 0
