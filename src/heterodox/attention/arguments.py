"""What attention functions and layers accept: the ValueErrors that they share."""

import torch
from torch import Tensor, nn


def check_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    enable_gqa: bool,
) -> None:
    """The arguments of `torch.nn.functional.scaled_dot_product_attention`, on four axes."""
    if query.ndim != 4:
        raise ValueError(
            f"query: shape {tuple(query.shape)} given, (batch, heads, queries, head_dim) expected"
        )
    batch, heads, num_queries, head_dim = query.shape
    kv_heads = heads
    if enable_gqa and key.ndim == 4 and key.shape[1] and heads % key.shape[1] == 0:
        kv_heads = key.shape[1]
    if key.ndim != 4 or key.shape != (batch, kv_heads, key.shape[2], head_dim):
        raise ValueError(
            f"key: shape {tuple(key.shape)} given, ({batch}, {kv_heads}, keys, {head_dim}) expected"
            + (f", or a divisor of {heads} heads" if enable_gqa else "")
        )
    num_keys = key.shape[2]
    if value.ndim != 4 or value.shape[:3] != key.shape[:3]:
        raise ValueError(
            f"value: shape {tuple(value.shape)} given, ({batch}, {kv_heads}, {num_keys}, "
            "value_dim) expected"
        )
    for name, tensor in (("key", key), ("value", value)):
        if (tensor.dtype, tensor.device) != (query.dtype, query.device):
            raise ValueError(
                f"{name}: {tensor.dtype} on {tensor.device} given, query's {query.dtype} on "
                f"{query.device} expected"
            )
    check_dropout("dropout_p", dropout_p)
    if attn_mask is not None:
        check_mask(attn_mask, (batch, heads, num_queries, num_keys), query.device)


def check_mask(attn_mask: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """A boolean or floating mask that broadcasts to the shape of the weights."""
    if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
        raise ValueError(f"attn_mask: {attn_mask.dtype} given, boolean or floating expected")
    sizes = zip(reversed(attn_mask.shape), reversed(shape), strict=False)
    fits = attn_mask.ndim <= len(shape) and all(size in (1, full) for size, full in sizes)
    if not fits or attn_mask.device != device:
        raise ValueError(
            f"attn_mask: shape {tuple(attn_mask.shape)} on {attn_mask.device} given, one that "
            f"broadcasts to {shape} on {device} expected"
        )


def check_dropout(name: str, dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"{name}: {dropout} given, a number in [0, 1) expected")


def check_heads(embed_dim: int, num_heads: int) -> None:
    if num_heads < 1:
        raise ValueError(f"num_heads: {num_heads} given, a positive number expected")
    if embed_dim < 1 or embed_dim % num_heads:
        raise ValueError(
            f"embed_dim: {embed_dim} given, a positive multiple of num_heads = {num_heads} expected"
        )


def check_layer_input(x: Tensor, projection: nn.Linear) -> None:
    """The argument `x` of a layer's forward, which `projection` reads."""
    if x.ndim != 3 or x.shape[2] != projection.in_features:
        raise ValueError(
            f"x: shape {tuple(x.shape)} given, (batch, length, {projection.in_features}) expected"
        )
