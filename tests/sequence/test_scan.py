"""The parallel scan against the loop that defines it."""

import pytest
import torch

from heterodox.sequence.scan import linear_scan


def draw(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def loop(decay, inputs, state=None):
    state = torch.zeros_like(inputs[..., 0, :]) if state is None else state
    states = []
    for t in range(inputs.shape[-2]):
        state = decay[..., t, :] * state + inputs[..., t, :]
        states.append(state)
    return torch.stack(states, dim=-2)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 50])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("starts", [False, True])
def test_states_are_those_of_the_loop(length, batch, starts):
    decay, inputs = draw(*batch, length, 4), draw(*batch, length, 4, seed=1)
    state = draw(*batch, 4, seed=2) if starts else None
    torch.testing.assert_close(linear_scan(decay, inputs, state), loop(decay, inputs, state))


@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 18])
def test_gradients_of_first_and_second_order_match_finite_differences(length):
    given = [
        draw(2, length, 3).requires_grad_(),
        draw(2, length, 3, seed=1).requires_grad_(),
        draw(2, 3, seed=2).requires_grad_(),
    ]
    assert torch.autograd.gradcheck(linear_scan, given)
    assert torch.autograd.gradgradcheck(linear_scan, given)


def test_one_decay_for_all_channels_collects_their_gradients():
    decay, inputs = draw(2, 9, 1).requires_grad_(), draw(2, 9, 5, seed=1)
    wide = decay.detach().expand(2, 9, 5).clone().requires_grad_()
    linear_scan(decay, inputs).square().sum().backward()
    linear_scan(wide, inputs).square().sum().backward()
    torch.testing.assert_close(decay.grad, wide.grad.sum(-1, keepdim=True))


def test_a_constant_decay_gives_the_geometric_series():
    states = linear_scan(
        torch.full((1000, 1), 0.9, dtype=torch.float64), torch.ones(1000, 1).double()
    )
    powers = 0.9 ** torch.arange(1, 1001, dtype=torch.float64)
    torch.testing.assert_close(states[:, 0], (1 - powers) / 0.1)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-45])
def test_decays_near_zero_neither_divide_nor_overflow(value):
    decay = torch.full((200, 3), value).requires_grad_()
    inputs = draw(200, 3, dtype=torch.float32).requires_grad_()
    states = linear_scan(decay, inputs)
    torch.testing.assert_close(states, inputs)
    states.sum().backward()
    assert decay.grad.isfinite().all()
    torch.testing.assert_close(inputs.grad, torch.ones_like(inputs))


def test_a_single_zero_forgets_everything_before_it():
    decay, inputs = draw(40, 2), draw(40, 2, seed=1)
    decay[17] = 0
    changed = inputs.clone()
    changed[:17] = 5
    before, after = linear_scan(decay, inputs), linear_scan(decay, changed)
    assert torch.equal(before[17:], after[17:])


def test_decays_above_one_and_below_zero_are_allowed():
    decay, inputs = draw(30, 2) * 2, draw(30, 2, seed=1)
    assert decay.max() > 1 and decay.min() < -1
    torch.testing.assert_close(linear_scan(decay, inputs), loop(decay, inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    decay, inputs = torch.ones(3000, 1, dtype=dtype), torch.ones(3000, 1, dtype=dtype)
    states = linear_scan(decay, inputs)
    assert states.dtype == dtype
    assert states[-1].item() == pytest.approx(3000, rel=1e-2)  # a bfloat16 sum stops at 256


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 5, 3), (2, 5, 0)])
def test_nothing_gives_nothing(shape):
    inputs = torch.zeros(shape, requires_grad=True)
    states = linear_scan(inputs, inputs)
    assert states.shape == shape
    states.sum().backward()
    assert inputs.grad.shape == shape


def test_the_last_state_carries_on():
    decay, inputs = draw(2, 21, 3), draw(2, 21, 3, seed=1)
    whole = linear_scan(decay, inputs)
    first = linear_scan(decay[:, :8], inputs[:, :8])
    second = linear_scan(decay[:, 8:], inputs[:, 8:], first[:, -1])
    torch.testing.assert_close(torch.cat((first, second), 1), whole)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("inputs", lambda: (torch.zeros(3), torch.zeros(3))),
        ("decay", lambda: (torch.zeros(4, 3), torch.zeros(5, 3))),
        ("decay", lambda: (torch.zeros(5, 2), torch.zeros(5, 3))),
        ("initial_state", lambda: (torch.zeros(5, 3), torch.zeros(5, 3), torch.zeros(2))),
    ],
)
def test_bad_shapes_are_named(name, given):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        linear_scan(*given())
