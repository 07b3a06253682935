"""How labels enter a graph in forward learning: virtual nodes, appended labels, and link logits.

A virtual node for each class is linked to the training nodes of its class, and classifies by inner
products; or labels stand beside the features, true ones and wrong ones. Park et al., "Forward
Learning of Graph Neural Networks", ICLR 2024, arXiv 2403.11004.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from heterodox.learning.graph_arguments import check_edges, check_graph, check_labels


def add_virtual_nodes(
    x: Float[Tensor, "nodes features"],
    edge_index: Int[Tensor, "2 edges"],
    labels: Int[Tensor, "nodes"],
    mask: Bool[Tensor, "nodes"],
    num_classes: int,
    *,
    features: Float[Tensor, "classes features"] | None = None,
    bidirectional: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "all_nodes features"], Int[Tensor, "2 all_edges"]]:
    """The graph with C class nodes behind its own, linked to the nodes of `mask` by their labels.

    Args:
        x, edge_index: the graph; edges (source, target) in both directions, as in PyTorch
            Geometric.
        labels: 0 to C − 1 where `mask` is true; elsewhere they are not looked at.
        mask: the nodes with a known label, those of training.
        num_classes: C.
        features: of the class nodes; by default drawn from N(0, 1), to be kept for the run.
        bidirectional: whether class nodes also send to their members, as in the paper.
        generator: on the CPU, of the features; by default one with seed 0.

    Returns:
        Features (nodes + C) and edges: the graph's, then member → class, then class → member.

    Raises:
        ValueError: shapes disagree, an edge leads to no node, or a known label is out of range.

    Example:
        >>> x, edges = torch.zeros(3, 2), torch.tensor([[0, 1], [1, 0]])
        >>> labels, known = torch.tensor([1, 0, 0]), torch.tensor([True, True, False])
        >>> add_virtual_nodes(x, edges, labels, known, 2)[1]
        tensor([[0, 1, 0, 1, 4, 3],
                [1, 0, 4, 3, 0, 1]])
    """
    check_graph(x, edge_index)
    check_labels(labels, mask, num_classes, len(x))
    if features is None:
        generator = generator or torch.Generator().manual_seed(0)
        features = torch.randn(num_classes, x.shape[1], generator=generator)
    if features.shape != (num_classes, x.shape[1]):
        raise ValueError(
            f"features: shape {tuple(features.shape)} given, {(num_classes, x.shape[1])} expected"
        )
    members = mask.nonzero()[:, 0]
    classes = len(x) + labels[members]
    to_class = torch.stack([members, classes]).to(edge_index)
    added = [to_class, to_class.flip(0)] if bidirectional else [to_class]
    return torch.cat([x, features.to(x)]), torch.cat([edge_index, *added], 1)


def append_labels(
    x: Float[Tensor, "nodes features"],
    labels: Int[Tensor, "nodes"],
    mask: Bool[Tensor, "nodes"],
    num_classes: int,
    *,
    unlabeled: str = "uniform",
) -> Float[Tensor, "nodes features_and_classes"]:
    """[x, one-hot label] for the nodes of `mask`, and [x, context] for the others.

    Args:
        x: features.
        labels: 0 to C − 1 where `mask` is true; elsewhere they are not looked at.
        mask: nodes that get a label.
        num_classes: C.
        unlabeled: the context of the others: "uniform", 1 / C everywhere as in the paper, or
            "zero".

    Raises:
        ValueError: shapes disagree, a label is out of range, or `unlabeled` is unknown.

    Example:
        >>> append_labels(torch.ones(2, 1), torch.tensor([1, 0]), torch.tensor([True, False]), 2)
        tensor([[1.0000, 0.0000, 1.0000],
                [1.0000, 0.5000, 0.5000]])
    """
    if unlabeled not in ("uniform", "zero"):
        raise ValueError(f"unlabeled: {unlabeled!r} given, 'uniform' or 'zero' expected")
    check_labels(labels, mask, num_classes, len(x))
    other = 1 / num_classes if unlabeled == "uniform" else 0.0
    return torch.cat([x, label_context(labels, mask, num_classes, other).to(x)], 1)


def label_context(labels: Tensor, mask: Tensor, num_classes: int, other: float) -> Tensor:
    """One-hot rows for the nodes of `mask`, `other` everywhere for the rest.

    Example:
        >>> label_context(torch.tensor([1, -1]), torch.tensor([True, False]), 2, 0.5)
        tensor([[0.0000, 1.0000],
                [0.5000, 0.5000]])
    """
    known = F.one_hot(torch.where(mask, labels, 0).long(), num_classes).float()
    return torch.where(mask[:, None], known, other)


def wrong_labels(
    labels: Int[Tensor, "nodes"],
    num_classes: int,
    count: int | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "count nodes"]:
    """Different labels for each node, none of them its own.

    Args:
        labels: the true ones.
        num_classes: C.
        count: how many, at most C − 1; None is all C − 1 of them, (y + 1) mod C, (y + 2) mod C,
            ..., without chance.
        generator: on the CPU, picks a subset; by default one with seed 0.

    Raises:
        ValueError: fewer than two classes, or `count` is not between 1 and C − 1.

    Example:
        >>> wrong_labels(torch.tensor([0, 2]), 3)
        tensor([[1, 0],
                [2, 1]])
    """
    if num_classes < 2:
        raise ValueError(f"num_classes: {num_classes} given, at least 2 expected")
    if count is None:
        shifts = torch.arange(1, num_classes).expand(len(labels), -1)
    elif 1 <= count < num_classes:
        generator = generator or torch.Generator().manual_seed(0)
        order = torch.rand(len(labels), num_classes - 1, generator=generator).argsort(1)
        shifts = 1 + order[:, :count]
    else:
        raise ValueError(
            f"count: {count} given, None or 1 to {num_classes - 1} expected, all but the true class"
        )
    return (labels[None] + shifts.T.to(labels)) % num_classes


def single_forward_logits(
    h: Float[Tensor, "nodes_and_classes width"], num_classes: int, *, temperature: float = 1.0
) -> Float[Tensor, "nodes classes"]:
    """⟨h_v, h_class⟩ / temperature of every node with every class node, which come last in h.

    Args:
        h: a layer's responses.
        num_classes: C.
        temperature: 1 in the paper.

    Raises:
        ValueError: h has fewer than C rows, or `temperature` is not positive.

    Example:
        >>> h = torch.tensor([[1.0, 2.0], [1.0, 0.0], [0.0, 1.0]])
        >>> single_forward_logits(h, 2)
        tensor([[1., 2.]])
    """
    if not 1 <= num_classes <= len(h):
        raise ValueError(f"num_classes: {num_classes} given, 1 to the {len(h)} rows of h expected")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: {temperature} given, a positive number expected")
    nodes, classes = h[:-num_classes], h[-num_classes:]
    return nodes @ classes.T / temperature


def top_down_embedding(
    output: Float[Tensor, "nodes width"], above: Sequence[Float[Tensor, "nodes width"]]
) -> Float[Tensor, "nodes width"]:
    """The mean of a layer's output and of the states of layers above it.

    Args:
        output: with its gradient.
        above: states of an earlier time step, which get none.

    Raises:
        ValueError: a state has another shape.

    Example:
        >>> top_down_embedding(torch.zeros(1, 2), [torch.ones(1, 2)])
        tensor([[0.5000, 0.5000]])
    """
    for state in above:
        if state.shape != output.shape:
            raise ValueError(
                f"above: shape {tuple(state.shape)} given, {tuple(output.shape)} expected"
            )
    total = output
    for state in above:
        total = total + state.detach()
    return total / (1 + len(above))


def link_logits(
    h: Float[Tensor, "nodes width"], pairs: Int[Tensor, "2 pairs"]
) -> Float[Tensor, "pairs"]:
    """⟨h_u, h_v⟩ of pairs (u, v).

    Raises:
        ValueError: a pair names no node.

    Example:
        >>> link_logits(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0], [1]]))
        tensor([3.])
    """
    check_edges("pairs", pairs, len(h))
    return (h[pairs[0]] * h[pairs[1]]).sum(-1)
