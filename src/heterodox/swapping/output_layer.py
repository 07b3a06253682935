"""Another output layer in an existing model, found by name or as Hugging Face names it.

Unlike attention, an output layer starts anew: its weights mean something else. The penalty of a
Fourier head is no part of the loss that a model computes itself; `head_penalties` hands it out.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from heterodox.layers import HEADS
from heterodox.layers.fourier_head import FourierHead, fourier_penalty
from heterodox.layers.gaussian_mixture_head import GaussianMixtureHead

OUTPUT_LAYERS = (nn.Linear, FourierHead, GaussianMixtureHead)


def options_of_head(head: str) -> tuple[str, ...]:
    """The options of a name of `HEADS`; ValueError if it is none."""
    parameters = inspect.signature(HEADS[head]).parameters.values()
    options = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return tuple(name for name in options if name not in ("device", "dtype"))


@dataclass(frozen=True)
class HeadSwap:
    """An output layer and what takes its place; nothing has changed yet.

    Attributes:
        names: where the layer is in the model.
        old, new: the layers.
        says: the new one, for the report.
    """

    names: tuple[str, ...]
    old: nn.Module
    new: nn.Module
    says: str

    @classmethod
    def make(
        cls, model: nn.Module, head: str, name: str | None, options: dict[str, Any]
    ) -> "HeadSwap":
        known = options_of_head(head)
        for option in options:
            if option not in known:
                raise ValueError(
                    f"{option}: not an option of the {head} head, one of {', '.join(known)} "
                    "expected"
                )
        old = _output_layer(model, name)
        places = model.named_modules(remove_duplicate=False)
        names = tuple(place for place, module in places if module is old)
        if "" in names:
            raise ValueError(
                f"model: a {type(model).__name__} itself given, a model that contains it expected, "
                "because it is replaced in its parent"
            )
        weight = next(old.parameters())
        new = HEADS[head](
            old.in_features,
            old.out_features,
            **options,
            device=weight.device,
            dtype=weight.dtype,
        ).train(old.training)
        settings = ", ".join(f"{option}={value}" for option, value in options.items())
        return cls(names, old, new, f"{head} head" + (f" ({settings})" if settings else ""))

    def put_into(self, model: nn.Module) -> list[str]:
        """Replaces the layer; returns what else was changed or should be known."""
        notes = self._untie(model)
        for name in self.names:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, self.new)
        name = self.names[0]
        notes.append(f"{name}: its weights are new, for the optimizer too")
        if not isinstance(self.new, nn.Linear):
            notes.append(f"{name}: classes are bins, in their order")
        if isinstance(self.new, FourierHead) and self.new.regularization:
            notes.append(
                f"{name}: its penalty is in no loss that the model computes; "
                "heterodox.swapping.head_penalties gives it"
            )
        return notes

    def _untie(self, model: nn.Module) -> list[str]:
        """Takes note of weights that the old layer shared, which stay with the others."""
        mine = {id(parameter) for parameter in self.old.parameters()}
        shared = [
            parameter_name
            for parameter_name, parameter in model.named_parameters(remove_duplicate=False)
            if id(parameter) in mine and not parameter_name.startswith(self._prefixes())
        ]
        if not shared:
            return []
        note = f"{self.names[0]}: untied from {', '.join(shared)}"
        for name in self.names:
            for ancestor, below in _ancestors(model, name):
                if _forget_the_tie(ancestor, below):
                    note += "; tie_word_embeddings set to False in the model's config"
        return [note]

    def _prefixes(self) -> tuple[str, ...]:
        return tuple(f"{name}." for name in self.names)


@contextmanager
def head_penalties(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside the `with` block, every call of a Fourier head in `model` adds γ R to a list.

    For models that call their output layer themselves, and compute a loss that does not know of the
    penalty. The head's linear layer is computed once more.

    Raises:
        ValueError: `model` has no Fourier head.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10))
        >>> from heterodox.swapping import swap
        >>> _ = swap(model, head="fourier", name="2", num_frequencies=3, regularization=1e-6)
        >>> with head_penalties(model) as penalties:
        ...     logits = model(torch.randn(5, 4))
        >>> loss = nn.functional.cross_entropy(logits, torch.arange(5)) + sum(penalties)
        >>> len(penalties)
        1
    """
    heads = [module for module in model.modules() if isinstance(module, FourierHead)]
    if not heads:
        raise ValueError(
            f"model: a {type(model).__name__} without a Fourier head given, one with it expected"
        )
    penalties: list[Tensor] = []

    def note(head: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any], logits: Any) -> None:
        input = args[0] if args else kwargs["input"]
        penalties.append(head.regularization * fourier_penalty(head.coefficients(input)))

    handles = [head.register_forward_hook(note, with_kwargs=True) for head in heads]
    try:
        yield penalties
    finally:
        for handle in handles:
            handle.remove()


def _output_layer(model: nn.Module, name: str | None) -> Any:
    """The layer called `name`, or what Hugging Face's `get_output_embeddings` returns."""
    linear = [place for place, module in model.named_modules() if isinstance(module, nn.Linear)]
    listed = f"; its linear layers are {', '.join(linear)}" if linear else ""
    if name is None:
        getter = getattr(model, "get_output_embeddings", None)
        layer = getter() if callable(getter) else None
        if layer is None:
            raise ValueError(
                f"name: None given, the name of the output layer of a {type(model).__name__} "
                f"expected{listed}"
            )
    else:
        try:
            layer = model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(
                f"name: {name!r} given, the name of a submodule expected{listed}"
            ) from error
    if not isinstance(layer, OUTPUT_LAYERS):
        raise ValueError(
            f"name: {name!r} is a {type(layer).__name__}, an nn.Linear or another head "
            f"expected{listed}"
        )
    if not next(layer.parameters()).is_floating_point():
        raise ValueError(f"name: {name!r} has quantised weights, floating-point ones expected")
    return layer


def _ancestors(model: nn.Module, name: str) -> Iterator[tuple[nn.Module, str]]:
    """The modules around the one called `name`, each with the name that it has inside of them."""
    parts = name.split(".")
    for depth in range(len(parts)):
        yield model.get_submodule(".".join(parts[:depth])), ".".join(parts[depth:])


def _forget_the_tie(ancestor: nn.Module, name: str) -> bool:
    """Keeps a Transformers model from tying the weights of `name` again; whether it would have."""
    tied_keys = getattr(ancestor, "all_tied_weights_keys", None)
    if isinstance(tied_keys, dict):
        for key in [key for key in tied_keys if key.startswith(f"{name}.")]:
            del tied_keys[key]
    config: Any = getattr(ancestor, "config", None)
    text_config: Any = getattr(config, "get_text_config", lambda: None)()
    tied = [c for c in (config, text_config) if getattr(c, "tie_word_embeddings", False)]
    for each in tied:
        each.tie_word_embeddings = False
    return bool(tied)
