"""Neurons against loops that state their equations and let autograd differentiate them."""

import math

import pytest
import torch
from torch import Tensor

from heterodox.layers.spiking import (
    DSRLIF,
    LIF,
    ATanSurrogate,
    OnlineLIF,
    SigmoidSurrogate,
    weighted_rate,
)

SURROGATES = [SigmoidSurrogate(4.0), ATanSurrogate(5.0)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def loop(current: Tensor, lif: LIF) -> tuple[Tensor, Tensor]:
    """The neuron's equations, one after the other, differentiated by autograd."""
    v = torch.zeros_like(current[0])
    spikes, membranes = [], []
    for x in current:
        h = v * (1 - 1 / lif.tau) + (x / lif.tau if lif.decay_input else x)
        s = lif.surrogate(h - lif.threshold)
        fired = s.detach() if lif.detach_reset else s
        v = {"zero": h * (1 - fired), "subtract": h - lif.threshold * fired, "none": h}[lif.reset]
        spikes.append(s)
        membranes.append(v)
    return torch.stack(spikes), torch.stack(membranes)


@pytest.mark.parametrize("surrogate", SURROGATES, ids=repr)
@pytest.mark.parametrize("reset", ["zero", "subtract", "none"])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("detach_reset", [True, False])
def test_spikes_membranes_and_gradients_are_those_of_a_loop(
    surrogate, reset, decay_input, detach_reset
):
    lif = LIF(
        2.5,
        0.7,
        reset=reset,
        decay_input=decay_input,
        surrogate=surrogate,
        detach_reset=detach_reset,
    )
    current = (2 * draw(9, 3, 4)).requires_grad_()
    spikes, membrane = lif(current, return_membrane=True)
    expected_spikes, expected_membrane = loop(current, lif)
    assert 0.05 < spikes.mean() < 0.95
    assert torch.equal(spikes, expected_spikes)
    torch.testing.assert_close(membrane, expected_membrane)
    for a, b in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        weights = draw(9, 3, 4, seed=1), draw(9, 3, 4, seed=2)
        gradients = []
        for s, v in ((spikes, membrane), (expected_spikes, expected_membrane)):
            value = a * (s * weights[0]).sum() + b * (v * weights[1]).sum()
            gradients += torch.autograd.grad(value, current, retain_graph=True)
        torch.testing.assert_close(*gradients)
    (alone,) = torch.autograd.grad(lif(current).sum(), current)
    (reference,) = torch.autograd.grad(expected_spikes.sum(), current)
    torch.testing.assert_close(alone, reference)


@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 1.0])
def test_spikes_and_gradients_are_those_of_snntorch(beta, reset_delay):
    snntorch = pytest.importorskip("snntorch", reason="needs snntorch")
    leaky = snntorch.Leaky(
        beta, threshold=0.8, reset_mechanism="zero", reset_delay=reset_delay
    ).double()
    alpha = 2.0  # of snntorch's default surrogate, an arctangent
    current = draw(20, 2, 5).requires_grad_()
    membrane, spikes = torch.zeros_like(current[0]), []
    for x in current:
        fired, membrane = leaky(x, membrane)
        spikes.append(fired)
    # A delayed reset of snntorch has no gradient; one at once has.
    lif = LIF.from_snntorch(leaky, surrogate=ATanSurrogate(alpha))
    ours = lif(current)
    assert ours.sum() > 0
    assert torch.equal(ours, torch.stack(spikes))
    weights = draw(20, 2, 5, seed=1)
    (expected,) = torch.autograd.grad((torch.stack(spikes) * weights).sum(), current)
    (found,) = torch.autograd.grad((ours * weights).sum(), current)
    # snntorch keeps its β and threshold as numbers of single precision.
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_snntorchs_integrator_is_a_neuron_without_reset():
    snntorch = pytest.importorskip("snntorch", reason="needs snntorch")
    leaky = snntorch.Leaky(0.8, reset_mechanism="none").double()
    current, membrane, membranes = draw(30, 4), torch.zeros(4, dtype=torch.float64), []
    for x in current:
        _, membrane = leaky(x, membrane)
        membranes.append(membrane)
    _, ours = LIF.from_snntorch(leaky)(current, return_membrane=True)
    torch.testing.assert_close(ours, torch.stack(membranes))
    with pytest.raises(ValueError, match=r"^leaky: .* expected"):
        LIF.from_snntorch(snntorch.Leaky(0.8, reset_mechanism="subtract"))
    with pytest.raises(ValueError, match=r"^leaky: .* expected"):
        LIF.from_snntorch(snntorch.Leaky(torch.tensor([0.8, 0.9])))


