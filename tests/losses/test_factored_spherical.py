import copy
import io
import math

import pytest
import torch
from torch import nn

from heterodox.losses import factored_spherical
from heterodox.losses.factored_update import Contraction, Record, _by_class
from heterodox.losses.z_loss import (
    FactoredSphericalLinear,
    ZLoss,
    spherical_softmax_from_statistics,
    spherical_squared_from_statistics,
    spherical_statistics,
    taylor_softmax_from_statistics,
)
from heterodox.optim import PerpGrad

CLASSES, WIDTH = 50, 8
Z = ZLoss(0.7, 2.0, "none").from_statistics


def layer_of(rate=0.5, dtype=torch.float64, classes=CLASSES, **options):
    torch.manual_seed(3)
    return FactoredSphericalLinear(WIDTH, classes, rate, dtype=dtype, **options)


def batch(rows, step, among=5, dtype=torch.float64):
    """Hidden rows that share a direction, and targets that repeat."""
    generator = torch.Generator().manual_seed(step)
    hidden = 0.5 + torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
    return hidden.to(dtype), torch.randint(among, (rows,), generator=generator)


def train(layer, loss, hidden, target):
    """One step; the loss and the gradient in the hidden rows."""
    hidden = hidden.clone().requires_grad_()
    value = loss(*layer.statistics(hidden, target), layer.num_classes).mean()
    value.backward()
    layer.step()
    return value.detach(), hidden.grad


class Dense:
    """The same in the open: a linear layer and torch's SGD."""

    def __init__(self, layer):
        self.linear = nn.Linear(WIDTH, layer.num_classes, layer.has_bias, dtype=layer.V.dtype)
        with torch.no_grad():
            self.linear.weight.copy_(layer.weight)
            if layer.has_bias:
                self.linear.bias.copy_(layer.bias)
        self.optimizer = torch.optim.SGD(
            self.linear.parameters(), lr=layer.learning_rate, weight_decay=layer.weight_decay
        )

    def train(self, loss, hidden, target):
        hidden = hidden.clone().requires_grad_()
        outputs = self.linear(hidden)
        value = loss(*spherical_statistics(outputs, target), outputs.shape[-1]).mean()
        self.optimizer.zero_grad()
        value.backward()
        self.optimizer.step()
        return value.detach(), hidden.grad


def assert_equal_to_dense(layer, loss, rows, steps=50, schedule=lambda step: 1.0, error=1e-10):
    dense, first = Dense(layer), layer.learning_rate
    for step in range(steps):
        rate = first * schedule(step)
        layer.learning_rate = dense.optimizer.param_groups[0]["lr"] = rate
        hidden, target = batch(rows, step)
        ours, theirs = train(layer, loss, hidden, target), dense.train(loss, hidden, target)
        for actual, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(actual, expected, rtol=error, atol=error)
        scale = max(1.0, dense.linear.weight.abs().max().item())
        difference = (layer.weight - dense.linear.weight).abs().max().item()
        assert difference < error * scale, step
        if layer.has_bias:
            assert (layer.bias - dense.linear.bias).abs().max().item() < error * scale
    assert layer.check() < 1e-8


@pytest.mark.parametrize("rows", [1, 6, WIDTH, 20])
@pytest.mark.parametrize("bias", [False, True])
def test_fifty_steps_equal_dense_sgd(rows, bias):
    layer = layer_of(bias=bias, weight_decay=0.01, stabilize_every=7)
    assert_equal_to_dense(layer, Z, rows, schedule=lambda step: (1 + math.cos(step)) / 2)
    assert int(layer.counter) == 50


@pytest.mark.parametrize(
    "loss, rate",
    [
        (spherical_squared_from_statistics, 0.02),
        (taylor_softmax_from_statistics, 0.3),
        (spherical_softmax_from_statistics, 0.3),
    ],
)
@pytest.mark.parametrize("rows", [3, 20])
def test_every_spherical_loss_trains_as_densely(loss, rate, rows):
    assert_equal_to_dense(layer_of(rate, stabilize_every=10), loss, rows)


