"""A network with a bottleneck: x -> code t -> prediction, the code without or with noise.

The encoder is x - hidden - hidden - bottleneck with ReLU between, followed by a linear layer to the
code; the decoder is bottleneck - hidden - outputs. It is that of Kolchinsky et al., "Nonlinear
Information Bottleneck", 2019, arXiv 1705.02436, as the code of Yu et al. has it (ICLR 2024, arXiv
2404.17951).
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


class BottleneckMLP(nn.Module):
    """The network, for vectors.

    Args:
        inputs, outputs: dims of x and of the prediction.
        hidden: width of the hidden layers; 128 in the authors' code.
        bottleneck: dim of the code; 128 there.
        noise: "none"; "fixed", normal noise of deviation 1 on the code; or "learned", of a
            deviation that a second linear layer gives for each x. Noise is drawn in training mode
            only.

    Raises:
        ValueError: a size that is not positive, or another `noise`.

    Example:
        >>> model = BottleneckMLP(5, 1, hidden=16, bottleneck=4)
        >>> prediction, code = model(torch.randn(8, 5), return_code=True)
        >>> prediction.shape, code.shape
        (torch.Size([8, 1]), torch.Size([8, 4]))
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int = 128,
        bottleneck: int = 128,
        noise: Literal["none", "fixed", "learned"] = "none",
    ) -> None:
        super().__init__()
        sizes = {"inputs": inputs, "outputs": outputs, "hidden": hidden, "bottleneck": bottleneck}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: {size} given, a positive number expected")
        if noise not in ("none", "fixed", "learned"):
            raise ValueError(f"noise: {noise!r} given, 'none', 'fixed' or 'learned' expected")
        self.bottleneck = bottleneck
        self.noise = noise
        self.encoder = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, bottleneck),
            nn.Linear(bottleneck, 2 * bottleneck if noise == "learned" else bottleneck),
        )
        self.decoder = nn.Sequential(
            nn.Linear(bottleneck, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )

    def encode(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch code"]:
        """The code without noise; with learned noise, means followed by logarithms of variances."""
        return self.encoder(x)

    def decode(self, code: Float[Tensor, "batch code"]) -> Float[Tensor, "batch outputs"]:
        """The prediction, in training mode from a noisy code."""
        mean = code[:, : self.bottleneck]
        if self.training and self.noise == "learned":
            deviation = (code[:, self.bottleneck :] / 2).exp()
            mean = mean + deviation * torch.randn_like(mean)
        elif self.training and self.noise == "fixed":
            mean = mean + torch.randn_like(mean)
        return self.decoder(mean)

    def forward(
        self, x: Float[Tensor, "batch inputs"], return_code: bool = False
    ) -> Float[Tensor, "batch outputs"] | tuple[Tensor, Tensor]:
        """The prediction; with `return_code`, and the code as `encode` gives it."""
        code = self.encode(x)
        prediction = self.decode(code)
        return (prediction, code) if return_code else prediction
