import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from heterodox.learning import MeanLogits, train_elr_plus
from heterodox.learning.early_learning_plus import ramped_average
from heterodox.losses.mixing import mixing_weight
from heterodox.training import Indexed, Shuffled


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(count=12, classes=3, features=4):
    x = torch.randn(count, features, generator=generator())
    return x, torch.arange(count) % classes, torch.arange(count)


def networks(features=4, classes=3):
    result = []
    for seed in (1, 2):
        network = nn.Sequential(nn.Linear(features, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))
        for number, parameter in enumerate(network.parameters()):
            parameter.data = torch.randn(parameter.shape, generator=generator(10 * seed + number))
        result.append(network)
    return result


def sgd(parameters):
    return SGD(parameters, lr=0.1)


class InOrder:
    """The same batches, in the same order, in every epoch."""

    def __init__(self, x, y, index, size):
        self.parts = [
            tuple(part) for part in zip(*(t.split(size) for t in (x, y, index)), strict=True)
        ]

    def __len__(self):
        return len(self.parts)

    def __iter__(self):
        return iter(self.parts)


def train(a, b, x, y, index, **options):
    batches = InOrder(x, y, index, 4)
    sizes = {"num_examples": len(x), "num_classes": 3, "optimizer": sgd}
    return train_elr_plus(a, b, batches, batches, **{**sizes, **options})


def by_hand(
    networks, x, y, index, epochs, seed, strength=3.0, momentum=0.7, average=0.997, rampup=50
):
    """The steps of the authors' code, written out."""
    source = generator(seed)
    averages = [copy.deepcopy(network).eval() for network in networks]
    targets = [torch.zeros(len(x), 3) for _ in networks]
    steps = [0, 0]
    for _ in range(epochs):
        for own, peer in ((0, 1), (1, 0)):
            network = networks[own].train()
            for first in range(0, len(x), 4):
                part, label, i = (
                    x[first : first + 4],
                    y[first : first + 4],
                    index[first : first + 4],
                )
                with torch.no_grad():
                    said = averages[peer](part).softmax(-1)
                targets[own][i] = momentum * targets[own][i] + (1 - momentum) * said
                share = mixing_weight(1.0, source)
                share = max(share, 1 - share)
                order = torch.randperm(len(part), generator=source)
                mix = lambda whole: share * whole + (1 - share) * whole[order]  # noqa: B023, E731
                logits = network(mix(part))
                p = logits.softmax(-1).clamp(1e-4, 1 - 1e-4)
                entropy = -(mix(F.one_hot(label, 3).float()) * logits.log_softmax(-1)).sum(-1)
                regularizer = (1 - (mix(targets[own][i]) * p).sum(-1)).log()
                loss = (entropy + strength * regularizer).mean()
                network.zero_grad()
                loss.backward()
                with torch.no_grad():
                    for parameter in network.parameters():
                        parameter -= 0.1 * parameter.grad
                    ramp = 1 - min(steps[own] + 1, rampup) / rampup
                    rate = 0.0 if steps[own] == 0 else average * math.exp(-5 * ramp**2)
                    for mean, parameter in zip(
                        averages[own].parameters(), network.parameters(), strict=True
                    ):
                        mean.copy_(rate * mean + (1 - rate) * parameter)
                    for kept, buffer in zip(
                        averages[own].buffers(), network.buffers(), strict=True
                    ):
                        kept.copy_(buffer)
                steps[own] += 1
    return targets, averages


