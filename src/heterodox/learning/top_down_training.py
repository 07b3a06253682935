"""Training of layers that hear from above: each takes a step of its own at every time step."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from heterodox.learning.best_weights import LayerHistory, Schedule, train_to_best
from heterodox.learning.graph_context import single_forward_logits
from heterodox.learning.greedy_graph import Nodes, accuracy
from heterodox.learning.local_graph_layer import LocalGraphLayer
from heterodox.learning.top_down_graph import TopToInput, TopToLoss

# Norm of a layer's gradient in "top to loss".
CLIP = 1.0

TopDown = TopToInput | TopToLoss


def fit_together(
    layers: Sequence[LocalGraphLayer],
    states: TopDown,
    loss: Callable[[Tensor], Tensor],
    score: Callable[[], float] | None,
    schedule: Schedule,
) -> list[LayerHistory]:
    """One epoch is one time step; stops at the best score of all layers together."""
    adams = [schedule.adam(layer) for layer in layers]
    clips = isinstance(states, TopToLoss)

    def epoch() -> Tensor:
        losses = []

        def learn(j: int, response: Tensor) -> None:
            value = loss(response)
            adams[j].zero_grad()
            value.backward()
            if clips:
                torch.nn.utils.clip_grad_norm_(layers[j].parameters(), CLIP)
            adams[j].step()
            losses.append(value.detach())

        states.move(learn)
        return torch.stack(losses).mean()

    return [train_to_best(layers, epoch, score, schedule)]


def fit_nodes(
    layers: Sequence[LocalGraphLayer],
    states: TopDown,
    nodes: Nodes,
    temperature: float,
    schedule: Schedule,
) -> list[LayerHistory]:
    """Layers classify nodes by the class nodes, which come last in the graph."""
    count = len(nodes.labels)
    classes = torch.arange(count, count + nodes.num_classes, device=nodes.labels.device)
    of_train = torch.cat([nodes.train, classes])

    def loss(h: Tensor) -> Tensor:
        logits = single_forward_logits(h[of_train], nodes.num_classes, temperature=temperature)
        return F.cross_entropy(logits, nodes.labels[nodes.train])

    def score() -> float:
        votes = node_votes(states, nodes.val, count, nodes.num_classes, temperature)
        return accuracy(votes, nodes.labels[nodes.val])

    return fit_together(layers, states, loss, score if len(nodes.val) else None, schedule)


def node_votes(
    states: TopDown, rows: Tensor, count: int, num_classes: int, temperature: float
) -> Tensor:
    """Σ over layers, and time steps that count, of softmax(logits) of the nodes `rows`.

    Args:
        count: of nodes before the class nodes.
    """
    of_rows = torch.cat([rows, torch.arange(count, count + num_classes, device=rows.device)])
    votes: list[Tensor] = []

    def add(j: int, h: Tensor) -> None:
        logits = single_forward_logits(h[of_rows], num_classes, temperature=temperature)
        votes.append(logits.softmax(1))

    states.infer(add)
    return torch.stack(votes).sum(0)
