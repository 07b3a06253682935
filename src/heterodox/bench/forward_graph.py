"""Forward learning of graph neural networks: one epoch of every layer, beside backpropagation."""

import dataclasses
import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heterodox.bench.workload import Case, Target, Workload
from heterodox.data.graph_splits import split_nodes
from heterodox.data.graphs import GraphData, load_graph
from heterodox.learning.best_weights import Schedule
from heterodox.learning.forward_forward import forward_forward_loss, row_normalize
from heterodox.learning.forward_graph import ForwardGNN
from heterodox.learning.graph_context import (
    add_virtual_nodes,
    append_labels,
    single_forward_logits,
    wrong_labels,
)
from heterodox.learning.graph_views import Views, label_views, virtual_views
from heterodox.learning.greedy_graph import (
    ForwardForwardLayer,
    Nodes,
    SingleForwardLayer,
    stepper,
)
from heterodox.models.graph_stack import GraphStack
from heterodox.training.seeding import seeded

WIDTH = 64
SCHEDULE = Schedule()

Epoch = Callable[[], object]
EpochOf = Callable[[GraphData, int, str], Epoch]
"""`(graph with training nodes, layers, convolution) -> a call that trains each layer once`."""


def workload() -> Workload:
    return Workload(
        facts={
            "dtype": "float32",
            "network": f"GCN layers of width {WIDTH}, in turn; preparing their inputs not counted",
            "size": "graph x layers",
        },
        cases=cases,
        prepare=prepare,
        targets=(Target("sf", "time", "cora-4", "step", 0.6),),
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """One epoch for every graph and depth.

    Raises:
        ValueError: a size is not of the form cora-4.
    """
    for size in sizes:
        if not re.fullmatch(r"(karate-club|cora|texas)-[1-9]\d*", size):
            raise ValueError(f"sizes: {size!r} given, graph-layers such as cora-4 expected")
    return [Case(size, "step") for size in sizes]


def prepare(epoch_of: EpochOf, case: Case, device: str) -> Epoch:
    name, _, layers = case.size.rpartition("-")
    graph = split_nodes(load_graph(name), torch.Generator().manual_seed(0))
    assert graph.train_mask is not None
    there = dataclasses.replace(
        graph,
        x=graph.x.to(device),
        edge_index=graph.edge_index.to(device),
        y=graph.y.to(device),
        train_mask=graph.train_mask.to(device),
    )
    return epoch_of(there, int(layers), "gcn")


def network(graph: GraphData, layers: int, conv: str, method: str) -> ForwardGNN:
    with seeded(0):
        model = ForwardGNN(
            graph.x.shape[1],
            WIDTH,
            graph.num_classes,
            num_layers=layers,
            conv=conv,
            method=method,
        )
    return model.to(graph.x.device)


def nodes_of(graph: GraphData) -> Nodes:
    assert graph.train_mask is not None
    train = graph.train_mask.nonzero()[:, 0]
    return Nodes(graph.y, train, train[:0], graph.num_classes)


def in_turn(epochs: Sequence[Epoch]) -> Epoch:
    """An epoch of each; returns their losses."""
    return lambda: [epoch() for epoch in epochs]


def backpropagation(graph: GraphData, layers: int, conv: str) -> Epoch:
    """A step of Adam on all layers at once."""
    with seeded(0):
        model = GraphStack(
            graph.x.shape[1], WIDTH, graph.num_classes, num_layers=layers, conv=conv
        ).to(graph.x.device)
    nodes = nodes_of(graph)

    def loss() -> Tensor:
        logits = model(graph.x, graph.edge_index)
        return F.cross_entropy(logits[nodes.train], graph.y[nodes.train])

    return stepper(model, loss, SCHEDULE)


def single_forward(graph: GraphData, layers: int, conv: str) -> Epoch:
    model, nodes = network(graph, layers, conv, "sf"), nodes_of(graph)
    assert graph.train_mask is not None
    x, edges = add_virtual_nodes(
        graph.x, graph.edge_index, graph.y, graph.train_mask, graph.num_classes
    )
    state, votes, epochs = row_normalize(x), x.new_zeros(0, graph.num_classes), []
    for layer in model._stack:
        prepared = layer.on(edges).prepare(state)
        task = SingleForwardLayer(layer, prepared, nodes, votes, 1.0)
        epochs.append(stepper(layer, task.loss, SCHEDULE))
        with torch.no_grad():
            state = row_normalize(layer.respond(prepared))
    return in_turn(epochs)


def _forward_forward(graph: GraphData, layers: int, conv: str, method: str) -> Epoch:
    model, nodes = network(graph, layers, conv, method), nodes_of(graph)
    labels = torch.cat([graph.y[None], wrong_labels(graph.y, graph.num_classes)])
    assert graph.train_mask is not None
    arguments = graph.x, graph.edge_index, labels, graph.train_mask, graph.num_classes
    views: Views
    if method == "ff-label":
        views = label_views(*arguments)
    else:
        features = torch.randn(
            graph.num_classes, graph.x.shape[1], generator=torch.Generator().manual_seed(0)
        )
        views = virtual_views(*arguments, features.to(graph.x))
    epochs = []
    for layer in model._stack:
        votes = graph.x.new_zeros(graph.num_classes, 0)
        task = ForwardForwardLayer(layer, views, views, nodes, votes, 2.0)
        epochs.append(stepper(layer, task.loss, SCHEDULE))
        views = views.through(layer)[1]
    return in_turn(epochs)


def forward_forward_labels(graph: GraphData, layers: int, conv: str) -> Epoch:
    """All wrong labels beside the features."""
    return _forward_forward(graph, layers, conv, "ff-label")


def forward_forward_virtual(graph: GraphData, layers: int, conv: str) -> Epoch:
    """Links to all wrong class nodes."""
    return _forward_forward(graph, layers, conv, "ff-virtual")


def single_forward_plain(graph: GraphData, layers: int, conv: str) -> Epoch:
    """Single forward as it is usually written: a whole convolution of the graph every epoch."""
    model, nodes = network(graph, layers, conv, "sf"), nodes_of(graph)
    assert graph.train_mask is not None
    x, edges = add_virtual_nodes(
        graph.x, graph.edge_index, graph.y, graph.train_mask, graph.num_classes
    )
    epochs = []
    for layer in model._stack:

        def loss(layer: nn.Module = layer, x: Tensor = x) -> Tensor:
            logits = single_forward_logits(layer(x, edges), graph.num_classes)
            return F.cross_entropy(logits[nodes.train], graph.y[nodes.train])

        epochs.append(stepper(layer, loss, SCHEDULE))
        x = layer(x, edges).detach()
    return in_turn(epochs)


def forward_forward_loop(graph: GraphData, layers: int, conv: str) -> Epoch:
    """Forward-forward with labels as it is usually written: a pass for each wrong label."""
    model, nodes = network(graph, layers, conv, "ff-label"), nodes_of(graph)
    labels = torch.cat([graph.y[None], wrong_labels(graph.y, graph.num_classes)])
    mask = graph.train_mask
    assert mask is not None
    inputs = [append_labels(graph.x, row, mask, graph.num_classes) for row in labels]
    epochs = []
    for layer in model._stack:

        def loss(layer: nn.Module = layer, inputs: list[Tensor] = inputs) -> Tensor:
            total = forward_forward_loss(layer(inputs[0], graph.edge_index)[nodes.train], True)
            for x in inputs[1:]:
                h = layer(x, graph.edge_index)[nodes.train]
                total = total + forward_forward_loss(h, False) / (len(inputs) - 1)
            return total

        epochs.append(stepper(layer, loss, SCHEDULE))
        inputs = [layer(x, graph.edge_index).detach() for x in inputs]
    return in_turn(epochs)
