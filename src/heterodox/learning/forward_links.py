"""Link prediction by forward learning: each layer learns which pairs of its responses are linked.

    single forward:   logit = ⟨h_u, h_v⟩,        L = mean cross-entropy of σ(logit)
    forward-forward:  G = Σ_k (h_uk h_vk)²,      L = mean softplus(θ − G⁺) + mean softplus(G⁻ − θ)

Park et al., "Forward Learning of Graph Neural Networks", ICLR 2024, arXiv 2403.11004. Messages pass
along known edges only. The score of a pair is the mean over layers of σ(logit), or of σ(G − θ).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heterodox.layers.graph_conv import ConvFactory, graph_conv
from heterodox.learning.best_weights import LayerHistory, Schedule, train_to_best
from heterodox.learning.forward_forward import forward_forward_loss, goodness, row_normalize
from heterodox.learning.graph_arguments import (
    check_edges,
    check_features,
    check_sizes,
    check_training_dtype,
)
from heterodox.learning.graph_context import link_logits
from heterodox.learning.greedy_graph import stepper
from heterodox.learning.local_graph_layer import LocalGraphLayer, Prepared
from heterodox.learning.top_down_graph import TopToInput
from heterodox.learning.top_down_training import fit_together

METHODS = ("sf", "ff", "sf-top-input")


class ForwardLinkPredictor(nn.Module):
    """A graph neural network for link prediction whose layers learn by themselves.

    Data is as `torch_geometric.transforms.RandomLinkSplit` makes it, or any object with these
    attributes: `x` (nodes, features); `edge_index` (2, edges), along which messages pass, each edge
    in both directions; `edge_label_index` (2, pairs), the pairs to be judged; `edge_label`
    (pairs,), 1 for a link and 0 for none.

    Args:
        in_channels: features of a node.
        hidden_channels: width of every layer; 128 in the paper.
        num_layers: of the network.
        conv: as for `ForwardGNN`.
        method: "sf", single forward, layer after layer; "sf-top-input", all layers together, each
            seeing the one above it; "ff", forward-forward.
        theta: θ of forward-forward; 2 in the paper's code.

    Raises:
        ValueError: an unknown name, or a number out of range.
        ImportError: `conv` is a name, and PyTorch Geometric is not installed.

    Example:
        >>> from types import SimpleNamespace
        >>> class Same(nn.Linear):
        ...     def forward(self, x, edge_index):
        ...         return super().forward(x)
        >>> pairs = torch.tensor([[0, 2, 0, 1], [1, 3, 2, 3]])
        >>> data = SimpleNamespace(x=torch.eye(4), edge_index=pairs[:, :2], edge_label_index=pairs)
        >>> data.edge_label = torch.tensor([1, 1, 0, 0])
        >>> model = ForwardLinkPredictor(4, 16, num_layers=2, conv=Same)
        >>> history = model.fit(data, epochs=200, lr=0.01)
        >>> scores = model.score(data)
        >>> bool(scores[:2].min() > scores[2:].max())
        True
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        *,
        num_layers: int = 3,
        conv: str | ConvFactory = "gcn",
        method: str = "sf",
        theta: float = 2.0,
    ) -> None:
        super().__init__()
        check_sizes(in_channels, hidden_channels, num_layers, conv)
        if method not in METHODS:
            raise ValueError(f"method: {method!r} given, one of {', '.join(METHODS)} expected")
        if not math.isfinite(theta):
            raise ValueError(f"theta: {theta} given, a finite number expected")
        self.in_channels, self.hidden_channels = in_channels, hidden_channels
        self.method, self.theta = method, theta
        self.layers = nn.ModuleList()
        for j in range(num_layers):
            inputs = in_channels if j == 0 else hidden_channels
            if method == "sf-top-input" and j < num_layers - 1:
                inputs += hidden_channels
            self.layers.append(LocalGraphLayer(graph_conv(conv, inputs, hidden_channels)))

    def fit(
        self,
        train_data: Any,
        val_data: Any = None,
        *,
        epochs: int = 1000,
        lr: float = 1e-3,
        weight_decay: float = 5e-4,
        patience: int = 100,
        val_every: int = 2,
    ) -> list[LayerHistory]:
        """Trains the layers, from the weights that they have.

        Args:
            train_data: see the class.
            val_data: of the same form, to stop at the best area under the ROC curve; without it
                all epochs are run.
            epochs, lr, weight_decay, patience, val_every: as for `ForwardGNN.fit`.

        Returns:
            One history a layer; one for all where they learn together.

        Raises:
            ValueError: data lacks something, or does not fit the network; there is no pair with or
                none without a link; or a number is out of range.
        """
        schedule = Schedule(epochs, lr, weight_decay, patience, val_every)
        for name, data in (("train_data", train_data), ("val_data", val_data)):
            if data is not None:
                self._check(name, data, labelled=True)
        check_training_dtype(train_data.x)
        if self.method == "sf-top-input":
            return self._fit_together(train_data, val_data, schedule)
        state = row_normalize(train_data.x)
        val_state = None if val_data is None else row_normalize(val_data.x)
        earlier: Tensor | float = 0.0
        history = []
        for layer in self._stack:
            prepared = layer.on(train_data.edge_index).prepare(state)
            task = _LinkLayer(self, layer, prepared, train_data)
            if val_data is None or val_state is None:
                epoch = stepper(layer, task.loss, schedule)
                history.append(train_to_best([layer], epoch, None, schedule))
            else:
                on_val = layer.on(val_data.edge_index).prepare(val_state)
                judge = _LinkLayer(self, layer, on_val, val_data, earlier)
                epoch = stepper(layer, task.loss, schedule)
                history.append(train_to_best([layer], epoch, judge.area, schedule))
                earlier = judge.scores()
                val_state = judge.response()
            state = task.response()
        return history

    @torch.no_grad()
    def score(self, data: Any) -> Tensor:
        """For each pair of `edge_label_index`, how likely it is linked (pairs,), in [0, 1].

        Raises:
            ValueError: data lacks something, or does not fit the network.
        """
        self._check("data", data, labelled=False)
        scores: list[Tensor] = []
        pairs = data.edge_label_index

        def add(j: int, h: Tensor) -> None:
            scores.append(self.layer_scores(h, pairs))

        if self.method == "sf-top-input":
            self._states(data).infer(add)
        else:
            state = row_normalize(data.x)
            for j, layer in enumerate(self._stack):
                h = layer.respond(layer.on(data.edge_index).prepare(state))
                add(j, h)
                state = row_normalize(h)
        return torch.stack(scores).mean(0)

    def layer_scores(self, h: Tensor, pairs: Tensor) -> Tensor:
        """σ(logit), or σ(G − θ), by the responses of one layer."""
        if self.method == "ff":
            return (goodness(h[pairs[0]] * h[pairs[1]]) - self.theta).sigmoid()
        return link_logits(h, pairs).sigmoid()

    def layer_loss(self, h: Tensor, data: Any) -> Tensor:
        """The loss of one layer's responses."""
        pairs, linked = data.edge_label_index, data.edge_label
        if self.method == "ff":
            z = h[pairs[0]] * h[pairs[1]]
            return forward_forward_loss(
                z[linked == 1], True, theta=self.theta
            ) + forward_forward_loss(z[linked == 0], False, theta=self.theta)
        return F.binary_cross_entropy_with_logits(link_logits(h, pairs), linked.to(h))

    @property
    def _stack(self) -> list[LocalGraphLayer]:
        return list(self.layers)  # type: ignore[arg-type]

    def _states(self, data: Any) -> TopToInput:
        return TopToInput(self._stack, data.x, data.edge_index, self.hidden_channels, None)

    def _fit_together(
        self, train_data: Any, val_data: Any, schedule: Schedule
    ) -> list[LayerHistory]:
        judge = None if val_data is None else self._states(val_data)

        def loss(h: Tensor) -> Tensor:
            return self.layer_loss(h, train_data)

        def area() -> float:
            assert judge is not None
            scores: list[Tensor] = []
            pairs = val_data.edge_label_index
            judge.infer(lambda j, h: scores.append(self.layer_scores(h, pairs)))
            return area_under_curve(torch.stack(scores).mean(0), val_data.edge_label)

        score = None if judge is None else area
        return fit_together(self._stack, self._states(train_data), loss, score, schedule)

    def _check(self, name: str, data: Any, labelled: bool) -> None:
        needed = ["x", "edge_index", "edge_label_index", *(["edge_label"] if labelled else [])]
        for attribute in needed:
            if getattr(data, attribute, None) is None:
                raise ValueError(f"{name}: no {attribute} given, {', '.join(needed)} expected")
        check_features(data.x, data.edge_index, self.in_channels)
        check_edges("edge_label_index", data.edge_label_index, len(data.x))
        if not labelled:
            return
        if data.edge_label.shape != data.edge_label_index.shape[1:]:
            raise ValueError(
                f"{name}: edge_label of shape {tuple(data.edge_label.shape)} given, "
                f"({data.edge_label_index.shape[1]},) expected"
            )
        values = sorted(data.edge_label.unique().tolist())
        if values != [0, 1]:
            raise ValueError(f"{name}: edge_label of values {values} given, 0 and 1 expected")


