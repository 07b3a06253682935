"""Small graphs and convolutions for tests of forward learning."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from heterodox.training.seeding import seeded


def cliques(count: int = 2, size: int = 6, dtype: torch.dtype = torch.float64) -> SimpleNamespace:
    """Cliques, each a class, joined in a ring by one edge; in each two nodes are for training, one
    for validation."""
    nodes = count * size
    near = torch.zeros(nodes, nodes, dtype=torch.bool)
    for c in range(count):
        near[c * size : (c + 1) * size, c * size : (c + 1) * size] = True
        near[c * size, ((c + 1) * size) % nodes] = near[((c + 1) * size) % nodes, c * size] = True
    edges = (near & ~torch.eye(nodes, dtype=torch.bool)).nonzero().T
    y = torch.arange(nodes) // size
    place = torch.arange(nodes) % size
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(nodes, 5, generator=generator, dtype=dtype)
    return SimpleNamespace(
        x=x,
        edge_index=edges,
        y=y,
        train_mask=(place == 1) | (place == 2),
        val_mask=place == 3,
        test_mask=place > 3,
    )


def links(dtype: torch.dtype = torch.float64) -> SimpleNamespace:
    """Pairs inside of cliques, of which some are not among the edges, and pairs between them."""
    data = cliques(3, 5, dtype)
    inside = torch.tensor([[0, 5, 10, 1, 6, 11], [2, 7, 12, 3, 8, 13]])
    between = torch.tensor([[1, 2, 3, 4, 7, 8], [6, 12, 8, 13, 11, 14]])
    return SimpleNamespace(
        x=torch.eye(15, dtype=dtype),
        edge_index=data.edge_index,
        edge_label_index=torch.cat([inside, between], 1),
        edge_label=torch.tensor([1] * 6 + [0] * 6),
    )


class PlainConv(nn.Module):
    """A linear map of the mean over a node and its neighbours, which nothing else knows."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        with seeded(in_channels + 7 * out_channels):
            self.map = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index
        total = x.index_add(0, target, x[source])
        degree = torch.ones(len(x), dtype=x.dtype).index_add(
            0, target, torch.ones(len(target), dtype=x.dtype)
        )
        return self.map(total / degree[:, None])
