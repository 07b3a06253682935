"""The losses that gradient boosting descends: start, pseudo-residuals, Newton step, probabilities.

    squared      (y - F)²                   r = y - F                 F₀ = mean(y)
    binary       ln(1 + e^(-2yF)), y = ±1   r = 2y / (1 + e^(2yF))    F₀ = ½ ln((1 + ȳ) / (1 - ȳ))
    multiclass   -Σ Y F + logsumexp F       r = Y - softmax(F)        F₀ = 0

with Y one-hot. r is -∂L/∂F, and half of it for the squared loss. The Newton step along f is
ρ = Σ r f / Σ h f² with the diagonal h of ∂²L/∂F²; it is 1 for the squared loss, whose pieces are
fitted to r itself. Emami and Martínez-Muñoz, "Sequential Training of Neural Networks with Gradient
Boosting", IEEE Access 11, 2023, arXiv 1909.12098, section III; F₀ = 0 for several classes is that
of the authors' code.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logsumexp, softmax

Scores = Float[np.ndarray, "samples *outputs"]
PerSample = Float[np.ndarray, "samples"]

# Below this sum of curvatures a piece has nothing to add.
FLAT = 1e-12


class SquaredLoss:
    """For regression; y and F are (samples,) or (samples, targets)."""

    def initial(self, y: Scores) -> Float[np.ndarray, "*outputs"]:
        return np.asarray(y.mean(axis=0))

    def residual(self, y: Scores, F: Scores) -> Scores:
        return y - F

    def newton_step(self, y: Scores, F: Scores, f: Scores) -> float:
        return 1.0 if np.square(f).sum() >= FLAT else 0.0

    def loss(self, y: Scores, F: Scores) -> PerSample:
        return np.square(y - F).reshape(len(y), -1).sum(axis=1)


class BinaryLoss:
    """For two classes; y is -1 or +1, F is half the logit of +1."""

    def initial(self, y: PerSample) -> Float[np.ndarray, ""]:
        mean = y.mean()
        return np.asarray(0.5 * np.log((1 + mean) / (1 - mean)))

    def residual(self, y: PerSample, F: PerSample) -> PerSample:
        return 2 * y * expit(-2 * y * F)

    def newton_step(self, y: PerSample, F: PerSample, f: PerSample) -> float:
        r = self.residual(y, F)
        return _quotient((r * f).sum(), (np.square(f) * r * (2 * y - r)).sum())

    def loss(self, y: PerSample, F: PerSample) -> PerSample:
        return np.logaddexp(0, -2 * y * F)

    def probability(self, F: PerSample) -> PerSample:
        """Of +1."""
        return expit(2 * F)


class MulticlassLoss:
    """For several classes; y is one-hot, F are logits."""

    def initial(self, y: Scores) -> Float[np.ndarray, "*outputs"]:
        return np.zeros(y.shape[1:])

    def residual(self, y: Scores, F: Scores) -> Scores:
        return y - softmax(F, axis=-1)

    def newton_step(self, y: Scores, F: Scores, f: Scores) -> float:
        p = softmax(F, axis=-1)
        return _quotient((f * (y - p)).sum(), (np.square(f) * p * (1 - p)).sum())

    def loss(self, y: Scores, F: Scores) -> PerSample:
        return logsumexp(F, axis=-1) - (y * F).sum(axis=-1)

    def probability(self, F: Scores) -> Scores:
        return softmax(F, axis=-1)


BoostingLoss = SquaredLoss | BinaryLoss | MulticlassLoss

_LOSSES: dict[str, type[BoostingLoss]] = {
    "squared": SquaredLoss,
    "binary": BinaryLoss,
    "multiclass": MulticlassLoss,
}


def boosting_loss(kind: Literal["squared", "binary", "multiclass"]) -> BoostingLoss:
    """The loss of this name.

    Raises:
        ValueError: `kind` is none of these.

    Example:
        >>> import numpy as np
        >>> loss = boosting_loss("binary")
        >>> y = np.array([1.0, 1.0, 1.0, -1.0])
        >>> round(float(loss.probability(loss.initial(y))), 6)
        0.75
    """
    if kind not in _LOSSES:
        raise ValueError(f"kind: {kind!r} given, one of {', '.join(_LOSSES)} expected")
    return _LOSSES[kind]()


def _quotient(numerator: float, denominator: float) -> float:
    """0 where there is no curvature to divide by, or no finite quotient."""
    if not denominator >= FLAT:
        return 0.0
    quotient = float(numerator / denominator)
    return quotient if np.isfinite(quotient) else 0.0
