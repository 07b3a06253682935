"""The Z-loss and its family: losses that see the outputs only through (o_c, Σ_k o_k, Σ_k o_k²).

    Z-loss             softplus(a (b − z)) / a,   z = (o_c − μ) / σ
    squared error      Σ o² − 2 o_c + 1
    Taylor softmax     −log (1 + o_c + o_c²/2) / (D + Σ o + Σ o²/2)
    spherical softmax  −log (o_c² + ε) / (Σ o² + D ε)

for the outputs o of D classes and the target c, with μ = Σ o / D and σ² = Σ o² / D − μ².
de Brébisson and Vincent, "The Z-loss: a shift and scale invariant classification loss belonging to
the Spherical Family", 2016, arXiv 1604.08859; Taylor and spherical softmax from their arXiv
1511.05042 (ICLR 2016). On outputs that are there already they take time and memory of
cross-entropy. What the family is made for is `FactoredSphericalLinear`, which never computes them.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from heterodox.losses.factored_spherical import FactoredSphericalLinear
from heterodox.losses.targets import check_indices, check_range

__all__ = [
    "FactoredSphericalLinear",
    "ZLoss",
    "spherical_softmax_from_statistics",
    "spherical_softmax_loss",
    "spherical_squared_from_statistics",
    "spherical_squared_loss",
    "spherical_statistics",
    "taylor_softmax_from_statistics",
    "taylor_softmax_loss",
    "z_loss",
]


def z_loss(
    input: Float[Tensor, "*logits"],
    target: Int[Tensor, "*targets"],
    a: float = 1.0,
    b: float = 0.0,
    reduction: str = "mean",
    eps: float = 1e-12,
    *,
    class_dim: int = -1,
    ignore_index: int = -100,
) -> Float[Tensor, "*loss"]:
    """The Z-loss: a softplus of the target's z-score among the outputs.

    It does not change when the outputs are shifted, or scaled by a positive number. float16 and
    bfloat16 are computed in float32.

    Args:
        input: logits, classes last.
        target: class indices, shaped as `input` without its class dimension.
        a: sharpness, positive. In the limit the loss is max(0, b − z). The paper tunes a and b for
            each metric and states no default; 1 and 0 are the authors' code's.
        b: the z-score beyond which the penalty fades; z is at most √(D − 1). A larger b asks for
            larger margins, which favours the top-1 error; a smaller one the top-k errors.
        reduction: "mean" (over targets that count), "sum" or "none".
        eps: added to σ, as in the authors' code.
        class_dim: where the classes are; 1 for the (N, C, d1, ...) of `F.cross_entropy`.
        ignore_index: a target that does not count.

    Returns:
        The loss. Outputs that are all alike, up to rounding, have no z-score: it counts as 0, and
        their gradient is 0. An output that is not finite gives NaN.

    Raises:
        ValueError: `a` or `eps` is not positive, `b` is not finite, logits are integers, there are
            fewer than two classes, shapes disagree, `reduction` is unknown, or a target is out of
            range (checked on the CPU; on a GPU torch's own assertion fails).

    Example:
        >>> z_loss(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0]))  # z = √1.5
        tensor(0.2576)
    """
    _check_shape_of_z(a, b, eps)
    logits, index, counted = _prepared(input, target, reduction, class_dim, ignore_index, least=2)
    mean = logits.mean(-1, keepdim=True)
    deviations = logits - mean
    variance = deviations.square().mean(-1)
    noise = (4 * torch.finfo(logits.dtype).eps * mean.squeeze(-1)).square()
    chosen = deviations.gather(-1, index[..., None]).squeeze(-1)
    loss = _of_z(_z_score(chosen, variance, noise, eps), a, b)
    return _reduced(loss, counted, reduction).to(_dtype_of_loss(input))


def taylor_softmax_loss(
    input: Float[Tensor, "*logits"],
    target: Int[Tensor, "*targets"],
    reduction: str = "mean",
    *,
    class_dim: int = -1,
    ignore_index: int = -100,
) -> Float[Tensor, "*loss"]:
    """−log of the Taylor softmax, the exponential cut after its second order; arXiv 1511.05042.

    Arguments, and what is raised, as for `z_loss`. A single class has the loss 0.

    Example:
        >>> taylor_softmax_loss(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0]))  # log 4 / 2.5
        tensor(0.4700)
    """
    logits, index, counted = _prepared(input, target, reduction, class_dim, ignore_index)
    loss = taylor_softmax_from_statistics(*_statistics(logits, index), logits.shape[-1])
    return _reduced(loss, counted, reduction).to(_dtype_of_loss(input))


def spherical_softmax_loss(
    input: Float[Tensor, "*logits"],
    target: Int[Tensor, "*targets"],
    eps: float = 0.1,
    reduction: str = "mean",
    *,
    class_dim: int = -1,
    ignore_index: int = -100,
) -> Float[Tensor, "*loss"]:
    """−log of the spherical softmax, probabilities in proportion to o² + ε; arXiv 1511.05042.

    Arguments, and what is raised, as for `z_loss`. A single class has the loss 0.

    Args:
        eps: positive. The default is our choice; we could not read the authors'.

    Example:
        >>> spherical_softmax_loss(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0]))
        tensor(0.7376)
    """
    _check_positive("eps", eps)
    logits, index, counted = _prepared(input, target, reduction, class_dim, ignore_index)
    loss = spherical_softmax_from_statistics(*_statistics(logits, index), logits.shape[-1], eps)
    return _reduced(loss, counted, reduction).to(_dtype_of_loss(input))


def spherical_squared_loss(
    input: Float[Tensor, "*logits"],
    target: Int[Tensor, "*targets"],
    reduction: str = "mean",
    *,
    class_dim: int = -1,
    ignore_index: int = -100,
) -> Float[Tensor, "*loss"]:
    """The squared distance of the outputs to the one-hot target, summed over classes.

    Arguments, and what is raised, as for `z_loss`.

    Example:
        >>> spherical_squared_loss(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0]))
        tensor(1.)
    """
    logits, index, counted = _prepared(input, target, reduction, class_dim, ignore_index)
    loss = spherical_squared_from_statistics(*_statistics(logits, index), logits.shape[-1])
    return _reduced(loss, counted, reduction).to(_dtype_of_loss(input))


def spherical_statistics(
    input: Float[Tensor, "*batch classes"], target: Int[Tensor, "*batch"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """What a spherical loss sees of the outputs: o_c, Σ_k o_k and Σ_k o_k².

    float16 and bfloat16 are summed in float32, and returned so.

    Raises:
        ValueError: logits are integers, shapes disagree, or a target is out of range.

    Example:
        >>> spherical_statistics(torch.tensor([[1.0, 0.0, -2.0]]), torch.tensor([2]))
        (tensor([-2.]), tensor([-1.]), tensor([5.]))
    """
    logits, index, _ = _prepared(input, target, "none", -1, None)
    return _statistics(logits, index)


class ZLoss(nn.Module):
    """`z_loss` as a module, and from statistics that a `FactoredSphericalLinear` computes.

    Arguments as for `z_loss`.

    Example:
        >>> loss = ZLoss(a=0.3, b=4.0)
        >>> logits, target = torch.randn(8, 50), torch.randint(50, (8,))
        >>> from_outputs = loss(logits, target)
        >>> from_sums = loss.from_statistics(*spherical_statistics(logits, target), 50)
        >>> torch.allclose(from_outputs, from_sums)
        True
    """

    def __init__(
        self, a: float = 1.0, b: float = 0.0, reduction: str = "mean", eps: float = 1e-12
    ) -> None:
        super().__init__()
        _check_shape_of_z(a, b, eps)
        _check_reduction(reduction)
        self.a, self.b, self.reduction, self.eps = a, b, reduction, eps

    def forward(
        self, input: Float[Tensor, "*batch classes"], target: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*loss"]:
        return z_loss(input, target, self.a, self.b, self.reduction, self.eps)

    def from_statistics(
        self,
        target_output: Float[Tensor, "*batch"],
        total: Float[Tensor, "*batch"],
        square_total: Float[Tensor, "*batch"],
        num_classes: int,
    ) -> Float[Tensor, "*loss"]:
        """The loss from o_c, Σ o and Σ o² of `num_classes` outputs.

        The variance is a difference here. What of it is below rounding counts as 0, so outputs far
        from 0 with a small spread lose precision.

        Raises:
            ValueError: fewer than two classes.
        """
        if num_classes < 2:
            raise ValueError(f"num_classes: {num_classes} given, at least 2 expected")
        mean = total / num_classes
        square = square_total / num_classes
        noise = 4 * torch.finfo(square.dtype).eps * square
        z = _z_score(target_output - mean, square - mean.square(), noise, self.eps)
        return _reduced(_of_z(z, self.a, self.b), None, self.reduction)

    def extra_repr(self) -> str:
        return f"a={self.a}, b={self.b}, reduction={self.reduction!r}"


def taylor_softmax_from_statistics(
    target_output: Float[Tensor, "*batch"],
    total: Float[Tensor, "*batch"],
    square_total: Float[Tensor, "*batch"],
    num_classes: int,
) -> Float[Tensor, "*batch"]:
    """`taylor_softmax_loss` of each example, from o_c, Σ o and Σ o²."""
    chosen = 1 + target_output + target_output.square() / 2
    return (num_classes + total + square_total / 2).log() - chosen.log()


def spherical_softmax_from_statistics(
    target_output: Float[Tensor, "*batch"],
    total: Float[Tensor, "*batch"],
    square_total: Float[Tensor, "*batch"],
    num_classes: int,
    eps: float = 0.1,
) -> Float[Tensor, "*batch"]:
    """`spherical_softmax_loss` of each example, from o_c and Σ o²; Σ o is not used."""
    return (square_total + num_classes * eps).log() - (target_output.square() + eps).log()


def spherical_squared_from_statistics(
    target_output: Float[Tensor, "*batch"],
    total: Float[Tensor, "*batch"],
    square_total: Float[Tensor, "*batch"],
    num_classes: int,
) -> Float[Tensor, "*batch"]:
    """`spherical_squared_loss` of each example, from o_c and Σ o²; the rest is not used."""
    return square_total - 2 * target_output + 1


def _z_score(deviation: Tensor, variance: Tensor, noise: Tensor, eps: float) -> Tensor:
    """deviation / (σ + eps), and 0 without a gradient where the variance is rounding noise."""
    variance = variance.where(variance.isfinite(), torch.nan)  # else an overflow gave z = 0
    alike = variance <= noise
    sigma = torch.where(alike, 1.0, variance).sqrt()
    return torch.where(alike, 0.0, deviation / (sigma + eps))


def _of_z(z: Tensor, a: float, b: float) -> Tensor:
    # The threshold is where softplus becomes linear: torch's 20 would show in float64.
    return F.softplus(b - z, beta=a, threshold=40.0)


def _statistics(logits: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    chosen = logits.gather(-1, index[..., None]).squeeze(-1)
    return chosen, logits.sum(-1), logits.square().sum(-1)


def _prepared(
    input: Tensor,
    target: Tensor,
    reduction: str,
    class_dim: int,
    ignore_index: int | None,
    least: int = 1,
) -> tuple[Tensor, Int[Tensor, "*batch"], Bool[Tensor, "*batch"] | None]:
    """Logits with classes last in at least float32, indices to gather with, and which count."""
    _check_reduction(reduction)
    if not input.is_floating_point():
        raise ValueError(f"input: {input.dtype} given, floating-point logits expected")
    if not -input.dim() <= class_dim < max(input.dim(), 0):
        raise ValueError(
            f"input: shape {tuple(input.shape)} given, one with a dimension {class_dim} expected"
        )
    logits = input.movedim(class_dim, -1)
    classes = logits.shape[-1]
    if classes < least:
        raise ValueError(f"input: {classes} classes given, at least {least} expected")
    if target.shape != logits.shape[:-1]:
        raise ValueError(
            f"target: shape {tuple(target.shape)} given, {tuple(logits.shape[:-1])} expected"
        )
    check_indices(target)
    index, counted = target.long(), None
    if ignore_index is not None:
        counted = index != ignore_index
        index = index.where(counted, 0)
    check_range(index, classes)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), index, counted


def _reduced(loss: Tensor, counted: Tensor | None, reduction: str) -> Tensor:
    if counted is not None:
        loss = loss.where(counted, 0.0)
    if reduction == "none":
        return loss
    if reduction == "mean" and counted is not None:
        return loss.sum() / counted.sum()
    return loss.mean() if reduction == "mean" else loss.sum()


def _dtype_of_loss(input: Tensor) -> torch.dtype:
    """That of the input; under autocast at least float32, as with `F.cross_entropy`."""
    device = input.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.promote_types(input.dtype, torch.float32) if autocast else input.dtype


def _check_shape_of_z(a: float, b: float, eps: float) -> None:
    _check_positive("a", a)
    _check_positive("eps", eps)
    if not math.isfinite(b):
        raise ValueError(f"b: {b} given, a finite number expected")


def _check_positive(name: str, given: float) -> None:
    if not 0 < given < math.inf:
        raise ValueError(f"{name}: {given} given, a positive number expected")


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: {reduction!r} given, 'mean', 'sum' or 'none' expected")
