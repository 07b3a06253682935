"""Adapters: an attention head with frozen random weights learns a regression by LoRA alone.

Sequences are rows of handwritten digits, 256 at a time; each row must predict the row below it. The
gradient of the adapters is the thing that is exchanged, so the model is written as formulas and
trained by plain stochastic gradient descent.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.decomposition import PCA
from torch import Tensor

from heterodox.compression.adapter_gradients import full_lora_gradients
from heterodox.data import load_images
from heterodox.experiment.measurement import Curve, Measurement
from heterodox.experiment.scale import Scale
from heterodox.training.progress import report
from heterodox.training.seeding import generator_for

DIM, RANK, ROWS = 4, 2, 256
BETA = 1 / DIM
HELD_OUT = 8  # windows


@dataclass(frozen=True)
class AdapterSettings:
    """The length of a run.

    Args:
        steps: of gradient descent, one window each.
        learning_rate: on the mean over rows of ½ ‖z - y‖².
        tol: of the polynomial gradient.
        evaluate_every: steps between evaluations on rows of other digits.
    """

    steps: int
    learning_rate: float = 1.0
    tol: float = 1e-3
    evaluate_every: int = 10


SETTINGS = {
    Scale.SMOKE: AdapterSettings(20),
    Scale.LAPTOP: AdapterSettings(200),
    Scale.PAPER: AdapterSettings(2000, evaluate_every=100),
}


def train(
    *,
    method: str = "exact",
    adapted: str = "qv",
    seed: int = 0,
    settings: AdapterSettings = SETTINGS[Scale.LAPTOP],
    device: str = "cpu",
) -> Measurement:
    """Trains adapters of rank 2 and evaluates them by exact attention on rows of other digits.

    Args:
        method: "exact" or "polynomial", see `full_lora_gradients`.
        adapted: which of "q", "k" and "v" have an adapter.
        seed: of frozen weights, adapters and windows. Runs with the same seed and `adapted` differ
            in their gradients only.
        settings: see `SETTINGS` for those of each scale.
        device: where it runs.

    Returns:
        The held-out loss, the mean over rows of ½ ‖z - y‖²; readings: its share of the loss before
        training.

    Raises:
        ValueError: `method` is unknown or `adapted` names something else.

    Example:
        >>> run = train(settings=AdapterSettings(steps=20))
        >>> run.value < run.curves["held-out loss"][0][1]
        True
    """
    generator = generator_for(seed, "weights and windows")
    weights, adapters = {}, {}
    for name in "qkv":
        weight = torch.randn(DIM, DIM, generator=generator) / math.sqrt(DIM)
        a = (torch.rand(RANK, DIM, generator=generator) * 2 - 1) / math.sqrt(DIM)
        weights[name] = weight.to(device)
        adapters[name] = a.to(device), torch.zeros(DIM, RANK, device=device)
    if not adapted or not set(adapted) <= set(adapters):
        raise ValueError(f"adapted: {adapted!r} given, some of q, k and v expected")
    adapters = {name: adapters[name] for name in adapted}
    tol = settings.tol if method == "polynomial" else None
    rows, others = (x.to(device) for x in digit_rows())
    room = len(others) - ROWS - 1
    held_out = [window(others, n * room // (HELD_OUT - 1)) for n in range(HELD_OUT)]
    curve: Curve = [(0.0, held_out_loss(weights, adapters, held_out))]
    for step in range(1, settings.steps + 1):
        start = int(torch.randint(len(rows) - ROWS, (), generator=generator))
        x, target = window(rows, start)
        gradients = full_lora_gradients(
            x, x, x, target, weights, adapters, alpha=RANK, beta=BETA, method=method, tol=tol
        )
        for name, pair in gradients.items():
            for parameter, gradient in zip(adapters[name], pair, strict=True):
                parameter.sub_(settings.learning_rate / ROWS * gradient)
        if step % settings.evaluate_every == 0 or step == settings.steps:
            curve.append((float(step), held_out_loss(weights, adapters, held_out)))
            report(step, settings.steps)
    share = curve[-1][1] / curve[0][1]
    return Measurement(curve[-1][1], {"share of the first loss": share}, {"held-out loss": curve})


@cache
def digit_rows() -> tuple[Float[Tensor, "rows dim"], Float[Tensor, "others dim"]]:
    """Rows of training and test digits as their first four principal components, each with a
    standard deviation of 1/2: the logits of fresh weights are about 1 at most."""
    digits = load_images("digits")
    train, test = (x.double().flatten(0, 2) for x in (digits.train_images, digits.test_images))
    components = PCA(DIM, whiten=True, svd_solver="covariance_eigh").fit(train)
    rows, others = (
        torch.from_numpy(components.transform(x.numpy()) / 2).float() for x in (train, test)
    )
    return rows, others


def window(x: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Rows, and the rows below them; below the last row of a digit is the first of another."""
    return x[start : start + ROWS], x[start + 1 : start + ROWS + 1]


def held_out_loss(
    weights: dict[str, Tensor],
    adapters: dict[str, tuple[Tensor, Tensor]],
    windows: Sequence[tuple[Tensor, Tensor]],
) -> float:
    whole = dict(weights)
    for name, (a, b) in adapters.items():
        whole[name] = whole[name] + b @ a
    losses = []
    for x, target in windows:
        query, key, value = (x[None] @ whole[name] for name in "qkv")
        output = F.scaled_dot_product_attention(query, key, value, scale=BETA)[0]
        losses.append(float((output - target).square().sum() / (2 * ROWS)))
    return statistics.fmean(losses)
