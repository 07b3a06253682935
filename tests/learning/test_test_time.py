"""Adapters against Tent and the Hebbian rule written out, and what they leave alone."""

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heterodox.learning.hebbian import soft_hebbian_conv2d_update, soft_hebbian_update
from heterodox.learning.test_time import (
    METHODS,
    BatchNormAdapter,
    NeuroModulatedAdapter,
    SourceOnly,
    TentAdapter,
    TestTimeAdapter,
    softmax_entropy,
)
from heterodox.training.seeding import seeded


def network(dropout=0.0):
    """Two convolutions with batch norm, whose statistics and gains are not the initial ones."""
    with seeded(0):
        model = nn.Sequential(
            nn.Conv2d(2, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(128, 4),
        )
        for layer in model:
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.uniform_(layer.bias, -0.5, 0.5)
                nn.init.normal_(layer.running_mean)
                nn.init.uniform_(layer.running_var, 0.5, 2)
    return model.double().eval()


def batches(count=3, size=10):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, size, 2, 8, 8, generator=generator, dtype=torch.float64)


def plain():
    with seeded(0):
        model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))
    return model.double()


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


class Nhl:
    """The method as the equations say, with autograd through the whole network at every step."""

    def __init__(self, model, hebbian_lr, lr, trained, temperature=1.0):
        self.model = copy.deepcopy(model).train()  # training mode: statistics of the batch
        self.hebbian_lr, self.temperature = hebbian_lr, temperature
        self.trained = [p for name, p in self.model.named_parameters() if name in trained]
        self.adam = torch.optim.Adam(self.trained, lr=lr, betas=(0.9, 0.999))

    def __call__(self, x, predict, steps=1):
        for _ in range(steps):
            if self.hebbian_lr:
                with torch.no_grad():
                    w = self.model[0].weight
                    change = soft_hebbian_conv2d_update(
                        x, w, stride=2, padding=1, temperature=self.temperature
                    )
                    w += self.hebbian_lr * change / change.abs().max()
            logits = self.model(x)
            p = logits.softmax(1)
            loss = -(p * p.log()).sum(1).mean()
            self.model.zero_grad()
            loss.backward()
            self.adam.step()
        return (self.model(x) if predict == "after" else logits).detach()


ALL_NORMS = ("1.weight", "1.bias", "4.weight", "4.bias")


