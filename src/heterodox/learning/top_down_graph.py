"""Layers of a graph that learn together and hear from the layers above, without gradients between.

"Top to input": a layer's input is [s below, s above], states of the last time step at unit length;
even layers move first, then odd ones with the new even states. "Top to loss": a layer's output is
averaged with the states of the layers above it before it is judged.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from heterodox.learning.forward_forward import row_normalize
from heterodox.learning.graph_context import top_down_embedding
from heterodox.learning.local_graph_layer import LocalGraphLayer

# Inference of "top to input": time steps, and the first one that counts.
TIME_STEPS, FIRST_COUNTED = 10, 2

Listener = Callable[[int, Tensor], object]
"""`(j, response)`: called as layer j responds, which it may then change by the response's loss."""


class TopToInput:
    """States of layers that see the layer below and the layer above.

    Args:
        layers: the convolution of layer j takes state j − 1 beside state j + 1.
        x: features, the state below the first layer.
        edges: of the graph.
        width: of every state.
        top: what the last layer sees above itself; None if it sees nothing there.
    """

    def __init__(
        self,
        layers: Sequence[LocalGraphLayer],
        x: Tensor,
        edges: Tensor,
        width: int,
        top: Tensor | None,
    ) -> None:
        self.layers, self.width = layers, width
        self.graphs = [layer.on(edges) for layer in layers]
        self.features = row_normalize(x)
        self.top = None if top is None else row_normalize(top)
        # Features never change, nor does what the first convolution makes of them.
        self.lowest = self.graphs[0].prepare(self.features)
        self.states: list[Tensor] = []
        self.start()

    @torch.no_grad()
    def start(self) -> None:
        """One pass upwards, in which nothing is seen above."""
        self.states = []
        for j in range(len(self.layers)):
            upper = self.top
            if j + 1 < len(self.layers):
                upper = self.features.new_empty(len(self.features), self.width)
            nothing = None if upper is None else torch.zeros_like(upper)
            self.states.append(row_normalize(self._response(j, nothing)))

    def move(self, listen: Listener, known: Tensor | None = None) -> None:
        """One time step. `known` is what the features add in the first layer, see `infer`."""
        for first in (0, 1):
            for j in range(first, len(self.layers), 2):
                h = self._response(j, self._above(j), known if j == 0 else None)
                listen(j, h)
                self.states[j] = row_normalize(h.detach())

    @torch.no_grad()
    def infer(self, count: Listener) -> None:
        """Starts anew, makes ten steps and calls `count` from the third on; then the states are as
        they were."""
        kept = self.states
        self.start()
        first, known = self.layers[0], None
        if first.is_linear and self._above(0) is not None:
            known = first.term(self.lowest)
        for step in range(TIME_STEPS):
            self.move(count if step >= FIRST_COUNTED else _ignore, known)
        self.states = kept

    def _above(self, j: int) -> Tensor | None:
        return self.states[j + 1] if j + 1 < len(self.layers) else self.top

    def _response(self, j: int, upper: Tensor | None, known: Tensor | None = None) -> Tensor:
        layer, graph = self.layers[j], self.graphs[j]
        if known is not None and upper is not None:
            return layer.respond(graph.prepare(upper), known, self.features.shape[1])
        lower = self.lowest if j == 0 else graph.prepare(self.states[j - 1])
        return layer.respond(lower if upper is None else lower.beside(graph.prepare(upper)))


class TopToLoss:
    """States of layers whose outputs are judged together with the states above them.

    Args:
        layers: of one width.
        x: features, the state below the first layer.
        edges: of the graph.
    """

    def __init__(self, layers: Sequence[LocalGraphLayer], x: Tensor, edges: Tensor) -> None:
        self.layers = layers
        self.graphs = [layer.on(edges) for layer in layers]
        self.lowest = self.graphs[0].prepare(row_normalize(x))
        with torch.no_grad():
            self.states = [row_normalize(h) for h in self._upwards()]

    def move(self, listen: Listener) -> None:
        """One time step, in which all layers see the states of the last one."""
        states = []
        for j in range(len(self.layers)):
            h = self._response(j, self.states)
            listen(j, top_down_embedding(h, self.states[j + 1 :]))
            states.append(row_normalize(h.detach()))
        self.states = states

    @torch.no_grad()
    def infer(self, count: Listener) -> None:
        """One pass upwards, then each layer's output with the states above it."""
        responses = self._upwards()
        states = [row_normalize(h) for h in responses]
        for j, h in enumerate(responses):
            count(j, top_down_embedding(h, states[j + 1 :]))

    def _upwards(self) -> list[Tensor]:
        responses: list[Tensor] = []
        states: list[Tensor] = []
        for j in range(len(self.layers)):
            responses.append(self._response(j, states))
            states.append(row_normalize(responses[-1]))
        return responses

    def _response(self, j: int, states: Sequence[Tensor]) -> Tensor:
        below = self.lowest if j == 0 else self.graphs[j].prepare(states[j - 1])
        return self.layers[j].respond(below)


def _ignore(j: int, h: Tensor) -> None:
    pass
