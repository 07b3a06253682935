"""What a user gets wrong, and what breaks under them: one clear line, or a stated recovery."""

import json
import sys

import pytest
from tests.experiment import toy_claims

from heterodox.cli.main import main
from heterodox.experiment import store as store_module

TINY = [
    *("--set", "steps=2"),
    *("--set", "width=12"),
    *("--set", "heads=1"),
    *("--set", "length=16"),
    *("--set", "evaluations=1"),
    *("--set", "evaluation_windows=1"),
]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "my.txt"
    path.write_text("To be, or not to be, that is the question. " * 200)
    return path


@pytest.fixture
def toy(monkeypatch):
    """`heterodox reproduce sigmoid-attention` runs the toy paper's quick claims."""
    monkeypatch.setattr("heterodox.claims.load", lambda paper_id: toy_claims.paper)


def error_of(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in lines)
    return code, lines[-1]


def compare(data, out, *more):
    return ["compare", "language", "--norm", "layer,rms", "--data", data, "--out", out, *more]


def test_an_unknown_id_suggests_the_nearest(capsys):
    code, line = error_of(capsys, "reproduce", "sigmoid-atention")
    assert code == 2 and "sigmoid-attention" in line


def test_a_paper_that_is_not_here_yet_is_said(capsys):
    code, line = error_of(capsys, "reproduce", "pointer-networks")
    assert code == 2 and "not in this version" in line


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--scale", "huge", "huge"),
        ("--seeds", "0", "seeds"),
        ("--jobs", "-1", "jobs"),
        ("--engine", "slurm", "engine"),
        ("--claim", "nonsense", "claim: 'nonsense'"),
    ],
)
def test_a_bad_option_is_named(capsys, tmp_path, option, value, words):
    code, line = error_of(
        capsys, "reproduce", "softmax-collapse", option, value, "--out", tmp_path / "out"
    )
    assert code == 2 and words in line


def test_a_folder_that_cannot_be_written_is_named(capsys, tmp_path, toy):
    (tmp_path / "file").write_text("")
    code, line = error_of(
        capsys, "reproduce", "sigmoid-attention", "--out", tmp_path / "file" / "out"
    )
    assert code == 2 and "out: " in line and "file" in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\xff\xfe not text", "UTF-8"),
        (b"short", "at least"),
    ],
    ids=["empty", "not UTF-8", "shorter than the context"],
)
def test_a_text_that_cannot_be_used_is_said_before_any_work(capsys, tmp_path, content, words):
    path = tmp_path / "my.txt"
    path.write_bytes(content)
    code, line = error_of(capsys, *compare(path, tmp_path / "out", *TINY))
    assert code == 2 and "data: " in line and words in line
    assert not (tmp_path / "out").exists()


def test_a_text_that_is_not_there_is_named(capsys, tmp_path):
    code, line = error_of(capsys, *compare(tmp_path / "no.txt", tmp_path / "out"))
    assert code == 2 and "no.txt" in line


def test_nothing_to_compare_is_said(capsys, text, tmp_path):
    code, line = error_of(capsys, "compare", "language", "--norm", "rms", "--data", text)
    assert code == 2 and "nothing to compare" in line


@pytest.mark.parametrize("rate", ["fast", "0", "-1", "1e-3,1e-3", ""])
def test_a_bad_learning_rate_is_named(capsys, text, tmp_path, rate):
    code, line = error_of(
        capsys, *compare(text, tmp_path / "out", *TINY, f"--learning-rate={rate}")
    )
    assert code == 2 and "learning-rate: " in line


def test_a_full_disk_breaks_the_jobs_and_says_so(capsys, tmp_path, toy, monkeypatch):
    real = store_module.write_text

    def full(path, content):
        if "jobs" in path.parts:
            raise OSError(28, "No space left on device", str(path))
        real(path, content)

    monkeypatch.setattr(store_module, "write_text", full)
    code = main(["reproduce", "sigmoid-attention", "--jobs", "1", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert code == 1
    assert "No space left on device" in printed.err
    assert "runs broke" in printed.out
    assert list((tmp_path / "out").rglob("*.tmp")) == []


def test_a_corrupt_result_is_set_aside_and_measured_again(capsys, tmp_path, toy):
    out = tmp_path / "out"
    arguments = ["reproduce", "sigmoid-attention", "--jobs", "1", "--out", str(out)]
    assert main(arguments) == 0
    victim = next((out / "jobs").rglob("*.json"))
    victim.write_text("{")
    capsys.readouterr()
    assert main(arguments) == 0
    assert "damaged result" in capsys.readouterr().err
    assert json.loads(victim.read_text())["schema"] == 1


def test_training_that_diverges_is_a_result(capsys, text, tmp_path):
    out = tmp_path / "out"
    code = main(
        [
            *map(str, compare(text, out, *TINY)),
            *("--optimizer", "sgd", "--set", "learning_rate=1e30", "--set", "clip=none"),
            *("--set", "steps=6", "--jobs", "1"),
        ]
    )
    assert code == 0
    (tree,) = [json.loads(path.read_text()) for path in (out / "laptop").glob("*.json")]
    assert tree["claims"][0]["values"]["rms"]["1"] in ("NaN", "Infinity")
    assert tree["claims"][0]["verdict"] == "inconclusive"
    assert "diverged" in capsys.readouterr().err


def test_a_job_that_breaks_gives_exit_code_1(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("heterodox.claims.load", lambda paper_id: toy_claims.faulty)
    out = str(tmp_path / "out")
    arguments = [
        "reproduce",
        "sigmoid-attention",
        "--claim",
        "raising",
        "--jobs",
        "1",
        "--out",
        out,
    ]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "no luck" in printed.err and "1 job" in printed.err


def test_output_to_a_pipe_has_no_colours(capsys, tmp_path, toy):
    main(["reproduce", "sigmoid-attention", "--jobs", "1", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert "\x1b[" not in printed.out + printed.err
    assert str(tmp_path / "out" / "report.html") in printed.out.replace("\n", "")


def test_a_missing_extra_is_named(capsys, tmp_path, toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.util.joblib", None)
    code, line = error_of(
        capsys, "reproduce", "sigmoid-attention", "--engine", "ray", "--out", tmp_path / "out"
    )
    assert code == 2 and 'pip install "heterodox[ray]"' in line
