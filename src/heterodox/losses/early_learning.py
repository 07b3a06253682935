"""Early-learning regularisation: each prediction is held near its own past, not near its label.

    T_i ← β T_i + (1 − β) p̄_i,     p = clamp(softmax(z), 1e-4, 1 − 1e-4),   p̄ = p / Σ_c p_c
    L = mean_i CE(z_i, y_i) + λ mean_i log(1 − ⟨p_i, T_i⟩)                                    (ELR)
    L = mean_i CE(z_i, ỹ_i) + r(step) λ mean_i log(1 − ⟨p_i, q_i⟩)                           (ELR+)

T is a running average of each training example's own predictions; it starts at zero and is not
corrected for that. In ELR+ the predictions come from the weight average of a second network, and ỹ
and q are mixed as the images are (`heterodox.learning.train_elr_plus`). Liu, Niles-Weed, Razavian
and Fernandez-Granda, "Early-Learning Regularization Prevents Memorization of Noisy Labels",
NeurIPS 2020, arXiv 2007.00151; order of the steps and constants are those of the authors' code.
Time O(batch · classes) a step, memory O(examples · classes).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from heterodox.losses.targets import check_indices as check_label_dtype
from heterodox.losses.targets import check_range

CLAMP = 1e-4


def early_learning_regularizer(
    input: Float[Tensor, "batch classes"],
    targets: Float[Tensor, "batch classes"],
    reduction: str = "mean",
    clamp: int | float = CLAMP,
) -> Float[Tensor, "*loss"]:
    """log(1 − ⟨p, t⟩), which falls as the prediction p approaches t. Never positive.

    Targets get no gradient, and half precision is computed in float32. Where p is clamped its
    gradient is zero, so that saturated logits have a finite gradient.

    Args:
        input: logits.
        targets: t, not negative and of sum at most 1.
        reduction: "mean", "sum" or "none".
        clamp: p is kept in [clamp, 1 − clamp]; 1e-4 in the authors' code.

    Raises:
        ValueError: shapes disagree, `reduction` is none of the three, or `clamp` is not in [0, ½).

    Example:
        >>> logits, past = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
        >>> early_learning_regularizer(logits, past)  # log ½
        tensor(-0.6931)
    """
    _check_reduction(reduction)
    _check_clamp(clamp)
    if input.ndim != 2:
        raise ValueError(f"input: shape {tuple(input.shape)} given, (batch, classes) expected")
    if targets.shape != input.shape:
        raise ValueError(
            f"targets: shape {tuple(targets.shape)} given, {tuple(input.shape)} expected"
        )
    dtype = _computed_in(input)
    p = input.to(dtype).softmax(-1).clamp(clamp, 1 - clamp)
    agreement = (p * targets.detach().to(p)).sum(-1)
    loss = (1 - agreement).log()
    return (loss if reduction == "none" else getattr(loss, reduction)()).to(input.dtype)


@torch.no_grad()
def update_targets(
    targets: Float[Tensor, "examples classes"],
    input: Float[Tensor, "batch classes"],
    index: Int[Tensor, "batch"],
    momentum: int | float,
    clamp: int | float = CLAMP,
    check_indices: bool = False,
) -> Float[Tensor, "batch classes"]:
    """T_i ← β T_i + (1 − β) p̄_i in place, for the examples of a batch; returns their new rows.

    Targets may be of another type or on another device than the logits, such as float16 on the
    CPU; the average is computed in float32 where the logits are.

    Args:
        targets: T, changed in place.
        input: logits.
        index: which example each row of `input` is. Of a repeated index the last row counts.
        momentum: β.
        clamp: as for `early_learning_regularizer`; 0 leaves the softmax as it is.
        check_indices: refuse repeated indices. On an accelerator this waits for it, as does the
            check of their range, which is then made too; on a CPU the range is always checked.

    Raises:
        ValueError: shapes disagree, an index is out of range or (see above) repeated, `momentum` is
            not in [0, 1), or `clamp` is not in [0, ½).

    Example:
        >>> targets = torch.zeros(3, 2)
        >>> update_targets(targets, torch.zeros(1, 2), torch.tensor([2]), momentum=0.5)
        tensor([[0.2500, 0.2500]])
    """
    _check_momentum(momentum)
    _check_clamp(clamp)
    _check_batch(input, index, targets, check_indices)
    dtype = _computed_in(input)
    p = input.to(dtype).softmax(-1).clamp(clamp, 1 - clamp)
    rows = index.to(targets.device)
    new = momentum * targets[rows].to(p) + (1 - momentum) * (p / p.sum(-1, keepdim=True))
    targets[rows] = new.to(targets)
    return new.to(input.dtype)


def sigmoid_rampup(step: int | float, length: int | float) -> float:
    """exp(−5 (1 − min(step, length) / length)²): from e⁻⁵ up to 1 at `length`, and 1 if that is 0.

    Raises:
        ValueError: `step` or `length` is negative.

    Example:
        >>> [round(sigmoid_rampup(step, 10), 3) for step in (0, 5, 10, 20)]
        [0.007, 0.287, 1.0, 1.0]
    """
    for name, given in {"step": step, "length": length}.items():
        if not given >= 0:
            raise ValueError(f"{name}: {given} given, a number that is not negative expected")
    return 1.0 if length == 0 else math.exp(-5 * (1 - min(step, length) / length) ** 2)


class _Targets(nn.Module):
    """What both losses keep: the targets of every training example."""

    targets: Tensor

    def __init__(
        self,
        num_examples: int,
        num_classes: int,
        strength: int | float = 3.0,
        momentum: int | float = 0.7,
        clamp: int | float = CLAMP,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        check_indices: bool = False,
    ) -> None:
        super().__init__()
        for name, given in {"num_examples": num_examples, "num_classes": num_classes}.items():
            if given < 1:
                raise ValueError(f"{name}: {given} given, a positive number expected")
        if not 0 <= strength < math.inf:
            raise ValueError(f"strength: {strength} given, a number that is not negative expected")
        _check_momentum(momentum)
        _check_clamp(clamp)
        _check_reduction(reduction)
        self.strength = strength
        self.momentum = momentum
        self.clamp = clamp
        self.reduction = reduction
        self.check_indices = check_indices
        shape = (num_examples, num_classes)
        self.register_buffer("targets", torch.zeros(shape, device=device, dtype=dtype))

    def _rows(self, input: Tensor, index: Tensor, clamp: int | float) -> Tensor:
        """The targets of a batch, brought up to date first if training, in float32 at least."""
        input = input.to(_computed_in(input))
        if self.training:
            return update_targets(
                self.targets, input, index, self.momentum, clamp, self.check_indices
            )
        _check_batch(input, index, self.targets, self.check_indices)
        return self.targets[index.to(self.targets.device)].to(input)

    def extra_repr(self) -> str:
        examples, classes = self.targets.shape
        return f"{examples}, {classes}, strength={self.strength}, momentum={self.momentum}"


class EarlyLearningLoss(_Targets):
    """Cross-entropy with early-learning regularisation, ELR: call it with each example's index.

    In training mode the targets of the batch are updated before the loss is taken; in evaluation
    mode they are left alone. They are a buffer and part of the state dict.

    Args:
        num_examples: of the training set; indices are below it.
        num_classes: number of classes.
        strength: λ. 3 for CIFAR-10 with symmetric noise, 1 with asymmetric, 7 for CIFAR-100 in
            the authors' settings. At 0 the loss is cross-entropy.
        momentum: β. 0.7 for CIFAR-10 with symmetric noise, 0.9 otherwise.
        clamp: see `early_learning_regularizer`.
        reduction: "mean", "sum" or "none".
        device, dtype: where targets are kept and in which type; the loss is computed where the
            logits are. float16 halves the memory.
        check_indices: see `update_targets`.

    Raises:
        ValueError: a number is out of range; when called, shapes disagree, an index is out of
            range, or, on a CPU, a label is no class.

    Example:
        >>> loss = EarlyLearningLoss(num_examples=50, num_classes=3)
        >>> loss(torch.randn(4, 3), torch.tensor([0, 2, 1, 1]), torch.tensor([7, 3, 49, 12])).shape
        torch.Size([])
    """

    def forward(
        self,
        input: Float[Tensor, "batch classes"],
        target: Int[Tensor, "batch"],
        index: Int[Tensor, "batch"],
    ) -> Float[Tensor, "*loss"]:
        if target.shape != index.shape:
            raise ValueError(
                f"target: shape {tuple(target.shape)} given, {tuple(index.shape)} expected"
            )
        # Before targets change: a batch that is refused leaves no trace.
        _check_logits(input, self.targets)
        check_label_dtype(target)
        check_range(target, self.targets.shape[1])
        rows = self._rows(input, index, self.clamp)
        logits = input.to(_computed_in(input))
        loss = F.cross_entropy(logits, target.long(), reduction=self.reduction)
        if self.strength:
            regularizer = early_learning_regularizer(logits, rows, self.reduction, self.clamp)
            loss = loss + self.strength * regularizer
        return loss.to(input.dtype)


class EarlyLearningPlusLoss(_Targets):
    """The loss of ELR+: soft labels, and targets that another network's predictions update.

    `heterodox.learning.train_elr_plus` is the recipe around it. A step of one's own is
    `targets = loss.update(averaged_peer(x), index)`, then `loss(network(mixed_x), mixed_y,
    mixed_targets, step)`.

    Args:
        num_examples, num_classes, strength, momentum, clamp, reduction, device, dtype,
            check_indices: as for `EarlyLearningLoss`.
        rampup_steps: R, the steps over which the regulariser fades in (`sigmoid_rampup`); 0 for
            CIFAR-10 and 40 000 for CIFAR-100 in the authors' settings.
        reweight_labels: multiply the labels by the targets and divide by their sum, which the
            authors' code does for 100 classes.

    Raises:
        ValueError: as for `EarlyLearningLoss`; `rampup_steps` is negative.

    Example:
        >>> loss = EarlyLearningPlusLoss(num_examples=50, num_classes=3)
        >>> targets = loss.update(torch.randn(2, 3), torch.tensor([7, 3]))
        >>> loss(torch.randn(2, 3), torch.eye(3)[:2], targets, step=0).shape
        torch.Size([])
    """

    def __init__(
        self,
        num_examples: int,
        num_classes: int,
        strength: int | float = 3.0,
        momentum: int | float = 0.7,
        rampup_steps: int = 0,
        reweight_labels: bool = False,
        clamp: int | float = CLAMP,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        check_indices: bool = False,
    ) -> None:
        if rampup_steps < 0:
            raise ValueError(
                f"rampup_steps: {rampup_steps} given, a number that is not negative expected"
            )
        super().__init__(
            num_examples,
            num_classes,
            strength,
            momentum,
            clamp,
            reduction,
            device,
            dtype,
            check_indices,
        )
        self.rampup_steps = rampup_steps
        self.reweight_labels = reweight_labels

    def update(
        self, input: Float[Tensor, "batch classes"], index: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch classes"]:
        """Updates the targets of a batch, without a clamp, and returns them; only returns them in
        evaluation mode.

        Args:
            input: logits of the averaged peer for the images as they are, not mixed.
            index: which example each row is.
        """
        return self._rows(input, index, 0.0)

    def forward(
        self,
        input: Float[Tensor, "batch classes"],
        soft_target: Float[Tensor, "batch classes"],
        ensemble_target: Float[Tensor, "batch classes"],
        step: int,
    ) -> Float[Tensor, "*loss"]:
        """The loss of a batch.

        Args:
            input: logits for the mixed images.
            soft_target: ỹ, the labels mixed as the images are.
            ensemble_target: q, what `update` returned, mixed likewise. No gradient goes to it.
            step: optimizer steps made before.
        """
        if soft_target.shape != input.shape:
            raise ValueError(
                f"soft_target: shape {tuple(soft_target.shape)} given, "
                f"{tuple(input.shape)} expected"
            )
        if ensemble_target.shape != input.shape:
            raise ValueError(
                f"ensemble_target: shape {tuple(ensemble_target.shape)} given, "
                f"{tuple(input.shape)} expected"
            )
        logits = input.to(_computed_in(input))
        q = ensemble_target.detach().to(logits)
        labels = soft_target.to(logits)
        if self.reweight_labels:
            weighted = labels * q
            total = weighted.sum(-1, keepdim=True)
            # Targets so far from the label that nothing is left of it: it stays as it is.
            labels = torch.where(total > 0, weighted / total.where(total > 0, 1.0), labels)
        loss = F.cross_entropy(logits, labels, reduction=self.reduction)
        if self.strength:
            strength = self.strength * sigmoid_rampup(step, self.rampup_steps)
            regularizer = early_learning_regularizer(logits, q, self.reduction, self.clamp)
            loss = loss + strength * regularizer
        return loss.to(input.dtype)


def _computed_in(input: Tensor) -> torch.dtype:
    return torch.promote_types(input.dtype, torch.float32)


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: {reduction!r} given, 'mean', 'sum' or 'none' expected")


def _check_clamp(clamp: int | float) -> None:
    if not 0 <= clamp < 0.5:
        raise ValueError(f"clamp: {clamp} given, a number in [0, 0.5) expected")


def _check_momentum(momentum: int | float) -> None:
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: {momentum} given, a number in [0, 1) expected")


def _check_logits(input: Tensor, targets: Tensor) -> None:
    classes = targets.shape[1]
    if input.ndim != 2 or input.shape[1] != classes:
        raise ValueError(f"input: shape {tuple(input.shape)} given, (batch, {classes}) expected")


def _check_batch(input: Tensor, index: Tensor, targets: Tensor, check_indices: bool) -> None:
    examples = len(targets)
    _check_logits(input, targets)
    if index.shape != input.shape[:1]:
        raise ValueError(
            f"index: shape {tuple(index.shape)} given, one for each of {len(input)} rows expected"
        )
    if len(index) == 0 or torch.compiler.is_compiling():
        return
    if index.device.type == "cpu" or check_indices:
        low, high = (int(x) for x in index.aminmax())
        if low < 0 or high >= examples:
            wrong = low if low < 0 else high
            raise ValueError(f"index: {wrong} given, a number in [0, {examples}) expected")
    if check_indices:
        values, counts = index.unique(return_counts=True)
        if len(values) < len(index):
            repeated = int(values[counts > 1][0])
            raise ValueError(
                f"index: duplicate index {repeated} given, each example at most once expected"
            )