def test_steps_that_nearly_annihilate_a_direction_are_exact():
    """Squared error contracts by 1 − 2 η |h|² along the only row: here by 0, and beyond."""
    for contraction in (0.0, 1e-12, 0.05, -0.5):
        layer = layer_of()
        dense = Dense(layer)
        hidden, target = batch(1, 0)
        rate = (1 - contraction) / (2 * hidden.square().sum().item())
        layer.learning_rate = dense.optimizer.param_groups[0]["lr"] = rate
        for _ in range(3):
            train(layer, spherical_squared_from_statistics, hidden, target)
            dense.train(spherical_squared_from_statistics, hidden, target)
            torch.testing.assert_close(layer.weight, dense.linear.weight, rtol=0, atol=1e-12)
        assert layer.check() < 1e-10


def test_steps_that_contract_one_direction_again_and_again_are_exact():
    """Without stabilising out of turn U would have shrunk by 1e-66."""
    layer = layer_of(stabilize_every=1000)
    dense = Dense(layer)
    hidden, target = batch(1, 0)
    layer.learning_rate = 0.35 / hidden.square().sum().item()
    dense.optimizer.param_groups[0]["lr"] = layer.learning_rate
    for step in range(128):
        target = (target + step) % CLASSES
        train(layer, spherical_squared_from_statistics, hidden, target)
        dense.train(spherical_squared_from_statistics, hidden, target)
    torch.testing.assert_close(layer.weight, dense.linear.weight, rtol=0, atol=1e-10)
    assert torch.linalg.svdvals(layer.U).min() > 1e-3


def test_float32_stays_close_to_dense_sgd_over_thousands_of_steps():
    layer = layer_of(0.3, torch.float32, stabilize_every=10)
    exact = layer_of(0.3)
    exact.load_weight(layer.weight)
    for step in range(1500):
        hidden, target = batch(4, step, among=CLASSES, dtype=torch.float32)
        train(layer, Z, hidden, target)
        train(exact, Z, hidden.double(), target)
    error = (layer.weight - exact.weight).abs().max() / exact.weight.abs().max()
    assert error < 1e-3
    assert layer.check() < 1e-3


def test_sums_are_renewed_from_time_to_time(monkeypatch):
    monkeypatch.setattr(factored_spherical, "STABILISATIONS_A_RENEWAL", 2)
    layer = layer_of(stabilize_every=3)
    for step in range(5):
        train(layer, Z, *batch(4, step))
    layer.Q.mul_(1.01)
    assert layer.check() > 1e-3
    train(layer, Z, *batch(4, 5))
    assert layer.check() < 1e-12


@pytest.mark.parametrize("spread", [0.0, 1e-3, 10.0])
def test_stabilising_leaves_the_weight_and_mends_the_factors(spread):
    """With no, few (two of eight) and many singular values of U out of range."""
    for out_of_range in (2, WIDTH):
        layer = layer_of(bias=False)
        values = torch.ones(WIDTH, dtype=torch.float64)
        values[:out_of_range] = spread or 1.0
        left, _, right = torch.linalg.svd(torch.randn(WIDTH, WIDTH, dtype=torch.float64))
        layer.U.copy_(left @ torch.diag(values) @ right)
        layer.w.normal_()
        before = layer.weight
        distance = layer._factors.stabilise()
        layer._factors.renew_sums()
        torch.testing.assert_close(layer.weight, before, rtol=0, atol=1e-10)
        after = torch.linalg.svdvals(layer.U)
        assert after.min() >= 0.5 and after.max() <= 2
        assert distance == pytest.approx(after.log().abs().max().item(), abs=1e-9)
        assert layer.check() < 1e-10


def test_refactoring_works_in_blocks_of_rows(monkeypatch):
    monkeypatch.setattr("heterodox.losses.factored_update.ROWS_AT_ONCE", 7)
    layer = layer_of()
    layer.U.add_(0.1)
    layer.w.normal_()
    before = layer.weight
    layer._factors.refactor()
    torch.testing.assert_close(layer.V, before)


