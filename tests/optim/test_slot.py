import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from heterodox.optim import OPTIMIZERS, SCHEDULES, PerpGrad


def weights():
    return [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.zeros(2))]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_rate_and_decay_and_lowers_a_loss(name):
    params = weights()
    optimizer = OPTIMIZERS[name](iter(params), lr=0.01, weight_decay=0.1)
    assert isinstance(optimizer, Optimizer)
    assert {(g["lr"], g["weight_decay"]) for g in optimizer.param_groups} == {(0.01, 0.1)}
    x, y = torch.eye(3), torch.arange(6.0).reshape(3, 2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (x @ params[0] + params[1] - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_decays_weights_unless_told(name):
    assert OPTIMIZERS[name](weights(), lr=0.01).param_groups[0]["weight_decay"] == 0.0


def test_the_optimizers_are_what_their_names_say():
    assert OPTIMIZERS.default == "adamw"
    assert isinstance(OPTIMIZERS["adamw"](weights(), 0.1), AdamW)
    assert isinstance(OPTIMIZERS["sgd"](weights(), 0.1), SGD)
    perp = OPTIMIZERS["perp-grad"](weights(), 0.1)
    assert isinstance(perp, PerpGrad) and isinstance(perp.base_optimizer, AdamW)
    assert perp.param_groups[0]["betas"] == OPTIMIZERS["adamw"](weights(), 0.1).defaults["betas"]


def rates(optimizer_name, schedule_name, total, warmup):
    optimizer = OPTIMIZERS[optimizer_name](weights(), lr=3e-4)
    schedule = SCHEDULES[schedule_name](optimizer, total, warmup_steps=warmup)
    found = []
    for _ in range(total + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_schedule_warms_every_optimizer_up_in_equal_steps(optimizer, schedule):
    warm = rates(optimizer, schedule, total=20, warmup=4)[:4]
    torch.testing.assert_close(warm, 3e-4 * torch.tensor([0.25, 0.5, 0.75, 1.0]).double())


def test_the_cosine_falls_from_the_peak_to_a_thirtieth():
    found = rates("adamw", "cosine", total=20, warmup=4)
    assert (found[4:].diff() < 0).all()
    assert found[4].item() == pytest.approx(3e-4)
    assert found[12].item() == pytest.approx((3e-4 + 1e-5) / 2)
    assert found[20].item() == pytest.approx(1e-5)
    assert rates("adamw", "cosine", total=5, warmup=0)[0].item() == pytest.approx(3e-4)


def test_the_constant_schedule_stays():
    assert (rates("adamw", "constant", total=10, warmup=4)[3:] == 3e-4).all()
    assert (rates("adamw", "constant", total=10, warmup=0) == 3e-4).all()