@pytest.mark.parametrize("surrogate", SURROGATES, ids=repr)
def test_a_surrogate_is_a_step_whose_derivative_is_its_formula(surrogate):
    u = torch.linspace(-2, 2, 101, dtype=torch.float64, requires_grad=True)
    spikes = surrogate(u)
    assert torch.equal(spikes, (u >= 0).double())
    assert surrogate(torch.zeros(1)).item() == 1
    (gradient,) = torch.autograd.grad(spikes.sum(), u)
    a = surrogate.alpha
    primitive = {
        SigmoidSurrogate: lambda u: torch.sigmoid(a * u),
        ATanSurrogate: lambda u: torch.atan(math.pi / 2 * a * u) / math.pi,
    }[type(surrogate)]
    (expected,) = torch.autograd.grad(primitive(u).sum(), u)
    torch.testing.assert_close(gradient, expected)


def test_a_surrogate_only_changes_the_backward_pass():
    current = draw(12, 5).requires_grad_()
    outputs = [LIF(surrogate=surrogate)(3 * current) for surrogate in SURROGATES]
    assert torch.equal(*outputs)
    gradients = [torch.autograd.grad(output.sum(), current)[0] for output in outputs]
    assert not torch.allclose(*gradients)


@pytest.mark.parametrize("neurons", [LIF(), OnlineLIF(), DSRLIF()], ids=lambda n: type(n).__name__)
def test_the_future_does_not_matter(neurons):
    current = 3 * draw(10, 4)
    changed = current.clone()
    changed[6:] += 5
    assert torch.equal(neurons(current)[:6], neurons(changed)[:6])
    assert not torch.equal(neurons(current)[6:], neurons(changed)[6:])


def test_a_neuron_without_input_never_spikes_and_passes_finite_gradients():
    for neurons in (LIF(), OnlineLIF(), DSRLIF()):
        current = torch.zeros(5, 2, requires_grad=True)
        spikes = neurons(current)
        assert not spikes.any()
        assert torch.autograd.grad(spikes.sum(), current)[0].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (4, 0), (7,)])
def test_no_time_one_step_and_no_neurons_work(shape):
    current = torch.ones(shape, requires_grad=True)
    spikes, membrane = LIF()(current, return_membrane=True)
    assert spikes.shape == membrane.shape == shape
    (spikes.sum() + membrane.sum()).backward()
    assert current.grad.shape == shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype):
    current = (2 * draw(50, 8)).to(dtype)
    for neurons in (LIF(), OnlineLIF(), DSRLIF()):
        assert torch.equal(neurons(current), neurons(current.float()).to(dtype))


def test_online_neurons_follow_their_equations():
    tau, threshold, neurons = 2.5, 0.9, OnlineLIF(2.5, 0.9)
    current = (2 * draw(8, 3)).requires_grad_()
    v = trace = torch.zeros(3, dtype=torch.float64)
    for x in current:
        h = (1 - 1 / tau) * v + x
        fired = (h >= threshold).double()
        v, trace = (h - threshold * fired).detach(), (1 - 1 / tau) * trace + fired
        spikes, ours = neurons.step(x)
        assert torch.equal(spikes, fired)
        torch.testing.assert_close(ours, trace)
        assert not ours.requires_grad
        # The gradient is that of this step alone.
        (gradient,) = torch.autograd.grad(spikes.sum(), current, retain_graph=True)
        assert (gradient.abs().sum(-1) > 0).sum() == 1
        (step_gradient,) = torch.autograd.grad(spikes.sum(), x)
        torch.testing.assert_close(step_gradient, neurons.surrogate.derivative(h - threshold))
    neurons.reset_state()
    first, _ = neurons.step(current[0])
    assert torch.equal(first, (current[0] >= threshold).double())


def test_another_batch_starts_at_rest():
    neurons = OnlineLIF()
    neurons.step(torch.full((4, 2), 0.9))
    spikes, trace = neurons.step(torch.full((1, 2), 0.9))
    assert not spikes.any() and not trace.any()


