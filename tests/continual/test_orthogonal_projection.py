"""Projection against plain gradients times I - HᵀH; old outputs that do not move; Oja's rule
against principal components."""

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heterodox.continual.orthogonal_projection import (
    HebbianSubspace,
    OrthogonalProjection,
    ProjectedConv2d,
    ProjectedLinear,
    gradient_projection_basis,
    hebbian_subspace_update,
    project,
    project_out,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(draw(columns, rows, seed=seed)).Q.T.contiguous()


def linear_with(rows: Tensor, outs: int = 5, bias: bool = False, **options) -> ProjectedLinear:
    bank = HebbianSubspace(rows.shape[1], **options).double()
    bank.add_frozen(rows)
    layer = ProjectedLinear(rows.shape[1], outs, bias, subspace=bank).double()
    layer.projecting = True
    return layer


def plain_gradients(layer: nn.Module, z: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((z * draw(*z.shape, seed=9)).sum(), (x, layer.weight))


# Both fewer inputs than outputs, where these are projected, and more, where the gradient is.
@pytest.mark.parametrize("shape", [(6,), (3, 6), (4, 3, 6), (0, 6)])
def test_the_weights_gradient_is_the_plain_one_less_the_subspace(shape):
    rows = orthonormal(2, 6)
    layer, x = linear_with(rows), draw(*shape).requires_grad_()
    z = layer(x)
    torch.testing.assert_close(z, F.linear(x, layer.weight))
    grad_x, grad_weight = plain_gradients(layer, z, x)
    plain_x, plain_weight = plain_gradients(layer, F.linear(x, layer.weight), x)
    torch.testing.assert_close(grad_x, plain_x)
    eye = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(grad_weight, plain_weight @ (eye - rows.T @ rows))
    assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 0, 1), ((1, 2), 2, 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_is_the_linear_layer_of_its_patches(stride, padding, dilation, bias):
    conv = ProjectedConv2d(2, 4, 3, stride, padding, dilation, bias=bias).double()
    rows = orthonormal(5, 18)
    conv.subspace.double().add_frozen(rows)
    conv.projecting = True
    linear = linear_with(rows, 4, bias)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
        if bias:
            linear.bias.copy_(conv.bias)
    x = draw(3, 2, 8, 7).requires_grad_()
    z = conv(x)
    reference = nn.functional.conv2d(x, conv.weight, conv.bias, stride, padding, dilation)
    torch.testing.assert_close(z, reference)
    by_patches = linear(conv.patches(x)).transpose(1, 2).unflatten(2, z.shape[2:])
    torch.testing.assert_close(z, by_patches)
    ours, theirs = plain_gradients(conv, z, x), plain_gradients(linear, by_patches, x)
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1].flatten(1), theirs[1])
    # With a trace the weight's gradient is that of the trace, projected.
    trace = draw(3, 2, 8, 7, seed=3)
    with_trace = conv(x, trace)
    torch.testing.assert_close(with_trace, reference)
    ours = plain_gradients(conv, with_trace, x)
    torch.testing.assert_close(ours[0], theirs[0])
    of_trace = nn.functional.conv2d(trace, conv.weight, conv.bias, stride, padding, dilation)
    (expected,) = torch.autograd.grad((of_trace * draw(*z.shape, seed=9)).sum(), conv.weight)
    eye = torch.eye(18, dtype=torch.float64)
    torch.testing.assert_close(ours[1].flatten(1), expected.flatten(1) @ (eye - rows.T @ rows))


def test_a_trace_stands_for_the_input_in_the_weights_gradient_only():
    rows = orthonormal(2, 6)
    layer = linear_with(rows, bias=True)
    x, trace = draw(3, 6).requires_grad_(), draw(3, 6, seed=1).requires_grad_()
    z = layer(x, trace)
    torch.testing.assert_close(z, F.linear(x, layer.weight, layer.bias))
    g = draw(3, 5, seed=9)
    grad_x, grad_weight, grad_trace = torch.autograd.grad(
        (z * g).sum(), (x, layer.weight, trace), allow_unused=True
    )
    torch.testing.assert_close(grad_x, g @ layer.weight)
    residual = trace - trace @ rows.T @ rows
    torch.testing.assert_close(grad_weight, g.T @ residual)
    assert grad_trace is None


