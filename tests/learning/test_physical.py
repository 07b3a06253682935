"""PhyLL: labels, goodness, local loss, training without a derivative; and its baselines."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heterodox.learning.physical import (
    BlackBox,
    DigitalTwin,
    MultimodeFiber,
    PhysicalNetwork,
    PhysicsAwareNetwork,
    ProgrammableCavity,
    ScatteringCavity,
    contrast_gradient,
    cosine_goodness,
    local_contrast_loss,
    overlay_label,
    wrong_labels,
)

FEATURES, CLASSES = 9, 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def task(rows=60, seed=0):
    """Three classes that a line cannot tell apart: how far two numbers are from each other."""
    x = torch.rand(rows, FEATURES, generator=generator(seed))
    y = (3 * (x[:, 5] - x[:, 7]).abs()).long().clamp(max=2)
    return x, y


def cavities(layers=2, **options):
    return [ScatteringCavity(FEATURES, 12, seed=k, **options) for k in range(layers)]


def build(physics=None, cls=PhysicalNetwork, **options):
    physics = cavities() if physics is None else physics
    return cls(physics, FEATURES, CLASSES, generator=generator(1), **{"lr": 1e-2, **options})


def weights(network):
    return [p.detach().clone() for p in network.layers.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_overlay_writes_the_batch_s_maximum_and_leaves_its_input_alone():
    x = torch.tensor([[1.0, 2, 3, 4], [5, -9, 7, 8]])
    before = x.clone()
    marked = overlay_label(x, torch.tensor([2, 0]), 3)
    assert marked.tolist() == [[0, 0, 9, 4], [9, 0, 0, 8]]
    assert torch.equal(x, before)
    assert torch.equal(overlay_label(x, 1, 3), overlay_label(x, torch.tensor([1, 1]), 3))
    assert overlay_label(x[:0], torch.zeros(0, dtype=torch.int64), 3).shape == (0, 4)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_wrong_labels_are_uniform_over_the_others(classes):
    y = torch.arange(20_000) % classes
    wrong = wrong_labels(y, classes, generator())
    assert (wrong != y).all() and wrong.min() >= 0 and wrong.max() < classes
    for label in range(classes):
        share = wrong[y == label].bincount(minlength=classes) / (y == label).sum()
        others = [c for c in range(classes) if c != label]
        torch.testing.assert_close(
            share[others], torch.full((classes - 1,), 1 / (classes - 1)), atol=0.03, rtol=0
        )


@pytest.mark.parametrize("activation", ["abs", "gelu"])
def test_goodness_is_a_cosine(activation):
    h, t = torch.randn(4, 6, generator=generator()), torch.randn(6, generator=generator(1))
    f = h.abs() if activation == "abs" else F.gelu(h)
    expected = [(row @ t / (row.norm() * t.norm())).item() for row in f]
    assert cosine_goodness(h, t, activation=activation).tolist() == pytest.approx(expected)


def test_goodness_knows_neither_signs_nor_lengths():
    h, t = torch.randn(4, 6, generator=generator()), torch.randn(6, generator=generator(1))
    good = cosine_goodness(h, t)
    torch.testing.assert_close(cosine_goodness(37.0 * h, t), good)
    torch.testing.assert_close(cosine_goodness(h * torch.tensor([1, -1, 1, -1, 1, -1]), t), good)
    assert cosine_goodness(torch.zeros(1, 6), t).tolist() == [0]


def test_the_loss_is_ln_2_when_goods_are_equal_and_falls_with_their_difference():
    good = torch.rand(5, generator=generator())
    assert local_contrast_loss(good, good).item() == pytest.approx(math.log(2))
    assert local_contrast_loss(good + 0.1, good) < local_contrast_loss(good, good)
    expected = math.log(1 + math.exp(-2.5 * 0.3))
    loss = local_contrast_loss(torch.tensor([0.5]), torch.tensor([0.2]), theta=2.5)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_is_stable_for_any_difference(dtype):
    far = torch.tensor([1e5], dtype=dtype, requires_grad=True)
    zero = torch.zeros(1, dtype=dtype)
    for sign, expected in ((1, 0.0), (-1, 4e5)):
        loss = local_contrast_loss(sign * far, zero)
        (slope,) = torch.autograd.grad(loss, far)
        assert loss.item() == pytest.approx(expected)
        assert slope.isfinite().all()


@pytest.mark.parametrize("activation", ["abs", "gelu"])
def test_the_closed_gradient_is_that_of_the_loss(activation):
    a = torch.randn(10, 6, dtype=torch.float64, generator=generator(), requires_grad=True)
    t = torch.randn(6, dtype=torch.float64, generator=generator(1))
    good = cosine_goodness(a, t, activation=activation)
    expected = local_contrast_loss(good[:5], good[5:], theta=3.0)
    loss, gradient = contrast_gradient(a.detach(), t, 3.0, activation)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, a)[0])


def test_rows_of_zeros_give_no_gradient_and_no_nan():
    loss, gradient = contrast_gradient(torch.zeros(4, 3), torch.ones(3), 4.0, "abs")
    assert loss.item() == pytest.approx(math.log(2)) and not gradient.any()


def by_the_book(network, x_pos, x_neg, inner_steps, lr):
    """The procedure as it is told, one layer and one kind of row after the other, by autograd."""
    layers = copy.deepcopy(list(network.layers))
    losses = []
    for k, layer in enumerate(layers):
        optimizer = torch.optim.Adam(layer.parameters(), lr=lr)
        lifted = []
        for x in (x_pos, x_neg):
            z = network.physics[k](x)
            lifted.append(torch.cat([z, x], 1) if network.skip else z)
        mean = 0.0
        for _ in range(inner_steps):
            good = [
                cosine_goodness(layer(u), network.targets[k], activation=network.activation)
                for u in lifted
            ]
            loss = torch.log(1 + torch.exp(-network.theta * (good[0] - good[1]))).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mean += loss.item() / inner_steps
        losses.append(mean)
        x_pos, x_neg = (layer(u).detach() for u in lifted)
        if network.activation == "gelu":
            x_pos, x_neg = F.gelu(x_pos), F.gelu(x_neg)
    return layers, losses


@pytest.mark.parametrize("activation", ["abs", "gelu"])
@pytest.mark.parametrize("skip", [True, False])
def test_a_step_is_the_authors_procedure(activation, skip):
    network = build(activation=activation, skip=skip, theta=5.0).double()
    x, y = task()
    x_pos = overlay_label(x, y, CLASSES).double()
    x_neg = overlay_label(x, (y + 1) % CLASSES, CLASSES).double()
    layers, expected = by_the_book(network, x_pos, x_neg, 4, 1e-2)
    losses = network.step(x_pos, x_neg, inner_steps=4)
    assert losses.tolist() == pytest.approx(expected)
    for layer, reference in zip(network.layers, layers, strict=True):
        torch.testing.assert_close(layer.weight, reference.weight)
        torch.testing.assert_close(layer.bias, reference.bias)


def test_no_inner_steps_change_nothing():
    network = build()
    x, y = task()
    before = weights(network)
    pairs = overlay_label(x, y, CLASSES), overlay_label(x, (y + 1) % CLASSES, CLASSES)
    losses = network.step(*pairs, inner_steps=0)
    assert same(weights(network), before)
    assert losses.shape == (2,) and losses.isfinite().all()


class Watched(nn.Module):
    """Physics that would notice a gradient, and counts its readings."""

    def __init__(self, physics):
        super().__init__()
        self.inner = physics
        self.scale = nn.Parameter(torch.ones(()))
        self.readings = []

    def forward(self, h):
        assert not torch.is_grad_enabled()
        self.readings.append(len(h))
        return self.scale * self.inner(h)


def test_no_gradient_reaches_the_physics_and_it_is_read_once_a_layer_and_batch():
    physics = [Watched(layer) for layer in cavities()]
    network = build(physics, physical_features=12)
    x, y = task(20)
    network.fit(x.requires_grad_(), y, epochs=3, inner_steps=5)
    assert all(layer.scale.grad is None and layer.readings == [40] * 3 for layer in physics)
    assert x.grad is None
    assert all(p.grad is None for p in network.layers.parameters())
    network.predict(x)
    assert physics[0].readings[-1] == 20 * CLASSES


def test_the_first_layer_does_not_know_of_the_second():
    x, y = task()
    pairs = overlay_label(x, y, CLASSES), overlay_label(x, (y + 1) % CLASSES, CLASSES)
    both, alone = build(), build(cavities(1))
    with torch.no_grad():
        alone.layers[0].load_state_dict(both.layers[0].state_dict())
        alone.targets[0] = both.targets[0]
    both.step(*pairs)
    alone.step(*pairs)
    assert torch.equal(both.layers[0].weight, alone.layers[0].weight)


@pytest.mark.parametrize(
    "physics", [cavities(), [MultimodeFiber(FEATURES, 12), ProgrammableCavity(FEATURES, 7)]]
)
def test_a_black_box_of_arrays_trains_as_the_simulator_does(physics):
    def boxed(layer):
        function = copy.deepcopy(layer)
        return BlackBox(
            lambda x: function(torch.from_numpy(x)).numpy(), layer.in_features, layer.out_features
        )

    x, y = task()
    network, blind = build(physics), build([boxed(layer) for layer in physics])
    history = network.fit(x, y, epochs=5)
    assert torch.equal(blind.fit(x, y, epochs=5), history)
    assert same(weights(network), weights(blind))
    assert torch.equal(network.predict(x), blind.predict(x))


def test_targets_are_of_unit_length_and_never_change():
    network = build()
    targets = network.targets.clone()
    torch.testing.assert_close(targets.norm(dim=1), torch.ones(2), atol=1e-3, rtol=0)
    network.fit(*task(), epochs=3)
    assert torch.equal(network.targets, targets)
    assert "targets" in network.state_dict() and not network.targets.requires_grad


def test_training_learns_to_tell_classes_it_has_not_seen():
    x, y = task(200)
    test_x, test_y = task(200, seed=5)
    network = build(skip=False, lr=3e-3)
    untrained = (network.predict(test_x) == test_y).float().mean()
    history = network.fit(x, y, epochs=60)
    learned = (network.predict(test_x) == test_y).float().mean()
    assert (history[-1] < history[0]).all() and history.shape == (60, 2)
    assert learned > 0.7 and learned > untrained + 0.2


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("activation", ["abs", "gelu"])
def test_goodness_is_summed_over_layers_for_each_label(classes, activation):
    x, y = task(20)
    network = PhysicalNetwork(
        cavities(), FEATURES, classes, activation=activation, generator=generator()
    )
    network.fit(x, y.clamp(max=classes - 1), epochs=2)
    expected = torch.zeros(20, classes)
    for label in range(classes):
        h = overlay_label(x, label, classes)
        for k, layer in enumerate(network.layers):
            a = layer(torch.cat([network.physics[k](h), h], 1)).detach()
            expected[:, label] += cosine_goodness(a, network.targets[k], activation=activation)
            h = a if activation == "abs" else F.gelu(a)
    torch.testing.assert_close(network.goodness(x), expected)
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(network.layer_goodness(x).sum(0), expected)
    assert torch.equal(network.predict(x), expected.argmax(1))


def test_training_goes_on_from_call_to_call():
    x, y = task()
    at_once, by_epoch = build(), build()
    whole = at_once.fit(x, y, epochs=4, batch_size=25)
    parts = torch.cat([by_epoch.fit(x, y, epochs=1, batch_size=25) for _ in range(4)])
    assert torch.equal(whole, parts) and same(weights(at_once), weights(by_epoch))
    other = build()
    other.fit(x, y, epochs=4, batch_size=25, generator=generator(8))
    assert not same(weights(other), weights(at_once))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_a_copy_trains_on_by_itself(duplicate):
    x, y = task()
    network = build()
    network.fit(x, y, epochs=2)
    twin = duplicate(network)
    network.fit(x, y, epochs=2)
    after = weights(network)
    twin.fit(x, y, epochs=2)
    assert same(weights(twin), after) and same(weights(network), after)


def test_a_drifted_system_is_caught_up_with():
    x, y = task(200)
    network = build(cavities(noise=0.01), skip=False, lr=5e-3)
    network.fit(x, y, epochs=60)
    before = (network.predict(x) == y).float().mean()
    for layer in network.physics:
        layer.drift(1.2)
    after = (network.predict(x) == y).float().mean()
    network.fit(x, y, epochs=30)
    recovered = (network.predict(x) == y).float().mean()
    assert after < before - 0.1 and recovered > before - 0.07


def test_construction_and_training_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    build(cavities(noise=0.1)).fit(*task(), epochs=1, batch_size=20)
    assert torch.equal(torch.get_rng_state(), state)


def test_inputs_of_half_precision_are_trained_on_in_the_weights_precision():
    x, y = task()
    network = build()
    assert network.fit(x.bfloat16(), y, epochs=1).dtype == torch.float32
    assert network.goodness(x.half()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"^x: .*bfloat16.* expected"):
        build().bfloat16().fit(x.bfloat16(), y, epochs=1)


def test_empty_and_single_batches():
    network = build()
    assert network.predict(torch.zeros(0, FEATURES)).shape == (0,)
    assert network.predict(torch.rand(1, FEATURES)).shape == (1,)
    assert network.fit(torch.rand(1, FEATURES), torch.tensor([2]), epochs=1).isfinite().all()


def aware(mode, physics=None, twin=None, **options):
    physics = cavities() if physics is None else physics
    return build(physics, PhysicsAwareNetwork, mode=mode, twin=twin, **options)


def logits_by_hand(network, layers, x):
    h = torch.cat([torch.zeros(len(x), CLASSES), x[:, CLASSES:]], 1)
    for k, layer in enumerate(network.layers):
        h = layer(torch.cat([layers[k].simulate(h), h], 1))
    return h[:, :CLASSES]


@pytest.mark.parametrize("mode", ["ideal", "in-silico"])
def test_back_propagation_follows_cross_entropy_of_what_it_is_trained_on(mode):
    twins = [ScatteringCavity(FEATURES, 12, seed=50 + k) for k in range(2)]
    network = aware(mode, twin=twins, lr=1e-3)
    reference = copy.deepcopy(network)
    x, y = task()
    trained_on = reference.physics if mode == "ideal" else twins
    loss = F.cross_entropy(logits_by_hand(reference, trained_on, x), y)
    optimizer = torch.optim.Adam(reference.layers.parameters(), lr=1e-3)
    loss.backward()
    optimizer.step()
    assert network.step(x, y, inner_steps=1).item() == pytest.approx(loss.item())
    for a, b in zip(weights(network), weights(reference), strict=True):
        torch.testing.assert_close(a, b)
    # Predictions are the physics' own, whatever it was trained on.
    torch.testing.assert_close(
        network.goodness(x), logits_by_hand(network, network.physics, x).detach()
    )


def test_physics_aware_training_reads_the_physics_and_differentiates_the_twin():
    physics, twins = cavities(1), [ScatteringCavity(FEATURES, 12, seed=50)]
    network = aware("aware", physics, twins, lr=1e-3)
    x, y = task()
    h = torch.cat([torch.zeros(len(x), CLASSES), x[:, CLASSES:]], 1)
    lifted = network._differentiable_lift(0, h.requires_grad_())
    torch.testing.assert_close(lifted[:, :12].detach(), physics[0](h))
    direction = torch.randn(12, generator=generator())
    (slope,) = torch.autograd.grad(lifted[:, :12] @ direction, h, torch.ones(len(h)))
    (of_twin,) = torch.autograd.grad(twins[0].simulate(h) @ direction, h, torch.ones(len(h)))
    torch.testing.assert_close(slope, of_twin)
    exact, own = (
        aware("ideal", cavities(), lr=1e-3),
        aware("aware", cavities(), cavities(), lr=1e-3),
    )
    torch.testing.assert_close(own.fit(x, y, epochs=3), exact.fit(x, y, epochs=3))


def test_a_plain_network_can_be_the_twin():
    twins = [nn.Sequential(nn.Linear(FEATURES, 12), nn.Tanh()) for _ in range(2)]
    network = aware("in-silico", twin=twins)
    before = [p.detach().clone() for p in network.twin.parameters()]
    assert network.fit(*task(), epochs=2).shape == (2,)
    assert same([p.detach() for p in network.twin.parameters()], before)


def test_ideal_back_propagation_learns():
    x, y = task(200)
    network = aware("ideal", skip=False)
    history = network.fit(x, y, epochs=30)
    most_frequent = y.bincount().max() / len(y)
    assert history[-1] < 0.8 * history[0]
    assert (network.predict(x) == y).float().mean() > most_frequent + 0.1


X, LABELS = task(6)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("num_classes", lambda: PhysicalNetwork(cavities(), FEATURES, 1)),
        ("features", lambda: PhysicalNetwork([nn.Identity()], 4, 5)),
        ("theta", lambda: build(theta=0.0)),
        ("theta", lambda: build(theta=math.nan)),
        ("lr", lambda: build(lr=0.0)),
        ("lr", lambda: build(lr=-1.0)),
        ("activation", lambda: build(activation="relu")),
        ("physics", lambda: build([])),
        ("physics", lambda: build([ScatteringCavity(8, 12)])),
        ("physics", lambda: build(physical_features=11)),
        ("physics", lambda: build([nn.Identity()], physical_features=4).predict(X)),
        ("x", lambda: build().predict(X[:, 1:])),
        ("x", lambda: build().fit(X[0], LABELS, epochs=1)),
        ("x", lambda: build().fit(X[:0], LABELS[:0], epochs=1)),
        ("x", lambda: build().fit(X / 0, LABELS, epochs=1)),
        ("y", lambda: build().fit(X, LABELS[:2], epochs=1)),
        ("y", lambda: build().fit(X, LABELS + 5, epochs=1)),
        ("epochs", lambda: build().fit(X, LABELS, epochs=0)),
        ("batch_size", lambda: build().fit(X, LABELS, epochs=1, batch_size=-1)),
        ("batch_size", lambda: build().fit(X, LABELS, epochs=1, batch_size=0)),
        ("inner_steps", lambda: build().fit(X, LABELS, epochs=1, inner_steps=-1)),
        ("x_pos", lambda: build().step(X[:, 1:], X)),
        ("x_neg", lambda: build().step(X, X[:2])),
        ("x_neg", lambda: build().step(X[:0], X[:0])),
        ("inner_steps", lambda: build().step(X, X, inner_steps=-1)),
        ("num_classes", lambda: overlay_label(X, LABELS, 1)),
        ("x", lambda: overlay_label(X, LABELS, FEATURES + 1)),
        ("label", lambda: overlay_label(X, LABELS + 5, CLASSES)),
        ("label", lambda: overlay_label(X, LABELS - 3, CLASSES)),
        ("label", lambda: overlay_label(X, 3, CLASSES)),
        ("label", lambda: overlay_label(X, LABELS[:2], CLASSES)),
        ("target", lambda: cosine_goodness(X, torch.ones(4))),
        ("activation", lambda: cosine_goodness(X, X[0], activation="relu")),
        ("eps", lambda: cosine_goodness(X, X[0], eps=0.0)),
        ("good_neg", lambda: local_contrast_loss(X[0], X[0, :2])),
        ("good_pos", lambda: local_contrast_loss(X[0, :0], X[0, :0])),
        ("theta", lambda: local_contrast_loss(X[0], X[0], theta=-1.0)),
        ("mode", lambda: aware("both")),
        ("twin", lambda: aware("aware")),
        ("twin", lambda: aware("in-silico", twin=cavities(1))),
        (
            "twin",
            lambda: aware("in-silico", twin=[nn.Linear(FEATURES, 11)] * 2).fit(*task(), epochs=1),
        ),
        ("physics", lambda: aware("ideal", [BlackBox(lambda x: x, FEATURES, FEATURES)])),
        ("x", lambda: aware("ideal").step(X[:, 1:], LABELS)),
        ("y", lambda: aware("ideal").step(X, LABELS[:2])),
        ("y", lambda: aware("ideal").step(X, LABELS + 5)),
        ("inner_steps", lambda: aware("ideal").step(X, LABELS, inner_steps=0)),
        ("x", lambda: aware("ideal").goodness(X[:, 1:])),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .*\bexpected"):
        call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_trains_as_the_cpu_does():
    x, y = task()
    twins = [DigitalTwin(nn.Linear(FEATURES, 12)) for _ in range(2)]
    networks = [build(copy.deepcopy(twins)), build(copy.deepcopy(twins)).cuda()]
    histories = [n.fit(x.to(d), y.to(d), epochs=3) for n, d in zip(networks, ("cpu", "cuda"))]  # noqa: B905
    torch.testing.assert_close(histories[1].cpu(), histories[0], atol=1e-4, rtol=1e-4)
    noisy = build(cavities(noise=0.1)).cuda()
    noisy.fit(x.cuda(), y.cuda(), epochs=1)
    assert noisy.predict(x.cuda()).device.type == "cuda"
