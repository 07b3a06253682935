import importlib.util
import re
from pathlib import Path

import pytest
from tests.report import fake_results

ROOT = Path(__file__).parent.parent


def python_blocks():
    for page in ("README.md", "docs/compare.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S), 1):
            yield pytest.param(block, id=f"{page}-{number}")


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("documentation_hooks", ROOT / "docs/hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("block", list(python_blocks()))
def test_every_python_block_runs(block):
    if "transformers import" in block:
        pytest.importorskip("transformers", reason="transformers is not installed")
    exec(compile(block, "block", "exec"), {"__name__": "block"})


def test_every_link_into_the_repository_leads_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert len(targets) > 5
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_scoreboard_is_that_of_the_committed_results(hooks):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = hooks.readme_scoreboard(hooks.committed(ROOT / "results"))
    assert readme == hooks.with_scoreboard(readme, table), "run: python docs/hooks.py --readme"


def test_the_scoreboard_has_a_row_a_paper_with_its_verdicts(hooks, tmp_path):
    results = hooks.committed(fake_results.write(tmp_path, fake_results.gallery()))
    *_, row = hooks.readme_scoreboard(results).splitlines()
    assert row.endswith("| attention | ✓ ✗ ? ✓ | 2 hold, 1 fails, 1 inconclusive |")


def test_damaged_results_do_not_pass_unnoticed(hooks, tmp_path):
    fake_results.write(tmp_path, fake_results.gallery())
    (tmp_path / "laptop" / "sigmoid-attention.json").write_text("{")
    with pytest.raises(Warning, match="sigmoid-attention"):
        hooks.committed(tmp_path)


@pytest.mark.parametrize(
    "readme", ["no markers", "<!-- scoreboard:end --><!-- scoreboard:start -->"]
)
def test_a_readme_without_its_markers_is_refused(hooks, readme):
    with pytest.raises(ValueError, match=r"^readme: "):
        hooks.with_scoreboard(readme, "")
