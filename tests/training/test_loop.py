import copy
import math

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from heterodox.training.batches import Shuffled
from heterodox.training.loop import fit
from heterodox.training.progress import listening
from heterodox.training.seeding import seeded


def build(seed=0):
    with seeded(seed):
        model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
        x = torch.randn(40, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return {
        "model": model,
        "optimizer": optimizer,
        "batches": Shuffled((x, x.sum(1, keepdim=True)), 8, torch.Generator().manual_seed(5)),
        "loss": squared_error,
        "scheduler": CosineAnnealingLR(optimizer, 20),
        "clip": 0.5,
        "evaluate": lambda model: {"error": squared_error(model, (x, x.sum(1, keepdim=True)))},
        "evaluate_every": 4,
    }


def squared_error(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def test_it_takes_the_steps_of_a_plain_loop():
    run, plain = build(), build()
    fit(**run, steps=20, seed=7)
    model, optimizer = plain["model"], plain["optimizer"]
    with seeded(7):
        for _ in range(20):
            loss = squared_error(model, next(plain["batches"]))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            plain["scheduler"].step()
    for ours, theirs in zip(run["model"].parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class Killed(BaseException):
    pass


def killed_after(batches, draws):
    class Deadly(type(batches)):
        def __next__(self):
            nonlocal draws
            draws -= 1
            if draws < 0:
                raise Killed
            return super().__next__()

    batches.__class__ = Deadly
    return batches


@pytest.mark.parametrize("killed_at", [10, 13, 19])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, killed_at):
    whole = build()
    expected = fit(**whole, steps=20)
    path = tmp_path / "run.ckpt"
    part = build()
    part["batches"] = killed_after(part["batches"], killed_at)
    with pytest.raises(Killed):
        fit(**part, steps=20, checkpoint=path, checkpoint_every=10)
    resumed = build(seed=99)  # other weights: all must come from the file
    resumed["batches"] = build()["batches"]
    resumed["evaluate"] = whole["evaluate"]
    history = fit(**resumed, steps=20, checkpoint=path, checkpoint_every=10)
    assert history == expected
    for ours, theirs in zip(
        resumed["model"].parameters(), whole["model"].parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_point_of_the_curve_that_a_kill_cuts_in_two_is_whole_after_resuming(tmp_path):
    expected = fit(**build(), steps=400)
    part = build()
    part["batches"] = killed_after(part["batches"], 30)
    choices = {"steps": 400, "checkpoint": tmp_path / "run", "checkpoint_every": 30}
    with pytest.raises(Killed):  # after step 30, with a point every 4 steps
        fit(**part, **choices)
    assert fit(**build(), **choices) == expected


def test_a_finished_run_returns_its_history_without_training_again(tmp_path):
    first = build()
    expected = fit(**first, steps=5, checkpoint=tmp_path / "run")
    again = build()
    again["batches"] = killed_after(again["batches"], 0)
    assert fit(**again, steps=5, checkpoint=tmp_path / "run") == expected


def test_the_callers_random_numbers_and_the_models_mode_are_left_alone():
    run = build()
    run["model"].eval()
    before = torch.get_rng_state()
    fit(**run, steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert not run["model"].training


def test_dropout_is_off_in_evaluation_and_on_in_training():
    run, modes = build(), []
    run["loss"] = lambda model, batch: modes.append(model.training) or squared_error(model, batch)
    evaluate = run["evaluate"]
    run["evaluate"] = lambda model: modes.append(model.training) or evaluate(model)
    fit(**run, steps=5)
    assert modes == [True, True, True, True, False, True, False]


def test_a_loss_that_is_not_finite_ends_the_run():
    run = build()
    calls = []

    def loss(model, batch):
        calls.append(1)
        value = squared_error(model, batch)
        return value * math.nan if len(calls) == 6 else value

    run["loss"] = loss
    history = fit(**run, steps=500)
    assert history.diverged and history.steps == 6 and len(calls) < 15
    assert math.isnan(history.last("error"))
    assert all(math.isfinite(y) for _, y in history.loss)


def test_a_step_that_raises_a_floating_point_error_ends_the_run():
    run = build()

    def refuse(optimizer, args, kwargs):
        if refuse.calls == 6:
            raise FloatingPointError
        refuse.calls += 1

    refuse.calls = 0
    run["optimizer"].register_step_post_hook(refuse)
    history = fit(**run, steps=20)
    assert history.diverged and history.steps == 7


def test_an_evaluation_that_is_not_finite_ends_the_run():
    run = build()
    run["evaluate"] = lambda model: {"error": math.inf}
    history = fit(**run, steps=20)
    assert history.diverged and history.steps == 4


def test_it_stops_when_the_watched_metric_no_longer_improves():
    run = build()
    values = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    run["evaluate"] = lambda model: {"error": next(values), "other": 0.0}
    history = fit(**run, steps=20, patience=2)
    assert history.stopped_early and history.steps == 16
    assert history.best == 2.0 and history.evaluations["other"][-1] == (16, 0.0)


def test_the_curve_is_the_mean_loss_between_its_points():
    run, losses = build(), []

    def loss(model, batch):
        value = squared_error(model, batch)
        losses.append(value.item())
        return value

    run["loss"] = loss
    history = fit(**run, steps=400)
    assert [step for step, _ in history.loss] == list(range(4, 401, 4))
    means = torch.tensor(losses).view(100, 4).mean(dim=1)
    assert [y for _, y in history.loss] == pytest.approx(means.tolist())


def test_progress_is_reported_to_the_end():
    run, heard = build(), []
    with listening(lambda step, total, metrics: heard.append((step, total, *metrics))):
        fit(**run, steps=8)
    assert heard[0] == (1, 8, "loss")
    assert heard[-1] == (8, 8, "error")


def test_nothing_is_printed(capfd):
    fit(**build(), steps=2, progress=True)
    assert capfd.readouterr() == ("", "")


def test_a_checkpoint_of_another_run_is_refused_before_anything_changes(tmp_path):
    path = tmp_path / "run"
    fit(**build(), steps=2, checkpoint=path, identity="softmax")
    other = build()
    before = copy.deepcopy(other["model"].state_dict())
    with pytest.raises(ValueError, match=r"^checkpoint: .* identity 'softmax' found, 'sigmoid'"):
        fit(**other, steps=2, checkpoint=path, identity="sigmoid")
    with pytest.raises(ValueError, match=r"^checkpoint: .* of_steps 2 found, 3 expected"):
        fit(**other, steps=3, checkpoint=path, identity="softmax")
    assert all(torch.equal(before[k], v) for k, v in other["model"].state_dict().items())


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    fit(**build(), steps=2, checkpoint=tmp_path / "run")
    other = build()
    other["model"] = nn.Linear(3, 1)
    other["optimizer"] = torch.optim.SGD(other["model"].parameters(), lr=0.1)
    other["scheduler"] = None
    with pytest.raises(ValueError, match=r"^checkpoint: .* of another model"):
        fit(**other, steps=2, checkpoint=tmp_path / "run")


@pytest.mark.parametrize(
    "name, value",
    [("steps", 0), ("clip", -1.0), ("evaluate_every", 0), ("patience", 0), ("checkpoint_every", 0)],
)
def test_a_number_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}: {value} given"):
        fit(**{**build(), "steps": 2, name: value})


def test_patience_needs_something_to_evaluate():
    run = {**build(), "evaluate": None, "evaluate_every": None}
    with pytest.raises(ValueError, match=r"^patience: given without evaluate"):
        fit(**run, steps=2, patience=1)


def train_on_two_processes(fabric):
    run = build()
    del run["model"][2]  # dropout: its masks differ between processes
    history = fit(**run, steps=6, fabric=fabric)
    return [p.tolist() for p in run["model"].parameters()], history


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_train_as_one():
    alone = build()
    del alone["model"][2]
    expected = fit(**alone, steps=6)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp_fork")
    weights, history = fabric.launch(train_on_two_processes)
    for ours, theirs in zip(weights, alone["model"].parameters(), strict=True):
        assert torch.allclose(torch.tensor(ours), theirs, atol=1e-6)
    assert [y for _, y in history.loss] == pytest.approx([y for _, y in expected.loss], rel=1e-5)
