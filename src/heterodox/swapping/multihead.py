"""The replacement of `nn.MultiheadAttention`: the same call, another attention inside."""

import functools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.swapping.method import AttentionMethod, take_over


class SwappedMultiheadAttention(nn.Module):
    """The state of an `nn.MultiheadAttention` with another attention between its projections.

    Called like its predecessor, with the same masks. The second element of what it returns is
    None also with `need_weights=True`: the methods do not store their weights.
    """

    in_proj_weight: Tensor | None
    in_proj_bias: Tensor | None
    q_proj_weight: Tensor
    k_proj_weight: Tensor
    v_proj_weight: Tensor
    out_proj: nn.Linear
    bias_k: Tensor | None
    add_zero_attn: bool
    num_heads: int
    head_dim: int
    dropout: float
    batch_first: bool

    def __init__(
        self, layer: "nn.MultiheadAttention | SwappedMultiheadAttention", method: AttentionMethod
    ) -> None:
        super().__init__()
        for argument, given in (
            ("add_bias_kv", layer.bias_k is not None),
            ("add_zero_attn", layer.add_zero_attn),
        ):
            if given:
                raise ValueError(
                    f"{argument}: True given in a {type(layer).__name__}, False expected"
                )
        method.try_out(layer.num_heads, layer.head_dim, layer.out_proj.weight)
        take_over(self, layer)
        self.method = method
        # nn.TransformerEncoderLayer takes its fused softmax path in eval mode unless this is False.
        self._qkv_same_embed_dim = False

    def forward(
        self,
        query: Float[Tensor, "*batch_length embed_dim"],
        key: Float[Tensor, "*batch_keys key_dim"],
        value: Float[Tensor, "*batch_keys value_dim"],
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Float[Tensor, "*batch_length embed_dim"], None]:
        """As `nn.MultiheadAttention.forward`, whose boolean masks are True where attention is
        forbidden; `is_causal` says that `attn_mask` is the causal mask, as it does there.
        """
        if query.is_nested:
            raise ValueError(
                "query: a nested tensor given, a padded one expected; set use_nested_tensor=False "
                "on the enclosing nn.TransformerEncoder, or swap it as a whole"
            )
        if is_causal and attn_mask is None:
            raise ValueError("attn_mask: None given with is_causal=True, the causal mask expected")
        unbatched = query.dim() == 2
        one_input = query is key and key is value

        def to_heads(x: Tensor) -> Tensor:
            x = x.unsqueeze(0) if unbatched else x if self.batch_first else x.transpose(0, 1)
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        query, key, value = map(to_heads, self._project(query, key, value, one_input))
        if is_causal and key_padding_mask is None:
            attn_mask = None
        else:
            is_causal = False
            attn_mask = _merge_masks(attn_mask, key_padding_mask, query, key)
        dropout = self.dropout if self.training else 0.0
        output = self.method(query, key, value, attn_mask, dropout, is_causal)
        output = self.out_proj(output.transpose(1, 2).flatten(2))
        if unbatched:
            return output.squeeze(0), None
        return output if self.batch_first else output.transpose(0, 1), None

    def _project(
        self, query: Tensor, key: Tensor, value: Tensor, one_input: bool
    ) -> tuple[Tensor, ...]:
        if one_input and self.in_proj_weight is not None:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        weights: tuple[Tensor, ...]
        if self.in_proj_weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        else:
            weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return tuple(map(F.linear, (query, key, value), weights, biases))

    def extra_repr(self) -> str:
        return str(self.method)


def _merge_masks(
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    query: Float[Tensor, "batch heads length head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
) -> Tensor | None:
    """The masks of `nn.MultiheadAttention` as one for `scaled_dot_product_attention`."""
    (batch, heads, length, _), keys = query.shape, key.shape[2]
    masks = []
    if attn_mask is not None:
        if attn_mask.shape not in ((length, keys), (batch * heads, length, keys)):
            raise ValueError(
                f"attn_mask: shape {tuple(attn_mask.shape)} given, {(length, keys)} or "
                f"{(batch * heads, length, keys)} expected"
            )
        masks.append(
            attn_mask.reshape(*((batch, heads) if attn_mask.dim() == 3 else (1, 1)), length, keys)
        )
    if key_padding_mask is not None:
        if key_padding_mask.numel() != batch * keys or key_padding_mask.shape[-1] != keys:
            raise ValueError(
                f"key_padding_mask: shape {tuple(key_padding_mask.shape)} given, "
                f"{(batch, keys)} expected"
            )
        masks.append(key_padding_mask.reshape(batch, 1, 1, keys))
    if not masks:
        return None
    if all(mask.dtype == torch.bool for mask in masks):
        return ~functools.reduce(torch.logical_or, masks)
    return functools.reduce(torch.add, (_additive(mask, query.dtype) for mask in masks))


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
    if not mask.is_floating_point():
        raise ValueError(f"attn_mask: {mask.dtype} given, boolean or floating point expected")
    return mask.to(dtype)
