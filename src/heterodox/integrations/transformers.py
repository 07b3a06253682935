"""Hugging Face Transformers: `register()` makes this library's attention an `attn_implementation`.

    heterodox.integrations.transformers.register()
    model = AutoModelForCausalLM.from_config(config, attn_implementation="heterodox-sigmoid")

What a method needs to know comes from the model's config, never from the tensors of one call,
because a call may hold a whole sequence or one token with a cache:

- `config.heterodox_sequence_length`: sigmoid attention's bias is −log of it. By default it is
  `config.max_position_embeddings`.
- `config.heterodox_power`: the power of softplus attention; 15 by default, as in the paper.
"""

import math
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from heterodox.attention import ATTENTION_FUNCTIONS
from heterodox.attention.masks import ADDITIVE, as_boolean

# What a model may hand to its attention to change what softmax computes.
CHANGES_SOFTMAX = (
    "softcap",
    "s_aux",
    "sinks",
    "position_bias",
    "head_mask",
    "indices",
    "block_indices",
)


def register() -> tuple[str, ...]:
    """Registers this library's attention functions with Transformers, each as "heterodox-" + name.

    Returns:
        The names for `attn_implementation`. Registering twice does no harm.

    Raises:
        ImportError: Transformers is missing or older than 4.53.

    Example:
        >>> register()
        ('heterodox-sigmoid', 'heterodox-softplus', 'heterodox-softplus-lssa', 'heterodox-linear')
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise ImportError(
            "transformers: not found, 4.53 or newer expected; "
            'pip install --upgrade "heterodox[transformers]"'
        ) from error

    names = {
        f"heterodox-{name}": name
        for name in ATTENTION_FUNCTIONS
        if name != ATTENTION_FUNCTIONS.default
    }
    for registered, name in names.items():
        AttentionInterface.register(registered, partial(attention_forward, name))
        # Boolean masks, or None where `is_causal` says the same.
        AttentionMaskInterface.register(registered, AttentionMaskInterface()["sdpa"])
    return tuple(names)


def attention_forward(
    name: str,
    module: nn.Module,
    query: Float[Tensor, "batch heads length head_dim"],
    key: Float[Tensor, "batch kv_heads keys head_dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch length heads value_dim"], None]:
    """The attention `name` as a layer of Transformers calls it.

    `scaling` goes to methods with the logits of softmax; softplus attention, whose logits are
    cosines, has its own, and linear attention has no logits.

    Raises:
        ValueError: the layer asks for attention weights; or for a soft cap, attention sinks, a
            position bias, a head mask or sparse indices; or sigmoid attention does not find the
            length of training sequences in the layer's config.
    """
    for argument in CHANGES_SOFTMAX:
        if kwargs.get(argument) is not None:
            raise ValueError(
                f"{argument}: given by {type(module).__name__}, None expected, because "
                f"heterodox-{name} does not have it"
            )
    if kwargs.get("output_attentions"):
        raise ValueError(
            f"output_attentions: True given, False expected, because heterodox-{name} does not "
            "store its weights"
        )
    if attention_mask is not None:
        attention_mask = attention_mask[..., : key.shape[2]]
        if name not in ADDITIVE:
            attention_mask = as_boolean(attention_mask)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    output = ATTENTION_FUNCTIONS[name](
        query,
        key,
        value,
        attention_mask,
        dropout,
        is_causal and attention_mask is None and query.shape[2] > 1,
        enable_gqa=query.shape[1] != key.shape[1],
        **_options(name, getattr(module, "config", None), scaling),
    )
    return output.transpose(1, 2).contiguous(), None


def _options(name: str, config: Any, scaling: float | None) -> dict[str, Any]:
    if name == "sigmoid":
        return {"scale": scaling, "bias": -math.log(_sequence_length(config))}
    if name == "softplus":
        return {"power": float(getattr(config, "heterodox_power", 15.0))}
    return {}


def _sequence_length(config: Any) -> int:
    names = ("heterodox_sequence_length", "max_position_embeddings", "n_positions")
    for name in names:
        length = getattr(config, name, None)
        if isinstance(length, int) and length > 0:
            return length
    raise ValueError(
        f"heterodox_sequence_length: not in {type(config).__name__}; the number of tokens of a "
        "training sequence expected, which fixes the bias of sigmoid attention"
    )
