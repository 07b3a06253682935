"""The entry point: quick, helpful, and each kind of error with its exit code."""

import errno
import os
import shlex
import signal
import subprocess
import sys

import pytest
import typer

import heterodox
from heterodox.cli import main as main_module
from heterodox.cli.catalog import list_papers, search, show
from heterodox.cli.main import COMMANDS, GROUPS, app, main
from heterodox.data.errors import DataError

HEAVY = ("torch", "numpy", "scipy", "sklearn", "matplotlib")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["list"],
        ["list", "--available", "--json"],
        ["show", "sigmoid-attention"],
        ["search", "grokking"],
        *([name, "--help"] for name, _ in (*COMMANDS, *GROUPS)),
    ],
    ids=" ".join,
)
def test_the_catalogue_and_all_help_are_shown_without_importing_torch(arguments):
    script = (
        "import sys\n"
        "from heterodox.cli.main import main\n"
        f"assert main({arguments!r}) == 0\n"
        f"sys.exit(' '.join(name for name in {HEAVY!r} if name in sys.modules) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, f"imported: {done.stderr}"
    assert done.stdout


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"heterodox {heterodox.__version__}\n"


@pytest.mark.parametrize("command", [[], *([name] for name, _ in GROUPS)])
@pytest.mark.parametrize("markup", [None, "rich"])
def test_a_missing_command_prints_the_help(command, markup, capsys, monkeypatch):
    monkeypatch.setattr(app, "rich_markup_mode", markup)
    assert main(command) == 0
    bare = capsys.readouterr()
    assert main([*command, "--help"]) == 0
    assert bare.out == capsys.readouterr().out != ""
    assert bare.err == ""


def examples(help_text):
    lines = (line.strip(" │") for line in help_text.splitlines())
    return [line for line in lines if line.startswith("heterodox ")]


@pytest.mark.parametrize("markup", [None, "rich"])
@pytest.mark.parametrize("command", [None, *(name for name, _ in (*COMMANDS, *GROUPS))])
def test_help_shows_two_examples_on_lines_of_their_own(command, markup, capsys, monkeypatch):
    monkeypatch.setattr(app, "rich_markup_mode", markup)
    assert main([command, "--help"] if command else ["--help"]) == 0
    found = examples(capsys.readouterr().out)
    assert len(found) >= 2
    if command:
        assert all(line.startswith(f"heterodox {command}") for line in found)


@pytest.mark.parametrize("function", [list_papers, show, search])
def test_the_examples_of_the_catalogue_run(function):
    for line in examples(function.__doc__):
        assert main(shlex.split(line)[1:]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["serch"], "Did you mean 'search'"),
        (["list", "--frob"], "No such option: --frob"),
        (["show"], "Missing argument 'ID'"),
    ],
)
def test_what_the_user_wrote_wrongly_is_one_line_and_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("heterodox: error: ") and captured.err.count("\n") == 1
    assert message in captured.err and "--help`" in captured.err


def fail_with(error, monkeypatch):
    """Replaces the commands by one that raises `error`."""
    failing = typer.Typer()

    @failing.command()
    def fail():
        raise error

    monkeypatch.setattr(main_module, "app", failing)


MISSING = FileNotFoundError(errno.ENOENT, "No such file or directory", "my.txt")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            ValueError("seeds: 0 given,\n at least 1 expected"),
            2,
            "seeds: 0 given, at least 1 expected",
        ),
        (DataError("mnist: the server is out of reach"), 1, "mnist: the server is out of reach"),
        (MISSING, 1, "my.txt: No such file or directory"),
        (OSError("the disk is on fire"), 1, "the disk is on fire"),
    ],
)
def test_an_expected_error_is_one_line(error, code, line, capsys, monkeypatch):
    monkeypatch.delenv("HETERODOX_TRACEBACK", raising=False)
    fail_with(error, monkeypatch)
    assert main([]) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"heterodox: error: {line}\n")


def test_an_unexpected_error_is_one_line_and_a_hint(capsys, monkeypatch):
    monkeypatch.delenv("HETERODOX_TRACEBACK", raising=False)
    fail_with(KeyError("loss"), monkeypatch)
    assert main([]) == 1
    first, hint = capsys.readouterr().err.splitlines()
    assert first == "heterodox: error: KeyError: 'loss'"
    assert "HETERODOX_TRACEBACK=1" in hint


@pytest.mark.parametrize("error", [KeyError("loss"), ValueError("seeds: 0 given")])
def test_the_traceback_is_shown_on_request(error, capsys, monkeypatch):
    monkeypatch.setenv("HETERODOX_TRACEBACK", "1")
    fail_with(error, monkeypatch)
    assert main([]) in (1, 2)
    err = capsys.readouterr().err
    assert "Traceback" in err and "raise error" in err
    assert "HETERODOX_TRACEBACK" not in err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_an_interruption_is_code_130(error, capsys, monkeypatch):
    fail_with(error, monkeypatch)
    assert main([]) == 130
    assert capsys.readouterr().err == "heterodox: error: interrupted\n"


def test_a_command_may_raise_its_exit_code(monkeypatch):
    fail_with(typer.Exit(3), monkeypatch)
    assert main([]) == 3


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_a_command_may_return_its_exit_code(returned, code, monkeypatch):
    returning = typer.Typer()
    returning.command("this")(lambda: returned)
    returning.command("other")(lambda: 9)
    monkeypatch.setattr(main_module, "app", returning)
    assert main(["this"]) == code


@pytest.mark.skipif(os.name == "nt", reason="signals and closed pipes as POSIX has them")
class TestProcess:
    def run(self, command, **where):
        """Runs `main` with one command, the expression `command`, in a process of its own."""
        script = (
            "import os, sys\n"
            "from heterodox.cli import main\n"
            "app = main.typer.Typer()\n"
            f"app.command()(lambda: {command})\n"
            "main.app = app\n"
            "sys.exit(main.main([]))\n"
        )
        buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        return subprocess.run(
            [sys.executable, "-c", script],
            stderr=subprocess.PIPE,
            text=True,
            env=buffered,
            # Whoever started the tests in the background has switched Ctrl-C off.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **where,
        )

    def test_ctrl_c_ends_a_running_command_with_code_130(self):
        done = self.run(f"os.kill(os.getpid(), {int(signal.SIGINT)})")
        assert (done.returncode, done.stderr) == (130, "heterodox: error: interrupted\n")

    @pytest.mark.parametrize("command", ["print(1)", "print(1, flush=True)"])
    def test_a_reader_that_leaves_early_causes_no_message(self, command):
        reading, writing = os.pipe()
        os.close(reading)
        done = self.run(command, stdout=writing)
        os.close(writing)
        assert (done.returncode, done.stderr) == (1, "")
