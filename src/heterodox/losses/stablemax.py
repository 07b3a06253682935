"""StableMax: softmax with its exponential replaced by a function that grows linearly.

    s(x) = x + 1 for x ≥ 0,  1 / (1 − x) for x < 0,      StableMax(z)_k = s(z_k) / Σ_j s(z_j)
    s(x) = exp g(x),  g(x) = sign(x) log(1 + |x|),       StableMax(z) = softmax(g(z))

Prieto et al., "Grokking at the Edge of Numerical Stability", ICLR 2025, arXiv 2501.04697,
section 4. The second line is the way to its logarithm: every loss of softmax becomes one of
StableMax by g. Time and memory of softmax and a few elementwise operations.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn


def stablemax(input: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """StableMax along `dim`: positive and of sum 1, like softmax.

    Unlike softmax it depends on the origin of the logits: adding a constant to all of them changes
    the result. An entry of −inf gets exactly 0, a slice of nothing else gets zeros, and gradients
    stay finite there, so that it can be used with masks. float16 and bfloat16 are computed in
    float32. A sum of s beyond the largest number of the dtype gives zeros.

    Args:
        input: logits, any shape.
        dim: the dimension that sums to 1.

    Example:
        >>> stablemax(torch.tensor([1.0, 0.0, -1.0, -torch.inf]), dim=0)
        tensor([0.5714, 0.2857, 0.1429, 0.0000])
    """
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    # Both branches of s at once: the first term is x or 0, the second 1 or 1 / (1 - x). The slope
    # at 0 is 1 whatever relu's is taken to be, and no branch that is not taken has a pole at 1.
    positive = x.relu()
    s = positive + (1 + (positive - x)).reciprocal()
    total = s.sum(dim, keepdim=True)
    return (s / total.masked_fill(total == 0, 1.0)).to(input.dtype)


def log_stablemax(input: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """The logarithm of `stablemax`, as log_softmax(g(input)): finite for every finite input.

    float16 and bfloat16 are computed in float32. A slice of −inf alone gives NaN, as with
    `torch.log_softmax`.

    Args:
        input: logits, any shape.
        dim: the dimension whose exponentials sum to 1.

    Example:
        >>> log_stablemax(torch.tensor([1.0, 0.0, -1.0]), dim=0).exp()
        tensor([0.5714, 0.2857, 0.1429])
    """
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    return torch.log_softmax(_log_s(x), dim).to(input.dtype)


def stablemax_cross_entropy(
    input: Float[Tensor, "*logits"],
    target: Shaped[Tensor, "*targets"],
    weight: Float[Tensor, "classes"] | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    compute_dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "*loss"]:
    """−log StableMax(input)_target, with the contract of `torch.nn.functional.cross_entropy`.

    Args:
        input: logits (classes,), (batch, classes) or (batch, classes, d1, ..., dk).
        target: class indices, shaped as `input` without its class dimension, or class
            probabilities, shaped as `input`.
        weight: a factor for each class.
        ignore_index: the class index that does not count; only for class indices.
        reduction: "mean", "sum" or "none".
        label_smoothing: in [0, 1], the share of the uniform distribution in the target.
        compute_dtype: the type the loss is computed in; float64 in the authors' code, whatever the
            type of the model. float32 takes its place on MPS, which has no float64. It costs
            memory: 8 bytes for each logit, a few times.

    Returns:
        The loss in the type of `input` (float32 under autocast, as with `cross_entropy`).

    Raises:
        ValueError: the shapes disagree, `reduction` is none of the three, `label_smoothing` is out
            of [0, 1], or `compute_dtype` is no floating type.

    Example:
        >>> logits = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> stablemax_cross_entropy(logits, torch.tensor([0, 1]))  # (log 5/4 + log 3/2) / 2
        tensor(0.3143)
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: {reduction!r} given, 'mean', 'sum' or 'none' expected")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing: {label_smoothing} given, a number in [0, 1] expected")
    if not (isinstance(compute_dtype, torch.dtype) and compute_dtype.is_floating_point):
        raise ValueError(f"compute_dtype: {compute_dtype} given, a floating torch.dtype expected")
    if input.dim() == 0:
        raise ValueError("input: a scalar given, at least the class dimension expected")
    class_dim = min(1, input.dim() - 1)
    without_classes = input.shape[:class_dim] + input.shape[class_dim + 1 :]
    if target.shape not in (without_classes, input.shape):
        raise ValueError(
            f"target: shape {tuple(target.shape)} given, {tuple(without_classes)} for class "
            f"indices or {tuple(input.shape)} for class probabilities expected"
        )
    if weight is not None and weight.shape != input.shape[class_dim : class_dim + 1]:
        raise ValueError(
            f"weight: shape {tuple(weight.shape)} given, ({input.shape[class_dim]},) expected"
        )

    if input.device.type == "mps" and compute_dtype == torch.float64:
        compute_dtype = torch.float32
    loss = F.cross_entropy(
        _log_s(input.to(compute_dtype)),
        target.to(compute_dtype) if target.is_floating_point() else target,
        weight=None if weight is None else weight.to(compute_dtype),
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    device = input.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return loss.to(torch.promote_types(input.dtype, torch.float32) if autocast else input.dtype)


class StableMaxCrossEntropyLoss(nn.Module):
    """`stablemax_cross_entropy` as a module; arguments by the names of `nn.CrossEntropyLoss`.

    Example:
        >>> loss = StableMaxCrossEntropyLoss(label_smoothing=0.1)
        >>> loss(torch.randn(8, 5), torch.randint(5, (8,))).shape
        torch.Size([])
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Float[Tensor, "classes"] | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        compute_dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.compute_dtype = compute_dtype

    def forward(
        self, input: Float[Tensor, "*logits"], target: Shaped[Tensor, "*targets"]
    ) -> Float[Tensor, "*loss"]:
        return stablemax_cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            compute_dtype=self.compute_dtype,
        )

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, compute_dtype={self.compute_dtype}"


def _log_s(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """g(x) = sign(x) log(1 + |x|), with g'(0) = 1, which abs and sign would make 0."""
    sign = torch.ones_like(x).copysign(x.detach())
    return sign * (sign * x).log1p()
