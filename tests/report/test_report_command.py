import pytest
import typer
from tests.report import fake_results
from typer.testing import CliRunner

from heterodox.cli.report import report

app = typer.Typer()
app.command()(report)
runner = CliRunner()


def test_writes_the_page_and_prints_where_it_is(tmp_path):
    out = fake_results.write(tmp_path, [fake_results.paper("a", [fake_results.claim("c")])])
    result = runner.invoke(app, ["--out", str(out)])
    assert result.exit_code == 0
    assert result.stdout == f"{out / 'report.html'}\n"
    assert result.stderr == ""
    assert (out / "results.json").exists()


def test_a_damaged_file_is_one_line_on_stderr(tmp_path):
    out = fake_results.write(tmp_path, [fake_results.paper("a", [])])
    (out / "laptop" / "b.json").write_text("{")
    result = runner.invoke(app, ["--out", str(out)])
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("heterodox: warning: ") and "b.json left out: " in line


@pytest.mark.parametrize("place", ["missing", "."])
def test_a_folder_without_results_is_the_users_error(tmp_path, place):
    result = runner.invoke(app, ["--out", str(tmp_path / place)])
    assert isinstance(result.exception, ValueError)
    assert str(result.exception).startswith("out: ")


def test_help_shows_examples():
    text = runner.invoke(app, ["--help"]).stdout
    assert "heterodox report --open" in text and "heterodox report --out results" in text