def test_outputs_in_the_old_subspace_do_not_move():
    """The invariant: (W + ΔW) x = W x for x in the span of H, after any number of steps."""
    rows = orthonormal(7, 20)
    layer = linear_with(rows, 12)
    inside, outside = draw(30, 7, seed=1) @ rows, draw(30, 20, seed=2)
    before, elsewhere = layer(inside).detach(), layer(outside).detach()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9, nesterov=True)
    for step in range(200):
        optimizer.zero_grad()
        (layer(draw(16, 20, seed=step)) - draw(16, 12, seed=-1)).square().mean().backward()
        optimizer.step()
    assert (layer(inside) - before).abs().max() < 1e-10
    assert (layer(outside) - elsewhere).abs().max() > 0.1


def test_a_convolution_does_not_move_on_patches_in_the_old_subspace():
    conv = ProjectedConv2d(2, 4, 3, padding=1).double()
    old = draw(1, 2, 4, 4)
    patches = conv.patches(old)[0]  # 16 patches of 18 numbers
    conv.subspace.double().add_frozen(gradient_projection_basis(patches, 1.0))
    conv.projecting = True
    before = conv(old).detach()
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.3)
    for step in range(100):
        optimizer.zero_grad()
        conv(draw(4, 2, 4, 4, seed=step + 1)).sin().mean().backward()
        optimizer.step()
    assert (conv(old) - before).abs().max() < 1e-10
    assert (conv(2 * draw(1, 2, 4, 4, seed=5)) != 0).any()


def test_an_empty_bank_is_a_plain_layer_and_a_full_one_stops_learning():
    x = draw(8, 6)
    layer = ProjectedLinear(6, 5).double()
    layer.projecting = True
    plain = nn.Linear(6, 5, bias=False).double()
    plain.load_state_dict({"weight": layer.weight})
    for module in (layer, plain):
        module(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)
    full = linear_with(orthonormal(6, 6))
    full(x).square().sum().backward()
    assert full.weight.grad.abs().max() < 1e-12


def test_without_projecting_the_bank_does_not_matter():
    layer, x = linear_with(orthonormal(3, 6)), draw(4, 6).requires_grad_()
    layer.projecting = False
    z = layer(x)
    for ours, plain in zip(
        plain_gradients(layer, z, x),
        plain_gradients(layer, F.linear(x, layer.weight), x),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain)


def test_one_iteration_is_its_equations():
    h, x, v = 0.3 * draw(5, 7), 3 * draw(11, 7, seed=1), draw(5, 7, seed=2)
    new, moving = hebbian_subspace_update(h, x, lr=0.02, velocity=v, num_frozen=2, clamp=2.0)
    y = x @ h.T
    delta = (y.T @ (x - y @ h) / 11).clamp(-2.0, 2.0)
    assert (delta.abs() == 2).any() and (delta.abs() < 2).any()
    expected = 0.9 * v + 0.1 * delta
    expected[:2] = v[:2]
    torch.testing.assert_close(moving, expected)
    torch.testing.assert_close(new[2:], h[2:] + 0.02 * expected[2:])
    assert torch.equal(new[:2], h[:2])
    plain, _ = hebbian_subspace_update(h, x, lr=0.02, momentum=0.0, clamp=100.0)
    torch.testing.assert_close(plain, h + 0.02 * y.T @ (x - y @ h) / 11)


