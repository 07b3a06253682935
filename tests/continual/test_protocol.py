"""Metrics by hand, streams of tasks, and elastic weights against closed forms."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heterodox.continual.elastic_weights import ElasticWeights
from heterodox.continual.metrics import accuracy_matrix, average_accuracy, backward_transfer
from heterodox.continual.orthogonal_projection import (
    OrthogonalProjection,
    ProjectedLinear,
    gradient_projection_basis,
)
from heterodox.continual.streams import ImageTask, permuted_tasks, split_tasks
from heterodox.data import ImageData, load_images
from heterodox.training.seeding import seeded


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def digits() -> ImageData:
    return load_images("digits")


def without(data: ImageData, label: int, train: bool = True, test: bool = True) -> ImageData:
    kept, held = data.train_labels != label, data.test_labels != label
    if train:
        data = replace(
            data, train_images=data.train_images[kept], train_labels=data.train_labels[kept]
        )
    if test:
        data = replace(data, test_images=data.test_images[held], test_labels=data.test_labels[held])
    return data


def test_metrics_are_their_formulas():
    nan = math.nan
    matrix = torch.tensor([[90.0, nan, nan], [80.0, 95.0, nan], [70.0, 96.0, 85.0]])
    assert average_accuracy(matrix) == pytest.approx((70 + 96 + 85) / 3)
    assert backward_transfer(matrix) == pytest.approx(((70 - 90) + (96 - 95)) / 2)
    assert average_accuracy(torch.tensor([[50.0]])) == 50


def test_the_protocol_measures_all_tasks_so_far_after_each():
    calls = []

    def accuracy(number: int, task: str) -> float:
        calls.append((number, task))
        return 10.0 * len(calls)

    matrix = accuracy_matrix("abc", lambda number, task: calls.append(task), accuracy)
    assert calls == ["a", (0, "a"), "b", (0, "a"), (1, "b"), "c", (0, "a"), (1, "b"), (2, "c")]
    assert matrix.isnan().tolist() == [[False, True, True], [False, False, True], 3 * [False]]
    assert matrix[2].tolist() == [70.0, 80.0, 90.0]


def test_permuted_tasks_have_the_same_numbers_in_other_places(digits):
    tasks = permuted_tasks(digits, 3, torch.Generator().manual_seed(0))
    first, second, third = (task.train_inputs for task in tasks)
    assert first.mean().abs() < 1e-4 and (first.std(correction=0) - 1).abs() < 1e-4
    pixels = digits.train_images.flatten(1).float()
    torch.testing.assert_close(first, (pixels - pixels.mean()) / pixels.std(correction=0))
    assert torch.equal(first.sort(1).values, second.sort(1).values)
    assert not torch.equal(first, second) and not torch.equal(second, third)
    # One order for all images of a task, in training and in test.
    order = [int((column == first.T).all(1).nonzero()[0, 0]) for column in second.T]
    varying = first.std(0) > 0
    assert torch.equal(
        tasks[0].test_inputs[:, order][:, varying[order]], tasks[1].test_inputs[:, varying[order]]
    )
    again = permuted_tasks(digits, 3, torch.Generator().manual_seed(0))
    assert torch.equal(again[2].test_inputs, tasks[2].test_inputs)


def test_a_class_missing_from_permuted_images_keeps_the_labels_of_the_others(digits):
    (task,) = permuted_tasks(without(digits, 4), 1, torch.Generator())
    assert task.train_labels.unique().tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert len(task.classes) == 10


def test_split_tasks_deal_out_the_classes(digits):
    tasks = split_tasks(digits, 5)
    assert [task.classes for task in tasks][:2] == [("0", "1"), ("2", "3")]
    assert sum(len(task.train_labels) for task in tasks) == len(digits.train_labels)
    assert all(task.test_labels.unique().tolist() == [0, 1] for task in tasks)
    ours = (digits.train_labels == 3).sum()
    assert (tasks[1].train_labels == 1).sum() == ours


def test_split_tasks_with_heads_of_their_own_keep_what_their_heads_said(digits):
    """Scores of remembered images do not move, and accuracies on them stay what they were."""
    tasks = split_tasks(digits, 5)[:3]
    with seeded(0):
        body = nn.Sequential(ProjectedLinear(64, 40), nn.ReLU(), ProjectedLinear(40, 40), nn.ReLU())
        heads = nn.ModuleList(nn.Linear(40, 2) for _ in tasks)
    body, heads = body.double(), heads.double()
    learner = OrthogonalProjection(body)
    said = []

    def scores(number: int, task: ImageTask) -> Tensor:
        return heads[number](body(task.train_inputs[:8].double())).detach()

    def learn(number: int, task: ImageTask) -> None:
        learner.begin_task(0)
        learned = [*body.parameters(), *heads[number].parameters()]
        optimizer = torch.optim.SGD(learned, lr=0.1)
        for _ in range(30):
            optimizer.zero_grad()
            found = heads[number](body(task.train_inputs.double()))
            F.cross_entropy(found, task.train_labels).backward()
            optimizer.step()
        hidden = task.train_inputs[:8].double()
        for layer in learner.layers:
            known = layer.subspace.frozen
            layer.subspace.add_frozen(gradient_projection_basis(hidden, 1.0, known=known))
            hidden = F.relu(layer(hidden)).detach()
        learner.end_task()
        said.append(scores(number, task))

    def accuracy(number: int, task: ImageTask) -> float:
        right = scores(number, task).argmax(-1) == task.train_labels[:8]
        return 100 * right.double().mean().item()

    before = body[0].weight.detach().clone()
    matrix = accuracy_matrix(tasks, learn, accuracy)
    for number, task in enumerate(tasks):
        assert (scores(number, task) - said[number]).abs().max() < 1e-10
    assert backward_transfer(matrix) == 0 and average_accuracy(matrix) > 90
    assert (body[0].weight - before).abs().max() > 0.01


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_class_missing_from_a_split_is_named(digits, part):
    with pytest.raises(ValueError, match=r"^data: class '4' has no (training|test) images"):
        split_tasks(without(digits, 4, train=part == "train", test=part == "test"), 5)


def linear(classes: int = 3, features: int = 4) -> nn.Linear:
    model = nn.Linear(features, classes).double()
    with torch.no_grad():
        model.weight.copy_(draw(classes, features)), model.bias.copy_(draw(classes, seed=1))
    return model


def test_a_model_that_has_diverged_shows_in_its_springs():
    model = linear()
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    springs = ElasticWeights(model, strength=1.0)
    springs.end_task(draw(3, 4), torch.Generator().manual_seed(0))
    assert springs.penalty().isnan()


def test_springs_are_quadratic_around_every_tasks_end():
    model = linear()
    springs = ElasticWeights(model, strength=7.0)
    fishers, anchors = [], []
    generator = torch.Generator().manual_seed(0)
    for task in range(2):
        before = {n: f.clone() for n, f in springs._stiffness.items()}
        springs.end_task(draw(10, 4, seed=task), generator)
        fishers.append({n: f - before.get(n, 0) for n, f in springs._stiffness.items()})
        anchors.append({n: p.detach().clone() for n, p in model.named_parameters()})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.ones_like(parameter))
    expected = (
        0.5
        * 7.0
        * sum(
            (fisher[n] * (p - anchor[n]).square()).sum()
            for fisher, anchor in zip(fishers, anchors, strict=True)
            for n, p in model.named_parameters()
        )
    )
    torch.testing.assert_close(springs.penalty(), expected)
    gradients = torch.autograd.grad(springs.penalty(), list(model.parameters()))
    for ours, theirs in zip(
        gradients, torch.autograd.grad(expected, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_stiffness_is_the_fisher_information_of_softmax_regression():
    model = linear()
    springs = ElasticWeights(model, strength=1.0)
    x = draw(5, 4)
    springs.end_task(x.repeat(600, 1), torch.Generator().manual_seed(0))
    p = model(x).softmax(-1)
    # E_y (p_c - [y = c])² = p_c (1 - p_c), times x_i².
    expected = ((p * (1 - p))[:, :, None] * x.square()[:, None]).mean(0)
    torch.testing.assert_close(springs._stiffness["weight"], expected.detach(), rtol=0.2, atol=0.02)


def test_without_tasks_there_is_no_penalty():
    assert ElasticWeights(linear(), strength=3.0).penalty().item() == 0


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("tasks", lambda data: accuracy_matrix([], print, lambda n, t: 0.0)),
        ("matrix", lambda data: average_accuracy(torch.zeros(2, 3))),
        ("matrix", lambda data: backward_transfer(torch.zeros(1, 1))),
        ("count", lambda data: permuted_tasks(data, 0, torch.Generator())),
        ("count", lambda data: split_tasks(data, 3)),
        ("count", lambda data: split_tasks(data, 0)),
        (
            "data",
            lambda data: permuted_tasks(
                replace(data, test_images=data.test_images[:0]), 2, torch.Generator()
            ),
        ),
        ("strength", lambda data: ElasticWeights(linear(), -1.0)),
        (
            "inputs",
            lambda data: ElasticWeights(linear(), 1.0).end_task(draw(0, 4), torch.Generator()),
        ),
    ],
)
def test_bad_input_names_the_argument(argument, call, digits):
    with pytest.raises(ValueError, match=rf"^{argument}: .* (expected|given)"):
        call(digits)