def test_the_contraction_is_the_same_with_and_without_its_matrix():
    generator = torch.Generator().manual_seed(0)

    def record(rows):
        hidden = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
        return Record(hidden, None, None, None, torch.rand(rows).double(), None)

    for rows in (0, 1, 3, 4, 9):
        given = record(rows)
        contraction = Contraction(given, 0.01, 0.9)
        matrix = (
            0.9 * torch.eye(4)
            - 0.02 * given.hidden.T @ torch.diag(given.square_grad) @ given.hidden
        )
        x = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(contraction.after(x.T), x.T @ matrix)
        torch.testing.assert_close(contraction.inverse_times(x), torch.linalg.solve(matrix, x))
        extremes = torch.linalg.eigvalsh(matrix)[[0, -1]]
        torch.testing.assert_close(
            torch.tensor(contraction.extreme_eigenvalues()).double(), extremes
        )


def test_rows_are_summed_by_class():
    target = torch.tensor([4, 1, 4, 4, 0])
    rows = torch.arange(10.0).view(5, 2)
    classes, summed = _by_class(target, rows)
    expected = torch.zeros(6, 2).index_add_(0, target, rows)
    assert torch.equal(torch.zeros(6, 2).index_add_(0, classes, summed), expected)
    assert len(summed.any(-1).nonzero()) == 3


def test_statistics_are_those_of_the_outputs_and_so_are_their_gradients():
    layer = layer_of(bias=True)
    for step in range(3):
        train(layer, Z, *batch(4, step))
    hidden, target = batch(6, 9)
    hidden = hidden.view(2, 3, WIDTH).requires_grad_()
    target = target.view(2, 3)
    ours = layer.statistics(hidden, target)
    theirs = spherical_statistics(layer(hidden), target)
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected)
    assert torch.autograd.gradcheck(lambda h: layer.statistics(h, target), hidden)


def test_outputs_are_those_of_the_weight():
    layer = layer_of(bias=True)
    for step in range(3):
        train(layer, Z, *batch(4, step))
    hidden, _ = batch(6, 9)
    expected = hidden @ layer.weight.T + layer.bias
    torch.testing.assert_close(layer(hidden), expected)


@pytest.mark.parametrize("at_once", [7, 1000])
def test_the_largest_outputs_are_found_in_chunks(monkeypatch, at_once):
    monkeypatch.setattr(factored_spherical, "CLASSES_AT_ONCE", at_once)
    layer = layer_of(bias=True)
    train(layer, Z, *batch(4, 0))
    hidden = batch(6, 9)[0].view(2, 3, WIDTH)
    for k in (1, 10, CLASSES):
        found, expected = layer.topk(hidden, k), layer(hidden).topk(k)
        torch.testing.assert_close(found.values, expected.values)
        assert torch.equal(found.indices, expected.indices)


def test_several_backward_passes_count_as_one_larger_batch():
    layer, together = layer_of(), layer_of()
    hidden, target = batch(9, 0)
    train(together, lambda *x: 9 * Z(*x), hidden, target)
    for part in (slice(0, 4), slice(4, 9)):
        Z(*layer.statistics(hidden[part], target[part]), CLASSES).sum().backward()
    layer.step()
    torch.testing.assert_close(layer.weight, together.weight)


def test_a_step_without_a_record_or_after_zero_grad_changes_nothing():
    layer = layer_of(weight_decay=0.1)
    before = layer.weight
    layer.step()
    hidden, target = batch(4, 0)
    Z(*layer.statistics(hidden, target), CLASSES).mean().backward()
    layer.zero_grad()
    layer.step()
    assert torch.equal(layer.weight, before) and int(layer.counter) == 0


def test_features_that_need_no_gradient_still_train_the_layer():
    layer, other = layer_of(), layer_of()
    hidden, target = batch(4, 0)
    Z(*layer.statistics(hidden, target), CLASSES).mean().backward()
    layer.step()
    train(other, Z, hidden, target)
    assert torch.equal(layer.weight, other.weight)
    with torch.no_grad():
        assert not layer.statistics(hidden, target)[0].requires_grad


