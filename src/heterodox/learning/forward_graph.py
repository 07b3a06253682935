"""ForwardGNN: graph neural networks without backpropagation between layers.

    single forward:   p_v = softmax(⟨h_v, h_class⟩ / t),   L = −mean log p_v[y_v]
    forward-forward:  L = mean softplus(θ − G⁺) + mean softplus(G⁻ − θ),   G = Σ_k h_k²

with h = relu(conv(x / ‖x‖, edges)) of one layer, its input detached. In single forward a virtual
node for each class, of fixed random features, is linked to the training nodes of its class, and
each layer learns to classify by inner products with it. Forward-forward compares true labels with
wrong ones. Every layer has its own Adam, its own loss and its own early stopping.

Park et al., "Forward Learning of Graph Neural Networks", ICLR 2024, arXiv 2403.11004. Memory of
training does not grow with the depth; forward-forward's time grows with the number of classes.
"""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from heterodox.layers.graph_conv import ConvFactory, graph_conv
from heterodox.learning.best_weights import LayerHistory, Schedule
from heterodox.learning.forward_links import ForwardLinkPredictor
from heterodox.learning.graph_arguments import (
    check_features,
    check_sizes,
    check_training_dtype,
)
from heterodox.learning.graph_context import (
    add_virtual_nodes,
    append_labels,
    label_context,
    link_logits,
    single_forward_logits,
    top_down_embedding,
    wrong_labels,
)
from heterodox.learning.graph_views import Views, label_views, virtual_views
from heterodox.learning.greedy_graph import (
    Nodes,
    fit_forward_forward,
    fit_single_forward,
    forward_forward_votes,
    single_forward_votes,
)
from heterodox.learning.local_graph_layer import LocalGraphLayer
from heterodox.learning.top_down_graph import TopToInput, TopToLoss
from heterodox.learning.top_down_training import TopDown, fit_nodes, node_votes

__all__ = [
    "ForwardGNN",
    "ForwardLinkPredictor",
    "LocalGraphLayer",
    "add_virtual_nodes",
    "append_labels",
    "link_logits",
    "single_forward_logits",
    "top_down_embedding",
    "wrong_labels",
]

METHODS = ("sf", "sf-top-input", "sf-top-loss", "ff-label", "ff-virtual")


