"""A graph layer that is trained by itself, and its input, propagated once instead of every epoch.

    h = relu(conv(x / ‖x‖, edges))

GCN and GraphSAGE with the mean are linear before the relu, conv(x) = Â x Wᵀ + b. The input of a
layer that is trained by itself does not change while it is trained, so that Â x is computed once,
for the nodes that the loss looks at, and an epoch is one matrix product. Several inputs of one
graph, or several graphs, go through a layer at once.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from heterodox.learning.forward_forward import row_normalize


@dataclass(frozen=True)
class Prepared:
    """Inputs of a layer, propagated as far as that needs no weights.

    Attributes:
        blocks: features side by side; each (nodes, width), or (views, nodes, width) where views
            differ. Of a linear convolution there is one tensor for each of its weights.
        edges: for other convolutions, of each view, or one for all.
        rows: for other convolutions, the nodes whose responses are wanted; None for all.
    """

    blocks: tuple[tuple[Tensor, ...], ...]
    edges: tuple[Tensor, ...] = ()
    rows: Tensor | None = None

    def at(self, rows: Tensor) -> "Prepared":
        """The same for some of the nodes."""
        if self.edges:
            return replace(self, rows=rows)
        chosen = tuple(tuple(part[..., rows, :] for part in block) for block in self.blocks)
        return replace(self, blocks=chosen)

    def beside(self, other: "Prepared") -> "Prepared":
        """With the blocks of `other` on the right."""
        return replace(self, blocks=self.blocks + other.blocks)


class LocalGraphLayer(nn.Module):
    """relu(conv(x / ‖x‖, edges)), with a fast path for inputs that stay the same.

    Args:
        conv: called as `conv(x, edge_index)`, such as those of PyTorch Geometric.

    Example:
        >>> class Sum(nn.Linear):
        ...     def forward(self, x, edge_index):
        ...         source, target = edge_index
        ...         return super().forward(torch.zeros_like(x).index_add(0, target, x[source]))
        >>> layer = LocalGraphLayer(Sum(4, 8))
        >>> layer(torch.rand(3, 4), torch.tensor([[0, 1], [1, 2]])).shape
        torch.Size([3, 8])
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(
        self, x: Float[Tensor, "nodes features"], edge_index: Int[Tensor, "2 edges"]
    ) -> Float[Tensor, "nodes width"]:
        return F.relu(self.conv(row_normalize(x), edge_index))

    def on(self, *edges: Tensor) -> "OnGraphs":
        """Prepares inputs for this layer: one graph for all views, or one for each view."""
        return OnGraphs(self.conv, edges)

    def respond(self, prepared: Prepared, known: Tensor | None = None, start: int = 0) -> Tensor:
        """Responses (nodes, width), or (views, nodes, width), with gradients in the weights.

        Args:
            prepared: see `on`.
            known: a `term` of the features before `start`, not to be computed again.
            start: where the blocks of `prepared` begin among the features.
        """
        weights, bias = _weights(self.conv)
        if not weights:
            return F.relu(self._by_calling(prepared))
        total = self.term(prepared, start)
        if known is not None:
            total = total + known
        return F.relu(total if bias is None else total + bias)

    def term(self, prepared: Prepared, start: int = 0) -> Tensor:
        """What some of the features add before the bias and the relu; of linear convolutions."""
        weights, _ = _weights(self.conv)
        total: Tensor | None = None
        for block in prepared.blocks:
            stop = start + block[0].shape[-1]
            for part, weight in zip(block, weights, strict=True):
                added = part @ weight[:, start:stop].T
                total = added if total is None else total + added
            start = stop
        assert total is not None
        return total

    @property
    def is_linear(self) -> bool:
        """Whether the convolution is linear before the relu, and known to be."""
        return bool(_weights(self.conv)[0])

    def _by_calling(self, prepared: Prepared) -> Tensor:
        """One call for all views, as one graph of parts that are not linked."""
        blocks = [block[0] for block in prepared.blocks]
        nodes = blocks[0].shape[-2]
        views = max([len(prepared.edges), *(len(b) for b in blocks if b.ndim == 3)])
        x = torch.cat([block.expand(views, nodes, block.shape[-1]) for block in blocks], -1)
        edges = prepared.edges * views if len(prepared.edges) == 1 else prepared.edges
        apart = torch.cat([e + k * nodes for k, e in enumerate(edges)], 1)
        h = self.conv(x.flatten(0, 1), apart).view(views, nodes, -1)
        if prepared.rows is not None:
            h = h[:, prepared.rows]
        together = len(prepared.edges) == 1 and all(block.ndim == 2 for block in blocks)
        return h[0] if together else h


