"""`heterodox bench`, from the line that is typed to the file."""

import json

import pytest

from heterodox.cli.main import main

TINY = ["--sizes", "2x8", "--seconds", "0", "--repeat", "1", "--threads", "1", "--against", ""]


def test_a_benchmark_is_stored_and_printed(tmp_path, capsys):
    assert main(["bench", "optimizer", *TINY, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    captured = capsys.readouterr()
    assert captured.out.endswith(f"Results: {path}\n")
    assert "perp-grad" in captured.out and captured.err == ""


def test_json_is_what_the_file_holds(tmp_path, capsys):
    assert main(["bench", "optimizer", *TINY, "--json", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attenton"], "slot: 'attenton' given"),
        (["attention", "--against", "apex"], "against: 'apex' given"),
        (["attention", "--lengths", "long"], "sizes: 'long' given"),
        (["attention", "--device", "gpu"], "device: 'gpu' given"),
        (["attention", "--repeat", "0"], "--repeat"),
    ],
)
def test_what_the_user_wrote_wrongly_is_code_2_and_leaves_no_file(
    arguments, message, tmp_path, capsys
):
    assert main(["bench", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


def test_a_folder_that_cannot_be_made_is_code_1_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["bench", "optimizer", *TINY, "--out", str(tmp_path / "file")]) == 1
    assert "file" in capsys.readouterr().err


def test_help_lists_slots_and_peers(capsys):
    assert main(["bench", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in ("attention", "loss", "optimizer", "dense-softmax", "perp-grad-loop"):
        assert name in text