class ForwardGNN(nn.Module):
    """A graph neural network for node classification whose layers learn by themselves.

    Data is a `torch_geometric.data.Data`, or any object with its attributes: `x` (nodes, features),
    best normalised by `NormalizeFeatures`; `edge_index` (2, edges), each edge in both directions;
    `y` (nodes,), classes from 0, −1 where unknown; `train_mask`, and for early stopping `val_mask`
    (nodes,). Labels outside of `train_mask` reach neither the weights nor a prediction; those of
    `val_mask` decide when to stop.

    Args:
        in_channels: features of a node.
        hidden_channels: width of every layer; 128 in the paper.
        num_classes: C.
        num_layers: of the network; 1 to 4 in the paper.
        conv: "gcn", "sage", "gat", or a factory `(in_channels, out_channels) -> Module`, called as
            `conv(x, edge_index)`.
        method: "sf", single forward, layer after layer; "sf-top-input" and "sf-top-loss", single
            forward with states of upper layers in the input or in the loss, all layers together;
            "ff-label", forward-forward with the label beside the features; "ff-virtual", with wrong
            links to class nodes.
        theta: θ of forward-forward; 2 in the paper's code.
        temperature: t of single forward; 1 in the paper.
        num_negatives: wrong labels of each training node in forward-forward, drawn once; None is
            all C − 1.

    Raises:
        ValueError: an unknown name, or a number out of range.
        ImportError: `conv` is a name, and PyTorch Geometric is not installed.

    Example:
        >>> from types import SimpleNamespace
        >>> edges = torch.tensor([[0, 1, 1, 2, 2, 0, 3, 4], [1, 0, 2, 1, 0, 2, 4, 3]])
        >>> data = SimpleNamespace(x=torch.eye(5), edge_index=edges)
        >>> data.y = torch.tensor([0, 0, 0, 1, 1])
        >>> data.train_mask = torch.tensor([True, False, False, True, False])
        >>> class Mean(nn.Linear):
        ...     def forward(self, x, edge_index):
        ...         near = torch.eye(len(x))
        ...         near[edge_index[1], edge_index[0]] = 1
        ...         return super().forward(near @ x / near.sum(1, keepdim=True))
        >>> model = ForwardGNN(5, 16, 2, num_layers=2, conv=Mean)
        >>> history = model.fit(data, epochs=100, lr=0.01)
        >>> model.predict(data)
        tensor([0, 0, 0, 1, 1])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_classes: int,
        *,
        num_layers: int = 3,
        conv: str | ConvFactory = "gcn",
        method: str = "sf",
        theta: float = 2.0,
        temperature: float = 1.0,
        num_negatives: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_channels, hidden_channels, num_layers, conv)
        if num_classes < 2:
            raise ValueError(f"num_classes: {num_classes} given, at least 2 expected")
        if method not in METHODS:
            raise ValueError(f"method: {method!r} given, one of {', '.join(METHODS)} expected")
        if not math.isfinite(theta):
            raise ValueError(f"theta: {theta} given, a finite number expected")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature: {temperature} given, a positive number expected")
        if num_negatives is not None and not 1 <= num_negatives < num_classes:
            raise ValueError(
                f"num_negatives: {num_negatives} given, None or 1 to {num_classes - 1} expected"
            )
        self.in_channels, self.hidden_channels = in_channels, hidden_channels
        self.num_classes, self.method = num_classes, method
        self.theta, self.temperature, self.num_negatives = theta, temperature, num_negatives
        self.layers = nn.ModuleList(
            LocalGraphLayer(graph_conv(conv, self._inputs(j, num_layers), hidden_channels))
            for j in range(num_layers)
        )
        self.class_features: Tensor
        self.register_buffer("class_features", torch.zeros(num_classes, in_channels))

    def _inputs(self, j: int, num_layers: int) -> int:
        """Channels that layer j sees."""
        below = self.in_channels if j == 0 else self.hidden_channels
        if self.method == "ff-label" and j == 0:
            return below + self.num_classes
        if self.method == "sf-top-input":
            return below + (self.num_classes if j == num_layers - 1 else self.hidden_channels)
        return below

    def fit(
        self,
        data: Any,
        *,
        epochs: int = 1000,
        lr: float = 1e-3,
        weight_decay: float = 5e-4,
        patience: int = 100,
        val_every: int = 2,
        generator: torch.Generator | None = None,
    ) -> list[LayerHistory]:
        """Trains the layers, from the weights that they have.

        Args:
            data: see the class.
            epochs: at most, of each layer, or of all that learn together.
            lr, weight_decay: of each layer's Adam; 1e-3 and 5e-4 in the paper.
            patience: checks on validation nodes without a new best before training stops; then the
                best weights are put back. Without validation nodes all epochs are run.
            val_every: epochs between checks.
            generator: on the CPU, of the class nodes' features and of wrong labels; by default one
                with seed 0.

        Returns:
            One history a layer; one for all where they learn together.

        Raises:
            ValueError: data lacks something, does not fit the network or has no training node, or
                a number is out of range.

        Warns:
            UserWarning: a class has no training node.
        """
        schedule = Schedule(epochs, lr, weight_decay, patience, val_every)
        self._check(data, training=True)
        check_training_dtype(data.x)
        generator = generator or torch.Generator().manual_seed(0)
        drawn = torch.randn(self.num_classes, self.in_channels, generator=generator)
        self.class_features.copy_(drawn)
        mask, val_mask = data.train_mask, getattr(data, "val_mask", None)
        if val_mask is None:
            val_mask = torch.zeros_like(mask)
        train, val = mask.nonzero()[:, 0], val_mask.nonzero()[:, 0]
        nodes = Nodes(data.y.long(), train, val, self.num_classes)
        if self.method.startswith("ff"):
            wrong = wrong_labels(data.y, self.num_classes, self.num_negatives, generator=generator)
            contrast = self._views(data, torch.cat([data.y[None], wrong]), mask)
            candidates = self._candidates(data, val_mask)
            return fit_forward_forward(
                self._stack, contrast, candidates, nodes, self.theta, schedule
            )
        if self.method == "sf":
            x, edges = self._with_class_nodes(data)
            return fit_single_forward(self._stack, x, edges, nodes, self.temperature, schedule)
        return fit_nodes(self._stack, self._states(data), nodes, self.temperature, schedule)

    @torch.no_grad()
    def predict_proba(self, data: Any) -> Tensor:
        """Class probabilities (nodes, classes).

        Single forward: the mean of the layers' softmax, and of time steps for "sf-top-input".
        Forward-forward: each class's share of the goodness under its label, and the label itself
        for nodes of `train_mask`, as it is part of their input.

        Args:
            data: with `x`, `edge_index`, `y` and `train_mask`; labels are looked at where the mask
                is true. For forward-forward the authors add the validation nodes to it.
        """
        self._check(data, training=False)
        if self.method.startswith("ff"):
            mask = data.train_mask
            votes = forward_forward_votes(self._stack, self._candidates(data, ~mask))
            votes = votes[: len(data.x)] + torch.finfo(votes.dtype).tiny
            known = label_context(data.y, mask, self.num_classes, 0.0).to(votes)
            votes = torch.where(mask[:, None], known, votes)
        elif self.method == "sf":
            x, edges = self._with_class_nodes(data)
            votes = single_forward_votes(self._stack, x, edges, self.num_classes, self.temperature)
        else:
            count = len(data.x)
            rows = torch.arange(count, device=data.x.device)
            votes = node_votes(self._states(data), rows, count, self.num_classes, self.temperature)
        return votes / votes.sum(1, keepdim=True)

    def predict(self, data: Any) -> Tensor:
        """The most probable class of each node (nodes,)."""
        return self.predict_proba(data).argmax(1)

    @property
    def _stack(self) -> list[LocalGraphLayer]:
        return list(self.layers)  # type: ignore[arg-type]

    def _with_class_nodes(self, data: Any) -> tuple[Tensor, Tensor]:
        return add_virtual_nodes(
            data.x,
            data.edge_index,
            data.y,
            data.train_mask,
            self.num_classes,
            features=self.class_features,
        )

    def _states(self, data: Any) -> TopDown:
        x, edges = self._with_class_nodes(data)
        if self.method == "sf-top-loss":
            return TopToLoss(self._stack, x, edges)
        classes = torch.arange(self.num_classes, device=data.y.device)
        labels = torch.cat([data.y, classes.to(data.y)])
        mask = torch.cat([data.train_mask, torch.ones_like(classes, dtype=torch.bool)])
        context = label_context(labels, mask, self.num_classes, 1 / self.num_classes)
        return TopToInput(self._stack, x, edges, self.hidden_channels, context.to(x))

    def _views(self, data: Any, labels: Tensor, mask: Tensor) -> Views:
        if self.method == "ff-label":
            return label_views(data.x, data.edge_index, labels, mask, self.num_classes)
        return virtual_views(
            data.x, data.edge_index, labels, mask, self.num_classes, self.class_features
        )

    def _candidates(self, data: Any, asked: Tensor) -> Views:
        """A view for each class, in which all nodes that are asked about bear its label."""
        known = torch.where(data.train_mask, data.y, -1)
        labels = [torch.where(asked, c, known) for c in range(self.num_classes)]
        return self._views(data, torch.stack(labels), data.train_mask | asked)

    def _check(self, data: Any, training: bool) -> None:
        for name in ("x", "edge_index", "y", "train_mask"):
            if getattr(data, name, None) is None:
                raise ValueError(f"data: no {name} given, x, edge_index, y and train_mask expected")
        check_features(data.x, data.edge_index, self.in_channels)
        masks = {"train_mask": data.train_mask}
        if training and getattr(data, "val_mask", None) is not None:
            masks["val_mask"] = data.val_mask
        if data.y.shape != data.x.shape[:1] or data.y.is_floating_point():
            raise ValueError(
                f"data: y, {data.y.dtype} of shape {tuple(data.y.shape)}, given, integers "
                f"({len(data.x)},) expected"
            )
        for name, mask in masks.items():
            if mask.shape != data.y.shape or mask.dtype != torch.bool:
                raise ValueError(
                    f"data: {name}, {mask.dtype} of shape {tuple(mask.shape)}, given, torch.bool "
                    f"({len(data.x)},) expected"
                )
            known = data.y[mask]
            if len(known) and (int(known.min()) < 0 or int(known.max()) >= self.num_classes):
                raise ValueError(
                    f"data: y from {int(known.min())} to {int(known.max())} in {name} given, 0 to "
                    f"{self.num_classes - 1} expected"
                )
        if training and not bool(data.train_mask.any()):
            raise ValueError("data: a train_mask without any node given, at least one expected")
        if training:
            counts = torch.bincount(data.y[data.train_mask], minlength=self.num_classes)
            missing = (counts == 0).nonzero()[:, 0].tolist()
            if missing:
                warnings.warn(f"data: no training node of class {missing[0]}", stacklevel=3)
