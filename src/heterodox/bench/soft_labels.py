"""Cross-entropy with stored soft labels: with the rows that they stand for, and without."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from heterodox.bench.workload import Case, Target, Workload
from heterodox.losses.distillation import compressed_cross_entropy, soft_cross_entropy
from heterodox.losses.soft_labels import SoftLabels, compress_soft_labels, recover_soft_labels

KEPT = 5

TARGETS = tuple(
    Target("compressed", "time", "1024x1000", passes, 2 / 3)
    for passes in ("forward", "forward and backward")
)


def workload() -> Workload:
    return Workload(
        facts={
            "kept": f"the {KEPT} largest entries of a row",
            "dtype": "float32",
            "size": "rows x classes",
        },
        cases=cases,
        prepare=prepare,
        targets=TARGETS,
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """Forward and with backward, at every size.

    Raises:
        ValueError: a size is not of the form 1024x1000.
    """
    for size in sizes:
        parts = size.split("x")
        if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise ValueError(f"sizes: {size!r} given, rows x classes such as 1024x1000 expected")
    return [Case(size, passes) for size in sizes for passes in ("forward", "forward and backward")]


def prepare(function: Callable[..., Tensor], case: Case, device: str) -> Callable[[], object]:
    """A call of `function(logits, soft_labels)` on normal logits, and its gradient in them."""
    generator = torch.Generator().manual_seed(0)
    rows, classes = map(int, case.size.split("x"))
    logits, teacher = (3 * torch.randn(rows, classes, generator=generator) for _ in range(2))
    labels = compress_soft_labels(teacher.softmax(-1), min(KEPT, classes))
    stored = SoftLabels(labels.indices.to(device), labels.values.to(device), classes)
    logits = logits.to(device)

    @torch.no_grad()
    def forward() -> object:
        return function(logits, stored)

    learned = logits.clone().requires_grad_()

    def forward_and_backward() -> object:
        return torch.autograd.grad(function(learned, stored), learned)

    return forward if case.passes == "forward" else forward_and_backward


def dense(input: Tensor, soft_labels: SoftLabels) -> Tensor:
    return F.cross_entropy(input, recover_soft_labels(soft_labels))


def dense_weighted(input: Tensor, soft_labels: SoftLabels) -> Tensor:
    """With what `soft_cross_entropy` checks and can weigh."""
    return soft_cross_entropy(input, recover_soft_labels(soft_labels))


def compressed(input: Tensor, soft_labels: SoftLabels) -> Tensor:
    return compressed_cross_entropy(input, soft_labels)


def sum_of_products(input: Tensor, soft_labels: SoftLabels) -> Tensor:
    """The sum that timm's `SoftTargetCrossEntropy` is."""
    target = recover_soft_labels(soft_labels)
    return torch.sum(-target * F.log_softmax(input, dim=-1), dim=-1).mean()
