"""A model whose output layer is a `FactoredSphericalLinear`, as one module that `fit` can train."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from heterodox.losses.factored_spherical import FactoredSphericalLinear
from heterodox.losses.z_loss import (
    ZLoss,
    spherical_softmax_from_statistics,
    spherical_squared_from_statistics,
    taylor_softmax_from_statistics,
)
from heterodox.models.transformer import DecoderLM

FromStatistics = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""`(target_output, total, square_total, num_classes)` -> losses of the examples, or their mean."""

PRECISIONS = ("32-true", "64-true", "bf16-mixed")
"""Of Lightning Fabric; the factors need float32, and a scaled loss would scale the steps."""

OUTPUTS: dict[str, FromStatistics] = {
    # With a = 1 and b = 0 a target that beats the mean would soon be left alone. These margins are
    # ours, found on ten thousand words of the Penn Treebank.
    "z-loss": ZLoss(a=0.1, b=20.0).from_statistics,
    "taylor-softmax": taylor_softmax_from_statistics,
    "spherical-softmax": spherical_softmax_from_statistics,
    "spherical-squared": spherical_squared_from_statistics,
}


def check_output(output: str | FromStatistics, precision: str) -> None:
    """Raises ValueError for a name that is not in `OUTPUTS`, or a precision without float32."""
    if isinstance(output, str) and output not in OUTPUTS:
        raise ValueError(f"output: {output!r} given, one of linear, {', '.join(OUTPUTS)} expected")
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision: {precision!r} given, one of {', '.join(PRECISIONS)} expected with a "
            "factored output"
        )


class FactoredOutput(nn.Module):
    """The body of a network under a factored output layer.

    Called with inputs alone it gives all outputs, for evaluation; with targets the mean loss, whose
    backward pass prepares the step of `output`. `output.follow(optimizer)` makes that step one of
    the optimizer's.

    Args:
        body: from inputs to features (..., width).
        output: of that width.
        loss: spherical, from statistics.

    Example:
        >>> import torch
        >>> from heterodox.losses import ZLoss
        >>> output = FactoredSphericalLinear(8, 1000, learning_rate=0.1)
        >>> model = FactoredOutput(nn.Embedding(1000, 8), output, ZLoss(b=4.0).from_statistics)
        >>> words = torch.randint(1000, (2, 5))
        >>> model(words).shape, model(words, words).shape
        (torch.Size([2, 5, 1000]), torch.Size([]))
    """

    def __init__(
        self, body: nn.Module, output: FactoredSphericalLinear, loss: FromStatistics
    ) -> None:
        super().__init__()
        self.body, self.output, self.loss = body, output, loss

    def forward(
        self, inputs: Int[Tensor, "*inputs"], targets: Int[Tensor, "*targets"] | None = None
    ) -> Float[Tensor, "*outputs"]:
        features = self.body(inputs)
        if targets is None:
            return self.output(features)
        chosen, total, square = self.output.statistics(features, targets)
        return self.loss(chosen, total, square, self.output.num_classes).mean()


def with_factored_output(
    decoder: DecoderLM, output: str | FromStatistics, rate: float
) -> FactoredOutput:
    """The decoder with a factored layer in place of its read-out, which then shares nothing with
    the embedding.

    Args:
        decoder: changed in place.
        output: a name of `OUTPUTS`, or a spherical loss from statistics.
        rate: of the layer.

    Example:
        >>> import torch
        >>> decoder = DecoderLM(5000, width=32, layers=1, heads=2, length=16)
        >>> model = with_factored_output(decoder, "z-loss", rate=3.0)
        >>> model(torch.randint(5000, (4, 16))).shape
        torch.Size([4, 16, 5000])
    """
    readout: Any = decoder.readout
    layer = FactoredSphericalLinear(readout.in_features, readout.out_features, rate)
    decoder.readout = nn.Identity()  # type: ignore[assignment]
    return FactoredOutput(decoder, layer, OUTPUTS[output] if isinstance(output, str) else output)
