"""What a network does between fitting its training set and generalising, or failing to.

    Softmax Collapse:        S = Σ_k exp(z_k − max z) rounds to exactly 1, in the type of the loss
    naive loss minimisation: cos(−∇L, θ) near 1: the step only scales the weights, hence the logits

Prieto et al., "Grokking at the Edge of Numerical Stability", ICLR 2025, arXiv 2501.04697,
sections 3 and 4. Where S = 1 and the arg-max is the label, the loss is exactly 0 and so is the true
class's gradient. That starts at a logit gap of about 7.6 in float16, 16.6 in float32, 36.7 in
float64.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def softmax_collapse(
    logits: Float[Tensor, "*batch classes"],
    dtype: torch.dtype | None = None,
    labels: Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, ""]:
    """The share of examples whose softmax has collapsed to a single class, in [0, 1].

    Args:
        logits: classes last.
        dtype: the precision in which the softmax is imagined; the logits' own by default.
        labels: class indices. Given, only the examples collapsed on their label count, which are
            those whose cross-entropy is exactly 0; without them every collapse counts, as in the
            authors' metric.

    Returns:
        A float32 scalar; NaN for an empty batch.

    Raises:
        ValueError: `labels` does not have the batch's shape.

    Example:
        >>> logits = torch.tensor([[0.0, -20.0], [0.0, -10.0]])
        >>> softmax_collapse(logits), softmax_collapse(logits, dtype=torch.float64)
        (tensor(0.5000), tensor(0.))
    """
    if labels is not None and labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels: shape {tuple(labels.shape)} given, {tuple(logits.shape[:-1])} expected"
        )
    z = logits.detach().to(dtype or logits.dtype)
    collapsed = (z - z.amax(-1, keepdim=True)).exp().sum(-1) == 1
    if labels is not None:
        collapsed &= z.argmax(-1) == labels
    return collapsed.float().mean()


@torch.no_grad()
def naive_loss_minimization(
    parameters: Iterable[Tensor], *, per_tensor: bool = False
) -> Float[Tensor, "*tensors"]:
    """The cosine between −gradient and parameters: 1 where a step would only scale the weights.

    Args:
        parameters: those without `.grad` are left out. Call it after `backward()`.
        per_tensor: a cosine for each tensor, in their order, instead of one for all concatenated.

    Returns:
        A scalar, or with `per_tensor` a vector; 0 where gradient or parameters are all zero.

    Raises:
        ValueError: no parameter has a gradient.

    Example:
        >>> weight = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> weight.square().sum().backward()
        >>> naive_loss_minimization([weight])
        tensor(-1.)
    """
    pairs = [(p, p.grad) for p in parameters if p.grad is not None]
    if not pairs:
        raise ValueError("parameters: none with a gradient given, at least one expected")
    device = pairs[0][0].device
    # float64: the squares of the gradients of a fitted training set underflow in float32.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    products = torch.stack(
        [
            torch.stack([p.mul(g).sum(), p.square().sum(), g.square().sum()]).to(device)
            for p, g in ((p.to(dtype), g.to(dtype)) for p, g in pairs)
        ]
    )
    if not per_tensor:
        products = products.sum(0)
    dot, weights, gradients = products.unbind(-1)
    lengths = weights.sqrt() * gradients.sqrt()
    return (-dot / lengths.masked_fill(lengths == 0, 1.0)).float()


class GrokkingMonitor:
    """Keeps the quantities that tell grokking from collapse, and draws them.

    `history` maps each of these names to a list with one number a record: `step`, `train_loss`,
    `test_loss`, `train_accuracy`, `test_accuracy`, `weight_norm` (of all parameters concatenated),
    `collapse` and `collapse_on_label` (`softmax_collapse` of the training logits, without and with
    labels), `alignment` (`naive_loss_minimization`; NaN where no parameter has a gradient).

    Args:
        loss: `(logits, labels) -> scalar`; the one that is trained, to be comparable.
        dtype: the precision in which collapse is judged; the training logits' own by default.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> x, labels = torch.randn(10, 4), torch.randint(3, (10,))
        >>> monitor = GrokkingMonitor()
        >>> train_logits = model(x)
        >>> F.cross_entropy(train_logits, labels).backward()
        >>> monitor.record(0, model.parameters(), train_logits, labels, model(x), labels)
        >>> monitor.history["collapse"]
        [0.0]
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.loss = loss
        self.dtype = dtype
        self.history: dict[str, list[float]] = {name: [] for name in ("step", *_RECORDED)}

    @torch.no_grad()
    def record(
        self,
        step: int,
        parameters: Iterable[Tensor],
        train_logits: Float[Tensor, "train classes"],
        train_labels: Int[Tensor, "train"],
        test_logits: Float[Tensor, "test classes"],
        test_labels: Int[Tensor, "test"],
    ) -> None:
        """Appends one number to every list of `history`; waits once for the device.

        Call it between `backward()` and `step()`, so that weights, logits and gradients belong
        together.
        """
        parameters = list(parameters)
        has_gradient = any(p.grad is not None for p in parameters)
        values = [
            self.loss(train_logits, train_labels),
            self.loss(test_logits, test_labels),
            (train_logits.argmax(-1) == train_labels).double().mean(),
            (test_logits.argmax(-1) == test_labels).double().mean(),
            torch.stack([p.norm() for p in parameters]).norm(),
            softmax_collapse(train_logits, self.dtype),
            softmax_collapse(train_logits, self.dtype, train_labels),
        ]
        if has_gradient:
            values.append(naive_loss_minimization(parameters))
        numbers = torch.stack([value.detach().double() for value in values]).tolist()
        if not has_gradient:
            numbers.append(float("nan"))
        self.history["step"].append(step)
        for name, number in zip(_RECORDED, numbers, strict=True):
            self.history[name].append(number)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draws accuracies, collapse and alignment against the step; returns the axes."""
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots()
        for name in ("train_accuracy", "test_accuracy", "collapse", "alignment"):
            ax.plot(self.history["step"], self.history[name], label=name.replace("_", " "))
        ax.set_xlabel("step")
        ax.legend()
        return ax


_RECORDED = (
    "train_loss",
    "test_loss",
    "train_accuracy",
    "test_accuracy",
    "weight_norm",
    "collapse",
    "collapse_on_label",
    "alignment",
)
