"""An attention function with its options, as the replacement layers call it."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.attention import ATTENTION_FUNCTIONS
from heterodox.attention.masks import ADDITIVE, as_boolean


@dataclass(frozen=True)
class AttentionMethod:
    """An entry of `ATTENTION_FUNCTIONS` with the options of a swap."""

    name: str
    function: Callable[..., Tensor]
    options: dict[str, Any]
    follows_the_number_of_keys: bool

    @staticmethod
    def options_of(name: str) -> list[str]:
        """The options of a name of `ATTENTION_FUNCTIONS`; ValueError if it is none."""
        function = ATTENTION_FUNCTIONS[name]
        if name == ATTENTION_FUNCTIONS.default:  # a builtin without a signature, and no options
            return []
        return [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "enable_gqa"
        ]

    @classmethod
    def make(
        cls, name: str, sequence_length: int | None, options: dict[str, Any]
    ) -> "AttentionMethod":
        function, known = ATTENTION_FUNCTIONS[name], cls.options_of(name)
        for option in options:
            if option not in known:
                expected = f"one of {', '.join(known)}" if known else "no option"
                raise ValueError(
                    f"{option}: not an option of {name} attention, {expected} expected"
                )
        if sequence_length is not None:
            if "bias" not in known:
                raise ValueError(
                    f"sequence_length: {sequence_length} given, but {name} attention has no bias "
                    "that depends on it; None expected"
                )
            if "bias" in options:
                raise ValueError("sequence_length: given together with bias, one of them expected")
            if sequence_length < 1:
                raise ValueError(
                    f"sequence_length: {sequence_length} given, a positive number expected"
                )
            options = {**options, "bias": -math.log(sequence_length)}
        follows = "bias" in known and options.get("bias") is None
        return cls(name, function, dict(options), follows)

    def __call__(
        self,
        query: Float[Tensor, "batch heads length head_dim"],
        key: Float[Tensor, "batch heads keys head_dim"],
        value: Float[Tensor, "batch heads keys head_dim"],
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
    ) -> Float[Tensor, "batch heads length head_dim"]:
        if attn_mask is not None and self.name not in ADDITIVE:
            attn_mask = as_boolean(attn_mask)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(query.dtype)
        return self.function(query, key, value, attn_mask, dropout_p, is_causal, **self.options)

    def try_out(self, num_heads: int, head_dim: int, like: Tensor) -> None:
        """Raises the function's own ValueError if its options or these sizes are impossible."""
        x = torch.zeros(1, num_heads, 2, head_dim, dtype=like.dtype, device=like.device)
        with torch.no_grad():
            self(x, x, x)

    def __str__(self) -> str:
        options = ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.options.items()
        )
        return f"{self.name} attention" + (f" ({options})" if options else "")


def take_over(replacement: nn.Module, layer: nn.Module) -> None:
    """Gives `replacement` the very state of `layer`: tensors, submodules, hooks and attributes."""
    vars(replacement).update(vars(layer))
    vars(replacement).pop("_compiled_call_impl", None)  # would run the predecessor's forward
