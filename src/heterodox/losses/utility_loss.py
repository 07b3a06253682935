"""Utility learning: cross-entropy as the τ = 1 member of a family of losses.

    l_τ(u, a*) = τ log Σ_b exp(u_b / τ) − u_a*,    ∇_u l_τ = softmax(u / τ) − onehot(a*)
    l_1 = cross-entropy,    l_0 = max_b u_b − u_a* = regret,    l_0 ≤ l_τ ≤ l_0 + τ log V

Huang and Fei, "Utility-Probability Duality of Neural Networks", 2023, arXiv 2305.14859, read
maximum likelihood by SGD as learning ordinal utilities: each step raises the utility of the choice
that was made and lowers that of the choice the present policy would make. The second line can be
derived from the first; the name of the family and its temperature are ours.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def utility_learning_loss(
    input: Float[Tensor, "*utilities"],
    target: Int[Tensor, "*targets"],
    temperature: float = 1.0,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Float[Tensor, "*loss"]:
    """τ logsumexp(u / τ) − u_target: raises what was chosen, lowers what the policy would choose.

    At τ = 1 this is `torch.nn.functional.cross_entropy`, at τ = 0 the regret, the perceptron's
    loss; alternatives tied for the maximum then share the gradient. float16 and bfloat16 are
    computed in float32. As with `cross_entropy`, NaN in the input gives NaN, which is what a
    training loop looks for, and an alternative of −inf cannot be chosen and does not count.

    Args:
        input: utilities (classes,), (batch, classes) or (batch, classes, d1, ..., dk).
        target: the chosen alternative, shaped as `input` without its class dimension.
        temperature: τ, 0 or more.
        reduction: "mean", "sum" or "none".
        ignore_index: the target that does not count.

    Raises:
        ValueError: shapes disagree, `temperature` is negative or not finite, `reduction` is none of
            these, there are no classes; or, on a CPU, a target is out of range. On a GPU, where the
            answer would have to be waited for, torch's own assertion reports it.

    Example:
        >>> utilities = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> utility_learning_loss(utilities, torch.tensor([1, 1]), temperature=0.0)
        tensor(1.5000)
    """
    _check_loss(input, target, temperature, reduction, ignore_index)
    class_dim = min(1, input.ndim - 1)
    counted = target != ignore_index
    chosen = torch.where(counted, target, 0).long().unsqueeze(class_dim)
    u = input.to(torch.promote_types(input.dtype, torch.float32))
    # The maximum goes first, so that nothing is lost where the chosen one is near it.
    if temperature == 0:
        below = u - u.amax(class_dim, keepdim=True)
    else:
        below = temperature * (u / temperature).log_softmax(class_dim)
    loss = torch.where(counted, -below.gather(class_dim, chosen).squeeze(class_dim), 0)
    if reduction == "mean":
        loss = loss.sum() / counted.sum()
    elif reduction == "sum":
        loss = loss.sum()
    return loss.to(input.dtype)


def _check_loss(
    input: Tensor, target: Tensor, temperature: float, reduction: str, ignore_index: int
) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: {reduction!r} given, 'mean', 'sum' or 'none' expected")
    check_temperature(temperature)
    if input.ndim == 0:
        raise ValueError("input: a scalar given, at least the class dimension expected")
    class_dim = min(1, input.ndim - 1)
    classes = input.shape[class_dim]
    if classes == 0:
        raise ValueError(f"input: shape {tuple(input.shape)} given, at least one class expected")
    shape = input.shape[:class_dim] + input.shape[class_dim + 1 :]
    if target.shape != shape:
        raise ValueError(f"target: shape {tuple(target.shape)} given, {tuple(shape)} expected")
    if input.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = target[((target < 0) | (target >= classes)) & (target != ignore_index)]
        if wrong.numel():
            raise ValueError(
                f"target: {int(wrong[0])} given, 0 to {classes - 1} or {ignore_index} expected"
            )


def check_temperature(temperature: float) -> None:
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"temperature: {temperature} given, a number that is not negative expected"
        )


class UtilityLearningLoss(nn.Module):
    """`utility_learning_loss` as a module.

    Example:
        >>> loss = UtilityLearningLoss(temperature=0.3)
        >>> loss(torch.randn(8, 5), torch.randint(5, (8,))).shape
        torch.Size([])
    """

    def __init__(
        self, temperature: float = 1.0, reduction: str = "mean", ignore_index: int = -100
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature
        self.reduction = reduction
        self.ignore_index = ignore_index

    def forward(
        self, input: Float[Tensor, "*utilities"], target: Int[Tensor, "*targets"]
    ) -> Float[Tensor, "*loss"]:
        return utility_learning_loss(
            input, target, self.temperature, self.reduction, self.ignore_index
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}"
