import json
from typing import NamedTuple

import pytest

from heterodox.cli.main import main

BODY = b"words\n" * 100


class Done(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture
def run(cache, capfd):
    def run(*arguments: str) -> Done:
        return Done(main(["data", *arguments]), *capfd.readouterr())

    return run


def test_help_shows_two_examples(run):
    for command in ((), ("list",), ("fetch",), ("where",)):
        shown = run(*command, "--help")
        assert shown.exit_code == 0
        examples = shown.stdout.split("Examples:\n")[1].split("\n\n")[0].splitlines()
        assert len(examples) == 2
        assert all(" ".join(("heterodox data", *command)) in line for line in examples)


def test_without_a_command_the_help_is_shown(run):
    assert run() == run("--help")


def test_list_has_a_line_for_each_dataset(run, register):
    register(BODY, ("http://127.0.0.1:1/ours.txt",))
    header, line = run("list").stdout.splitlines()
    assert header.split() == ["NAME", "SIZE", "TASK", "WHERE", "LICENCE"]
    assert line.split() == ["ours", "0.0", "MB", "text", "to", "download", "MIT"]


def test_list_as_json_is_what_the_registry_knows(run):
    rows = {row["name"]: row for row in json.loads(run("list", "--json").stdout)}
    assert rows["digits"]["where"] == "embedded"
    assert rows["fashion-mnist"]["where"] == "to download"
    assert rows["cifar10-jpeg"]["where"] == "by hand"
    assert rows["fashion-mnist"]["bytes"] == 30_878_645


def test_fetch_prints_the_paths_and_where_finds_them_again(run, register, server, cache):
    register(BODY, (f"{server.url}/ours.txt",))
    server.pages["/ours.txt"] = (200, BODY, len(BODY))
    missing = run("where", "ours")
    assert missing.stdout == f"ours.txt: missing, to come from {server.url}/ours.txt\n"
    assert missing.stderr == f"searched {cache}\n"
    assert run("fetch", "ours").stdout == f"{cache / 'ours' / 'ours.txt'}\n"
    assert run("where", "ours").stdout == f"ours.txt: {cache / 'ours' / 'ours.txt'}\n"


def test_fetch_says_on_which_terms(run, register, tmp_path, monkeypatch):
    register(BODY, terms="look, do not touch")
    (tmp_path / "found").write_bytes(BODY)
    monkeypatch.setenv("HETERODOX_DATA", str(tmp_path))
    assert run("fetch", "ours").stderr == "ours: look, do not touch (licence: MIT)\n"


@pytest.mark.parametrize("command", ["fetch", "where"])
def test_an_unknown_name_exits_with_2_and_one_line(run, command):
    done = run(command, "fashionmnist")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean 'fashion-mnist'?" in done.stderr


@pytest.mark.parametrize("arguments", [("list",), ("where", "ptb"), ("fetch", "ptb")])
def test_a_folder_that_is_not_there_exits_with_2_and_one_line(run, arguments, monkeypatch):
    monkeypatch.setenv("HETERODOX_DATA", "/not/here")
    done = run(*arguments)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "HETERODOX_DATA: '/not/here' given" in done.stderr


def test_what_broke_exits_with_1_and_one_line(run, register, server):
    register(BODY, (f"{server.url}/ours.txt",))
    done = run("fetch", "ours")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "HTTP 404" in done.stderr
