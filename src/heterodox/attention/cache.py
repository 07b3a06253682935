"""Decoding with a cache: softmax attention of new tokens over all that were read before.

    o_t = softmax(q_t K_≤tᵀ / √d) V_≤t,   K_≤t and V_≤t kept and extended by one row a token

Time O(length · head_dim) a token in place of O(length²) for reading everything again. The result
is that of the layer's own causal call on the whole sequence.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from heterodox.attention.arguments import check_layer_input
from heterodox.attention.position import alibi_bias, alibi_slopes, apply_rotary
from heterodox.attention.softmax import SoftmaxAttention


class KeyValueCache:
    """Keys and values of one layer, in buffers that double when they are full.

    Example:
        >>> cache = KeyValueCache()
        >>> keys, values = cache.append(torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 3, 8))
        >>> keys, values = cache.append(torch.ones(2, 4, 1, 8), torch.ones(2, 4, 1, 8))
        >>> keys.shape, cache.length
        (torch.Size([2, 4, 4, 8]), 4)
    """

    def __init__(self) -> None:
        self.length = 0
        self._buffers: tuple[Tensor, Tensor] | None = None

    def append(
        self,
        key: Float[Tensor, "batch heads new head_dim"],
        value: Float[Tensor, "batch heads new head_dim"],
    ) -> tuple[
        Float[Tensor, "batch heads length head_dim"], Float[Tensor, "batch heads length head_dim"]
    ]:
        """All keys and values, with the new ones at the end."""
        start, self.length = self.length, self.length + key.shape[2]
        if self._buffers is None or self._buffers[0].shape[2] < self.length:
            old = self._buffers
            shape = (*key.shape[:2], 2 * self.length, key.shape[3])
            self._buffers = key.new_empty(shape), value.new_empty(shape)
            if old is not None:
                for buffer, before in zip(self._buffers, old, strict=True):
                    buffer[:, :, :start] = before[:, :, :start]
        keys, values = self._buffers
        keys[:, :, start : self.length] = key
        values[:, :, start : self.length] = value
        return keys[:, :, : self.length], values[:, :, : self.length]

    def reorder(self, rows: Int[Tensor, "new_batch"]) -> None:
        """Row i becomes what row `rows[i]` was; there may be more rows than before, or fewer."""
        if self._buffers is not None:
            keys, values = self._buffers
            self._buffers = keys[rows], values[rows]


def cached_softmax_attention(
    layer: SoftmaxAttention,
    x: Float[Tensor, "batch new embed_dim"],
    cache: KeyValueCache,
) -> Float[Tensor, "batch new embed_dim"]:
    """What the causal `layer` gives for the tokens that come next after those in `cache`.

    For inference: without dropout, and without gradients through the cache.

    Args:
        layer: rotary positions, ALiBi, a window, QK-norm and log n all count from the first token.
        x: the new tokens, already normalised as the layer expects.
        cache: is extended.

    Raises:
        ValueError: `x` has another shape.

    Example:
        >>> layer, cache = SoftmaxAttention(32, 4, position="rotary"), KeyValueCache()
        >>> x = torch.randn(2, 10, 32)
        >>> with torch.no_grad():
        ...     parts = [cached_softmax_attention(layer, part, cache) for part in x.split(4, dim=1)]
        >>> torch.allclose(torch.cat(parts, dim=1), layer(x, is_causal=True), atol=1e-5)
        True
    """
    check_layer_input(x, layer.qkv)
    new, before = x.shape[1], cache.length
    query, key, value = layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key = layer.q_norm(query), layer.k_norm(key)
    if layer.log_n:
        seen = torch.arange(before + 1, before + new + 1, device=x.device)
        seen = seen if layer.window is None else seen.clamp(max=layer.window)
        query = query * seen.log()[:, None].to(query.dtype)
    if layer.position == "rotary":
        query, key = apply_rotary(torch.stack((query, key)), before)
    keys, values = cache.append(key, value)
    mask: Tensor | None = None
    if new > 1 or layer.window is not None:
        mask = _visible(new, cache.length, layer.window, x.device)
    if layer.position == "alibi":
        penalty = alibi_bias(alibi_slopes(layer.num_heads, x.device), new, cache.length)
        mask = penalty if mask is None else penalty.masked_fill(~mask, -torch.inf)
        mask = mask.to(query.dtype)
    output = F.scaled_dot_product_attention(query, keys, values, mask)
    return layer.proj(output.transpose(1, 2).flatten(2))


def _visible(
    queries: int, keys: int, window: int | None, device: torch.device
) -> Bool[Tensor, "queries keys"]:
    """The last queries of a causal square, with keys up to `window` places back."""
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return seen if window is None else seen.triu(keys - queries - window + 1)
