"""The rule against plain loops over patches, and its known fixed points."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heterodox.learning.hebbian import (
    ChannelAffine,
    SoftHebbianConv2d,
    apply_update_,
    hebbian_update,
    soft_hebbian_conv2d_update,
    soft_hebbian_update,
)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(patches, weight, temperature):
    """One patch and one filter at a time."""
    change = torch.zeros_like(weight)
    for patch in patches:
        u = torch.stack([(w * patch).sum() for w in weight])
        y = torch.exp(u / temperature) / torch.exp(u / temperature).sum()
        for k, w in enumerate(weight):
            change[k] += y[k] * (patch - u[k] * w)
    return change


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_the_linear_update_is_the_sum_over_patches(temperature):
    x, weight = draw(7, 5), draw(4, 5, seed=1)
    update = soft_hebbian_update(x, weight, temperature=temperature)
    torch.testing.assert_close(update, by_loops(x, weight, temperature))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((3, 3), 1, 0, 1),
        ((3, 3), 1, 1, 1),
        ((3, 2), (2, 1), (1, 0), 1),
        ((3, 3), 2, 2, 2),
        ((2, 4), 1, "same", 1),
        ((3, 2), 1, "same", (2, 1)),
        ((3, 3), 1, "valid", 1),
    ],
)
def test_the_convolution_is_a_loop_over_its_patches(kernel, stride, padding, dilation):
    x, weight = draw(2, 3, 7, 6), draw(4, 3, *kernel, seed=1)
    layer = nn.Conv2d(3, 4, kernel, stride, padding, dilation, bias=False).double()
    # A convolution with a unit vector as its only filter reads one entry of every patch.
    entries = []
    for unit in torch.eye(weight[0].numel(), dtype=torch.float64):
        layer.weight.data.copy_(unit.view(1, *weight.shape[1:]).expand_as(layer.weight))
        entries.append(layer(x)[:, 0].flatten())
    patches = torch.stack(entries, -1).detach()
    expected = by_loops(patches, weight.flatten(1), 1.0).view_as(weight)
    update = soft_hebbian_conv2d_update(
        x, weight, stride=stride, padding=padding, dilation=dilation
    )
    torch.testing.assert_close(update, expected)
    torch.testing.assert_close(
        soft_hebbian_update(patches, weight.flatten(1)).view_as(weight), expected
    )


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
@pytest.mark.parametrize("padding", [(2, 1), "same"])
def test_a_layer_learns_from_the_patches_that_it_sees(mode, padding):
    layer = nn.Conv2d(2, 3, (3, 2), padding=padding, padding_mode=mode).double()
    x = draw(2, 2, 6, 5)
    if mode == "zeros":
        padded = F.pad(x, (0, 1, 1, 1) if padding == "same" else (1, 1, 2, 2))
    else:
        padded = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    expected = soft_hebbian_conv2d_update(padded, layer.weight.detach())
    torch.testing.assert_close(hebbian_update(layer, x), expected)


def test_a_linear_layer_counts_tokens_as_a_batch():
    layer, x = nn.Linear(5, 3).double(), draw(2, 4, 5)
    expected = soft_hebbian_update(x.view(8, 5), layer.weight.detach())
    torch.testing.assert_close(hebbian_update(layer, x), expected)


def test_a_single_filter_turns_to_the_mean_patch_with_length_1():
    # y = 1, so that Δw = Σ p − (w · Σ p) w, which vanishes at the direction of the mean alone.
    x, weight = draw(50, 6) + 1, draw(1, 6, seed=2)
    for _ in range(300):
        weight += 0.2 * soft_hebbian_update(x, weight) / len(x)
    torch.testing.assert_close(weight[0], F.normalize(x.mean(0), dim=0))


def test_a_cold_competition_has_one_winner():
    x, weight = draw(20, 5), draw(4, 5, seed=1)
    u = x @ weight.T
    winner = F.one_hot(u.argmax(1), 4).double()
    expected = winner.T @ x - (winner * u).sum(0)[:, None] * weight
    for temperature in (1e-6, 1e-300):
        update = soft_hebbian_update(x, weight, temperature=temperature)
        torch.testing.assert_close(update, expected)


def test_a_filter_that_never_wins_stays_as_it_is():
    x = draw(20, 5).abs() + 1
    weight = torch.stack([torch.ones(5), -100 * torch.ones(5)]).double()
    update = soft_hebbian_update(x, weight)
    assert update[0].abs().min() > 0
    assert update[1].abs().max() < 1e-100


def test_the_largest_change_of_a_step_is_the_rate():
    weight, change = draw(3, 4), 1e6 * draw(3, 4, seed=1)
    before = weight.clone()
    apply_update_(weight, change, 0.01)
    moved = weight - before
    assert moved.abs().max().item() == pytest.approx(0.01)
    torch.testing.assert_close(moved, 0.01 * change / change.abs().max())
    apply_update_(weight, torch.zeros(3, 4, dtype=torch.float64), 0.01)
    torch.testing.assert_close(weight, before + moved, rtol=0, atol=0)


def test_a_step_moves_the_weight_only_and_says_how_far():
    layer, x = SoftHebbianConv2d(2, 3, 3, padding=1).double(), draw(4, 2, 5, 5)
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    update = soft_hebbian_conv2d_update(x, before, padding=1, temperature=0.5)
    change = layer.hebbian_step_(x, 0.02, temperature=0.5)
    expected = 0.02 * update / update.abs().max()
    torch.testing.assert_close(layer.weight.detach(), before + expected)
    torch.testing.assert_close(change, expected.norm() / before.norm())
    assert torch.equal(layer.bias, bias)
    assert layer.weight.grad is None and layer.weight.requires_grad


def test_the_layer_is_a_convolution_with_its_weights():
    plain = nn.Conv2d(2, 3, 3, 2, 1, bias=False)
    layer = SoftHebbianConv2d(2, 3, 3, 2, 1, bias=False)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, 2, 7, 7)
    assert torch.equal(layer(x), plain(x))


def test_zero_rate_changes_nothing_and_an_empty_sum_is_zero():
    layer = SoftHebbianConv2d(1, 2, 3)
    before = layer.weight.detach().clone()
    assert layer.hebbian_step_(torch.rand(2, 1, 5, 5), 0.0).item() == 0
    assert torch.equal(layer.weight, before)
    assert not soft_hebbian_update(torch.zeros(0, 3), torch.ones(2, 3)).any()
    assert not soft_hebbian_conv2d_update(torch.zeros(0, 1, 5, 5), torch.ones(2, 1, 3, 3)).any()


def test_autocast_leaves_the_update_in_single_precision():
    x, weight = draw(4, 3, 8, 8).float(), draw(5, 3, 3, 3, seed=1).float()
    expected = soft_hebbian_conv2d_update(x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(soft_hebbian_conv2d_update(x, weight), expected)
        flat = soft_hebbian_update(x.flatten(1), weight.flatten(1)[:, :1].expand(5, 192))
    torch.testing.assert_close(
        flat, soft_hebbian_update(x.flatten(1), weight.flatten(1)[:, :1].expand(5, 192))
    )


def test_the_modulator_scales_and_shifts_each_channel():
    for dim, shape in ((1, (2, 3, 4, 5)), (-1, (2, 4, 3)), (1, (6, 3))):
        modulator = ChannelAffine(3, dim=dim)
        modulator.weight.data = torch.tensor([1.0, 2.0, 3.0])
        modulator.bias.data = torch.tensor([0.0, -1.0, 5.0])
        x = torch.randn(shape)
        for channel, (gain, offset) in enumerate([(1, 0), (2, -1), (3, 5)]):
            expected = gain * x.select(dim, channel) + offset
            torch.testing.assert_close(modulator(x).select(dim, channel), expected)


def test_values_that_are_not_finite_leave_the_weight_alone():
    layer = SoftHebbianConv2d(1, 2, 3)
    before = layer.weight.detach().clone()
    for bad in (torch.nan, torch.inf):
        x = torch.rand(2, 1, 5, 5)
        x[0, 0, 0, 0] = bad
        with pytest.raises(ValueError, match=r"^x: .* expected"):
            layer.hebbian_step_(x, 0.1)
    assert torch.equal(layer.weight, before)


X, W = torch.rand(2, 3, 6, 6), torch.rand(4, 3, 3, 3)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        (
            "temperature",
            lambda: soft_hebbian_update(X[0, 0], W[0, 0, :, :1].expand(3, 6), temperature=0.0),
        ),
        ("temperature", lambda: soft_hebbian_conv2d_update(X, W, temperature=-1.0)),
        ("temperature", lambda: soft_hebbian_conv2d_update(X, W, temperature=torch.nan)),
        ("x", lambda: soft_hebbian_update(torch.rand(2, 5), torch.rand(3, 4))),
        ("x", lambda: soft_hebbian_conv2d_update(X[:, :1], W)),
        ("x", lambda: soft_hebbian_conv2d_update(X[..., :2], W)),
        ("x", lambda: soft_hebbian_conv2d_update(X[..., :4], W, dilation=2)),
        ("padding", lambda: soft_hebbian_conv2d_update(X, W, padding="full")),
        ("groups", lambda: SoftHebbianConv2d(4, 4, 3, groups=2)),
        ("lr", lambda: SoftHebbianConv2d(3, 4, 3).hebbian_step_(X, -0.1)),
        ("x", lambda: SoftHebbianConv2d(3, 4, 3).hebbian_step_(X[:0], 0.1)),
        ("channels", lambda: ChannelAffine(0)),
        ("x", lambda: ChannelAffine(2)(torch.rand(2, 3))),
        ("x", lambda: ChannelAffine(2)(torch.rand(2))),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("stride", "padding"), list(itertools.product((1, 2), (0, 1, "same"))))
def test_cuda_equals_the_cpu(stride, padding):
    if padding == "same" and stride > 1:
        pytest.skip("torch has no strided 'same'")
    x, weight = draw(2, 3, 8, 8).float(), draw(4, 3, 3, 3, seed=1).float()
    options = {"stride": stride, "padding": padding}
    expected = soft_hebbian_conv2d_update(x, weight, **options)
    update = soft_hebbian_conv2d_update(x.cuda(), weight.cuda(), **options)
    torch.testing.assert_close(update.cpu(), expected, rtol=1e-3, atol=1e-2)
