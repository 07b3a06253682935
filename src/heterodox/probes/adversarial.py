"""Adversarial examples: the small change of the input that harms a model most, found by gradients.

    FGSM   x' = x + ε sign ∇ₓ L(f(x), y)                                        arXiv 1412.6572
    PGD    x' ← clip(x' + α sign ∇ₓ L(f(x'), y), x − ε, x + ε),  repeated       arXiv 1706.06083

Goodfellow et al. 2015 and Madry et al. 2018. One forward and one backward pass a step.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor


def fgsm(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch *features"],
    target: Shaped[Tensor, "batch *outputs"],
    eps: int | float,
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
) -> Float[Tensor, "batch *features"]:
    """One step along the sign of the gradient.

    Args:
        model: from x to what `loss` takes; a module should be in evaluation mode. Its own gradients
            are left alone.
        x, target: a batch; rows are attacked independently if the model treats them so.
        eps: the step, in the unit of x; 0 returns x.
        loss: what is to grow; cross-entropy for classes.

    Raises:
        ValueError: `eps` is negative, or `x` is not finite.

    Example:
        >>> x = torch.tensor([[1.0, -2.0]])
        >>> fgsm(lambda x: x.sum(1), x, torch.zeros(1), eps=0.5)
        tensor([[ 0.5000, -2.5000]])
    """
    _check(x, {"eps": eps})
    return x.detach() + eps * _ascent(model, x, target, loss)


def pgd(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch *features"],
    target: Shaped[Tensor, "batch *outputs"],
    eps: int | float = 0.3,
    step_size: int | float = 0.05,
    steps: int = 5,
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
) -> Float[Tensor, "batch *features"]:
    """Several such steps from x, without a random start; no feature moves by more than `eps`.

    Args:
        model, x, target, loss: as for `fgsm`.
        eps, step_size, steps: ε, α and their number; 0.3, 0.05 and 5 in the code of Yu et al., ICLR
            2024, for standardised features.

    Raises:
        ValueError: `eps` or `step_size` is negative, `steps` is not positive, or `x` is not finite.

    Example:
        >>> x = torch.tensor([[1.0, -2.0]])
        >>> pgd(lambda x: x.sum(1), x, torch.zeros(1), eps=0.3, step_size=0.2)
        tensor([[ 0.7000, -2.3000]])
    """
    _check(x, {"eps": eps, "step_size": step_size})
    if steps < 1:
        raise ValueError(f"steps: {steps} given, a positive number expected")
    x = x.detach()
    attacked = x
    for _ in range(steps):
        attacked = attacked + step_size * _ascent(model, attacked, target, loss)
        attacked = x + (attacked - x).clamp(-eps, eps)
    return attacked


def _ascent(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    target: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    with torch.enable_grad():
        variable = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(variable), target), variable)
    return gradient.sign()


def _check(x: Tensor, sizes: dict[str, int | float]) -> None:
    for name, size in sizes.items():
        if not 0 <= size < torch.inf:
            raise ValueError(f"{name}: {size} given, a number that is not negative expected")
    if not x.isfinite().all():
        raise ValueError("x: NaN or infinite values given, finite numbers expected")