def test_steps_are_those_of_the_authors_code():
    x, y, index = problem()
    ours, theirs = networks(), networks()
    trained = train(*ours, x, y, index, epochs=3, average_rampup=50, generator=generator(5))
    targets, averages = by_hand(theirs, x, y, index, epochs=3, seed=5)
    for network, other in zip(ours, theirs, strict=True):
        for parameter, expected in zip(network.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-5)
    for loss, expected in zip(trained.losses, targets, strict=True):
        torch.testing.assert_close(loss.targets, expected, rtol=1e-4, atol=1e-5)
    for average, expected in zip(trained.averages, averages, strict=True):
        for mean, other in zip(average.module.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(mean, other, rtol=1e-4, atol=1e-5)


def test_the_prediction_is_the_mean_of_both_raw_networks():
    x, y, index = problem()
    a, b = networks()
    trained = train(a, b, x, y, index, epochs=1)
    assert not trained.model.training and not a.training and not b.training
    torch.testing.assert_close(trained.model(x), (a(x) + b(x)) / 2)
    assert isinstance(trained.model, MeanLogits)


def test_an_average_follows_closely_at_first_and_slowly_at_last():
    network = nn.Linear(1, 1, bias=False)
    averaged = ramped_average(network, 0.9, rampup=4)
    values, expected = [], None
    for step in range(8):
        network.weight.data.fill_(float(step % 2))
        averaged.update_parameters(network)
        rate = 0.9 * math.exp(-5 * (1 - min(step + 1, 4) / 4) ** 2) if step else 0.0
        expected = rate * (expected or 0.0) + (1 - rate) * (step % 2)
        values.append(averaged.module.weight.item())
        assert values[-1] == pytest.approx(expected, abs=1e-6)


def test_targets_come_from_the_other_network():
    x, y, index = problem()
    a, b = networks()
    with torch.no_grad():
        first = b.eval()(x[:4]).softmax(-1)
    trained = train(a, b, x, y, index, epochs=1, momentum=0.0, mixup=0.0)
    torch.testing.assert_close(trained.losses[0].targets[:4], first)


def test_it_overcomes_wrong_labels_that_one_network_memorises():
    x, y, index = problem(count=300, features=20)
    centres = torch.randn(3, 20, generator=generator(3))
    x = 0.7 * x + centres[y]
    noisy = y.clone()
    noisy[:120] = (y[:120] + 1 + torch.arange(120) % 2) % 3
    order = torch.randperm(300, generator=generator(4))
    x, y, noisy = x[order], y[order], noisy[order]

    def wide():
        return nn.Sequential(nn.Linear(20, 200), nn.ReLU(), nn.Linear(200, 3))

    torch.manual_seed(0)
    alone, a, b = wide(), wide(), wide()
    descent = sgd(alone.parameters())
    for _ in range(1500):
        descent.zero_grad()
        F.cross_entropy(alone(x), noisy).backward()
        descent.step()
    trained = train_elr_plus(
        a,
        b,
        Shuffled((x, noisy, index), 30, generator(1)),
        Shuffled((x, noisy, index), 30, generator(2)),
        num_examples=300,
        num_classes=3,
        epochs=60,
        optimizer=sgd,
        average_rampup=100,
        generator=generator(),
    )
    right = [(model(x).argmax(-1) == y).double().mean() for model in (alone, trained.model)]
    assert right[0] < 0.8 < 0.93 < right[1]


def test_loaders_of_torch_serve_as_batches_and_metrics_are_taken_every_epoch():
    x, y, _ = problem(count=10)
    data = Indexed(TensorDataset(x, y))
    seen, rates = [], []

    def evaluate(model):
        assert not model.training and not torch.is_grad_enabled()
        seen.append(model(x).argmax(-1))
        return {"test error": 100.0 - len(seen)}

    def halving(optimizer):
        rates.append(optimizer)
        return StepLR(optimizer, 1, gamma=0.5)

    trained = train_elr_plus(
        *networks(),
        DataLoader(data, batch_size=4, shuffle=True, drop_last=True),
        DataLoader(data, batch_size=4, shuffle=True, drop_last=True),
        num_examples=10,
        num_classes=3,
        epochs=3,
        optimizer=sgd,
        scheduler=halving,
        prepare=lambda images: images * 2,
        evaluate=evaluate,
    )
    assert [metrics["test error"] for metrics in trained.epochs] == [99.0, 98.0, 97.0]
    assert all(math.isfinite(metrics["loss"]) for metrics in trained.epochs)
    assert [optimizer.param_groups[0]["lr"] for optimizer in rates] == [0.0125, 0.0125]


def test_a_run_that_diverges_says_so_and_stops():
    x, y, index = problem()
    trained = train(*networks(), x * math.inf, y, index, epochs=5)
    assert trained.diverged and len(trained.epochs) == 1


def test_the_same_generator_gives_the_same_networks_and_global_randomness_is_left_alone():
    x, y, index = problem()
    made = [networks(), networks()]
    before = torch.get_rng_state()
    pairs = [train(*both, x, y, index, epochs=2, generator=generator(7)) for both in made]
    assert torch.equal(pairs[0].model(x), pairs[1].model(x))
    assert torch.equal(torch.get_rng_state(), before)


X, Y, INDEX = problem()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("epochs", {"epochs": 0}),
        ("mixup", {"mixup": -1.0}),
        ("average", {"average": 1.0}),
        ("average_rampup", {"average_rampup": -1}),
        ("momentum", {"momentum": 1.0}),
        ("num_examples", {"num_examples": 0}),
        ("index", {"num_examples": 3}),
        ("batches_a", {"batches_a": [(X, Y)]}),
        ("batches_a", {"batches_a": [X]}),
        ("batches_a", {"batches_a": [(X, Y, INDEX[:2])]}),
        ("batches_a", {"batches_a": []}),
        ("batches_b", {"batches_b": [(X, Y + 1, INDEX)]}),
        ("input", {"num_classes": 4}),
    ],
)
def test_bad_input_names_the_argument(name, change):
    a, b = networks()
    given = {"batches_a": [(X, Y, INDEX)], "batches_b": [(X, Y, INDEX)], "epochs": 1}
    given |= {"num_examples": 12, "num_classes": 3} | change
    with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
        train_elr_plus(a, b, given.pop("batches_a"), given.pop("batches_b"), **given)


def test_one_network_twice_is_refused():
    a, _ = networks()
    with pytest.raises(ValueError, match=r"^network_b: .*expected"):
        train(a, a, *problem())
