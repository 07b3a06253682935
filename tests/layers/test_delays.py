"""Delays against impulses, plain loops, torch's convolution, and the authors' package."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heterodox.layers import delayed_synapses as module
from heterodox.layers.delays import (
    DelayedLinear,
    DelayedSNN,
    delay_kernel,
    delayed_linear,
    hard_delay_kernel,
    sigma_at,
    summed_softmax,
)
from heterodox.training.seeding import seeded


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def layer_of(*args, seed: int = 0, **options) -> DelayedLinear:
    with seeded(seed):
        return DelayedLinear(*args, **options).double()


def by_loop(x: Tensor, kernel: Tensor, extend: int) -> Tensor:
    outs, _, lags = kernel.shape
    y = x.new_zeros(len(x) + extend, x.shape[1], outs)
    for t in range(len(y)):
        for lag in range(lags):
            if 0 <= t - lag < len(x):
                y[t] += x[t - lag] @ kernel[:, :, lag].T
    return y


@pytest.fixture(params=["convolution", "transforms"])
def path(request, monkeypatch) -> str:
    chosen = request.param == "transforms"
    monkeypatch.setattr(module, "_transforms_are_quicker", lambda *sizes: chosen)
    return request.param


@pytest.mark.parametrize("delay", [0, 1, 3, 4])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_an_impulse_comes_out_as_many_steps_later_as_its_delay(path, delay, mode):
    layer = layer_of(1, 1, 5, sigma=0.0)
    with torch.no_grad():
        layer.delay.fill_(delay), layer.weight.fill_(-1.7)
    layer.train(mode == "train")
    x = torch.zeros(6, 1, 1, dtype=torch.float64)
    x[2] = 1
    y = layer(x).flatten()
    assert y.shape == (8,)  # (5 - 1) / 2 steps more, for what is under way
    expected = torch.zeros(8, dtype=torch.float64)
    expected[2 + delay] = -1.7
    # Of the narrowest Gaussian, a step beside the delay has a thousandth.
    torch.testing.assert_close(y, expected, atol=1e-6 if mode == "eval" else 4e-3, rtol=0)
    if 2 + delay + 1 < 8:
        assert abs(y.sum().item() + 1.7) < 1e-6


@pytest.mark.parametrize("kernel_count", [1, 2])
@pytest.mark.parametrize("sigma", [0.0, 0.23, 2.0, 50.0])
def test_the_blurred_kernel_keeps_the_weight_and_is_its_equation(sigma, kernel_count):
    weight, delay = draw(3, 4, kernel_count), 6 * torch.rand(3, 4, kernel_count).double()
    kernel = delay_kernel(weight, delay, sigma, 7)
    torch.testing.assert_close(kernel.sum(-1), weight.sum(-1), atol=1e-5, rtol=0)
    expected = torch.zeros(3, 4, 7, dtype=torch.float64)
    for o, i, k in torch.cartesian_prod(*map(torch.arange, weight.shape)):
        width = sigma + 0.27
        g = [math.exp(-0.5 * ((lag - delay[o, i, k].item()) / width) ** 2) for lag in range(7)]
        for lag in range(7):
            expected[o, i, lag] += weight[o, i, k] * g[lag] / (sum(g) + 1e-7)
    torch.testing.assert_close(kernel, expected)
    torch.testing.assert_close(delay_kernel(weight, delay, torch.tensor(sigma), 7), kernel)


def test_the_blurred_kernel_becomes_the_hard_one():
    weight = draw(3, 4, 2)
    delay = torch.randint(7, (3, 4, 2)).double()
    hard = hard_delay_kernel(weight, delay, 7)
    torch.testing.assert_close(delay_kernel(weight, delay, 0.0, 7), hard, atol=1e-2, rtol=0)
    assert ((hard != 0).sum(-1) <= 2).all()
    torch.testing.assert_close(hard.sum(-1) * (1 + 1e-7), weight.sum(-1))


def test_delays_outside_the_window_are_brought_into_it_at_test_time():
    weight, delay = torch.ones(1, 2, 1), torch.tensor([-3.0, 9.0]).view(1, 2, 1)
    kernel = hard_delay_kernel(weight, delay, 4)
    torch.testing.assert_close(kernel[0], torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1]]))


def test_gradients_match_finite_differences(path):
    weight, delay = draw(2, 3, 2), (4 * torch.rand(2, 3, 2)).double()
    x = draw(5, 2, 3)

    def call(x, weight, delay):
        return delayed_linear(x, delay_kernel(weight, delay, 0.6, 5), extend=2)

    tensors = [tensor.requires_grad_() for tensor in (x, weight, delay)]
    assert torch.autograd.gradcheck(call, tensors)


@pytest.mark.parametrize("extend", [0, 2, 7])
@pytest.mark.parametrize("lags", [1, 2, 5])
@pytest.mark.parametrize("time", [1, 6])
def test_the_convolution_is_a_sum_over_lags(path, extend, lags, time):
    x, kernel, bias = draw(time, 3, 4), draw(5, 4, lags), draw(5)
    expected = by_loop(x, kernel, extend)
    torch.testing.assert_close(delayed_linear(x, kernel, extend=extend), expected)
    torch.testing.assert_close(delayed_linear(x, kernel, extend=extend, bias=bias), expected + bias)
    padded = F.pad(x.permute(1, 2, 0), (lags - 1, extend))
    torch.testing.assert_close(F.conv1d(padded, kernel.flip(-1)).permute(2, 0, 1), expected)


def test_both_ways_of_convolving_agree_where_transforms_are_chosen():
    sizes = (60, 64, 64, 80, 25)
    steps, batch, ins, outs, lags = sizes
    assert module._transforms_are_quicker(*sizes, torch.float32)
    assert not module._transforms_are_quicker(*sizes, torch.bfloat16)
    x, kernel = draw(steps, batch, ins).float(), draw(outs, ins, lags).float()
    padded = F.pad(x.permute(1, 2, 0), (lags - 1, 0))
    expected = F.conv1d(padded, kernel.flip(-1)).permute(2, 0, 1)
    torch.testing.assert_close(delayed_linear(x, kernel), expected, atol=1e-4, rtol=1e-4)


def test_the_future_does_not_matter(path):
    layer = layer_of(4, 3, 5)
    x = draw(9, 2, 4)
    changed = x.clone()
    changed[6:] += 1
    torch.testing.assert_close(layer(changed)[:6], layer(x)[:6])
    assert not torch.allclose(layer(changed)[6:], layer(x)[6:])


def test_a_window_of_one_lag_is_a_linear_layer():
    layer = layer_of(4, 3, 1, bias=True)
    linear = nn.Linear(4, 3).double()
    with torch.no_grad():
        linear.weight.copy_(layer.weight[..., 0]), layer.bias.copy_(linear.bias)
    x = draw(5, 2, 4)
    for mode in (True, False):
        assert layer.train(mode)(x).shape == (5, 2, 3)
        torch.testing.assert_close(layer(x), linear(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("version", ["gauss", "max"])
@pytest.mark.parametrize("kernel_count", [1, 2])
def test_the_layer_is_that_of_the_authors_package(version, kernel_count):
    dcls = pytest.importorskip("DCLS.construct.modules", reason="needs DCLS")
    layer = layer_of(4, 3, 7, kernel_count=kernel_count, sigma=1.3, extend=3)
    theirs = dcls.ConstructKernel1d(3, 4, 1, kernel_count, [7], version)
    weight, delay = layer.weight.detach(), layer.delay.detach()
    if version == "max":
        layer.eval()
        delay = delay.round()
    sigma = torch.full((1, 3, 4, kernel_count), 1.3 if version == "gauss" else 0.0).double()
    kernel = theirs(weight, ((7 - 1) / 2 - delay)[None], sigma)
    x = draw(10, 2, 4)
    # A cross-correlation of their kernel, with its padding.
    padded = F.pad(x.permute(1, 2, 0), (7 - 1, 3))
    torch.testing.assert_close(layer(x), F.conv1d(padded, kernel).permute(2, 0, 1))


def test_evaluation_changes_nothing_and_repeats():
    layer = layer_of(4, 3, 5, kernel_count=2).eval()
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    x = draw(6, 2, 4)
    assert torch.equal(layer(x), layer(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    assert (layer.delay != layer.delay.round()).any()


def test_the_state_holds_the_blur():
    layer, other = layer_of(4, 3, 9), layer_of(4, 3, 9, seed=1)
    assert layer.state_dict()["sigma"] == 4  # half of the window
    layer.set_sigma(0.5)
    other.load_state_dict(layer.state_dict())
    x = draw(6, 2, 4)
    assert torch.equal(layer(x), other(x))


def test_delays_start_in_the_window_and_are_kept_there():
    layer = layer_of(50, 40, 24)
    assert layer.max_delay == 25 and layer.extend == 12
    assert 0 <= layer.delay.min() < 0.1 and 23.9 < layer.delay.max() <= 24
    assert abs(layer.weight).max() <= math.sqrt(6 / 50)
    with torch.no_grad():
        layer.delay.mul_(3).sub_(20)
    layer.clamp_delays_()
    assert layer.delay.min() == 0 and layer.delay.max() == 24
    layer.round_delays_()
    assert torch.equal(layer.delay, layer.delay.round())


def test_delays_that_are_not_learned_have_no_gradient():
    layer = layer_of(4, 3, 5, learn_delays=False)
    layer(draw(5, 2, 4)).sum().backward()
    assert layer.delay.grad is None and layer.weight.grad is not None


def test_a_delay_moves_towards_the_spike_that_it_should_meet():
    layer = layer_of(1, 1, 9, sigma=4.0, extend=0)
    with torch.no_grad():
        layer.delay.fill_(1.0), layer.weight.fill_(1.0)
    x, target = torch.zeros(20, 1, 1).double(), torch.zeros(20, 1, 1).double()
    x[3], target[3 + 6] = 1, 1
    optimizer = torch.optim.Adam([layer.delay], lr=0.1)
    for step in range(150):
        layer.set_sigma(sigma_at(step, initial=4.0, last_epoch=75))
        optimizer.zero_grad()
        (layer(x) - target).square().sum().backward()
        optimizer.step()
        layer.clamp_delays_()
    assert layer.delay.item() == pytest.approx(6.0, abs=0.1)
    torch.testing.assert_close(layer.eval()(x), target)


@pytest.mark.parametrize(("time", "batch"), [(0, 2), (5, 0), (0, 0), (1, 1)])
def test_empty_and_single_dimensions_work(time, batch):
    layer = layer_of(4, 3, 5)
    x = torch.ones(time, batch, 4, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    assert y.shape == (time + 2, batch, 3)
    y.sum().backward()
    assert x.grad.shape == x.shape and layer.weight.grad.isfinite().all()
    assert delayed_linear(x[:0], layer.kernel()).shape == (0, batch, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernels_of_half_precision_are_computed_in_single(dtype):
    weight, delay = draw(3, 4, 1).to(dtype), (30 * torch.rand(3, 4, 1)).to(dtype)
    kernel = delay_kernel(weight, delay, 0.23, 31)
    assert kernel.dtype == dtype
    assert torch.equal(kernel, delay_kernel(weight.float(), delay.float(), 0.23, 31).to(dtype))


def test_sigma_shrinks_epoch_by_epoch_as_in_the_authors_code():
    initial, epochs = 12, 40
    sigma, last = float(initial), epochs // 4
    for epoch in range(epochs):
        expected = sigma_at(epoch, initial=initial, last_epoch=last)
        assert sigma == pytest.approx(expected, rel=1e-9)
        if epoch < last and sigma > 0.23:
            sigma *= (0.23 / initial) ** (1 / last)
    assert sigma_at(epochs, initial=12, last_epoch=last) == 0.23
    assert sigma_at(7, initial=0.0, last_epoch=3) == 0.0
    assert sigma_at(7, initial=5.0, last_epoch=0) == 5.0


def test_scores_sum_the_softmax_of_every_step():
    membrane = draw(7, 2, 3)
    scores = summed_softmax(membrane)
    torch.testing.assert_close(scores, sum(row.softmax(-1) for row in membrane))
    torch.testing.assert_close(scores.sum(-1), torch.full((2,), 7.0).double())


def network(seed: int = 0, **options) -> DelayedSNN:
    with seeded(seed):
        return DelayedSNN([6, 8, 7, 3], 5, **options).double()


def test_the_network_is_its_equations():
    model = network(tau=1.5, threshold=0.8).eval()
    x = draw(9, 4, 6)
    for block in model.blocks:
        block.norm.running_mean.normal_(), block.norm.running_var.uniform_(0.5, 2)
    y = x
    for block in model.blocks:
        layer = block.synapses
        current = by_loop(y, hard_delay_kernel(layer.weight, layer.delay, 5), 2)
        mean, var = block.norm.running_mean, block.norm.running_var
        current = (current - mean) / (var + block.norm.eps).sqrt()
        v, spikes = torch.zeros_like(current[0]), []
        for row in current:
            h = (1 - 1 / 1.5) * v + row
            fired = (h >= 0.8).double()
            v = h * (1 - fired)
            spikes.append(fired)
        y = torch.stack(spikes)
    assert 0.05 < y.mean() < 0.95
    layer = model.readout
    current = by_loop(y, hard_delay_kernel(layer.weight, layer.delay, 5), 2)
    v, membrane = torch.zeros_like(current[0]), []
    for row in current:
        v = (1 - 1 / 1.5) * v + row
        membrane.append(v)
    assert len(membrane) == 9 + 3 * 2
    torch.testing.assert_close(model(x), torch.stack(membrane))


def test_normalisation_pools_all_steps_and_samples():
    model = network(dropout=0.0).train()
    seen = []
    model.blocks[0].neurons.register_forward_hook(lambda module, given, _: seen.append(given[0]))
    model(draw(9, 4, 6))
    (current,) = seen
    torch.testing.assert_close(current.mean((0, 1)), torch.zeros(8).double())
    torch.testing.assert_close(
        current.var((0, 1), correction=0), torch.ones(8).double(), atol=1e-2, rtol=0
    )


def test_a_dropped_neuron_is_silent_at_all_steps():
    with seeded(3):
        block = network(dropout=0.5).blocks[0].train()
        block.neurons.threshold = 1e-9  # about every second step, so that silence is no accident
        spikes = block(draw(40, 4, 6))
    silent = (spikes == 0).all(0)
    assert 0.2 < silent.double().mean() < 0.8
    assert set(spikes[:, ~silent].unique().tolist()) == {0.0, 2.0}
    assert (spikes[:, ~silent] > 0).any(0).all()
    assert not (block.eval()(draw(40, 4, 6)) == 0).all(0).any()


def test_a_batch_of_one_and_silence_are_evaluated():
    model = network().eval()
    x = torch.zeros(9, 4, 6, dtype=torch.float64)
    x[:, 1] = draw(9, 6).abs()
    torch.testing.assert_close(model(x[:, 1:2]), model(x)[:, 1:2])
    assert model(x).isfinite().all() and model(x[:, :0]).shape == (15, 0, 3)


def test_a_network_learns_from_its_delays_alone():
    """Two classes, which differ only in the order of two spikes; weights stay as they are."""
    x = torch.zeros(12, 2, 2)
    x[1, 0, 0] = x[6, 0, 1] = x[6, 1, 0] = x[1, 1, 1] = 1
    target = torch.tensor([0, 1])
    with seeded(0):
        model = DelayedSNN([2, 12, 2], 9, dropout=0.0)
    before = [weight.clone() for weight in model.weights()]
    optimizer = torch.optim.Adam(model.delays(), lr=0.1)
    losses = []
    for step in range(60):
        model.set_sigma(sigma_at(step, initial=4, last_epoch=30))
        optimizer.zero_grad()
        loss = F.cross_entropy(summed_softmax(model(x)), target)
        loss.backward()
        optimizer.step()
        model.clamp_delays_()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(a, b) for a, b in zip(before, model.weights(), strict=True))
    assert len(model.delays()) == 2


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("max_delay", lambda: DelayedLinear(4, 3, 0)),
        ("in_features", lambda: DelayedLinear(0, 3, 5)),
        ("out_features", lambda: DelayedLinear(4, 0, 5)),
        ("kernel_count", lambda: DelayedLinear(4, 3, 5, kernel_count=0)),
        ("sigma", lambda: DelayedLinear(4, 3, 5, sigma=-0.1)),
        ("sigma", lambda: DelayedLinear(4, 3, 5, sigma=math.nan)),
        ("extend", lambda: DelayedLinear(4, 3, 5, extend=-1)),
        ("value", lambda: DelayedLinear(4, 3, 5).set_sigma(-1.0)),
        ("x", lambda: DelayedLinear(4, 3, 5)(torch.zeros(6, 4))),
        ("x", lambda: DelayedLinear(4, 3, 5)(torch.zeros(6, 2, 5))),
        ("extend", lambda: delayed_linear(torch.zeros(5, 1, 4), torch.zeros(3, 4, 2), extend=-1)),
        ("kernel", lambda: delayed_linear(torch.zeros(5, 1, 4), torch.zeros(3, 4, 0))),
        ("kernel", lambda: delayed_linear(torch.zeros(5, 1, 4), torch.zeros(3, 4))),
        (
            "bias",
            lambda: delayed_linear(torch.zeros(5, 1, 4), torch.zeros(3, 4, 2), bias=torch.zeros(4)),
        ),
        ("weight", lambda: delay_kernel(torch.zeros(3, 4), torch.zeros(3, 4), 0.1, 5)),
        ("delay", lambda: delay_kernel(torch.zeros(3, 4, 1), torch.zeros(3, 4, 2), 0.1, 5)),
        ("sigma", lambda: delay_kernel(torch.zeros(3, 4, 1), torch.zeros(3, 4, 1), -0.1, 5)),
        ("max_delay", lambda: delay_kernel(torch.zeros(3, 4, 1), torch.zeros(3, 4, 1), 0.1, 0)),
        ("max_delay", lambda: hard_delay_kernel(torch.zeros(3, 4, 1), torch.zeros(3, 4, 1), 0)),
        ("tau", lambda: DelayedSNN([4, 3], 5, tau=0.9)),
        ("sizes", lambda: DelayedSNN([4], 5)),
        ("sizes", lambda: DelayedSNN([4, 0, 3], 5)),
        ("dropout", lambda: DelayedSNN([4, 3], 5, dropout=1.0)),
        ("membrane", lambda: summed_softmax(torch.zeros(3, 4))),
        ("epoch", lambda: sigma_at(-1, initial=3, last_epoch=2)),
        ("initial", lambda: sigma_at(0, initial=-3, last_epoch=2)),
        ("final", lambda: sigma_at(0, initial=3, final=0.0, last_epoch=2)),
        ("last_epoch", lambda: sigma_at(0, initial=3, last_epoch=-2)),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", [True, False])
def test_cuda_equals_the_cpu(mode):
    layer = layer_of(6, 5, 9).train(mode)
    x = draw(12, 3, 6)
    expected = layer(x)
    torch.testing.assert_close(layer.cuda()(x.cuda()).cpu(), expected)


def test_in_bfloat16_a_long_delay_is_still_one_tap():
    weight, delay = torch.ones(1, 1, 1).bfloat16(), torch.full((1, 1, 1), 256.0).bfloat16()
    kernel = hard_delay_kernel(weight, delay, 301)
    assert kernel.count_nonzero() == 1 and kernel[0, 0, 256] == 1
