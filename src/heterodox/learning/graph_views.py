"""Forward-forward on graphs: one view of the graph for each way to label it.

The positive view has the true labels of the training nodes, negative views have wrong ones, and for
a prediction there is a view for each class, in which all nodes to be classified bear its label.
Labels stand beside the features, or as links to a virtual node of their class.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from heterodox.learning.forward_forward import row_normalize
from heterodox.learning.graph_context import add_virtual_nodes, label_context
from heterodox.learning.local_graph_layer import LocalGraphLayer, Prepared


@dataclass(frozen=True)
class Views:
    """Inputs of a layer for several views, with rows of unit length.

    Attributes:
        blocks: features side by side: (nodes, width) or (views, nodes, width).
        edges: one graph for all views, or one for each.
    """

    blocks: tuple[Tensor, ...]
    edges: tuple[Tensor, ...]

    def prepared(self, layer: LocalGraphLayer, rows: Tensor) -> Prepared:
        """For the nodes `rows`; graph by graph, as all nodes of all graphs may be too much."""
        if len(self.edges) == 1 or not layer.is_linear:
            return layer.on(*self.edges).prepare(*self.blocks).at(rows)
        each = [
            layer.on(edges).prepare(*(b if b.ndim == 2 else b[v] for b in self.blocks)).at(rows)
            for v, edges in enumerate(self.edges)
        ]
        stacked = (
            tuple(torch.stack(parts) for parts in zip(*blocks, strict=True))
            for blocks in zip(*(one.blocks for one in each), strict=True)
        )
        return Prepared(tuple(stacked))

    @torch.no_grad()
    def through(self, layer: LocalGraphLayer) -> tuple[Tensor, "Views"]:
        """Responses (views, nodes, width) of all nodes, and the views of the next layer."""
        if len(self.edges) == 1 or not layer.is_linear:
            h = layer.respond(layer.on(*self.edges).prepare(*self.blocks))
        else:
            each = (
                layer.on(edges).prepare(*(b if b.ndim == 2 else b[v] for b in self.blocks))
                for v, edges in enumerate(self.edges)
            )
            h = torch.stack([layer.respond(one) for one in each])
        return h, Views((row_normalize(h),), self.edges)


def label_views(x: Tensor, edges: Tensor, labels: Tensor, mask: Tensor, num_classes: int) -> Views:
    """[x, label], as of `append_labels`, at unit length, for each row of `labels` (views, nodes).

    A one-hot label has length 1 whichever it is, so that x is scaled alike in all views, and is
    kept once.
    """
    contexts = torch.stack(
        [label_context(row, mask, num_classes, 1 / num_classes) for row in labels]
    ).to(x)
    whole = torch.cat([x, contexts[0]], 1)
    scaled = row_normalize(whole)
    # The context of an unlabelled node is scaled like that of the first view: they are equal.
    length = torch.linalg.vector_norm(whole, dim=1)[:, None] + 1e-8
    return Views((scaled[:, : x.shape[1]], contexts / length), (edges,))


def virtual_views(
    x: Tensor,
    edges: Tensor,
    labels: Tensor,
    mask: Tensor,
    num_classes: int,
    features: Tensor,
) -> Views:
    """A graph with virtual nodes for each row of `labels` (views, nodes)."""
    graphs = [
        add_virtual_nodes(x, edges, row, mask, num_classes, features=features) for row in labels
    ]
    return Views((row_normalize(graphs[0][0]),), tuple(graph for _, graph in graphs))
