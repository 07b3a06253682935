"""What puts a causal sequence mixer where attention stood.

A recurrence, a scan or a causal convolution maps x (batch, length, dim) to the same shape, reads
from left to right and cannot do otherwise. The `ATTENTION` slot calls its layers with a mask and a
flag. `CausalMixer` takes that call and refuses what a mixer would have to ignore.
"""

from jaxtyping import Float
from torch import Tensor, nn


class CausalMixer(nn.Module):
    """A layer `forward(x)` that is causal by itself, called as the `ATTENTION` slot calls.

    Args:
        layer: maps (batch, length, dim) to (batch, length, dim); the output at a position depends
            on the inputs up to there.
        position: what the slot was asked for. A mixer knows the order of its inputs, so that there
            is nothing to do for "rotary" or None; it has no logits to which "alibi" could be added.

    Raises:
        ValueError: `position` is neither "rotary" nor None.

    Example:
        >>> import torch
        >>> from heterodox.attention import DeltaNet
        >>> mixer = CausalMixer(DeltaNet(32, num_heads=4))
        >>> mixer(torch.randn(2, 10, 32), is_causal=True).shape
        torch.Size([2, 10, 32])
    """

    def __init__(self, layer: nn.Module, *, position: str | None = None) -> None:
        super().__init__()
        if position not in ("rotary", None):
            raise ValueError(
                f"position: {position!r} given, 'rotary' or None expected, as "
                f"{type(layer).__name__} has no logits"
            )
        self.layer = layer

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "batch length dim"]:
        """The layer's output; padding on the right needs no mask, as nothing on the left sees it.

        Raises:
            ValueError: the call is not causal, or has a mask.
        """
        if not is_causal:
            raise ValueError(
                f"is_causal: False given, True expected, as {type(self.layer).__name__} reads from "
                "left to right"
            )
        if attn_mask is not None:
            raise ValueError(
                f"attn_mask: shape {tuple(attn_mask.shape)} given, None expected, as "
                f"{type(self.layer).__name__} has no pairs of positions to hide"
            )
        return self.layer(x)
