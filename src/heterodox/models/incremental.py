"""Reading a sequence piece by piece with a decoder: each token passes through the model once."""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from heterodox.attention.cache import KeyValueCache, cached_softmax_attention
from heterodox.attention.softmax import SoftmaxAttention

if TYPE_CHECKING:
    from heterodox.models.transformer import DecoderLM


class IncrementalDecoder:
    """A `DecoderLM` with the keys and values of what it has read. For inference, in eval mode.

    Args:
        model: with softmax attention in every layer.

    Raises:
        ValueError: a layer mixes the sequence by something else, which keeps no keys and values.

    Example:
        >>> from heterodox.models import DecoderLM
        >>> model = DecoderLM(65, width=32, layers=2, heads=2, length=16).eval()
        >>> tokens = torch.randint(65, (4, 16))
        >>> reader = IncrementalDecoder(model)
        >>> _ = reader.next_logits(tokens[:, :10])
        >>> torch.allclose(reader.next_logits(tokens[:, 10:]), model(tokens)[:, -1], atol=1e-5)
        True
    """

    def __init__(self, model: "DecoderLM") -> None:
        blocks: Any = model.blocks
        for number, block in enumerate(blocks):
            if not isinstance(block.attention, SoftmaxAttention):
                raise ValueError(
                    f"model: {type(block.attention).__name__} in layer {number} given, "
                    "SoftmaxAttention expected, as other layers keep no keys and values"
                )
        self.model = model
        self.blocks = blocks
        self.caches = [KeyValueCache() for _ in blocks]

    @property
    def length(self) -> int:
        """How many tokens have been read."""
        return self.caches[0].length

    @torch.no_grad()
    def next_logits(self, tokens: Int[Tensor, "batch new"]) -> Float[Tensor, "batch vocabulary"]:
        """Reads the tokens that come next; logits after the last of them.

        Raises:
            ValueError: there are none, or learned positions end before the last of them.
        """
        model, start, end = self.model, self.length, self.length + tokens.shape[1]
        if tokens.shape[1] == 0:
            raise ValueError("tokens: length 0 given, at least one token expected")
        x = model.embedding(tokens)
        if model.positions is not None:
            if end > model.length:
                raise ValueError(
                    f"tokens: position {end} given, at most {model.length} expected: learned "
                    "positions end at the training length"
                )
            x = x + model.positions.weight[start:end]
        for block, cache in zip(self.blocks, self.caches, strict=True):
            attended = cached_softmax_attention(block.attention, block.attention_norm(x), cache)
            x = x + block.attention_scale(block.output_norm(attended))
            x = x if block.mlp is None else x + block.mlp_scale(block.mlp(block.mlp_norm(x)))
        return model.readout(model.norm(x[:, -1]))

    def reorder(self, rows: Int[Tensor, "new_batch"]) -> None:
        """Row i becomes what row `rows[i]` has read."""
        for cache in self.caches:
            cache.reorder(rows)
