import pickle

import pytest
import torch

from heterodox.training.checkpoint import load_checkpoint, save_checkpoint


def test_what_was_saved_is_loaded(tmp_path):
    state = {"step": 3, "weights": [torch.randn(3), torch.randn(2, 2)], "nested": {"a": (1, None)}}
    save_checkpoint(tmp_path / "run", state)
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded["step"] == 3 and loaded["nested"] == {"a": (1, None)}
    assert all(map(torch.equal, loaded["weights"], state["weights"]))


def test_a_failed_save_leaves_the_previous_checkpoint_and_no_debris(tmp_path):
    path = tmp_path / "run"
    save_checkpoint(path, {"step": 1})
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_checkpoint(path, {"step": 2, "function": lambda: None})
    assert load_checkpoint(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def truncate(content):
    return content[: len(content) // 2]


def flip_a_bit_of_the_weights(content):
    where = content.index(torch.full((64,), 1.25).numpy().tobytes()) + 100
    return content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :]


@pytest.mark.parametrize(
    "damage",
    [truncate, flip_a_bit_of_the_weights, lambda content: b"", lambda content: b"no checkpoint"],
)
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "run.ckpt"
    save_checkpoint(path, {"weights": torch.full((64,), 1.25)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"^checkpoint: .*run\.ckpt"):
        load_checkpoint(path)


class Bomb:
    def __reduce__(self):
        return print, ("executed",)


def test_a_checkpoint_executes_nothing(tmp_path, capsys):
    torch.save({"bomb": Bomb()}, tmp_path / "run")
    with pytest.raises(ValueError, match=r"^checkpoint: "):
        load_checkpoint(tmp_path / "run")
    assert capsys.readouterr().out == ""


def test_a_missing_file_stays_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "absent")