def test_a_backward_pass_that_comes_after_a_step_is_refused():
    layer = layer_of()
    late = Z(*layer.statistics(*batch(4, 0)), CLASSES).mean()
    train(layer, Z, *batch(4, 1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        late.backward()


def test_an_empty_batch_only_decays_the_weight():
    layer = layer_of(weight_decay=0.1)
    before = layer.weight
    hidden, target = batch(0, 0)
    Z(*layer.statistics(hidden, target), CLASSES).sum().backward()
    layer.step()
    torch.testing.assert_close(layer.weight, 0.95 * before)
    assert layer.check() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_goes_on_from_its_state_bit_for_bit(dtype):
    layer, resumed = (
        layer_of(dtype=dtype, stabilize_every=4, weight_decay=0.01),
        layer_of(dtype=dtype),
    )
    for step in range(6):
        train(layer, Z, *batch(4, step, dtype=dtype))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    resumed = FactoredSphericalLinear(
        WIDTH, CLASSES, 0.5, dtype=dtype, stabilize_every=4, weight_decay=0.01
    )
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert {"V", "U", "w", "Uinv", "Q", "wbar", "counter"} <= set(layer.state_dict())
    for step in range(6, 14):
        a, b = (train(x, Z, *batch(4, step, dtype=dtype)) for x in (layer, resumed))
        assert all(map(torch.equal, a, b))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_record_is_dropped_where_another_state_is_loaded():
    layer, other = layer_of(), layer_of()
    other.load_weight(2 * layer.weight)
    hidden, target = batch(4, 0)
    Z(*layer.statistics(hidden, target), CLASSES).mean().backward()
    layer.load_state_dict(other.state_dict())
    layer.step()
    assert torch.equal(layer.weight, other.weight) and int(layer.counter) == 0


def test_a_copy_is_independent():
    layer = layer_of()
    twin = copy.deepcopy(layer)
    train(twin, Z, *batch(4, 0))
    assert not torch.equal(layer.weight, twin.weight)
    assert int(layer.counter) == 0


def test_it_has_no_parameters():
    assert list(layer_of().parameters()) == []


def test_it_steps_with_an_optimizer_and_follows_its_schedule():
    model, layer = nn.Linear(3, WIDTH).double(), layer_of(0.4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    layer.follow(optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    other, alone = copy.deepcopy(model), layer_of(0.4)
    plain = torch.optim.SGD(other.parameters(), lr=0.1)
    for step in range(3):
        x, target = batch(4, step)[0][:, :3], batch(4, step)[1]
        for each, output, optimizers in ((model, layer, optimizer), (other, alone, plain)):
            optimizers.zero_grad()
            Z(*output.statistics(each(x), target), CLASSES).mean().backward()
            optimizers.step()
        alone.learning_rate = 0.4 / (1 + step)
        alone.step()
        schedule.step()
        plain.param_groups[0]["lr"] = 0.1 / (2 + step)
        torch.testing.assert_close(layer.weight, alone.weight)
        torch.testing.assert_close(model.weight, other.weight)


def test_it_follows_an_optimizer_that_wraps_another():
    model, layer = nn.Linear(3, WIDTH).double(), layer_of(0.4)
    optimizer = PerpGrad(torch.optim.SGD(model.parameters(), lr=0.1))
    layer.follow(optimizer)
    hidden, target = batch(4, 0)
    Z(*layer.statistics(model(hidden[:, :3]), target), CLASSES).mean().backward()
    optimizer.step()
    assert int(layer.counter) == 1


@pytest.mark.parametrize("where", ["hidden", "loss"])
def test_a_step_that_is_not_finite_raises_and_leaves_the_weight(where):
    layer = layer_of()
    before = layer.weight
    hidden, target = batch(4, 0)
    if where == "hidden":
        hidden[0, 0] = math.inf
    scale = math.nan if where == "loss" else 1.0
    (scale * Z(*layer.statistics(hidden, target), CLASSES).mean()).backward()
    with pytest.raises(FloatingPointError, match="not finite"):
        layer.step()
    assert torch.equal(layer.weight, before)
    train(layer, Z, *batch(4, 1))
    assert layer.check() < 1e-10


def test_hidden_rows_in_half_precision_are_computed_in_the_layers_dtype():
    layer = layer_of(dtype=torch.float32)
    hidden, target = batch(4, 0, dtype=torch.bfloat16)
    expected = layer.statistics(hidden.float(), target)
    with torch.autocast("cpu", torch.bfloat16):
        hidden.requires_grad_()
        statistics = layer.statistics(hidden, target)
    assert all(map(torch.equal, statistics, expected))
    statistics[0].sum().backward()
    assert hidden.grad.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(hidden).dtype == torch.float32


def test_a_loaded_weight_starts_anew():
    layer = layer_of(bias=True)
    for step in range(3):
        train(layer, Z, *batch(4, step))
    weight, bias = torch.randn(CLASSES, WIDTH).double(), torch.randn(CLASSES).double()
    layer.load_weight(weight, bias)
    assert torch.equal(layer.weight, weight) and torch.equal(layer.bias, bias)
    assert layer.check() < 1e-12 and int(layer.counter) == 0
    layer.load_weight(weight)
    assert not layer.bias.any()


def test_nothing_of_the_size_of_the_classes_is_touched_but_rows_of_v():
    """A step is exact where V's other rows cannot be read."""
    layer, whole = layer_of(classes=30), layer_of(classes=30)
    layer.V[10:] = math.nan
    hidden, target = batch(4, 0)
    train(layer, Z, hidden, target)
    train(whole, Z, hidden, target)
    assert torch.equal(layer.weight[:10], whole.weight[:10])
    assert torch.equal(layer.Q, whole.Q)


H, Y = torch.zeros(2, WIDTH), torch.tensor([0, 1])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: FactoredSphericalLinear(0, 5, 0.1), "in_features: 0 given"),
        (lambda: FactoredSphericalLinear(4, 1, 0.1), "num_classes: 1 given"),
        (lambda: FactoredSphericalLinear(4, 5, -0.1), "learning_rate: -0.1 given"),
        (lambda: FactoredSphericalLinear(4, 5, math.nan), "learning_rate: nan given"),
        (lambda: FactoredSphericalLinear(4, 5, 0.1, weight_decay=-1), "weight_decay: -1 given"),
        (lambda: FactoredSphericalLinear(4, 5, 0.1, stabilize_every=0), "stabilize_every: 0"),
        (lambda: layer_of(dtype=torch.bfloat16), "dtype: torch.bfloat16 given"),
        (lambda: layer_of().half()(H), "dtype: torch.float16 given"),
        (lambda: layer_of().statistics(H[:, :3], Y), r"hidden: shape \(2, 3\) given"),
        (lambda: layer_of()(H[:, :3]), r"hidden: shape \(2, 3\) given"),
        (lambda: layer_of().statistics(H, Y[:1]), r"target: shape \(1,\) given"),
        (lambda: layer_of().statistics(H, Y.float()), "target: torch.float32 given"),
        (lambda: layer_of().statistics(H, Y + CLASSES), f"target: {CLASSES + 1} given"),
        (lambda: layer_of().statistics(H, Y - 2), "target: -2 given"),
        (lambda: layer_of().topk(H, 0), "k: 0 given"),
        (lambda: layer_of().topk(H, CLASSES + 1), f"k: {CLASSES + 1} given"),
        (lambda: layer_of().load_weight(H), r"weight: shape \(2, 8\) given"),
        (
            lambda: layer_of().load_weight(torch.zeros(CLASSES, WIDTH), torch.zeros(CLASSES)),
            r"bias: shape \(50,\) given, none",
        ),
        (
            lambda: layer_of().follow(torch.optim.SGD([nn.Parameter(H)], lr=0.0)),
            "optimizer: a rate of 0.0 given",
        ),
    ],
)
def test_bad_input_names_the_argument(call, message):
    with pytest.raises(ValueError, match=f"^{message}.* expected"):
        call()


def test_a_decay_of_all_or_more_is_refused():
    layer = layer_of(0.5, weight_decay=2.0)
    Z(*layer.statistics(*batch(4, 0)), CLASSES).mean().backward()
    with pytest.raises(ValueError, match=r"^weight_decay: 2.0 given, below 1 / learning_rate = 2"):
        layer.step()
