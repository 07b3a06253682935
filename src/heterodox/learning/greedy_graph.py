"""Graph layers trained one after the other, each to its own best: single forward and FF.

A layer's responses, detached and brought to unit length, are the next layer's input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heterodox.learning.best_weights import LayerHistory, Schedule, train_to_best
from heterodox.learning.forward_forward import forward_forward_loss, row_normalize
from heterodox.learning.graph_context import single_forward_logits
from heterodox.learning.graph_views import Views
from heterodox.learning.local_graph_layer import LocalGraphLayer, Prepared


@dataclass(frozen=True)
class Nodes:
    """What is to be learned about the nodes of a graph.

    Attributes:
        labels: of all nodes; only those of `train` and `val` are looked at.
        train, val: indices; `val` may be empty.
        num_classes: of the labels.
    """

    labels: Tensor
    train: Tensor
    val: Tensor
    num_classes: int


def stepper(
    layer: nn.Module, loss: Callable[[], Tensor], schedule: Schedule
) -> Callable[[], Tensor]:
    """One epoch of a layer: a step of its own Adam on its own loss."""
    adam = schedule.adam(layer)

    def epoch() -> Tensor:
        value = loss()
        adam.zero_grad()
        value.backward()
        adam.step()
        return value.detach()

    return epoch


class SingleForwardLayer:
    """One layer that classifies nodes by the class nodes, which come last in the graph.

    Args:
        layer: to be trained.
        prepared: its input.
        nodes: what to learn.
        votes: of earlier layers on the validation nodes, (val, classes).
        temperature: of the logits.
    """

    def __init__(
        self,
        layer: LocalGraphLayer,
        prepared: Prepared,
        nodes: Nodes,
        votes: Tensor,
        temperature: float,
    ) -> None:
        count = len(nodes.labels)
        classes = torch.arange(count, count + nodes.num_classes, device=nodes.labels.device)
        self.layer, self.nodes, self.temperature = layer, nodes, temperature
        self.on_train = prepared.at(torch.cat([nodes.train, classes]))
        self.on_val = prepared.at(torch.cat([nodes.val, classes]))
        self.earlier = votes

    def logits(self, prepared: Prepared) -> Tensor:
        h = self.layer.respond(prepared)
        return single_forward_logits(h, self.nodes.num_classes, temperature=self.temperature)

    def loss(self) -> Tensor:
        return F.cross_entropy(self.logits(self.on_train), self.nodes.labels[self.nodes.train])

    @torch.no_grad()
    def votes(self) -> Tensor:
        return self.earlier + self.logits(self.on_val).softmax(1)

    def score(self) -> float:
        return accuracy(self.votes(), self.nodes.labels[self.nodes.val])


def fit_single_forward(
    layers: Sequence[LocalGraphLayer],
    x: Tensor,
    edges: Tensor,
    nodes: Nodes,
    temperature: float,
    schedule: Schedule,
) -> list[LayerHistory]:
    """Trains each layer on a graph that has class nodes."""
    state = row_normalize(x)
    votes = x.new_zeros(len(nodes.val), nodes.num_classes)
    history = []
    for layer in layers:
        prepared = layer.on(edges).prepare(state)
        task = SingleForwardLayer(layer, prepared, nodes, votes, temperature)
        score = task.score if len(nodes.val) else None
        history.append(train_to_best([layer], stepper(layer, task.loss, schedule), score, schedule))
        votes = task.votes()
        with torch.no_grad():
            state = row_normalize(layer.respond(prepared))
    return history


@torch.no_grad()
def single_forward_votes(
    layers: Sequence[LocalGraphLayer],
    x: Tensor,
    edges: Tensor,
    num_classes: int,
    temperature: float,
) -> Tensor:
    """Σ over layers of softmax(logits), (nodes, classes), on a graph that has class nodes."""
    state, votes = row_normalize(x), x.new_zeros(len(x) - num_classes, num_classes)
    for layer in layers:
        h = layer.respond(layer.on(edges).prepare(state))
        votes += single_forward_logits(h, num_classes, temperature=temperature).softmax(1)
        state = row_normalize(h)
    return votes


class ForwardForwardLayer:
    """One layer that is excited by true labels.

    Args:
        layer: to be trained.
        contrast: views with true labels (the first) and with wrong ones.
        candidates: views with each class at the validation nodes.
        nodes: what to learn.
        votes: of earlier layers on the validation nodes, (classes, val).
        theta: of the loss.
    """

    def __init__(
        self,
        layer: LocalGraphLayer,
        contrast: Views,
        candidates: Views,
        nodes: Nodes,
        votes: Tensor,
        theta: float,
    ) -> None:
        self.layer, self.nodes, self.theta = layer, nodes, theta
        self.on_train = contrast.prepared(layer, nodes.train)
        self.on_val = candidates.prepared(layer, nodes.val) if len(nodes.val) else None
        self.earlier = votes

    def loss(self) -> Tensor:
        h = self.layer.respond(self.on_train)
        return forward_forward_loss(h[0], True, theta=self.theta) + forward_forward_loss(
            h[1:], False, theta=self.theta
        )

    @torch.no_grad()
    def votes(self) -> Tensor:
        if self.on_val is None:
            return self.earlier
        # The mean of squares, not the sum: layers of any width have the same say.
        return self.earlier + self.layer.respond(self.on_val).square().mean(-1)

    def score(self) -> float:
        return accuracy(self.votes().T, self.nodes.labels[self.nodes.val])


def fit_forward_forward(
    layers: Sequence[LocalGraphLayer],
    contrast: Views,
    candidates: Views,
    nodes: Nodes,
    theta: float,
    schedule: Schedule,
) -> list[LayerHistory]:
    """Trains each layer on a positive and on negative views."""
    votes = contrast.blocks[0].new_zeros(nodes.num_classes, len(nodes.val))
    history = []
    for layer in layers:
        task = ForwardForwardLayer(layer, contrast, candidates, nodes, votes, theta)
        score = task.score if len(nodes.val) else None
        history.append(train_to_best([layer], stepper(layer, task.loss, schedule), score, schedule))
        votes = task.votes()
        del task  # its inputs, before those of the next layer are made
        contrast = contrast.through(layer)[1]
        if score is not None:
            candidates = candidates.through(layer)[1]
    return history


@torch.no_grad()
def forward_forward_votes(layers: Sequence[LocalGraphLayer], candidates: Views) -> Tensor:
    """Σ over layers of the mean of squares under each class's label, (nodes, classes)."""
    votes: Tensor | float = 0.0
    for layer in layers:
        h, candidates = candidates.through(layer)
        votes = votes + h.square().mean(-1)
    assert isinstance(votes, Tensor)
    return votes.T


def accuracy(votes: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest vote is the label.

    Example:
        >>> accuracy(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1]))
        0.5
    """
    return (votes.argmax(1) == labels).double().mean().item()