class OnGraphs:
    """A convolution on given graphs; see `LocalGraphLayer.on`."""

    def __init__(self, conv: nn.Module, edges: tuple[Tensor, ...]) -> None:
        self.conv = conv
        self.edges = edges
        self._matrices: dict[int, list[Tensor | None]] = {}

    @torch.no_grad()
    def prepare(self, *blocks: Tensor) -> Prepared:
        """Features side by side, already of unit length: (nodes, width), the same for all views, or
        (views, nodes, width)."""
        blocks = tuple(block.detach() for block in blocks)
        if not _weights(self.conv)[0]:
            return Prepared(tuple((block,) for block in blocks), self.edges)
        return Prepared(tuple(self._propagated(block) for block in blocks))

    def _propagated(self, block: Tensor) -> tuple[Tensor, ...]:
        """For each weight of the convolution, what it is multiplied with."""
        if len(self.edges) == 1:
            return tuple(_multiplied(matrix, block) for matrix in self._of_view(0, block))
        views = block if block.ndim == 3 else block.expand(len(self.edges), *block.shape)
        each = [
            [_multiplied(matrix, x) for matrix in self._of_view(v, x)] for v, x in enumerate(views)
        ]
        return tuple(torch.stack(parts) for parts in zip(*each, strict=True))

    def _of_view(self, view: int, block: Tensor) -> list[Tensor | None]:
        if view not in self._matrices:
            self._matrices[view] = _matrices(self.conv, self.edges[view], block)
        return self._matrices[view]


def _multiplied(matrix: Tensor | None, block: Tensor) -> Tensor:
    if matrix is None:
        return block
    # Sparse products know no half precision.
    wide = block.to(matrix.dtype)
    if block.ndim == 2:
        return torch.sparse.mm(matrix, wide).to(block.dtype)
    views, nodes, width = block.shape
    together = torch.sparse.mm(matrix, wide.transpose(0, 1).reshape(nodes, -1))
    return together.view(nodes, views, width).transpose(0, 1).to(block.dtype).contiguous()


def _kind(conv: nn.Module) -> str:
    """ "gcn" or "sage" for a convolution of PyTorch Geometric whose formula is known here."""
    if not type(conv).__module__.startswith("torch_geometric."):
        return ""
    from torch_geometric.nn import GCNConv, SAGEConv

    if type(conv) is GCNConv and conv.normalize and not conv.cached:
        return "gcn" if conv.flow == "source_to_target" else ""
    if type(conv) is SAGEConv and conv.aggr == "mean" and conv.root_weight:
        plain = not conv.project and not conv.normalize and conv.flow == "source_to_target"
        return "sage" if plain else ""
    return ""


def _weights(conv: nn.Module) -> tuple[list[Tensor], Tensor | None]:
    """The weights (width, features) and the bias of a linear convolution; no weights for others."""
    kind = _kind(conv)
    if kind == "gcn":
        return [conv.lin.weight], conv.bias  # type: ignore[union-attr, list-item, return-value]
    if kind == "sage":
        return [conv.lin_l.weight, conv.lin_r.weight], conv.lin_l.bias  # type: ignore[union-attr, list-item, return-value]
    return [], None


def _matrices(conv: nn.Module, edges: Tensor, like: Tensor) -> list[Tensor | None]:
    """For each weight the sparse (nodes, nodes) matrix before it; None is the identity."""
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    nodes, dtype = like.shape[-2], torch.promote_types(like.dtype, torch.float32)
    if _kind(conv) == "gcn":
        edges, values = gcn_norm(
            edges, None, nodes, conv.improved, conv.add_self_loops, dtype=dtype
        )
        return [_sparse(edges, values, nodes)]
    degree = torch.zeros(nodes, dtype=dtype, device=like.device)
    degree.index_add_(0, edges[1], torch.ones_like(edges[1], dtype=dtype))
    return [_sparse(edges, 1 / degree[edges[1]], nodes), None]


def _sparse(edges: Tensor, values: Tensor, nodes: int) -> Tensor:
    # Row: the target, which receives; repeated edges add up.
    matrix = torch.sparse_coo_tensor(edges.flip(0), values, (nodes, nodes), check_invariants=False)
    return matrix.coalesce()
