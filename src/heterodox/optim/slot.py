"""What the `OPTIMIZERS` and `SCHEDULES` slots build: one uniform call for each name."""

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from heterodox.optim.perp_grad import PerpGrad

# (0.9, 0.95) is the usual choice for transformers and that of the sigmoid-attention authors.
BETAS = (0.9, 0.95)


def adamw(params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> Optimizer:
    """AdamW with betas (0.9, 0.95)."""
    return AdamW(params, lr=lr, betas=BETAS, weight_decay=weight_decay)


def sgd(params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> Optimizer:
    """SGD with momentum 0.9."""
    return SGD(params, lr=lr, momentum=0.9, weight_decay=weight_decay)


def perp_grad(params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> Optimizer:
    """PerpGrad around the `adamw` of this slot."""
    return PerpGrad(adamw(params, lr, weight_decay))


def cosine(optimizer: Optimizer, total_steps: int, warmup_steps: int = 0) -> LRScheduler:
    """Linear warm-up, then a cosine down to a thirtieth of the peak (3e-4 to 1e-5 in the
    sigmoid-attention authors' language runs)."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 1 / 30 + (1 - 1 / 30) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return LambdaLR(optimizer, factor)


def constant(optimizer: Optimizer, total_steps: int, warmup_steps: int = 0) -> LRScheduler:
    """Linear warm-up, then constant."""
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, warmup_steps)))


__all__ = ["BETAS", "adamw", "constant", "cosine", "perp_grad", "sgd"]