class _LinkLayer:
    """One layer on one graph and its pairs."""

    def __init__(
        self,
        model: ForwardLinkPredictor,
        layer: LocalGraphLayer,
        prepared: Prepared,
        data: Any,
        earlier: Tensor | float = 0.0,
    ) -> None:
        self.model, self.layer, self.prepared, self.data = model, layer, prepared, data
        self.earlier = earlier

    def loss(self) -> Tensor:
        return self.model.layer_loss(self.layer.respond(self.prepared), self.data)

    @torch.no_grad()
    def response(self) -> Tensor:
        """At unit length, the input of the next layer."""
        return row_normalize(self.layer.respond(self.prepared))

    @torch.no_grad()
    def scores(self) -> Tensor:
        h = self.layer.respond(self.prepared)
        return self.earlier + self.model.layer_scores(h, self.data.edge_label_index)

    def area(self) -> float:
        return area_under_curve(self.scores(), self.data.edge_label)


def area_under_curve(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve: how often a link scores above a pair without one, ties half.

    Example:
        >>> area_under_curve(torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([1, 1, 0, 0]))
        0.875
    """
    positive, negative = scores[labels == 1], scores[labels == 0].sort()[0]
    below = torch.searchsorted(negative, positive, right=False)
    not_above = torch.searchsorted(negative, positive, right=True)
    return ((below + not_above).double().mean() / (2 * len(negative))).item()