@pytest.mark.parametrize("quantization", [None, (3.0, 10)])
def test_learning_repeats_the_iteration_and_leaves_frozen_rows(quantization):
    bank = HebbianSubspace(9, lr=0.05, iterations=3, quantization=quantization).double()
    bank.grow(2, generator=torch.Generator().manual_seed(0))
    bank.learn(draw(16, 9))
    bank.freeze()
    bank.grow(3, generator=torch.Generator().manual_seed(1))
    weight, velocity = bank.weight.clone(), bank.velocity.clone()
    for step in range(4):
        x = draw(2, 8, 9, seed=step)
        bank.learn(x)
        for _ in range(3):
            weight, velocity = hebbian_subspace_update(
                weight,
                x.flatten(0, 1),
                lr=0.05,
                velocity=velocity,
                num_frozen=2,
                quantization=quantization,
            )
    torch.testing.assert_close(bank.weight, weight)
    torch.testing.assert_close(bank.velocity, velocity)
    assert torch.equal(bank.weight[:2], weight[:2])
    frozen = bank.weight.clone()
    bank.freeze()
    bank.learn(draw(16, 9))
    assert torch.equal(bank.weight, frozen)


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Principal angles [degrees] between the spans of rows."""
    q, r = torch.linalg.qr(a.T).Q, torch.linalg.qr(b.T).Q
    return torch.linalg.svdvals(q.T @ r).clamp(max=1).arccos().rad2deg()


def test_neurons_learn_the_principal_subspace_and_later_ones_what_is_left():
    size = 12
    basis = orthonormal(size, size)
    deviations = torch.tensor([4.0, 3.5, 3.0, 1.5, 1.3] + 7 * [0.2], dtype=torch.float64)

    def batch(seed: int) -> Tensor:
        return (draw(512, size, seed=seed) * deviations) @ basis

    bank = HebbianSubspace(size, lr=0.01).double()
    generator = torch.Generator().manual_seed(0)
    bank.grow(3, generator=generator)
    for step in range(300):
        bank.learn(batch(step))
    bank.freeze()
    assert angles(bank.weight, basis[:3]).max() < 5
    gram = bank.weight @ bank.weight.T
    torch.testing.assert_close(gram, torch.eye(3).double(), atol=0.05, rtol=0)
    first = bank.weight.clone()
    bank.grow(2, generator=generator)
    for step in range(600):
        bank.learn(batch(1000 + step))
    assert torch.equal(bank.weight[:3], first)
    assert angles(bank.weight[3:], basis[3:5]).max() < 5


def test_new_rows_are_orthonormal_and_of_their_generator():
    banks = [HebbianSubspace(8) for _ in range(3)]
    for bank, seed in zip(banks, (0, 0, 1), strict=True):
        bank.grow(4, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(banks[0].weight @ banks[0].weight.T, torch.eye(4))
    assert torch.equal(banks[0].weight, banks[1].weight)
    assert not torch.equal(banks[0].weight, banks[2].weight)
    assert banks[0].num_units == 4 and banks[0].num_frozen == 0


def test_gradients_of_several_batches_can_be_taken_after_all_have_been_learned_from():
    layer = linear_with(orthonormal(2, 6))
    layer.subspace.grow(2, generator=torch.Generator().manual_seed(0))
    layer.learning = True
    batches = [draw(8, 6, seed=seed) for seed in range(2)]
    sum(layer(x).sum() for x in batches).backward()
    twin = linear_with(orthonormal(2, 6))
    with torch.no_grad():
        twin.weight.copy_(layer.weight)
    for x in batches:
        twin(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, twin.weight.grad)


def test_projection_is_by_frozen_rows_only():
    bank = HebbianSubspace(6).double()
    bank.add_frozen(orthonormal(2, 6))
    bank.grow(2, generator=torch.Generator().manual_seed(0))
    x, h = draw(3, 6), bank.weight[:2]
    torch.testing.assert_close(bank.project(x), x @ h.T @ h)
    torch.testing.assert_close(bank.project_out(x), x - x @ h.T @ h)
    torch.testing.assert_close(project(x, h) + project_out(x, h), x)
    assert bank.project(x[:0]).shape == (0, 6)


def test_spiking_neurons_round_and_limit_what_they_say():
    h, x = torch.eye(3).double(), torch.tensor([[0.26, -7.0, 1.0]]).double()
    quantized = project(x, h, quantization=(2.0, 4))
    assert quantized.tolist() == [[0.5, -2.0, 1.0]]
    fine = project(x, orthonormal(2, 3), quantization=(20.0, 10**7))
    torch.testing.assert_close(fine, project(x, orthonormal(2, 3)), atol=1e-4, rtol=0)
    layer = linear_with(orthonormal(2, 6), quantization=(2.0, 4))
    x = draw(3, 6)
    g = draw(3, 5, seed=9)
    layer.learning = True
    layer.subspace.grow(1, generator=torch.Generator().manual_seed(0))
    twin = copy.deepcopy(layer.subspace)
    (layer(x) * g).sum().backward()
    twin.learn(x)
    torch.testing.assert_close(layer.subspace.weight, twin.weight)
    rest = x - project(x, layer.subspace.frozen, quantization=(2.0, 4))
    torch.testing.assert_close(layer.weight.grad, g.T @ rest)
    conv = ProjectedConv2d(1, 2, 2, subspace=HebbianSubspace(4, quantization=(2.0, 4))).double()
    conv.subspace.add_frozen(orthonormal(1, 4))
    conv.projecting = True
    image = draw(2, 1, 4, 5)
    (conv(image) * draw(2, 2, 3, 4, seed=8)).sum().backward()
    rest = conv.subspace.project_out(conv.patches(image)).reshape(-1, 4)
    flat = draw(2, 2, 3, 4, seed=8).flatten(2).transpose(1, 2).reshape(-1, 2)
    torch.testing.assert_close(conv.weight.grad.flatten(1), flat.T @ rest)


def test_a_layer_learns_in_training_mode_when_it_is_told_to():
    layer, x = ProjectedLinear(6, 5).double(), draw(8, 6)
    layer.subspace.grow(2, generator=torch.Generator().manual_seed(0))
    start = layer.subspace.weight.clone()
    layer(x)
    assert torch.equal(layer.subspace.weight, start)
    layer.learning = True
    layer.eval()(x)
    assert torch.equal(layer.subspace.weight, start)
    twin = copy.deepcopy(layer.subspace)
    layer.train()(x)
    twin.learn(x)
    assert torch.equal(layer.subspace.weight, twin.weight) and not torch.equal(twin.weight, start)
    trace, other = draw(8, 6, seed=1), draw(3, 6, seed=2)
    layer(x, trace)
    twin.learn(torch.cat((x, trace)))
    assert torch.equal(layer.subspace.weight, twin.weight)
    layer(x, learn_from=other)
    twin.learn(other)
    assert torch.equal(layer.subspace.weight, twin.weight)
    layer.subspace.freeze(), twin.freeze()
    layer.projecting = True
    for bank in (layer.subspace, twin):
        bank.grow(2, generator=torch.Generator().manual_seed(1))
    for inputs in (x, x[:3], draw(2, 2, 6)):
        layer(inputs)
        twin.learn(inputs)
        torch.testing.assert_close(layer.subspace.weight, twin.weight)


@pytest.mark.parametrize("size", [0, 3])
def test_a_bank_that_has_grown_is_loaded_into_one_that_has_not(size):
    layer = linear_with(orthonormal(2, 6))
    layer.subspace.grow(2, generator=torch.Generator().manual_seed(0))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = ProjectedLinear(6, 5).double()
    other.subspace.grow(size)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert (other.subspace.num_units, other.subspace.num_frozen) == (4, 2)
    other.projecting = True
    x = draw(3, 6)
    for module in (layer, other):
        module(x).square().sum().backward()
    assert torch.equal(layer.weight.grad, other.weight.grad)
    assert copy.deepcopy(layer).subspace.num_frozen == 2


def model_with_norm() -> nn.Sequential:
    return nn.Sequential(
        ProjectedConv2d(1, 3, 3, bias=True),
        nn.BatchNorm2d(3),
        nn.Flatten(),
        ProjectedLinear(3 * 2 * 2, 4),
    ).double()


def test_a_model_goes_from_task_to_task():
    model = model_with_norm()
    learner = OrthogonalProjection(model)
    conv, norm, _, linear = model
    assert learner.layers == [conv, linear]
    learner.begin_task([4, 6], generator=torch.Generator().manual_seed(0))
    assert [layer.learning for layer in learner.layers] == [True, True]
    assert [layer.projecting for layer in learner.layers] == [False, False]
    model(draw(5, 1, 4, 4)).sum().backward()
    assert conv.bias.grad is not None
    learner.end_task()
    assert [layer.subspace.num_frozen for layer in learner.layers] == [4, 6]
    assert [layer.learning for layer in learner.layers] == [False, False]
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"0.weight", "3.weight"}
    learner.begin_task(2)
    assert [layer.projecting for layer in learner.layers] == [True, True]
    assert [layer.subspace.num_units for layer in learner.layers] == [6, 8]
    model.train()
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    x = draw(5, 1, 4, 4, seed=1)
    together = model(x)
    # Normalisation does not see the batch any more.
    torch.testing.assert_close(model(x[:1]), together[:1])
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
    learner.end_task()


def test_refused_units_change_nothing():
    model = model_with_norm()
    learner = OrthogonalProjection(model)
    for units in ([1, 2, 3], -1, [3, 13], 10):
        with pytest.raises(ValueError, match=r"^units: .* expected"):
            learner.begin_task(units)
    assert [layer.subspace.num_units for layer in learner.layers] == [0, 0]
    learner.begin_task(1)
    with pytest.raises(ValueError, match=r"^units: .* expected"):
        learner.begin_task(1)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
def test_the_basis_is_the_fewest_directions_that_keep_the_energy(energy):
    x = draw(40, 10) * torch.linspace(3, 0.1, 10).double()
    rows = gradient_projection_basis(x, energy)
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)).double())
    total = x.square().sum()
    assert (x @ rows.T).square().sum() >= energy * total * (1 - 1e-12)
    assert len(rows) == 1 or (x @ rows[:-1].T).square().sum() < energy * total
    sizes = torch.linalg.svdvals(x).square().cumsum(0) / total
    assert len(rows) == int((sizes < energy * (1 - 1e-12)).sum()) + 1


def test_the_basis_adds_only_what_known_rows_lack():
    x = draw(40, 10)
    known = orthonormal(4, 10, seed=1)
    rows = gradient_projection_basis(x, 0.9, known=known)
    assert (rows @ known.T).abs().max() < 1e-12
    both = torch.cat((known, rows))
    assert (x @ both.T).square().sum() >= 0.9 * x.square().sum()
    without = both[:-1]
    assert (x @ without.T).square().sum() < 0.9 * x.square().sum()
    inside = draw(20, 4) @ known
    assert gradient_projection_basis(inside, 1.0, known=known).shape == (0, 10)
    # What does not vary has no direction.
    assert gradient_projection_basis(draw(9, 1) @ draw(1, 10), 1.0).shape == (1, 10)
    for empty in (torch.zeros(3, 4), torch.zeros(0, 4)):
        assert gradient_projection_basis(empty, 0.9).shape == (0, 4)


def test_half_precision_learns_in_the_banks_own():
    bank = HebbianSubspace(6)
    bank.grow(2, generator=torch.Generator().manual_seed(0))
    twin = copy.deepcopy(bank)
    x = draw(8, 6).bfloat16()
    bank.learn(x)
    twin.learn(x.float())
    assert torch.equal(bank.weight, twin.weight)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("units", lambda: HebbianSubspace(4).grow(-1)),
        ("units", lambda: HebbianSubspace(4).grow(5)),
        ("in_features", lambda: HebbianSubspace(0)),
        ("iterations", lambda: HebbianSubspace(4, iterations=0)),
        ("lr", lambda: HebbianSubspace(4, lr=0.0)),
        ("momentum", lambda: HebbianSubspace(4, momentum=1.0)),
        ("clamp", lambda: HebbianSubspace(4, clamp=-1.0)),
        ("quantization", lambda: HebbianSubspace(4, quantization=(0.0, 40))),
        ("quantization", lambda: project(draw(2, 4), draw(1, 4), quantization=(20.0, 0))),
        ("x", lambda: HebbianSubspace(4).learn(draw(2, 5))),
        ("x", lambda: project(draw(2, 5), draw(1, 4))),
        ("weight", lambda: project(draw(2, 4), draw(4))),
        ("rows", lambda: HebbianSubspace(4).add_frozen(draw(2, 5))),
        ("rows", lambda: HebbianSubspace(4).add_frozen(draw(5, 4))),
        ("lr", lambda: hebbian_subspace_update(draw(1, 4), draw(2, 4), lr=math.nan)),
        (
            "velocity",
            lambda: hebbian_subspace_update(draw(1, 4), draw(2, 4), lr=0.1, velocity=draw(2, 4)),
        ),
        (
            "num_frozen",
            lambda: hebbian_subspace_update(draw(1, 4), draw(2, 4), lr=0.1, num_frozen=2),
        ),
        ("x", lambda: ProjectedLinear(4, 3)(torch.zeros(2, 5))),
        ("trace", lambda: ProjectedLinear(4, 3)(torch.zeros(2, 4), torch.zeros(1, 4))),
        ("subspace", lambda: ProjectedLinear(4, 3, subspace=HebbianSubspace(5))),
        ("subspace", lambda: ProjectedConv2d(1, 3, 2, subspace=HebbianSubspace(5))),
        ("groups", lambda: ProjectedConv2d(4, 4, 3, groups=2)),
        ("padding_mode", lambda: ProjectedConv2d(4, 4, 3, padding_mode="reflect")),
        ("padding", lambda: ProjectedConv2d(4, 4, 3, padding="same")),
        ("x", lambda: ProjectedConv2d(4, 4, 3)(torch.zeros(2, 3, 5, 5))),
        ("model", lambda: OrthogonalProjection(nn.Linear(3, 2))),
        ("energy", lambda: gradient_projection_basis(draw(3, 4), 0.0)),
        ("activations", lambda: gradient_projection_basis(draw(4))),
        ("activations", lambda: gradient_projection_basis(torch.full((2, 2), math.nan))),
        ("known", lambda: gradient_projection_basis(draw(3, 4), known=draw(1, 5))),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_the_cpu():
    layer = linear_with(orthonormal(2, 6))
    layer.subspace.grow(2, generator=torch.Generator().manual_seed(0))
    layer.learning = True
    twin = copy.deepcopy(layer).cuda()
    x = draw(8, 6)
    layer(x).square().sum().backward()
    twin(x.cuda()).square().sum().backward()
    torch.testing.assert_close(twin.weight.grad.cpu(), layer.weight.grad)
    torch.testing.assert_close(twin.subspace.weight.cpu(), layer.subspace.weight)


def test_a_loaded_model_goes_on_with_its_second_task():
    def network() -> nn.Sequential:
        bank = HebbianSubspace(6)
        return nn.Sequential(ProjectedLinear(6, 5, True, subspace=bank), nn.BatchNorm1d(5))

    model = network()
    first = OrthogonalProjection(model)
    first.begin_task(2)
    model(draw(8, 6).float())
    first.end_task()
    loaded = network()
    loaded.load_state_dict(model.state_dict())
    OrthogonalProjection(loaded).begin_task(1)
    layer, norm = loaded
    assert layer.projecting and not layer.bias.requires_grad and not norm.weight.requires_grad
    x = draw(8, 6).float()
    torch.testing.assert_close(loaded.train()(x), loaded.eval()(x))


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("size", [(6, 9), (9, 6)])
def test_under_autocast_weights_still_move_only_outside_of_the_subspace(size, learning):
    ins, outs = size
    layer = linear_with(orthonormal(2, ins), outs).float()
    layer.learning = learning
    if learning:
        layer.subspace.grow(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(draw(4, ins).float()).float().square().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
    inside = layer.weight.grad @ layer.subspace.frozen.T
    assert inside.abs().max() < 0.05 * layer.weight.grad.abs().max()


def test_the_rule_stands_outside_of_autograd_and_refuses_other_shapes():
    weight, x = orthonormal(2, 6), draw(4, 6).requires_grad_()
    new, velocity = hebbian_subspace_update(weight, x, lr=0.1)
    assert not new.requires_grad and not velocity.requires_grad
    for shape in ((6,), (2, 4, 6)):
        with pytest.raises(ValueError, match=r"x: .* expected"):
            hebbian_subspace_update(weight, draw(*shape), lr=0.1)