def dsr_loop(current: Tensor, neurons: DSRLIF) -> Tensor:
    beta = math.exp(-neurons.delta_t / neurons.tau)
    threshold = neurons.threshold.item()
    v, out = torch.zeros_like(current[0]), []
    for x in current:
        v = beta * v + (1 - beta) * x
        s = threshold * (v >= neurons.alpha * threshold).to(v.dtype)
        v = v - s
        out.append(s / neurons.delta_t)
    return torch.stack(out)


def test_dsr_neurons_follow_their_equations():
    neurons = DSRLIF(0.4, tau=1.5, delta_t=0.1, alpha=0.5).double()
    tau, step, time = 1.5, 0.1, 20
    # Rates below 0, between, and above what a neuron can give, θτ/Δt = 6.
    current = (0.5 * draw(time, 3) + torch.tensor([-2.0, 3.0, 8.0])).requires_grad_()
    output = neurons(current)
    torch.testing.assert_close(output, dsr_loop(current.detach(), neurons))
    weights = draw(time, 3, seed=1)
    (output * weights).sum().backward()
    w = torch.tensor([math.exp(-step * (time - t) / tau) for t in range(1, time + 1)]).double()
    rate = (w[:, None] * current.detach()).sum(0) / w.sum()
    assert rate[0] < 0 < rate[1] < 6 < rate[2]
    coded = time * (w[:, None] * weights).sum(0) / w.sum()
    expected = torch.zeros(time, 3, dtype=torch.float64)
    expected[:, 1] = coded[1] / (tau * time)
    torch.testing.assert_close(current.grad, expected)
    torch.testing.assert_close(neurons.threshold.grad, step * coded[2])


def test_the_rate_of_dsr_neurons_is_the_clipped_rate_of_their_input():
    neurons = DSRLIF(0.3)
    current = torch.tensor([-1.0, 0.5, 2.0, 5.0, 9.0]).expand(400, 5)
    rate = weighted_rate(neurons(current))
    torch.testing.assert_close(rate, current[0].clamp(0, 0.3 / 0.05), atol=0.3, rtol=0)


def test_a_learned_threshold_is_kept_above_its_least_value_in_training():
    neurons = DSRLIF(0.3, min_threshold=0.1)
    with torch.no_grad():
        neurons.threshold.fill_(-1.0)
    neurons.eval()(torch.ones(2, 1))
    assert neurons.threshold.item() == -1
    neurons.train()(torch.ones(2, 1))
    assert neurons.threshold.item() == pytest.approx(0.1)


def test_the_weighted_rate_weighs_late_steps_more():
    x = draw(6, 2)
    w = torch.tensor([math.exp(-0.2 * (6 - t) / 0.7) for t in range(1, 7)], dtype=torch.float64)
    torch.testing.assert_close(weighted_rate(x, 0.7, 0.2), (w / w.sum()) @ x)


@pytest.mark.parametrize(
    ("argument", "make"),
    [
        ("tau", lambda: LIF(0.5)),
        ("tau", lambda: LIF(math.nan)),
        ("threshold", lambda: LIF(threshold=0.0)),
        ("reset", lambda: LIF(reset="hard")),
        ("surrogate", lambda: LIF(surrogate=torch.sigmoid)),
        ("current", lambda: LIF()(torch.tensor(1.0))),
        ("tau", lambda: OnlineLIF(0.9)),
        ("threshold", lambda: OnlineLIF(threshold=-1.0)),
        ("current", lambda: OnlineLIF()(torch.tensor(1.0))),
        ("alpha", lambda: SigmoidSurrogate(0.0)),
        ("alpha", lambda: ATanSurrogate(math.inf)),
        ("tau", lambda: DSRLIF(tau=0.0)),
        ("delta_t", lambda: DSRLIF(delta_t=-0.1)),
        ("alpha", lambda: DSRLIF(alpha=0.0)),
        ("min_threshold", lambda: DSRLIF(min_threshold=0.0)),
        ("threshold", lambda: DSRLIF(1e-5)),
        ("current", lambda: DSRLIF()(torch.zeros(0, 3))),
        ("x", lambda: weighted_rate(torch.zeros(0, 3))),
        ("tau", lambda: weighted_rate(torch.zeros(2), tau=-1.0)),
    ],
)
def test_bad_input_names_the_argument(argument, make):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        make()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("neurons", [LIF(), OnlineLIF(), DSRLIF()], ids=lambda n: type(n).__name__)
def test_cuda_equals_the_cpu(neurons):
    current = 2 * draw(20, 3, 5)
    expected = neurons(current)
    assert torch.equal(neurons.cuda()(current.cuda()).cpu(), expected)
