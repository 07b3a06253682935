"""Graphs with labelled nodes: embedded, from files, and as PyTorch Geometric's `Data`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from heterodox.data.download import fetch
from heterodox.data.registry import datasets, near


@dataclass(frozen=True)
class GraphData:
    """A graph, or one with a split of its nodes; has the attributes of PyTorch Geometric's `Data`.

    Attributes:
        name: the dataset's name.
        x: features.
        edge_index: (source, target), each edge in both directions, none from a node to itself.
        y: classes.
        num_classes: how many there are.
        train_mask, val_mask, test_mask: of a split; see `split_nodes`.
    """

    name: str
    x: Float[Tensor, "nodes features"]
    edge_index: Int64[Tensor, "2 edges"]
    y: Int64[Tensor, "nodes"]
    num_classes: int
    train_mask: Bool[Tensor, "nodes"] | None = None
    val_mask: Bool[Tensor, "nodes"] | None = None
    test_mask: Bool[Tensor, "nodes"] | None = None

    def to_pyg(self) -> Any:
        """The same as a `torch_geometric.data.Data`.

        Raises:
            ImportError: PyTorch Geometric is not installed.
        """
        try:
            from torch_geometric.data import Data
        except ImportError as error:
            raise ImportError(
                'Data: PyTorch Geometric is needed, pip install "heterodox[graph]"'
            ) from error
        masks = {
            name: getattr(self, name)
            for name in ("train_mask", "val_mask", "test_mask")
            if getattr(self, name) is not None
        }
        return Data(x=self.x, edge_index=self.edge_index, y=self.y, **masks)


def load_graph(data: str, *, normalize: bool = True) -> GraphData:
    """A graph by name.

    Args:
        data: "karate-club" (with networkx), "cora" or "texas".
        normalize: whether features are shifted to a minimum of 0 and divided by their sum in each
            row, as PyTorch Geometric's `NormalizeFeatures` does.

    Raises:
        ValueError: there is no graph of this name.
        DataError: it cannot be had, see `heterodox.data.fetch`.

    Example:
        >>> club = load_graph("karate-club")
        >>> club.x.shape, club.edge_index.shape, club.y.bincount()
        (torch.Size([34, 34]), torch.Size([2, 156]), tensor([17, 17]))
    """
    names = [entry.name for entry in datasets("graphs")]
    if data not in names:
        raise ValueError(
            f"data: {data!r} given, one of {', '.join(names)} expected{near(str(data), 'graphs')}"
        )
    readers = {"karate-club": _karate_club, "cora": _cora, "texas": _texas}
    x, edges, y = readers[data](fetch(data))
    if normalize:
        x = x - x.min()
        x = x / x.sum(1, keepdim=True).clamp(min=1)
    return GraphData(data, x, both_directions(edges), y, int(y.max()) + 1)


def both_directions(edges: Int64[Tensor, "2 edges"]) -> Int64[Tensor, "2 all_edges"]:
    """Each pair once in each direction, in order; loops and repetitions are left out.

    Example:
        >>> both_directions(torch.tensor([[1, 0, 2], [0, 1, 2]]))
        tensor([[0, 1],
                [1, 0]])
    """
    edges = edges[:, edges[0] != edges[1]]
    return torch.cat([edges, edges.flip(0)], 1).unique(dim=1)


Parts = tuple[Tensor, Tensor, Tensor]
"""Features, edges and classes."""


def _karate_club(paths: dict[str, Path]) -> Parts:
    import networkx

    club = networkx.karate_club_graph()
    y = [int(club.nodes[node]["club"] != "Mr. Hi") for node in club]
    edges = torch.tensor(list(club.edges)).T
    # Its members have no features but who they are.
    return torch.eye(len(y)), edges, torch.tensor(y)


def _cora(paths: dict[str, Path]) -> Parts:
    (path,) = paths.values()
    with np.load(path, allow_pickle=False) as table:
        rows, columns = (int(side) for side in table["features_shape"])
        x = np.zeros((rows, columns), dtype=np.float32)
        row = np.repeat(np.arange(rows), np.diff(table["features_indptr"]))
        x[row, table["features_indices"]] = table["features_data"]
        edges, y = table["edge_index"], table["labels"]
    return torch.from_numpy(x), torch.from_numpy(edges), torch.from_numpy(y)


def _texas(paths: dict[str, Path]) -> Parts:
    lines = paths["out1_node_feature_label.txt"].read_text(encoding="utf-8").splitlines()[1:]
    numbers, features, labels = zip(*(line.split("\t") for line in lines), strict=True)
    order = np.argsort([int(number) for number in numbers])
    table = np.array([feature.split(",") for feature in features], dtype=np.float32)[order]
    edges = np.loadtxt(paths["out1_graph_edges.txt"], dtype=np.int64, skiprows=1)
    y = np.array(labels, dtype=np.int64)[order]
    return torch.from_numpy(table), torch.from_numpy(edges.T.copy()), torch.from_numpy(y)