@pytest.mark.parametrize("predict", ["before", "after"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(("modulator", "trained"), [("norms", ALL_NORMS), ("first", ALL_NORMS[:2])])
def test_it_is_the_paper_s_order_of_steps(predict, steps, modulator, trained):
    adapter = NeuroModulatedAdapter(
        network(),
        hebbian_lr=0.02,
        modulator=modulator,
        modulator_lr=0.01,
        temperature=0.7,
        steps=steps,
        predict=predict,
    )
    expected = Nhl(network(), 0.02, 0.01, trained, 0.7)
    for x in batches():
        torch.testing.assert_close(adapter(x), expected(x, predict, steps))


@pytest.mark.parametrize("predict", ["before", "after"])
def test_without_the_hebbian_step_it_is_tent(predict):
    nhl = NeuroModulatedAdapter(network(), hebbian_lr=0.0, modulator_lr=0.01, predict=predict)
    tent = TentAdapter(network(), lr=0.01, predict=predict)
    reference = Nhl(network(), 0.0, 0.01, ALL_NORMS)
    for x in batches():
        logits = nhl(x)
        assert torch.equal(logits, tent(x))
        torch.testing.assert_close(logits, reference(x, predict))
    assert same(nhl.model.state_dict(), tent.model.state_dict())


def test_without_any_rate_it_is_normalisation_by_the_batch():
    nothing = NeuroModulatedAdapter(network(), hebbian_lr=0.0, modulator_lr=0.0)
    adapter, reference = BatchNormAdapter(network()), network().train()
    for x in batches():
        assert torch.equal(nothing(x), adapter(x))
        torch.testing.assert_close(adapter(x), reference(x).detach())


def test_a_zero_modulator_rate_leaves_the_hebbian_step_alone_at_work():
    adapter, x = NeuroModulatedAdapter(network(), hebbian_lr=0.05, modulator_lr=0.0), batches()[0]
    logits, reference = adapter(x), network().train()
    change = soft_hebbian_conv2d_update(x, reference[0].weight.detach(), stride=2, padding=1)
    reference[0].weight.data += 0.05 * change / change.abs().max()
    torch.testing.assert_close(logits, reference(x).detach())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_statistics_of_source_and_batch_are_mixed(share):
    norm = network()[1]
    model = nn.Sequential(nn.Identity(), norm, nn.Flatten())
    x = 3 * torch.randn(5, 6, 4, 4, dtype=torch.float64) + 1
    mean = share * norm.running_mean + (1 - share) * x.mean((0, 2, 3))
    var = share * norm.running_var + (1 - share) * x.var((0, 2, 3), correction=0)
    shape = (1, 6, 1, 1)
    expected = (x - mean.view(shape)) / (var.view(shape) + norm.eps).sqrt()
    expected = expected * norm.weight.view(shape) + norm.bias.view(shape)
    adapter = BatchNormAdapter(model, source_weight=share)
    torch.testing.assert_close(adapter(x), expected.flatten(1).detach())


def test_the_source_alone_is_the_model_in_evaluation_mode():
    model, x = network(0.5), batches()[0]
    assert torch.equal(SourceOnly(model.train())(x), model.eval()(x).detach())


@pytest.mark.parametrize("predict", ["before", "after"])
@pytest.mark.parametrize("inplace", [False, True])
def test_an_inserted_modulator_scales_and_shifts_the_responses(predict, inplace):
    model, x = plain(), batches()[0]
    model[1] = nn.ReLU(inplace=inplace)
    adapter = NeuroModulatedAdapter(
        model, hebbian_lr=0.02, modulator="insert", modulator_lr=0.1, predict=predict
    )
    logits = adapter(x)
    w = model[0].weight.detach()
    change = soft_hebbian_conv2d_update(x, w)
    response = F.conv2d(x, w + 0.02 * change / change.abs().max(), model[0].bias.detach())
    gain = torch.ones(6, 1, 1, dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(6, 1, 1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([gain, offset], lr=0.1)
    before = model[3](F.relu(gain * response + offset).flatten(1))
    softmax_entropy(before).mean().backward()
    adam.step()
    after = model[3](F.relu(gain * response + offset).flatten(1))
    torch.testing.assert_close(logits, (before if predict == "before" else after).detach())


def test_a_linear_first_layer_learns_too():
    with seeded(0):
        model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3))
    x = torch.randn(9, 5)
    adapter = NeuroModulatedAdapter(model, hebbian_lr=0.1, modulator="first")
    adapter(x)
    before = model[0].weight.detach()
    change = soft_hebbian_update(x, before)
    expected = before + 0.1 * change / change.abs().max()
    torch.testing.assert_close(adapter.model[0].weight, expected)


@pytest.mark.parametrize("make", [nn.Linear, nn.Conv2d])
def test_a_model_of_a_single_layer_can_be_adapted(make):
    model = nn.Linear(5, 3) if make is nn.Linear else nn.Conv2d(1, 3, 2)
    x = torch.randn(4, 5) if make is nn.Linear else torch.randn(4, 1, 2, 2)
    if make is nn.Conv2d:
        model = nn.Sequential(model, nn.Flatten())
    adapter = NeuroModulatedAdapter(model, modulator="insert", modulator_lr=0.1)
    first = adapter(x)
    assert first.shape == (4, 3) and not torch.equal(adapter(x), first)
    adapter.reset()
    assert torch.equal(adapter(x), first)


@pytest.mark.parametrize("choose", [lambda model: "3", lambda model: model[3]])
def test_another_layer_can_be_the_hebbian_one(choose):
    model, reference = network(), network()
    adapter = NeuroModulatedAdapter(
        model, hebbian_layer=choose(model), hebbian_lr=0.05, modulator_lr=0.01
    )
    x = batches()[0]
    logits = adapter(x)
    reference.train()
    hidden = reference[:3](x).detach()
    w = reference[3].weight
    change = soft_hebbian_conv2d_update(hidden, w.detach(), padding=1)
    with torch.no_grad():
        w += 0.05 * change / change.abs().max()
    expected = Nhl(reference, 0.0, 0.01, ALL_NORMS)(x, "after")
    # The first normalisation layer is below: the second pass has to ask the Hebbian layer again.
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(adapter.model[3].weight, w.detach())
    assert torch.equal(adapter.model[0].weight, model[0].weight)


class Doubled(nn.Module):
    """Overwrites the answer of its first layer, and asks that layer twice."""

    def __init__(self, twice):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.twice = twice

    def forward(self, x):
        x = self.layer(self.layer(x)) if self.twice else self.layer(x).mul_(2).sin_()
        return self.norm(x)


@pytest.mark.parametrize("twice", [False, True])
def test_the_second_pass_is_right_for_unusual_networks(twice):
    with seeded(0):
        model = Doubled(twice)
    x = torch.randn(6, 4)
    adapter = NeuroModulatedAdapter(model, hebbian_lr=0.1, modulator_lr=0.1, predict="after")
    logits = adapter(x)
    torch.testing.assert_close(logits, adapter.model(x).detach())


@pytest.mark.parametrize("method", METHODS)
def test_the_given_model_and_all_other_weights_stay_as_they_are(method):
    model = network().train()
    before = state(model)
    adapter = TestTimeAdapter(model, method=method)
    for x in batches():
        adapter(x)
    assert same(state(model), before) and model.training
    assert all(p.requires_grad for p in model.parameters())
    moved = {
        name
        for name, parameter in adapter.model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    assert (
        moved
        == {
            "source": set(),
            "bn": set(),
            "tent": set(ALL_NORMS),
            "nhl": {"0.weight", *ALL_NORMS},
        }[method]
    )


@pytest.mark.parametrize("modulator", ["norms", "first", "insert"])
def test_reset_is_exact(modulator):
    model = plain() if modulator == "insert" else network()
    adapter = NeuroModulatedAdapter(model, modulator=modulator, hebbian_lr=0.01, modulator_lr=0.1)
    start = state(adapter.model)
    runs = []
    for _ in range(2):
        runs.append([adapter(x) for x in batches()])
        assert not same(state(adapter.model), start)
        adapter.reset()
        assert same(state(adapter.model), start)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("make", [TentAdapter, NeuroModulatedAdapter])
def test_an_episode_is_a_batch(make):
    episodic, online = make(network(), episodic=True), make(network())
    for x in batches():
        online.reset()
        assert torch.equal(episodic(x), online(x))
    online(batches()[0])
    assert not torch.equal(online(x), episodic(x))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("training", [False, True])
def test_it_adapts_whatever_mode_its_caller_is_in(method, context, training):
    adapter, plain = (TestTimeAdapter(network(0.5), method=method) for _ in range(2))
    adapter.train(training)
    with context():
        made_inside = [x.clone() for x in batches()]
        logits = [adapter(x) for x in made_inside]
    for x, given in zip(batches(), logits, strict=True):
        assert torch.equal(given, plain(x)) and not given.requires_grad
    assert adapter.training == training and not adapter.model.training


def test_inputs_that_require_gradients_get_none():
    x = batches()[0].requires_grad_()
    TestTimeAdapter(network())(x)
    assert x.grad is None


def test_a_saved_adapter_goes_on_where_it_was():
    adapter, other = (NeuroModulatedAdapter(network(), modulator_lr=0.1) for _ in range(2))
    first, second, third = batches()
    adapter(first)
    file = io.BytesIO()
    torch.save(adapter.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    twins = (other, copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter)))
    expected = adapter(second), adapter(third)
    for twin in twins:
        assert torch.equal(twin(second), expected[0]) and torch.equal(twin(third), expected[1])
        twin.reset()
        assert torch.equal(twin(first), NeuroModulatedAdapter(network(), modulator_lr=0.1)(first))


def test_the_entropy_falls_when_a_batch_is_seen_again():
    adapter, x = TestTimeAdapter(network(), method="tent"), batches()[0]
    entropies = [softmax_entropy(adapter(x)).mean().item() for _ in range(20)]
    assert entropies == sorted(entropies, reverse=True)


def test_models_that_wrap_their_logits_are_understood():
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, x):
            return Output(self.network(x))

    x = batches()[0]
    assert torch.equal(TestTimeAdapter(Wrapped())(x), TestTimeAdapter(network())(x))


@pytest.mark.parametrize("method", METHODS)
def test_one_image_has_statistics_if_its_maps_are_larger_than_a_pixel(method):
    x = batches()[0][:1]
    logits = TestTimeAdapter(network(), method=method)(x)
    assert logits.shape == (1, 4) and logits.isfinite().all()
    if method == "bn":
        torch.testing.assert_close(logits, network().train()(x).detach())


@pytest.mark.parametrize("method", ["nhl", "tent", "bn"])
def test_one_value_a_channel_is_refused_and_nothing_is_learned_from_it(method):
    with seeded(0):
        model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    adapter = TestTimeAdapter(model, method=method)
    before = state(adapter.model)
    with pytest.raises(ValueError, match=r"^x: a batch of one given.* expected"):
        adapter(torch.randn(1, 5))
    assert same(state(adapter.model), before)
    assert adapter(torch.randn(2, 5)).isfinite().all()
    mixed = BatchNormAdapter(model, source_weight=0.5)
    assert mixed(torch.randn(1, 5)).isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_and_nothing_is_learned_from_them(value):
    adapter, x = TestTimeAdapter(network()), batches()[0]
    before, x[0, 0, 0, 0] = state(adapter.model), value
    with pytest.raises(ValueError, match=r"^x: .* expected"):
        adapter(x)
    assert same(state(adapter.model), before)


def test_half_precision_is_for_what_does_not_learn():
    for dtype in (torch.bfloat16, torch.float16):
        x = batches()[0].to(dtype)
        for method in ("source", "bn"):
            logits = TestTimeAdapter(network().to(dtype), method=method)(x)
            assert logits.dtype == dtype and logits.isfinite().all()
        for method in ("tent", "nhl"):
            for adapter in (
                TestTimeAdapter(network().to(dtype), method=method),
                TestTimeAdapter(network(), method=method).to(dtype),
            ):
                with pytest.raises(ValueError, match=r"^model: .* expected"):
                    adapter(x)


def test_autocast_adapts_in_single_precision():
    x = batches()[0].float()
    plain, adapter = (TestTimeAdapter(network().float()) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = adapter(x)
    torch.testing.assert_close(logits.float(), plain(x), rtol=0.1, atol=0.05)
    moved = adapter.model[1].weight - network().float()[1].weight
    assert (moved.abs() > 5e-4).all()
    torch.testing.assert_close(adapter.model[0].weight, plain.model[0].weight)


def test_entropy_is_that_of_the_distribution():
    logits = torch.randn(6, 5, dtype=torch.float64)
    p = logits.softmax(1)
    expected = torch.distributions.Categorical(probs=p).entropy()
    torch.testing.assert_close(softmax_entropy(logits), expected)
    assert torch.autograd.gradcheck(softmax_entropy, logits.requires_grad_())


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_entropy_of_equal_logits_is_log_of_the_classes(classes):
    entropy = softmax_entropy(torch.full((3, classes), 5.0))
    torch.testing.assert_close(entropy, torch.full((3,), math.log(classes)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_entropy_of_extreme_logits_is_finite_with_its_gradient(dtype):
    rows = [[1e4, -1e4, 0], [1e4, 1e4, -1e4], [1, 1, -math.inf]]
    logits = torch.tensor(rows, dtype=dtype, requires_grad=True)
    entropy = softmax_entropy(logits)
    expected = torch.tensor([0, math.log(2), math.log(2)], dtype=dtype)
    torch.testing.assert_close(entropy.detach(), expected)
    entropy.sum().backward()
    assert logits.grad.isfinite().all()


def bare():
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 4))


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("method", lambda: TestTimeAdapter(network(), method="shot")),
        ("model", lambda: NeuroModulatedAdapter(nn.Sequential(nn.BatchNorm2d(2), nn.Flatten()))),
        ("modulator", lambda: NeuroModulatedAdapter(bare(), modulator="norms")),
        ("modulator", lambda: NeuroModulatedAdapter(bare(), modulator="first")),
        (
            "modulator",
            lambda: NeuroModulatedAdapter(network(), modulator="first", hebbian_layer="8"),
        ),
        ("modulator", lambda: NeuroModulatedAdapter(network(), modulator="all")),
        ("predict", lambda: NeuroModulatedAdapter(network(), predict="during")),
        ("predict", lambda: TentAdapter(network(), predict="during")),
        ("hebbian_lr", lambda: NeuroModulatedAdapter(network(), hebbian_lr=-1e-3)),
        ("modulator_lr", lambda: NeuroModulatedAdapter(network(), modulator_lr=math.nan)),
        ("lr", lambda: TentAdapter(network(), lr=-1.0)),
        ("temperature", lambda: NeuroModulatedAdapter(network(), temperature=0.0)),
        ("steps", lambda: NeuroModulatedAdapter(network(), steps=0)),
        ("steps", lambda: TentAdapter(network(), steps=-1)),
        ("source_weight", lambda: BatchNormAdapter(network(), source_weight=1.5)),
        ("hebbian_layer", lambda: NeuroModulatedAdapter(network(), hebbian_layer="9")),
        ("hebbian_layer", lambda: NeuroModulatedAdapter(network(), hebbian_layer="1")),
        ("hebbian_layer", lambda: NeuroModulatedAdapter(network(), hebbian_layer=nn.Linear(2, 2))),
        (
            "hebbian_layer",
            lambda: NeuroModulatedAdapter(nn.Conv2d(4, 4, 3, groups=2), modulator="insert"),
        ),
        (
            "hebbian_layer",
            lambda: NeuroModulatedAdapter(
                nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), modulator="insert"
            ),
        ),
        ("model", lambda: TentAdapter(bare())),
        ("model", lambda: BatchNormAdapter(bare())),
        ("model", lambda: TestTimeAdapter(network()[:7])(batches()[0])),
        ("x", lambda: TestTimeAdapter(network())(batches()[0][:0])),
        ("logits", lambda: softmax_entropy(torch.zeros(3, 0))),
        (
            "source_weight",
            lambda: BatchNormAdapter(
                nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), source_weight=0.5
            ),
        ),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_cuda_equals_the_cpu(method):
    adapter = TestTimeAdapter(network(), method=method)
    expected = [adapter(x) for x in batches()]
    adapter = TestTimeAdapter(network(), method=method).cuda()
    for x, logits in zip(batches(), expected, strict=True):
        torch.testing.assert_close(adapter(x.cuda()).cpu(), logits)


@pytest.mark.parametrize("method", ["tent", "nhl"])
def test_an_adapter_that_is_moved_goes_on_as_if_it_had_not_been(method):
    x = batches().float()
    stays, moved = (TestTimeAdapter(network().float(), method=method) for _ in range(2))
    stays(x[0]), moved(x[0])
    moved.double()
    torch.testing.assert_close(moved(x[1].double()).float(), stays(x[1]), rtol=1e-4, atol=1e-4)
