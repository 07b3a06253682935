"""Specimens of forward-forward and of forward learning on graphs."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from tests.contract.specimen import Draw, Specimen
from torch import Tensor, nn

FORWARD = "heterodox.learning.forward_forward"
GRAPH = "heterodox.learning.forward_graph"

NODES, FEATURES, CLASSES = 6, 3, 2
EDGES = ((0, 1, 1, 2, 3, 4), (1, 0, 2, 1, 4, 3))


class SumConv(nn.Linear):
    """A linear map of a node and the sum of its neighbours."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:  # type: ignore[override]
        source, target = edge_index
        return super().forward(x + torch.zeros_like(x).index_add(0, target, x[source]))


def rows(draw: Draw) -> tuple[Tensor]:
    return (draw.normal(draw.batch, draw.width),)


def edges(draw: Draw) -> Tensor:
    return torch.tensor(EDGES).to(draw.device)


def graph(draw: Draw) -> tuple[Tensor, ...]:
    return draw.normal(NODES, FEATURES), edges(draw)


def labelled(draw: Draw) -> tuple[Tensor, ...]:
    labels = torch.tensor([0, 1, 0, 1, 1, 0]).to(draw.device)
    return *graph(draw), labels


def known(labels: Tensor) -> Tensor:
    return labels.new_ones(len(labels), dtype=torch.bool)


def features_with_class_nodes(add: Any, x: Tensor, edge_index: Tensor, labels: Tensor) -> Tensor:
    return add(x, edge_index, labels, known(labels), CLASSES)[0]


def features_with_labels(append: Any, x: Tensor, labels: Tensor) -> Tensor:
    return append(x, labels, known(labels), CLASSES)


def data_of(x: Tensor, edge_index: Tensor, labels: Tensor) -> SimpleNamespace:
    return SimpleNamespace(x=x, edge_index=edge_index, y=labels, train_mask=known(labels))


def probabilities(model: Any, *inputs: Tensor) -> Tensor:
    return model.predict_proba(data_of(*inputs))


def scores(model: Any, x: Tensor, edge_index: Tensor) -> Tensor:
    return model.score(SimpleNamespace(x=x, edge_index=edge_index, edge_label_index=edge_index))


def bad_fit(cls: Any, inputs: tuple[Tensor, ...], **changes: Any) -> Any:
    data = data_of(*inputs)
    vars(data).update(changes)
    return cls(FEATURES, 4, CLASSES, conv=SumConv).double().fit(data)


PREDICTS = {
    "backward": "a prediction, without gradients",
    "other device": "arguments are checked by their values",
    "compile": "arguments are checked by their values",
    "shape types": "a graph comes as one object",
}
BY_VALUE = {"compile": "labels are checked by their values"}

SPECIMENS = (
    Specimen(f"{FORWARD}:row_normalize", rows, bad=(("eps", lambda c, x: c(*x, eps=-1.0)),)),
    Specimen(f"{FORWARD}:goodness", rows),
    Specimen(
        f"{FORWARD}:forward_forward_loss",
        rows,
        make=lambda c, d: partial(c, positive=False, theta=0.5),
        batch="reduced",
        limits={"empty batch": "the mean over no rows is refused"},
        bad=(
            ("theta", lambda c, x: c(*x, True, theta=torch.inf)),
            ("h", lambda c, x: c(x[0][:0], True)),
        ),
    ),
    Specimen(
        f"{GRAPH}:LocalGraphLayer",
        graph,
        make=lambda c, d: c(SumConv(FEATURES, 4)),
        batch="none",
    ),
    Specimen(
        f"{GRAPH}:add_virtual_nodes",
        labelled,
        call=features_with_class_nodes,
        batch="none",
        limits={**BY_VALUE, "other device": "edges depend on the values of the mask"},
        bad=(
            ("labels", lambda c, x: c(*x, known(x[2]), 1)),
            ("edge_index", lambda c, x: c(x[0][:4], x[1], x[2][:4], known(x[2][:4]), CLASSES)),
        ),
    ),
    Specimen(
        f"{GRAPH}:append_labels",
        lambda d: labelled(d)[::2],
        call=features_with_labels,
        batch="none",
        limits=BY_VALUE,
        bad=(("unlabeled", lambda c, x: c(*x, known(x[1]), CLASSES, unlabeled="x")),),
    ),
    Specimen(
        f"{GRAPH}:wrong_labels",
        lambda d: (d.below(CLASSES, d.batch),),
        make=lambda c, d: partial(c, num_classes=5, count=2),
        call=lambda wrong, labels: wrong(labels).T,
        returns=torch.int64,
        limits={
            "backward": "labels have no gradients",
            "rows": "each node's labels are drawn in turn",
            "compile": "makes a generator for its draw",
        },
        bad=(("count", lambda c, x: c(x[0], 3, 3)),),
    ),
    Specimen(
        f"{GRAPH}:single_forward_logits",
        lambda d: (d.normal(NODES, d.width),),
        make=lambda c, d: partial(c, num_classes=CLASSES, temperature=0.5),
        batch="none",
        bad=(
            ("num_classes", lambda c, x: c(x[0], 99)),
            ("temperature", lambda c, x: c(x[0], 2, temperature=-1.0)),
        ),
    ),
    Specimen(
        f"{GRAPH}:top_down_embedding",
        lambda d: (d.normal(NODES, d.width),),
        call=lambda mean, h: mean(h, [h.cos()]),
        batch="none",
        limits={"backward": "states above get no gradient"},
        bad=(("above", lambda c, x: c(x[0], [x[0][:1]])),),
    ),
    Specimen(
        f"{GRAPH}:link_logits",
        graph,
        batch="none",
        limits={"compile": "pairs are checked by their values"},
        bad=(("pairs", lambda c, x: c(x[0], x[1] + NODES)),),
    ),
    Specimen(
        f"{GRAPH}:ForwardGNN",
        labelled,
        make=lambda c, d: c(FEATURES, 4, CLASSES, num_layers=2, conv=SumConv),
        call=probabilities,
        batch="none",
        limits=PREDICTS,
        bad=(
            ("method", lambda c, x: c(2, 4, 2, method="bp")),
            ("data", lambda c, x: bad_fit(c, x, train_mask=None)),
            ("x", lambda c, x: bad_fit(c, x, x=x[0][:, :2])),
        ),
    ),
    Specimen(
        f"{GRAPH}:ForwardLinkPredictor",
        graph,
        make=lambda c, d: c(FEATURES, 4, num_layers=2, conv=SumConv),
        call=scores,
        batch="none",
        limits=PREDICTS,
        bad=(
            ("method", lambda c, x: c(2, 4, method="bp")),
            ("data", lambda c, x: scores(c(FEATURES, 4, conv=SumConv), x[0], None)),
        ),
    ),
)
