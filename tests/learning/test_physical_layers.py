"""Physical layers: what they compute, what they hide, how they drift, and their twins."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from heterodox.learning.physical import (
    BlackBox,
    DigitalTwin,
    MultimodeFiber,
    PhysicalLayer,
    ProgrammableCavity,
    ScatteringCavity,
    fit_twin,
)

IN, OUT = 5, 4


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(IN, 6), nn.SiLU(), nn.Linear(6, OUT))


MAKE = {
    "cavity": lambda **k: ScatteringCavity(IN, OUT, modes=7, **k),
    "fiber": lambda **k: MultimodeFiber(IN, OUT, **k),
    "programmable": lambda **k: ProgrammableCavity(IN, OUT, **k),
    "bits": lambda **k: ProgrammableCavity(IN, OUT, bits=True, **k),
    "twin": lambda **k: DigitalTwin(network(), **k),
}
every = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
drawn = pytest.mark.parametrize(
    "make", [MAKE[name] for name in MAKE if name != "twin"], ids=[n for n in MAKE if n != "twin"]
)


def rows(count=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, IN, dtype=dtype, generator=generator)


def complex_of(layer, name):
    parts = getattr(layer, name).double().numpy()
    return parts[..., 0] + 1j * parts[..., 1]


def test_a_scattering_cavity_is_its_equation():
    layer = ScatteringCavity(IN, OUT, modes=7, saturation=0.3).double()
    x = rows()
    u = x.numpy() @ complex_of(layer, "inward").T
    expected = np.abs((u / (1 + np.abs(u) ** 2 / 0.3)) @ complex_of(layer, "outward").T)
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-12)


def test_a_fiber_is_its_equation():
    layer = MultimodeFiber(IN, OUT).double()
    x = rows()
    field = np.exp(1j * np.pi * x.numpy()) @ complex_of(layer, "transmission").T
    np.testing.assert_allclose(layer(x).numpy(), np.abs(field) ** 2, rtol=1e-12)


def by_inverse(layer, alpha):
    """The equation as it stands, one row after the other."""
    coupling, incoming = complex_of(layer, "coupling"), complex_of(layer, "incoming")[0]
    receivers = complex_of(layer, "receivers")
    return [
        np.abs(receivers @ np.linalg.inv(np.diag(1 / row) - coupling) @ incoming) for row in alpha
    ]


def test_a_programmable_cavity_is_its_equation():
    layer = ProgrammableCavity(IN, OUT).double()
    x = rows()
    low, high = x.min(1, keepdim=True).values, x.max(1, keepdim=True).values
    level = ((x - low) / (high - low)).numpy()
    alpha = (0.2 + 0.1j) * (1 - level) + 1j * level
    np.testing.assert_allclose(layer(x).numpy(), by_inverse(layer, alpha), rtol=1e-10)


def test_bits_switch_two_scatterers_each():
    layer = ProgrammableCavity(IN, OUT, bits=True).double()
    # 0 -> 00, up to 1/4 -> 01, up to 3/4 -> 10, above -> 11
    x = torch.tensor([[0.0, 0.25, 0.75, 0.76, 1.0], [0.0, 0.01, 0.26, 1.0, 0.5]]).double()
    bits = np.array([[0, 0, 0, 1, 1, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 1, 1, 1, 0]])
    alpha = np.where(bits == 1, 1j, 0.2 + 0.1j)
    np.testing.assert_allclose(layer(x).numpy(), by_inverse(layer, alpha), rtol=1e-10)
    # A row without differences is all off.
    off = by_inverse(layer, np.full((1, 10), 0.2 + 0.1j))
    np.testing.assert_allclose(layer(torch.ones(1, IN).double()).numpy(), off, rtol=1e-10)


@pytest.mark.parametrize("drifts", [0, 3])
@pytest.mark.parametrize("bits", [False, True])
def test_waves_between_scatterers_fade(drifts, bits):
    layer = ProgrammableCavity(12, OUT, bits=bits, seed=4)
    for _ in range(drifts):
        layer.drift(0.7)
    coupling = complex_of(layer, "coupling")
    np.testing.assert_allclose(coupling, coupling.T, atol=1e-7)
    assert not np.diag(coupling).any()
    random = np.random.default_rng(0)
    for _ in range(20):
        alpha = random.choice([1j, 0.2 + 0.1j], len(coupling))
        assert np.abs(np.linalg.eigvals(alpha[:, None] * coupling)).max() < 0.8
    assert layer(torch.rand(50, 12)).isfinite().all()
    assert ProgrammableCavity(1, 2)(torch.rand(3, 1)).isfinite().all()


@pytest.mark.parametrize("normalize", [True, False])
def test_a_twin_is_its_network_on_amplitudes(normalize):
    net = network().double()
    x = rows()
    sent = x.abs() / (x.norm(dim=1, keepdim=True) + 1e-6) if normalize else x
    torch.testing.assert_close(DigitalTwin(net, normalize=normalize)(x), net(sent).detach())


def test_a_twin_is_a_frozen_copy():
    net = network()
    twin = DigitalTwin(net)
    x = rows(dtype=torch.float32)
    before = twin(x)
    assert not any(p.requires_grad for p in twin.parameters())
    assert all(p.requires_grad for p in net.parameters())
    assert not twin.train().module.training
    twin.drift(1.0)
    assert torch.equal(DigitalTwin(net)(x), before) and not torch.equal(twin(x), before)


@every
def test_no_gradient_passes_and_simulate_equals_the_reading(make):
    layer, x = make().double(), rows().requires_grad_()
    y = layer(x)
    assert not y.requires_grad
    assert y.shape == (3, OUT) and y.dtype == torch.float64
    torch.testing.assert_close(layer.simulate(x).detach(), y)


@pytest.mark.parametrize("name", ["cavity", "fiber", "programmable", "twin"])
def test_simulate_is_differentiable(name):
    layer = MAKE[name]().double()
    assert torch.autograd.gradcheck(layer.simulate, rows().requires_grad_())


@every
def test_the_same_seed_gives_the_same_system_and_without_noise_the_same_reading(make):
    x = rows(dtype=torch.float32)
    layer = make(seed=2)
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(layer(x), make(seed=2)(x))


@drawn
def test_another_seed_gives_another_system(make):
    x = rows(dtype=torch.float32)
    assert not torch.equal(make(seed=2)(x), make(seed=3)(x))


def test_transmission_keeps_the_power_of_a_wave():
    layer = MultimodeFiber(400, 500)
    x = torch.rand(20, 400)
    assert layer(x).mean().item() == pytest.approx(1, abs=0.05)


@every
def test_no_drift_is_the_identity(make):
    x, layer = rows(dtype=torch.float32), make()
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    before = layer(x)
    layer.drift(0.0)
    assert torch.equal(layer(x), before)
    assert all(torch.equal(state[name], value) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("strength", [0.1, 0.5, math.pi / 2])
def test_a_drift_turns_the_matrix_by_its_strength_and_keeps_its_size(strength):
    layer = MultimodeFiber(300, 200)
    before = complex_of(layer, "transmission")
    layer.drift(strength)
    after = complex_of(layer, "transmission")
    overlap = (before.conj() * after).sum().real / (np.abs(before) ** 2).sum()
    assert overlap == pytest.approx(math.cos(strength), abs=0.02)
    assert (np.abs(after) ** 2).sum() == pytest.approx((np.abs(before) ** 2).sum(), rel=0.02)


@pytest.mark.parametrize("bits", [False, True])
def test_the_coupling_of_scatterers_turns_by_no_more_than_the_strength(bits):
    layer = ProgrammableCavity(120, 5, bits=bits)
    before = complex_of(layer, "coupling")
    layer.drift(0.5)
    after = complex_of(layer, "coupling")
    overlap = np.vdot(before, after).real / np.linalg.norm(before) / np.linalg.norm(after)
    assert overlap == pytest.approx(math.cos(0.5), abs=0.03)
    assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before), rel=0.1)


@pytest.mark.parametrize("shape", [(IN,), (2, 3, IN)])
def test_only_rows_of_numbers_are_read(shape):
    with pytest.raises(ValueError, match=r"x: .* expected"):
        ScatteringCavity(IN, OUT)(torch.rand(shape))


def test_a_twins_weights_drift_at_their_own_size():
    twin = DigitalTwin(nn.Linear(300, 200))
    before, bias = twin.module.weight.clone(), twin.module.bias.clone()
    twin.drift(0.5)
    after = twin.module.weight
    assert torch.equal(twin.module.bias, bias)
    overlap = ((before * after).sum() / before.square().sum()).item()
    assert overlap == pytest.approx(math.cos(0.5), abs=0.02)
    ratio = (after.square().mean() / before.square().mean()).item()
    assert ratio == pytest.approx(1, abs=0.02)


@every
def test_every_drift_is_another_and_a_generator_decides_it(make):
    x = rows(dtype=torch.float32)
    layer, other = make(), make()
    layer.drift(0.5)
    once = layer(x)
    other.drift(0.5)
    assert torch.equal(other(x), once)
    other.drift(-0.5)  # back by the same angle, towards another matrix
    assert not torch.allclose(other(x), make()(x), rtol=1e-3)
    first, second = make(), make()
    for one in (first, second):
        one.drift(0.5, generator=torch.Generator().manual_seed(9))
    assert torch.equal(first(x), second(x)) and not torch.equal(first(x), once)


@every
def test_noise_is_relative_and_new_in_each_reading(make):
    x = rows(2000, torch.float32)
    exact, layer = make()(x), make(noise=0.1)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    error = (first / exact - 1)[exact.abs() > 1e-3]
    assert error.mean().item() == pytest.approx(0, abs=0.01)
    assert error.std().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(make(noise=0.1)(x), first)
    assert torch.equal(layer.simulate(x), exact)


def test_a_black_box_sees_arrays_and_answers_with_arrays():
    seen = []

    def measure(x):
        seen.append(x)
        return (x[:, :2] ** 2).astype(np.float64)

    box = BlackBox(measure, IN, 2)
    x = rows(dtype=torch.float32).requires_grad_()
    y = box(x)
    assert type(seen[0]) is np.ndarray and seen[0].dtype == np.float32
    assert y.dtype == torch.float32 and not y.requires_grad
    torch.testing.assert_close(y, x[:, :2].detach() ** 2)
    assert box(x.bfloat16()).dtype == torch.bfloat16
    assert not hasattr(box, "simulate")
    with pytest.raises(NotImplementedError, match="drift"):
        box.drift(0.1)
    with pytest.raises(ValueError, match=r"^function: .* expected"):
        BlackBox(lambda x: x[:1], IN, IN)(x)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_as_such(make, dtype):
    x = rows(dtype=dtype)
    y = make()(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, make()(x.float()).to(dtype))


@every
def test_the_caller_s_dtype_does_not_lose_the_imaginary_part(make):
    x = rows(dtype=torch.float32)
    torch.testing.assert_close(make().double()(x.double()).float(), make()(x))


@every
@pytest.mark.parametrize("count", [0, 1])
def test_no_rows_and_one_row(make, count):
    assert make()(rows(count, torch.float32)).shape == (count, OUT)


def test_a_fitted_twin_answers_like_the_system():
    cavity = ScatteringCavity(IN, OUT, seed=1)
    x = torch.rand(1200, IN, generator=torch.Generator().manual_seed(0))
    y = cavity(x)
    twin = fit_twin(x[:1000], y[:1000], hidden=(30, 30), epochs=60, lr=5e-3)
    error = (twin(x[1000:]) - y[1000:]).square().mean().sqrt()
    assert error < 0.2 * y[1000:].std()
    again = fit_twin(x[:1000], y[:1000], hidden=(30, 30), epochs=1, lr=5e-3)
    other = fit_twin(x[:1000], y[:1000], hidden=(30, 30), epochs=1, lr=5e-3)
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), other.parameters(), strict=True)
    )
    sizes = [layer.weight.shape for layer in fit_twin(x, y, epochs=1)[::2]]
    assert sizes == [(100, IN), (200, 100), (100, 200), (OUT, 100)]


class Nothing(PhysicalLayer):
    pass


def test_a_layer_that_says_nothing_is_no_layer():
    with pytest.raises(NotImplementedError, match="Nothing"):
        Nothing(2, 2)(torch.zeros(1, 2))


X, Y = torch.rand(6, 3), torch.rand(6, 2)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("in_features", lambda: MultimodeFiber(0, 3)),
        ("out_features", lambda: ScatteringCavity(3, 0)),
        ("noise", lambda: ScatteringCavity(3, 3, noise=-0.1)),
        ("noise", lambda: ScatteringCavity(3, 3, noise=math.nan)),
        ("modes", lambda: ScatteringCavity(3, 3, modes=0)),
        ("saturation", lambda: ScatteringCavity(3, 3, saturation=0.0)),
        ("strength", lambda: ScatteringCavity(3, 3).drift(math.inf)),
        ("strength", lambda: DigitalTwin(nn.Linear(3, 3)).drift(math.nan)),
        ("x", lambda: ScatteringCavity(3, 3)(torch.zeros(2, 4))),
        ("module", lambda: DigitalTwin(nn.SiLU())),
        ("y", lambda: fit_twin(X, Y[:3])),
        ("y", lambda: fit_twin(X[:0], Y[:0])),
        ("x", lambda: fit_twin(X / 0, Y)),
        ("y", lambda: fit_twin(X, Y * math.nan)),
        ("epochs", lambda: fit_twin(X, Y, epochs=0)),
        ("batch_size", lambda: fit_twin(X, Y, batch_size=0)),
        ("lr", lambda: fit_twin(X, Y, lr=-1.0)),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .*\bexpected"):
        call()
