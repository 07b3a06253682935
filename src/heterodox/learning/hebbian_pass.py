"""A layer of a network that learns by the soft Hebbian rule in the middle of a forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from heterodox.learning.hebbian import apply_update_, hebbian_update


class HebbianPass:
    """A forward pass in which a layer learns from its input before it answers.

    If nothing below the layer is adapted by gradients, its answer is kept for the pass after the
    modulator's step, which is then a pass from the next layer on.

    Args:
        lr: η, the largest change of a weight.
        temperature: τ of the competition.

    Example:
        >>> layer = nn.Linear(4, 3).requires_grad_(False)
        >>> model, x = nn.Sequential(layer, nn.Tanh()), torch.rand(5, 4)
        >>> before, first = layer.weight.clone(), HebbianPass(lr=0.01)
        >>> with first.at(layer):
        ...     y = model(x)
        >>> (layer.weight - before).abs().max().round(decimals=4)
        tensor(0.0100)
        >>> with first.answering(layer):  # without asking the layer
        ...     torch.equal(model(x), y)
        True
    """

    def __init__(self, lr: float, temperature: float = 1.0) -> None:
        self.lr = lr
        self.temperature = temperature
        self.calls = 0
        self.answer: Tensor | None = None
        self.version = 0

    @contextmanager
    def at(self, layer: nn.Module) -> Iterator[None]:
        handles = (
            layer.register_forward_pre_hook(self._learn),
            layer.register_forward_hook(self._keep),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def answering(self, layer: nn.Module) -> Iterator[None]:
        # A layer that is called twice, or whose answer was overwritten, has to be asked again.
        answer = self.answer
        if self.calls != 1 or answer is None or answer._version != self.version:
            yield
            return
        layer.forward = lambda x: answer
        try:
            yield
        finally:
            del layer.forward

    @torch.no_grad()
    def _learn(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.calls += 1
        if self.calls == 1:
            change = hebbian_update(layer, inputs[0], self.temperature)
            assert isinstance(layer.weight, Tensor)
            apply_update_(layer.weight, change, self.lr)

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not inputs[0].requires_grad:
            self.answer, self.version = output, output._version


def hebbian_name(model: nn.Module, chosen: str | nn.Module | None) -> str:
    """The name of the layer that learns by the Hebbian rule, after a check that it can.

    Args:
        model: the network.
        chosen: a layer or its name; None is the first registered `nn.Conv2d` or `nn.Linear`.

    Raises:
        ValueError: `model` has no such layer, `chosen` is none or has groups, or its weight is
            computed from others, as by `torch.nn.utils.parametrizations`.

    Example:
        >>> hebbian_name(nn.Sequential(nn.ReLU(), nn.Linear(2, 3)), None)
        '1'
    """
    layers = dict(model.named_modules())
    if chosen is None:
        found = [n for n, layer in layers.items() if isinstance(layer, nn.Conv2d | nn.Linear)]
        if not found:
            raise ValueError("model: no nn.Conv2d or nn.Linear given, at least one expected")
        name = found[0]
    elif isinstance(chosen, str):
        name = chosen
    else:
        name = next((n for n, layer in layers.items() if layer is chosen), "<not in model>")
    layer = layers.get(name)
    if not isinstance(layer, nn.Conv2d | nn.Linear) or getattr(layer, "groups", 1) != 1:
        what = name if layer is None else f"{name}: {layer}"
        raise ValueError(
            f"hebbian_layer: {what!r} given, an nn.Conv2d without groups or an nn.Linear of model "
            "expected"
        )
    if "weight" not in dict(layer.named_parameters(recurse=False)):
        raise ValueError(
            f"hebbian_layer: {name!r} given, a layer whose weight is a plain parameter expected"
        )
    return name
