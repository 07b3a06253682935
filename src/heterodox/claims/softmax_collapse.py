"""Claims of "Grokking at the Edge of Numerical Stability", arXiv 2501.04697."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from torch import nn
from torch.optim import AdamW, Optimizer

from heterodox.experiment import (
    AtLeast,
    AtMost,
    Beats,
    Measurement,
    NoWorseThan,
    Ordering,
    Paper,
    Scale,
)
from heterodox.experiment.tuning import Tuning
from heterodox.losses.stablemax import stablemax_cross_entropy
from heterodox.models.vision import MLP
from heterodox.optim.perp_grad import PerpGrad
from heterodox.tasks import arithmetic, images
from heterodox.tasks.arithmetic import ArithmeticSettings, TrainedArithmetic

paper = Paper.load("softmax-collapse")

# a + b mod p. The paper's perpGrad runs are short enough to be those of the laptop scale too.
ADDITION = {
    Scale.SMOKE: ArithmeticSettings(23, 0.7, 48, 200, 5e-3),
    Scale.LAPTOP: ArithmeticSettings(113, 0.4, 200, 500, 5e-3, monitor_every=5),
    Scale.PAPER: ArithmeticSettings(113, 0.4, 200, 500, 5e-3, monitor_every=5),
}
PRECISION = {
    Scale.SMOKE: ArithmeticSettings(13, 0.8, 32, 400, 2e-2),
    Scale.LAPTOP: ArithmeticSettings(47, 0.8, 100, 9_000, 2e-2, monitor_every=50),
    Scale.PAPER: ArithmeticSettings(113, 0.4, 200, 20_000, 5e-4, monitor_every=100),
}
# The laptop setting was found by trying six on seed 0, of which five gave StableMax 0 to 17 %;
# UNPICKED is a second one that nobody had looked at when the claim was written.
PICKED = {
    Scale.SMOKE: ArithmeticSettings(13, 0.8, 32, 400, 2e-2),
    Scale.LAPTOP: ArithmeticSettings(47, 0.8, 100, 10_000, 2e-2, monitor_every=50),
    Scale.PAPER: ArithmeticSettings(113, 0.4, 200, 80_000, 1e-2, monitor_every=200),
}
UNPICKED = {
    Scale.SMOKE: ArithmeticSettings(11, 0.8, 32, 400, 2e-2),
    Scale.LAPTOP: ArithmeticSettings(53, 0.8, 100, 10_000, 2e-2, monitor_every=50),
    Scale.PAPER: ArithmeticSettings(113, 0.6, 200, 80_000, 1e-2, monitor_every=200),
}
REAL_DATA = {Scale.SMOKE: "digits", Scale.LAPTOP: "fashion-mnist", Scale.PAPER: "fashion-mnist"}

IMAGES = {
    Scale.SMOKE: images.ImageSettings(epochs=5, batch_size=100, learning_rate=1e-3),
    Scale.LAPTOP: images.ImageSettings(
        epochs=60, batch_size=100, learning_rate=1e-3, train_images=1_000
    ),
    Scale.PAPER: images.ImageSettings(
        epochs=1_000, batch_size=200, learning_rate=1e-3, train_images=1_000
    ),
}

# Best of the grid on seed 0, which no verdict uses: see results/tuning.
WEIGHT_DECAYS = (0.1, 1.0, 3.0, 5.0)
WEIGHT_DECAY = {"AdamW, weight decay": 5.0}
IMAGE_RATES = (3e-4, 1e-3, 3e-3)
IMAGE_RATE = {"AdamW": 3e-3, "perpGrad": 3e-3}


def adamw(params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> Optimizer:
    """PyTorch's betas and eps, with which the authors' perpGrad runs were made."""
    return AdamW(params, lr=lr, weight_decay=weight_decay)


def adamw_tiny_eps(
    params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, eps: float = 1e-30
) -> Optimizer:
    """An eps so small that it is not what stops learning when gradients vanish."""
    return AdamW(params, lr=lr, weight_decay=weight_decay, eps=eps)


def perp_grad(params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> Optimizer:
    return PerpGrad(adamw(params, lr, weight_decay))


def perp_grad_not_rescaled(
    params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0
) -> Optimizer:
    return PerpGrad(adamw(params, lr, weight_decay), rescale=False)


ADDITION_ARMS: dict[str, dict[str, Any]] = {
    "AdamW": {"optimizer": adamw},
    "AdamW, weight decay": {"optimizer": adamw},
    "perpGrad": {"optimizer": perp_grad},
    "perpGrad, decayed rate": {"optimizer": perp_grad, "schedule": "cosine"},
    "perpGrad, not rescaled": {"optimizer": perp_grad_not_rescaled},
}


def _addition_settings(arm: str, scale: Scale, decay: float) -> ArithmeticSettings:
    return replace(ADDITION[scale], weight_decay=decay if arm == "AdamW, weight decay" else 0.0)


def train_addition(
    arm: str, seed: int, scale: Scale, decay: float, device: str = "cpu"
) -> TrainedArithmetic:
    settings = _addition_settings(arm, scale, decay)
    return arithmetic.train(**ADDITION_ARMS[arm], seed=seed, settings=settings, device=device)


@paper.claim(
    name="perp_grad_removes_the_delay",
    says="perpGrad generalises at once where plain training has to wait for grokking, or waits "
    "in vain.",
    reported="addition mod 113: a few hundred epochs, no plateau (figures)",
    metric="test accuracy at the end [%]",
    better="higher",
    expects=(AtLeast("perpGrad", 95), AtMost("AdamW", 30)),
)
@paper.claim(
    name="perp_grad_is_faster_than_weight_decay",
    says="perpGrad groks in fewer epochs than AdamW with weight decay.",
    reported="faster than AdamW with weight decay (figures)",
    metric="epochs to a test accuracy of 95 %",
    reads="epochs to 95 %",
    better="lower",
    expects=Beats("AdamW, weight decay", arm="perpGrad"),
    arms=("AdamW, weight decay", "perpGrad"),
)
@paper.claim(
    name="plain_training_only_scales_the_weights",
    says="After the training set is fitted, plain gradients point along the weights and stay so: "
    "the loss is lowered by scaling the logits.",
    reported="the cosine between step and weights rises towards 1 after fitting (figures)",
    metric="smallest cosine(-gradient, weights) in the second half after fitting",
    reads="alignment after fitting",
    better="higher",
    expects=AtLeast("AdamW", 0.5),
    arms=("AdamW",),
)
def addition(
    arm: Literal[
        "AdamW",
        "AdamW, weight decay",
        "perpGrad",
        "perpGrad, decayed rate",
        "perpGrad, not rescaled",
    ],
    seed: int,
    scale: Scale,
    device: str,
) -> Measurement:
    """An MLP without biases learns a + b mod 113 from 40 % of all pairs, full batch, 500 epochs of
    AdamW with rate 5e-3; every arm from the same weights and split. Weight decay is the best of
    four. Two more arms show perpGrad with a rate that decays, and without the rescaling of its
    step.

    Differs from the paper: nothing in perpGrad's own run; the baselines get the same 500 epochs,
    where the paper lets them run on.
    """
    run = train_addition(arm, seed, scale, WEIGHT_DECAY["AdamW, weight decay"], device)
    return _with_alignment(run)


@Paper.many_seeds(addition, at=(Scale.SMOKE,))
def addition_many(arm: str, seeds: Sequence[int], scale: Scale, device: str) -> list[Measurement]:
    settings = _addition_settings(arm, scale, WEIGHT_DECAY["AdamW, weight decay"])
    runs = arithmetic.train_many(seeds, **ADDITION_ARMS[arm], settings=settings, device=device)
    return [_with_alignment(run) for run in runs]


def _with_alignment(run: TrainedArithmetic) -> Measurement:
    measured = run.measurement()
    fitted = [
        alignment
        for epoch, alignment in zip(run.curves["step"], run.curves["alignment"], strict=True)
        if epoch >= run.epochs_to_fit
    ]
    late = fitted[len(fitted) // 2 :]
    readings = measured.readings | {"alignment after fitting": min(late, default=math.nan)}
    return replace(measured, readings=readings)


@paper.claim(
    name="collapse_comes_earlier_with_fewer_bits",
    says="The softmax collapses the earlier, the fewer bits the loss is computed with.",
    reported="float16 collapses before float32, float32 before float64 (figures)",
    metric="first epoch at which half of the training examples have collapsed",
    reads="epoch of collapse",
    better="lower",
    expects=Ordering(("float64", "float32", "float16")),
    seeds=3,
)
@paper.claim(
    name="fewer_bits_generalise_less",
    says="Collapse ends learning before generalisation: the fewer the bits, the lower the test "
    "accuracy.",
    reported="test accuracy in float16 below float32 below float64 (figures)",
    metric="test accuracy at the end [%]",
    better="higher",
    expects=Ordering(("float16", "float32", "float64")),
    seeds=3,
)
def precision(
    arm: Literal["float16", "float32", "float64"], seed: int, scale: Scale, device: str
) -> Measurement:
    """The same addition task mod 47 with 80 % of the pairs, logits cast to each type before the
    softmax cross-entropy; AdamW with eps 1e-30, so that only the loss's own precision can stop it.

    Differs from the paper: p = 47, hidden 100, rate 2e-2 and 9 000 epochs at laptop scale, in place
    of p = 113, hidden 200, rate 5e-4 and 20 000.
    """
    settings = replace(PRECISION[scale], loss_dtype=arm)
    run = arithmetic.train(optimizer=adamw_tiny_eps, seed=seed, settings=settings, device=device)
    measured = run.measurement()
    collapse = zip(run.curves["step"], run.curves["collapse"], strict=True)
    epoch = next((epoch for epoch, share in collapse if share >= 0.5), math.inf)
    return replace(measured, readings=measured.readings | {"epoch of collapse": epoch})


STABLEMAX_ARMS: dict[str, dict[str, Any]] = {
    "softmax, float32": {"loss": "cross-entropy"},
    "softmax, float64": {"loss": "cross-entropy"},
    "StableMax": {"loss": stablemax_cross_entropy},
}


def train_stablemax(arm: str, seed: int, settings: ArithmeticSettings, device: str) -> Measurement:
    dtype: Literal["float32", "float64"] = "float64" if arm == "softmax, float64" else "float32"
    run = arithmetic.train(
        **STABLEMAX_ARMS[arm],
        optimizer=partial(adamw_tiny_eps, eps=1e-25),
        seed=seed,
        settings=replace(settings, loss_dtype=dtype),
        device=device,
    )
    measured = run.measurement()
    return replace(measured, value=measured.readings["best test accuracy"])


@paper.claim(
    says="StableMax groks without any regularisation, where softmax does not.",
    reported="addition, multiplication and parity grokked with StableMax alone (figures)",
    metric="best test accuracy [%]",
    better="higher",
    expects=(
        AtLeast("StableMax", 60),
        AtMost("softmax, float32", 20),
        AtMost("softmax, float64", 20),
    ),
    seeds=3,
)
def stablemax_groks(
    arm: Literal["softmax, float32", "softmax, float64", "StableMax"],
    seed: int,
    scale: Scale,
    device: str,
) -> Measurement:
    """Addition mod 47 with 80 % of the pairs, AdamW without decay, rate 2e-2 and eps 1e-25, 10 000
    epochs. This setting was picked after six had been looked at on seed 0; the next claim shows one
    that was not.

    Differs from the paper: p = 113, a fraction of 0.4 and 80 000 epochs there.
    """
    return train_stablemax(arm, seed, PICKED[scale], device)


@paper.claim(
    says="StableMax groks without any regularisation, in a setting that was not picked for it.",
    reported="addition, multiplication and parity grokked with StableMax alone (figures)",
    metric="best test accuracy [%]",
    better="higher",
    expects=(
        AtLeast("StableMax", 60),
        AtMost("softmax, float32", 20),
        AtMost("softmax, float64", 20),
    ),
    seeds=3,
)
def stablemax_groks_unpicked(
    arm: Literal["softmax, float32", "softmax, float64", "StableMax"],
    seed: int,
    scale: Scale,
    device: str,
) -> Measurement:
    """As the claim before it, mod 53: the settings were fixed before anything was run.

    Differs from the paper: p = 113, a fraction of 0.4 and 80 000 epochs there.
    """
    return train_stablemax(arm, seed, UNPICKED[scale], device)


INITIAL_SCALE = 8.0
"""Weights so large that the network starts in the lazy regime, where grokking is seen on images."""


def large_mlp(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    model = MLP(image_shape, classes, widths=(200, 200))
    for parameter in model.parameters():
        parameter.data.mul_(INITIAL_SCALE)
    return model


IMAGE_OPTIMIZERS = {"AdamW": adamw, "perpGrad": perp_grad}


def train_images(
    arm: str, seed: int, scale: Scale, rate: float, device: str = "cpu"
) -> images.TrainedImages:
    return images.train(
        model=large_mlp,
        optimizer=IMAGE_OPTIMIZERS[arm],
        schedule="constant",
        data=REAL_DATA[scale],
        seed=seed,
        settings=replace(IMAGES[scale], learning_rate=rate, clip=None),
        device=device,
    )


@paper.claim(
    says="On real images too perpGrad does no harm against plain AdamW.",
    reported="MNIST with weights scaled up at the start: perpGrad groks earlier (appendix)",
    metric="test accuracy [%]",
    better="higher",
    expects=NoWorseThan("AdamW", margin=1.0),
)
def no_harm_on_real_images(
    arm: Literal["AdamW", "perpGrad"], seed: int, scale: Scale, device: str
) -> Measurement:
    """An MLP whose weights start 8 times too large learns 1 000 images of Fashion-MNIST (digits at
    smoke scale) for 60 epochs, without regularisation; each arm has its own best learning rate of
    three.

    Differs from the paper: Fashion-MNIST in place of MNIST, and fewer epochs.
    """
    return train_images(arm, seed, scale, IMAGE_RATE[arm], device).measurement()


TUNED = (
    Tuning("addition", train_addition, WEIGHT_DECAY, WEIGHT_DECAYS, None, "higher", "weight decay"),
    Tuning("no_harm_on_real_images", train_images, IMAGE_RATE, IMAGE_RATES, None, "higher"),
)
