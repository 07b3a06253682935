"""Splits of a graph: of its nodes for classification, of its edges for link prediction."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from heterodox.data.graphs import GraphData

SHARES = (0.64, 0.16, 0.20)


@dataclass(frozen=True)
class LinkData:
    """One part of an edge split, as PyTorch Geometric's `RandomLinkSplit` makes it.

    Attributes:
        x: features of the nodes.
        edge_index: along which messages pass, in both directions.
        edge_label_index: pairs to be judged.
        edge_label: 1 for a link, 0 for none.
    """

    x: Float[Tensor, "nodes features"]
    edge_index: Int64[Tensor, "2 edges"]
    edge_label_index: Int64[Tensor, "2 pairs"]
    edge_label: Int64[Tensor, "pairs"]


def split_nodes(
    graph: GraphData, generator: torch.Generator, shares: Sequence[float] = SHARES
) -> GraphData:
    """The graph with masks of training, validation and test nodes, drawn at random.

    Args:
        graph: to be split.
        generator: on the CPU.
        shares: of the three parts; 64, 16 and 20 % as in a five-fold split whose training part is
            cut again.

    Raises:
        ValueError: `shares` are not three positive numbers with sum 1, or a part gets no node.

    Example:
        >>> from heterodox.data.graphs import load_graph
        >>> split = split_nodes(load_graph("karate-club"), torch.Generator().manual_seed(0))
        >>> [int(m.sum()) for m in (split.train_mask, split.val_mask, split.test_mask)]
        [22, 5, 7]
    """
    parts = _parts(len(graph.x), shares, generator)
    masks = []
    for part in parts:
        mask = torch.zeros(len(graph.x), dtype=torch.bool)
        mask[part] = True
        masks.append(mask)
    train, val, test = masks
    return dataclasses.replace(graph, train_mask=train, val_mask=val, test_mask=test)


def split_edges(
    graph: GraphData, generator: torch.Generator, shares: Sequence[float] = SHARES
) -> tuple[LinkData, LinkData, LinkData]:
    """Training, validation and test pairs, with as many non-edges as edges in each.

    Messages pass along the training edges; in the test part along those of validation too. No
    non-edge is drawn twice.

    Args:
        graph: to be split.
        generator: on the CPU.
        shares: of the edges.

    Raises:
        ValueError: as `split_nodes`, or there are fewer non-edges than edges.

    Example:
        >>> from heterodox.data.graphs import load_graph
        >>> train, val, test = split_edges(load_graph("karate-club"), torch.Generator())
        >>> train.edge_index.shape[1], [part.edge_label.bincount().tolist() for part in (val, test)]
        (100, [[12, 12], [16, 16]])
    """
    edges = graph.edge_index[:, graph.edge_index[0] < graph.edge_index[1]]
    nodes, count = len(graph.x), edges.shape[1]
    parts = _parts(count, shares, generator)
    others = _non_edges(edges, nodes, count, generator)
    result, seen = [], edges[:, :0]
    for number, part in enumerate(parts):
        if number != 1:  # training sees its own edges, validation the same, test those of both
            known = parts[0] if number == 0 else torch.cat(parts[:2])
            seen = torch.cat([edges[:, known], edges[:, known].flip(0)], 1)
        pairs = torch.cat([edges[:, part], others[:, part]], 1)
        labels = torch.arange(2).flip(0).repeat_interleave(len(part))
        result.append(LinkData(graph.x, seen, pairs, labels))
    train, val, test = result
    return train, val, test


def _parts(
    count: int, shares: Sequence[float], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"shares: {tuple(shares)} given, three positive numbers with sum 1 expected"
        )
    test, val = round(shares[2] * count), round(shares[1] * count)
    if min(test, val, count - test - val) < 1:
        raise ValueError(f"shares: {tuple(shares)} of {count} given, parts of at least 1 expected")
    order = torch.randperm(count, generator=generator)
    return order[test + val :], order[test : test + val], order[:test]


def _non_edges(edges: Tensor, nodes: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` different pairs (u, v), u < v, that are no edges, at random."""
    pairs = nodes * (nodes - 1) // 2
    if pairs - edges.shape[1] < count:
        raise ValueError(
            f"graph: {edges.shape[1]} edges between {nodes} nodes given, as many non-edges expected"
        )
    taken = edges[0] * nodes + edges[1]
    found = taken[:0]
    while len(found) < count:
        u, v = torch.randint(nodes, (2, 2 * count), generator=generator)
        fresh = (u * nodes + v)[u < v]
        fresh = fresh[~torch.isin(fresh, torch.cat([taken, found]))].unique()
        found = torch.cat([found, fresh[torch.randperm(len(fresh), generator=generator)]])
    found = found[:count]
    return torch.stack([found // nodes, found % nodes])
