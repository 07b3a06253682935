"""Distillation from stored soft labels of image crops, corrected where the teacher is unsure.

    L = Σ_i w_i (−Σ_c y_ic log softmax(z_i / τ)_c) / Σ_i w_i

    y = p                                   T_L ≤ conf(p) ≤ T_H, what the teacher said of the crop
    y = 1 − ε on the true class, ε / (C − 1) elsewhere      conf(p) < T_L, where it is unsure
    y = p                                   conf(p) > T_H, by default

The labels are made once and kept on disk: `SoftLabelBank`. A crop that is discarded has w = 0 and
does not count. Shen, "FerKD: Surgical Label Adaptation for Efficient Distillation", ICCV 2023,
arXiv 2312.17473, on top of Shen and Xing, FKD, ECCV 2022, arXiv 2112.01528. The repository of FerKD
holds weights and soft labels, no training code: thresholds, ε and SelfMix's form are a
reconstruction; loss, bank and compression are those of FKD's code. Time and memory O(crops ·
classes); `compressed_cross_entropy` goes without dense labels.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from heterodox.losses.mixing import self_mix
from heterodox.losses.soft_label_bank import SoftLabelBank
from heterodox.losses.soft_labels import (
    SoftLabels,
    calibrate_soft_labels,
    check_probabilities,
    compress_soft_labels,
    filled_in,
    recover_soft_labels,
)

__all__ = [
    "FerKDLoss",
    "SoftLabelBank",
    "SoftLabels",
    "calibrate_soft_labels",
    "compress_soft_labels",
    "compressed_cross_entropy",
    "recover_soft_labels",
    "self_mix",
    "soft_cross_entropy",
]


def soft_cross_entropy(
    input: Float[Tensor, "rows classes"],
    target: Float[Tensor, "rows classes"],
    temperature: int | float = 1.0,
    weight: Shaped[Tensor, "rows"] | None = None,
    reduction: str = "mean",
) -> Float[Tensor, "*loss"]:
    """Cross-entropy with probabilities, each row with a weight of its own.

    Half precision is computed in float32. A mean over rows that all weigh nothing, or over no rows,
    is 0 and has a gradient of 0.

    Args:
        input: logits z.
        target: probabilities y, rows of sum 1. Their values are looked at on a CPU only: on an
            accelerator that would wait for it in every step.
        temperature: τ of the student. The loss is not multiplied by τ².
        weight: w, not negative, numbers or booleans. None is 1 for every row.
        reduction: "mean" is the weighted mean, "sum" the weighted sum, "none" each row times its
            weight.

    Raises:
        ValueError: shapes disagree, rows of `target` are no probabilities, a weight is negative or
            NaN (looked at on a CPU only), `temperature` is not positive, or `reduction` is none of
            the three.

    Example:
        >>> logits, target = torch.zeros(2, 4), torch.full((2, 4), 0.25)
        >>> soft_cross_entropy(logits, target, weight=torch.tensor([True, False]))  # log 4
        tensor(1.3863)
    """
    _check(input, temperature, weight, reduction)
    if target.shape != input.shape:
        raise ValueError(
            f"target: shape {tuple(target.shape)} given, {tuple(input.shape)} expected"
        )
    if target.device.type == "cpu":
        check_probabilities("target", target)
    logits = _logits(input, temperature)
    losses = -(target.to(logits) * logits.log_softmax(-1)).sum(-1)
    return _reduced(losses, weight, reduction).to(input.dtype)


def compressed_cross_entropy(
    input: Float[Tensor, "rows classes"],
    soft_labels: SoftLabels,
    how: str = "smooth",
    temperature: int | float = 1.0,
    weight: Shaped[Tensor, "rows"] | None = None,
    reduction: str = "mean",
) -> Float[Tensor, "*loss"]:
    """`soft_cross_entropy(input, recover_soft_labels(soft_labels, how), ...)` without the rows that
    it recovers: −Σ_kept y_j log p_j − r Σ_other log p_c, with r what each other class gets. Labels
    get no gradient.

    Args:
        input, temperature, weight, reduction: as for `soft_cross_entropy`.
        soft_labels: one row for each of `input`.
        how: as for `recover_soft_labels`.

    Raises:
        ValueError: as for `soft_cross_entropy` and `recover_soft_labels`.

    Example:
        >>> logits = torch.randn(3, 100)
        >>> labels = compress_soft_labels(torch.randn(3, 100).softmax(-1), k=5)
        >>> dense = soft_cross_entropy(logits, recover_soft_labels(labels))
        >>> torch.allclose(compressed_cross_entropy(logits, labels), dense)
        True
    """
    _check(input, temperature, weight, reduction)
    if len(soft_labels.values) != len(input) or soft_labels.num_classes != input.shape[1]:
        given = (len(soft_labels.values), soft_labels.num_classes)
        raise ValueError(f"soft_labels: {given} given, {tuple(input.shape)} expected")
    logits = _logits(input, temperature)
    compressed = soft_labels._replace(values=soft_labels.values.detach().to(logits))
    kept, other = filled_in(compressed, how)
    indices = soft_labels.indices.to(logits.device).long()
    losses = _CompressedCrossEntropy.apply(logits, kept, other, indices)
    return _reduced(losses, weight, reduction).to(input.dtype)


class FerKDLoss(nn.Module):
    """The student's loss: `soft_cross_entropy`, or `compressed_cross_entropy` for labels as stored.

    Args:
        temperature: τ of the student; 1 in FKD and FerKD.

    Raises:
        ValueError: `temperature` is not positive.

    Example:
        >>> loss = FerKDLoss()
        >>> loss(torch.randn(8, 10), torch.randn(8, 10).softmax(-1)).shape
        torch.Size([])
    """

    def __init__(self, temperature: int | float = 1.0) -> None:
        super().__init__()
        _check_temperature(temperature)
        self.temperature = temperature

    def forward(
        self,
        input: Float[Tensor, "rows classes"],
        target: Float[Tensor, "rows classes"] | SoftLabels,
        weight: Shaped[Tensor, "rows"] | None = None,
    ) -> Float[Tensor, ""]:
        """The weighted mean over rows, such as the crops of a batch flattened.

        Args:
            input: logits.
            target: dense or compressed soft labels, calibrated and mixed before.
            weight: whether, or how much, each row counts.
        """
        if isinstance(target, SoftLabels):
            options: dict[str, Any] = {"temperature": self.temperature, "weight": weight}
            return compressed_cross_entropy(input, target, **options)
        return soft_cross_entropy(input, target, self.temperature, weight)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class _CompressedCrossEntropy(torch.autograd.Function):
    """−Σ_kept y_j log p_j − r Σ_other log p_c, and its gradient m p − y, in place of autograd's
    passes over a dense y. Labels get no gradient, and there is no second derivative."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, kept: Tensor, other: Tensor, indices: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1)
        at_kept = log_p.gather(1, indices)
        ctx.save_for_backward(log_p, kept, other, indices)
        return -(kept * at_kept).sum(-1) - other[:, 0] * (log_p.sum(-1) - at_kept.sum(-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        log_p, kept, other, indices = ctx.saved_tensors
        grad = grad[:, None]
        mass = kept.sum(-1, keepdim=True) + (log_p.shape[1] - kept.shape[1]) * other
        logits_grad = log_p.exp().mul_(grad * mass).sub_(grad * other)
        return logits_grad.scatter_add_(1, indices, grad * (other - kept)), None, None, None


def _logits(input: Tensor, temperature: int | float) -> Tensor:
    logits = input.to(torch.promote_types(input.dtype, torch.float32))
    return logits if temperature == 1 else logits / temperature


def _reduced(losses: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    if weight is not None:
        weight = weight.to(losses)
        # Not a product alone: a row that does not count may be infinite.
        losses = torch.where(weight > 0, losses * weight, 0.0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if weight is None:
        return losses.sum() / max(1, len(losses))
    total = weight.sum()
    return losses.sum() / torch.where(total > 0, total, 1.0)


def _check(input: Tensor, temperature: int | float, weight: Tensor | None, reduction: str) -> None:
    if input.ndim != 2:
        raise ValueError(f"input: shape {tuple(input.shape)} given, (rows, classes) expected")
    _check_temperature(temperature)
    if weight is not None and weight.shape != input.shape[:1]:
        raise ValueError(f"weight: shape {tuple(weight.shape)} given, ({len(input)},) expected")
    if weight is not None and weight.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = weight[~(weight >= 0)]
        if len(wrong):
            raise ValueError(f"weight: {float(wrong[0])} given, numbers of at least 0 expected")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: {reduction!r} given, 'mean', 'sum' or 'none' expected")


def _check_temperature(temperature: int | float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: {temperature} given, a positive number expected")
