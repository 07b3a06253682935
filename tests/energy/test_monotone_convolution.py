"""The convolutional machine against the matrix of its couplings, built column by column."""

import math

import pytest
import torch
import torch.nn.functional as F

from heterodox.energy.monotone_boltzmann import (
    MonotoneBoltzmannMachine,
    MonotoneConvBoltzmannMachine,
)
from heterodox.energy.monotone_convolution import joined
from heterodox.training.seeding import seeded

EXACT = {"tolerance": 1e-13, "max_iter": 1000}
DIGITS = [(4, 8, 8, 4), (6, 4, 4, 3), (5, 1, 1, 5)]
DIGIT_KERNELS = [[3], [3, 3], [0, 1, 1]]
ARCHITECTURES = {
    "image, hidden, label": (DIGITS, DIGIT_KERNELS),
    "strides of 4 and 2": ([(2, 8, 8, 2), (4, 4, 4, 2), (6, 2, 2, 3)], [[3], [3, 3], [3, 3, 3]]),
    "strides of 3": ([(2, 6, 6, 2), (4, 2, 2, 2)], [[2], [4, 4]]),
    "not square": ([(4, 4, 6, 2), (3, 2, 2, 3), (2, 1, 1, 2)], [[2], [3, 3], [1, 1, 0]]),
    "kernels of one pixel": ([(4, 4, 4, 2), (3, 2, 2, 3)], [[1], [1, 1]]),
    "a layer on its own": ([(2, 3, 3, 2), (4, 1, 1, 4)], [[3], [0, 0]]),
}
every = pytest.mark.parametrize("name", ARCHITECTURES)


def machine(layers=DIGITS, kernels=DIGIT_KERNELS, scale=1.0, **options):
    with seeded(0):
        made = MonotoneConvBoltzmannMachine(layers, kernels, **(EXACT | options)).double()
    for weight in made.weights.values():
        weight.data.mul_(scale)
    for bias in made.biases:
        bias.data.mul_(5)
    return made


def matrix_of(made):
    size = sum(c * h * w for c, h, w, _ in made.layers)
    with torch.no_grad():
        return joined(made.couple(made.maps.by_layer(torch.eye(size, dtype=torch.float64))))


