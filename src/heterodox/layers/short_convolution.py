"""Short causal convolution: each channel mixes its last few inputs, before a sequence mixer.

    y_t = f(Σ_{i<k} w_{k-1-i} x_{t-i}),   x_t = 0 for t < 1

One filter a channel, kernel 4 in most recurrent language models, f = SiLU or nothing. Used by H3
(arXiv 2212.14052), Mamba (arXiv 2312.00752) and DeltaNet (arXiv 2406.06484). Time O(length · k).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ShortConvolution(nn.Module):
    """A causal depthwise convolution without bias, whose last inputs can be carried over.

    Args:
        channels: of the input; each has a filter of its own.
        kernel_size: how many inputs a filter reads, the newest last; 4 in DeltaNet.
        activation: "silu" or None.

    Raises:
        ValueError: a size is not positive, or the activation is another.

    Example:
        >>> convolution = ShortConvolution(8, kernel_size=4)
        >>> x = torch.randn(2, 10, 8)
        >>> start, state = convolution(x[:, :6], return_state=True)
        >>> end = convolution(x[:, 6:], state)
        >>> torch.allclose(torch.cat((start, end), 1), convolution(x), atol=1e-6)
        True
    """

    def __init__(
        self, channels: int, kernel_size: int = 4, *, activation: str | None = None
    ) -> None:
        super().__init__()
        for name, size in (("channels", channels), ("kernel_size", kernel_size)):
            if size < 1:
                raise ValueError(f"{name}: {size} given, a positive number expected")
        if activation not in ("silu", None):
            raise ValueError(f"activation: {activation!r} given, 'silu' or None expected")
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size))
        bound = kernel_size**-0.5  # as nn.Conv1d starts
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(
        self,
        x: Float[Tensor, "batch length channels"],
        state: Float[Tensor, "batch past channels"] | None = None,
        return_state: bool = False,
    ) -> (
        Float[Tensor, "batch length channels"]
        | tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch past channels"]]
    ):
        """Convolves `x`; given the `state` of an earlier part of the sequence, goes on from there.

        The state is the last kernel_size - 1 inputs.

        Raises:
            ValueError: `x` or `state` has another shape.
        """
        channels, _, kernel = self.weight.shape
        if x.ndim != 3 or x.shape[2] != channels:
            raise ValueError(
                f"x: shape {tuple(x.shape)} given, (batch, length, {channels}) expected"
            )
        past = (len(x), kernel - 1, channels)
        if state is None:
            state = x.new_zeros(past)
        elif state.shape != past:
            raise ValueError(f"state: shape {tuple(state.shape)} given, {past} expected")
        inputs = torch.cat((state.to(x.dtype), x), dim=1)
        output = F.conv1d(inputs.mT, self.weight, groups=channels).mT
        output = F.silu(output) if self.activation else output
        return (output, inputs[:, x.shape[1] :]) if return_state else output

    def extra_repr(self) -> str:
        channels, _, kernel = self.weight.shape
        return f"{channels}, kernel_size={kernel}, activation={self.activation!r}"
