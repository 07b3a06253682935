"""How well outputs predict, whatever loss they were trained with.

A loss that is the −log of probabilities is evaluated as it is. The Z-loss and the squared error say
nothing of probabilities: their outputs o get those of softmax(β o), for the Z-loss softmax(β z) of
the z-scores, with the β that suits some training text best. That is one number, for all words.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from heterodox.losses import LOSSES
from heterodox.models.transformer import token_losses

CALIBRATION_TOKENS = 256

Likelihood = Callable[[Tensor, Tensor], Tensor]
"""`(outputs, targets)` -> mean negative log-likelihood in nats."""

PROBABILISTIC = ("stablemax", "taylor-softmax", "spherical-softmax")


def likelihood_of(loss: str | Callable[..., Tensor]) -> Likelihood:
    """The negative log-likelihood under the distribution that a loss trains, which for a loss that
    is not ours is taken to be softmax. A `CalibratedSoftmax` has to be fitted before.

    Example:
        >>> likelihood_of("spherical-squared")
        CalibratedSoftmax(sharpness=1)
    """
    for name in PROBABILISTIC:
        if loss in (name, LOSSES[name]):
            return LOSSES[name]
    if loss in ("z-loss", LOSSES["z-loss"]):
        return CalibratedSoftmax(standardised=True)
    if loss in ("spherical-squared", LOSSES["spherical-squared"]):
        return CalibratedSoftmax(standardised=False)
    return F.cross_entropy


def likelihood_of_output(output: str | Callable[..., Tensor]) -> Likelihood:
    """The same for the output layers of `heterodox.models.factored_output`; a loss that is not ours
    is taken to be a Z-loss of other margins."""
    return likelihood_of(output) if isinstance(output, str) else CalibratedSoftmax(True)


def calibrate(likelihood: Likelihood, model: nn.Module, tokens: Tensor, length: int) -> None:
    """Fits a `CalibratedSoftmax` to the start of a text in windows of `length`; leaves others."""
    if isinstance(likelihood, CalibratedSoftmax):
        count = min(max(1, CALIBRATION_TOKENS // length), (len(tokens) - 1) // length)
        inputs, targets = tokens[: count * length], tokens[1 : count * length + 1]
        device = next(model.parameters()).device
        with torch.no_grad():
            outputs = model(inputs.view(count, length).to(device)).flatten(0, 1)
        likelihood.fit(outputs, targets.to(device))


@torch.no_grad()
def window_loss(
    model: nn.Module,
    tokens: Tensor,
    length: int,
    loss: Callable[..., Tensor],
    tokens_at_once: int,
) -> float:
    """Mean loss over the targets of `tokens`, cut into windows of `length` side by side.

    What does not fill a window is left out at the end. Each target is predicted once.
    """
    device = next(model.parameters()).device
    count = (len(tokens) - 1) // length
    inputs = tokens[: count * length].view(count, length)
    targets = tokens[1 : count * length + 1].view(count, length)
    rows = max(1, tokens_at_once // length)
    total = 0.0
    for x, y in zip(inputs.split(rows), targets.split(rows), strict=True):
        total += token_losses(model, x.to(device), y.to(device), loss).item() * len(x)
    return total / count


class CalibratedSoftmax:
    """−log softmax(β o), or of z-scores in place of o, with a fitted β.

    Args:
        standardised: whether outputs are brought to mean 0 and deviation 1, each row for itself.

    Example:
        >>> likelihood = CalibratedSoftmax(standardised=True)
        >>> outputs, targets = torch.tensor([[5.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 0])
        >>> likelihood.fit(outputs, targets)  # one right, one wrong: nothing is known
        >>> likelihood(outputs, targets)
        tensor(0.6931)
    """

    def __init__(self, standardised: bool) -> None:
        self.standardised = standardised
        self.sharpness = 1.0

    def __call__(
        self, outputs: Float[Tensor, "rows classes"], targets: Int[Tensor, "rows"]
    ) -> Float[Tensor, ""]:
        return F.cross_entropy(self.sharpness * self._scores(outputs), targets)

    @torch.no_grad()
    def fit(self, outputs: Float[Tensor, "rows classes"], targets: Int[Tensor, "rows"]) -> None:
        """Finds the β of the least loss, which is convex in β, between 1e-3 and 1e3 over the
        deviation of the scores; NaN if an output is not finite."""
        scores = self._scores(outputs)
        unit = float(scores.std(correction=0)) or 1.0
        if not math.isfinite(unit):
            self.sharpness = math.nan
            return
        found = minimize_scalar(
            lambda log_beta: float(F.cross_entropy(math.exp(log_beta) / unit * scores, targets)),
            bounds=(math.log(1e-3), math.log(1e3)),
            options={"xatol": 1e-2},
        )
        self.sharpness = math.exp(found.x) / unit

    def _scores(self, outputs: Tensor) -> Tensor:
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        if not self.standardised:
            return outputs
        centred = outputs - outputs.mean(-1, keepdim=True)
        deviation = centred.square().mean(-1, keepdim=True).sqrt()
        return centred / deviation.clamp(min=1e-12)

    def __repr__(self) -> str:
        return f"CalibratedSoftmax(sharpness={self.sharpness:g})"


def top_error(
    outputs: Float[Tensor, "rows classes"], targets: Int[Tensor, "rows"], k: int
) -> Float[Tensor, ""]:
    """Share of rows whose target is not among the k largest outputs; a tie, or NaN, counts as one.

    Example:
        >>> outputs = torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
        >>> top_error(outputs, torch.tensor([1, 0]), k=2)
        tensor(0.5000)
    """
    least = (outputs >= outputs.gather(1, targets[:, None])).sum(1)
    return 1 - ((least >= 1) & (least <= k)).float().mean()