def blocks_of(layers):
    """The flat indices of each variable's states."""
    found, start = [], 0
    for channels, height, width, states in layers:
        index = torch.arange(channels * height * width).view(channels // states, states, -1)
        found += list((start + index).movedim(1, 2).reshape(-1, states))
        start += channels * height * width
    return found


def picture(batch=3, layer=DIGITS[0], seed=0):
    channels, height, width, states = layer
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(states, (batch, channels // states, height, width), generator=generator)
    return F.one_hot(values, states).movedim(-1, 2).flatten(1, 2).double()


def some(batch=3, height=8, width=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 1, height, width, generator=generator) < 0.4


@every
@pytest.mark.parametrize("scale", [0.5, 10.0, 1e5])
def test_couplings_are_symmetric_hollow_and_monotone(name, scale):
    layers, kernels = ARCHITECTURES[name]
    phi = matrix_of(machine(layers, kernels, scale, monotonicity=0.07))
    torch.testing.assert_close(phi, phi.mT)
    for block in blocks_of(layers):  # also those at the borders
        assert phi[block[:, None], block].abs().max() < 1e-12
    eigenvalues = torch.linalg.eigvalsh(torch.eye(len(phi), dtype=torch.float64) - phi)
    assert eigenvalues[0] >= 0.07 - 1e-10


@every
def test_couplings_are_those_of_the_dense_formula(name):
    """A as a matrix, from the convolutions applied to unit vectors; then the paper's equation."""
    layers, kernels = ARCHITECTURES[name]
    made = machine(layers, kernels, scale=3.0, monotonicity=0.2)
    size = sum(c * h * w for c, h, w, _ in layers)
    maps = made.maps.by_layer(torch.eye(size, dtype=torch.float64))
    a = torch.zeros(0, size, dtype=torch.float64)
    for row in range(len(layers)):
        parts = [c for c in made.connections if c.row == row]
        if parts:
            total = sum(c.apply(maps[c.source], made.weights[c.key]) for c in parts)
            a = torch.cat([a, total.flatten(1).mT.detach()])
    for block in blocks_of(layers):
        norm = torch.linalg.matrix_norm(a[:, block], 2)
        a[:, block] *= min(math.sqrt(0.8) / max(norm, 1e-12), 1.0)
    expected = -(a.mT @ a)
    for block in blocks_of(layers):
        expected[block[:, None], block] = 0
    torch.testing.assert_close(matrix_of(made), expected, atol=1e-10, rtol=0)


def test_every_pixel_meets_every_tap():
    made = machine([(2, 6, 6, 2), (4, 3, 3, 2)], [[3], [3, 3]])
    (own, below) = (c for c in made.connections if c.source == 0)
    reached = own.adjoint(torch.ones(1, 1, *own.row_size), torch.ones(1, 1, 3, 3))
    assert torch.equal(reached, torch.full((1, 1, 6, 6), 9.0))
    reached = below.adjoint(torch.ones(1, 1, *below.row_size), torch.ones(1, 1, 3, 3))
    counts = torch.tensor([1.0, 2.0]).repeat(3)  # of the three taps, by parity
    assert torch.equal(reached[0, 0], counts[:, None] * counts)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_the_mean_field_is_that_of_slow_damped_iteration(scale):
    made, image, seen = machine(scale=scale), picture(), some()
    found = joined(made([image, None, None], [seen, None, None]))
    phi, bias = matrix_of(made), torch.cat([b.flatten() for b in made.biases]).detach()
    held = joined([seen.expand_as(image), torch.zeros(3, 6, 4, 4), torch.zeros(3, 5, 1, 1)]) > 0
    values = joined([image, torch.zeros(3, 6, 4, 4), torch.zeros(3, 5, 1, 1)])
    slow = torch.full_like(values, 0.3)
    blocks = blocks_of(DIGITS)
    for _ in range(600):
        slow = torch.where(held, values, slow)
        u = slow @ phi + bias
        new = torch.zeros_like(u)
        for states in (4, 3, 5):
            index = torch.stack([b for b in blocks if len(b) == states])
            new[:, index] = u[:, index].softmax(-1)
        slow = 0.9 * slow + 0.1 * new
    torch.testing.assert_close(found, torch.where(held, values, slow), atol=1e-8, rtol=0)
    assert made.info.converged


def test_the_step_length_does_not_matter():
    image, seen = picture(), some()
    results = [
        joined(machine(alpha=alpha)([image, None, None], [seen, None, None]))
        for alpha in (0.02, 0.125, 1.0)
    ]
    torch.testing.assert_close(results[0], results[1], atol=1e-10, rtol=0)
    torch.testing.assert_close(results[2], results[1], atol=1e-10, rtol=0)


def test_marginals_are_the_softmax_of_the_potentials():
    made = machine()
    q = made([picture(), None, None], [some(), None, None])
    u = made.potentials(q)
    hidden = u[1].unflatten(1, (2, 3)).softmax(2).flatten(1, 2)
    torch.testing.assert_close(q[1], hidden)
    torch.testing.assert_close(q[2], u[2].softmax(1))


def test_a_machine_of_single_pixels_is_the_dense_machine():
    conv = machine([(2, 1, 1, 2), (3, 1, 1, 3), (6, 1, 1, 3)], [[1], [1, 1], [1, 1, 1]], scale=2.0)
    a = torch.zeros(11, 11, dtype=torch.float64)
    starts = (0, 2, 5)
    for c in conv.connections:
        weight = conv.weights[c.key][:, :, 0, 0].detach()
        first, left = starts[c.row], starts[c.source]
        a[first : first + len(weight), left : left + weight.shape[1]] = weight
    dense = MonotoneBoltzmannMachine([2, 3, 3, 3], rank=11, **EXACT).double()
    dense.A.data.copy_(a)
    dense.bias.data.copy_(torch.cat([b.flatten() for b in conv.biases]))
    torch.testing.assert_close(joined(conv()), dense())


def test_gradients_match_finite_differences():
    layers, kernels = [(2, 2, 2, 2), (4, 1, 1, 2)], [[2], [1, 1]]
    made = machine(layers, kernels, scale=2.0)
    image, seen = picture(2, layers[0]), some(2, 2, 2)
    names = [name for name, _ in made.named_parameters()]
    leaves = [p.detach().clone().requires_grad_() for p in made.parameters()]

    def call(*values):
        given = dict(zip(names, values, strict=True))
        return joined(torch.func.functional_call(made, given, ([image, None], [seen, None])))

    assert torch.autograd.gradcheck(call, tuple(leaves), atol=1e-6, fast_mode=True)


def test_observed_layers_and_pixels_are_left_alone():
    made, image, seen = machine(), picture(), some()
    label = picture(3, DIGITS[2])
    pixels, _, kept = made([image, None, label], [seen, None, None])
    held = seen.expand_as(image)
    assert torch.equal(pixels[held], image[held]) and torch.equal(kept, label)
    junk = torch.where(held, image, math.nan)
    again = made([junk, None, label], [held.float(), None, None])
    assert torch.equal(again[0], pixels)


def test_when_all_is_observed_it_is_returned():
    maps = [picture(2, layer, seed) for seed, layer in enumerate(DIGITS)]
    for given, back in zip(maps, machine()(maps), strict=True):
        assert torch.equal(given, back)


def test_nothing_observed_gives_one_sample_and_an_empty_batch_gives_none():
    made = machine()
    assert [x.shape[0] for x in made()] == [1, 1, 1]
    assert [x.shape[0] for x in made([picture(0), None, None])] == [0, 0, 0]


def test_an_end_without_convergence_is_told():
    made = machine(max_iter=2)
    with pytest.warns(RuntimeWarning, match="did not converge"):
        made([picture(), None, None], [some(), None, None])
    assert made.info.iterations == 2 and not made.info.converged


def test_weights_and_biases_have_the_documented_names_and_shapes():
    made = machine()
    assert {key: tuple(w.shape) for key, w in made.weights.items()} == {
        "0_0": (4, 4, 3, 3),
        "1_0": (6, 4, 3, 3),
        "1_1": (6, 6, 3, 3),
        "2_1": (5, 6, 4, 4),
        "2_2": (5, 5, 1, 1),
    }
    assert [tuple(b.shape) for b in made.biases] == [(4, 8, 8), (6, 4, 4), (5, 1, 1)]
    fresh = MonotoneConvBoltzmannMachine(DIGITS, DIGIT_KERNELS)
    assert all(bias.norm().item() == pytest.approx(1) for bias in fresh.biases)


def test_lower_precision_gives_nearly_the_same():
    image, seen = picture(), some()
    expected = joined(machine()([image, None, None], [seen, None, None]))
    low = machine(tolerance=1e-3).bfloat16()
    found = low([image.bfloat16(), None, None], [seen, None, None])
    assert all(x.dtype == torch.bfloat16 for x in found)
    torch.testing.assert_close(joined(found).double(), expected, atol=5e-2, rtol=0)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("layers", lambda: machine([], [])),
        ("layers", lambda: machine([(4, 2, 2, 3)], [[1]])),
        ("layers", lambda: machine([(4, 2, 2, 0)], [[1]])),
        ("layers", lambda: machine([(4, 5, 5, 4), (4, 2, 2, 4)], [[3], [3, 3]])),
        ("layers", lambda: machine([(4, 2, 2, 4), (4, 4, 4, 4)], [[3], [3, 3]])),
        ("kernels", lambda: machine(kernels=[[3], [3, 3]])),
        ("kernels", lambda: machine(kernels=[[3, 3], [3, 3], [0, 1, 1]])),
        ("kernels", lambda: machine(kernels=[[3], [3], [0, 1, 1]])),
        ("kernels", lambda: machine(kernels=[[3], [5, 3], [0, 1, 1]])),
        ("kernels", lambda: machine(kernels=[[3], [3, -3], [0, 1, 1]])),
        ("monotonicity", lambda: machine(monotonicity=1.0)),
        ("alpha", lambda: machine(alpha=2.0)),
        ("tolerance", lambda: machine(tolerance=0.0)),
        ("max_iter", lambda: machine(max_iter=0)),
        ("observed", lambda: machine()([picture()])),
        ("observed", lambda: machine()([picture()[:, :3], None, None])),
        ("observed", lambda: machine()([picture(3), None, picture(2, DIGITS[2])])),
        ("observed", lambda: machine()([0.5 * picture(), None, None])),
        ("mask", lambda: machine()([picture(), None, None], [some()])),
        ("mask", lambda: machine()([picture(), None, None], [some(2), None, None])),
        ("mask", lambda: machine()([picture(), None, None], [picture(), None, None])),
        ("mask", lambda: machine()([picture(), None, None], [some(), some(), None])),
        ("mask", lambda: machine()(None, [some(), None, None])),
        ("q", lambda: machine().couple([picture()])),
        ("q", lambda: machine().potentials([picture(), picture(), picture()])),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .*\bexpected"):
        call()
