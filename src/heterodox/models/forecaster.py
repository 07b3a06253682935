"""A decoder that reads a series as bins and predicts the distribution over the next value's bins.

The pre-norm transformer of `heterodox.models.transformer` with an open output layer: tokens are
bins of a real quantity in their order, as in Chronos (Ansari et al., 2024, arXiv 2403.07815).
"""

from collections.abc import Callable, Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from heterodox.layers import HEADS
from heterodox.layers.fourier_head import FourierHead
from heterodox.models.transformer import AttentionFactory, DecoderLM

HeadFactory = Callable[[int, int], nn.Module]
"""`(in_features, out_features) -> Module`, from features to logits; see `layers.heads`."""


class Forecaster(nn.Module):
    """A causal transformer over the bins of a series.

    Args:
        bins: of a value, at least 2.
        width, layers, heads, length, attention, position: see `DecoderLM`.
        head: name in `HEADS`, or a factory.

    Raises:
        ValueError: as `DecoderLM` and the head.

    Example:
        >>> import torch
        >>> model = Forecaster(50, width=16, layers=1, heads=2, length=8, head="fourier")
        >>> logits, penalty = model(torch.randint(50, (4, 8)), last=3)
        >>> logits.shape
        torch.Size([4, 3, 50])
    """

    def __init__(
        self,
        bins: int,
        width: int,
        layers: int,
        heads: int,
        length: int,
        *,
        head: str | HeadFactory = "linear",
        attention: str | AttentionFactory | Sequence[str | AttentionFactory] = "softmax",
        position: str = "rotary",
    ) -> None:
        super().__init__()
        self.decoder = DecoderLM(
            bins,
            width,
            layers,
            heads,
            length,
            attention=attention,
            position=position,
            tie_embeddings=False,
        )
        self.decoder.readout = nn.Identity()  # type: ignore[assignment]
        self.head = (HEADS[head] if isinstance(head, str) else head)(width, bins)

    def forward(
        self, tokens: Int[Tensor, "batch length"], last: int
    ) -> tuple[Float[Tensor, "batch last bins"], Float[Tensor, ""]]:
        """Logits of what follows each of the `last` tokens, and the head's penalty: γ R of a
        Fourier head, 0 of others."""
        hidden = self.decoder(tokens)[:, -last:]
        if isinstance(self.head, FourierHead):
            return self.head(hidden, return_penalty=True)
        return self.head(hidden), hidden.new_zeros(())
