"""Claims of "Softplus Attention with Re-weighting Boosts Length Extrapolation", 2501.13428."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heterodox.attention.position import apply_rotary
from heterodox.attention.softplus import SoftplusAttention, set_power
from heterodox.experiment import (
    AtMost,
    Beats,
    Measurement,
    NoWorseThan,
    Paper,
    RatioAtMost,
    Scale,
    Within,
)
from heterodox.experiment.tuning import Tuning
from heterodox.models.transformer import AttentionFactory
from heterodox.tasks import language

paper = Paper.load("softplus-attention")

TEXT = "python-docs"

# Each arm's own best of the grid on seed 0, which no verdict uses: see results/tuning.
# Beyond it, 8e-3 was a little better on that seed for some arms, and 1.6e-2 unstable on others;
# the grid is the one that was set before the first run.
RATES = (1e-3, 2e-3, 4e-3)
EXTRAPOLATION_RATE = {
    "softmax": 4e-3,
    "softmax, QK-norm, log N": 4e-3,
    "LSSA": 4e-3,
    "LSSAR, p = 15": 4e-3,
}
NORMALISATION_RATE = {
    "exp, l1": 4e-3,
    "softplus, l1": 4e-3,
    "sigmoid, l1": 4e-3,
    "softplus, no l1": 4e-3,
}

# Half of the usual training length at laptop scale, so that 8 times more is still quick.
LENGTH = {Scale.SMOKE: 32, Scale.LAPTOP: 64, Scale.PAPER: 1024}
TOKENS_PER_STEP = {Scale.SMOKE: 512, Scale.LAPTOP: 2048, Scale.PAPER: 32 * 1024}


def settings(scale: Scale, rate: float) -> language.LanguageSettings:
    """The language task's own, at this paper's length."""
    return replace(
        language.SETTINGS[scale],
        length=LENGTH[scale],
        batch_size=TOKENS_PER_STEP[scale] // LENGTH[scale],
        learning_rate=rate,
        evaluate_lengths=(1, 2, 4, 8),
    )


EXTRAPOLATION_ARMS = {
    "softmax": "softmax",
    "softmax, QK-norm, log N": "softmax-qk-log-n",
    "LSSA": "softplus-lssa",
    "LSSAR, p = 15": "softplus",
}


def train_extrapolation(
    arm: str, seed: int, scale: Scale, rate: float, device: str = "cpu"
) -> language.TrainedLanguage:
    return language.train(
        attention=EXTRAPOLATION_ARMS[arm],
        data=TEXT,
        seed=seed,
        settings=settings(scale, rate),
        device=device,
    )


@paper.claim(
    name="keeps_its_loss_at_8_times_the_length",
    says="Softplus attention with re-weighting keeps its loss far beyond the training length; "
    "softmax does not.",
    reported="1K to 8K: LSSAR p = 15 from 3.19 to 3.32, softmax from 3.19 to 6.28 (nats/token)",
    metric="loss at 8 times the training length less that at 1 [nats/character]",
    reads="rise at 8x",
    expects=(AtMost("LSSAR, p = 15", 0.25), RatioAtMost("LSSAR, p = 15", "softmax", 0.5)),
)
@paper.claim(
    name="matches_softmax_at_the_training_length",
    says="At the training length LSSA and LSSAR are as good as softmax.",
    reported="at 1K: softmax 3.19, LSSA 3.19, LSSAR p = 15 3.19 (nats/token)",
    metric="validation loss at the training length [nats/character]",
    reads="nats per token",
    expects=(
        NoWorseThan("softmax", margin=0.02, arm="LSSA"),
        NoWorseThan("softmax", margin=0.02, arm="LSSAR, p = 15"),
    ),
)
def extrapolation(
    arm: Literal["softmax", "softmax, QK-norm, log N", "LSSA", "LSSAR, p = 15"],
    seed: int,
    scale: Scale,
    device: str,
) -> Measurement:
    """A small decoder with rotary positions learns characters in windows of 64; then the same text
    is evaluated in windows up to 8 times as long, positions running on. The second arm gives
    softmax what the method has besides its scores: normalised queries and keys, and a temperature
    of log N.

    Differs from the paper: at laptop scale a model of 0.2 million parameters, length 64 and 1.2
    million characters of training in place of GPT-2 small, length 1024 and 10 billion tokens.
    """
    return train_extrapolation(arm, seed, scale, EXTRAPOLATION_RATE[arm], device).measurement()


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "exp, l1": torch.exp,
    "softplus, l1": F.softplus,
    "sigmoid, l1": torch.sigmoid,
    "softplus, no l1": F.softplus,
}


class CosineAttention(nn.Module):
    """LSSA's logits, log(d) log(N) cos(q, k), under any positive score map, with or without the l1
    normalisation of the row: the paper's decomposition of softmax into its two parts."""

    def __init__(self, embed_dim: int, num_heads: int, arm: str) -> None:
        super().__init__()
        self.layer = SoftplusAttention(embed_dim, num_heads, power=None)
        self.arm = arm

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        if attn_mask is not None or not is_causal:
            raise ValueError("is_causal: a causal call without a mask expected")
        batch, length, width = x.shape
        heads = self.layer.num_heads
        query, key, value = (
            part.view(batch, length, heads, -1).transpose(1, 2)
            for part in self.layer.qkv(x).chunk(3, dim=-1)
        )
        query, key = (apply_rotary(F.normalize(part, dim=-1)) for part in (query, key))
        visible = torch.arange(1, length + 1, device=x.device, dtype=x.dtype)[:, None]
        logits = math.log(query.shape[-1]) * visible.log() * (query @ key.transpose(-1, -2))
        scores = SCORES[self.arm](logits).tril()
        if self.arm != "softplus, no l1":
            scores = scores / scores.sum(-1, keepdim=True)
        return self.layer.proj((scores @ value).transpose(1, 2).reshape(batch, length, width))


def cosine_attention(
    embed_dim: int,
    num_heads: int,
    *,
    sequence_length: int,
    position: str | None = None,
    arm: str,
) -> nn.Module:
    return CosineAttention(embed_dim, num_heads, arm)


def train_normalisation(
    arm: str, seed: int, scale: Scale, rate: float, device: str = "cpu"
) -> language.TrainedLanguage:
    factory: AttentionFactory = partial(cosine_attention, arm=arm)
    return language.train(
        attention=factory,
        data=TEXT,
        seed=seed,
        settings=replace(settings(scale, rate), evaluate_lengths=(1,)),
        device=device,
    )


@paper.claim(
    says="The l1 normalisation of the row is what matters in softmax, not the exponential.",
    reported="exp, softplus and sigmoid with l1 are alike at 1K; without l1 the model breaks",
    metric="validation loss [nats/character]",
    reads="nats per token",
    expects=(
        Within("softplus, l1", -0.03, 0.03, of="exp, l1"),
        Within("sigmoid, l1", -0.03, 0.03, of="exp, l1"),
        Within("sigmoid, l1", -0.03, 0.03, of="softplus, l1"),
        Beats("softplus, no l1", by=0.1, arm="exp, l1"),
        Beats("softplus, no l1", by=0.1, arm="softplus, l1"),
        Beats("softplus, no l1", by=0.1, arm="sigmoid, l1"),
    ),
    seeds=3,
)
def normalisation_is_what_matters(
    arm: Literal["exp, l1", "softplus, l1", "sigmoid, l1", "softplus, no l1"],
    seed: int,
    scale: Scale,
    device: str,
) -> Measurement:
    """The same logits, log(d) log(N) cos(q, k), under three score maps with the row divided by its
    sum, and under softplus without; a small decoder at windows of 64 characters.

    Differs from the paper: a small model on characters, each arm with its best learning rate of
    three.
    """
    return train_normalisation(arm, seed, scale, NORMALISATION_RATE[arm], device).measurement()


TUNED = (
    Tuning(
        "extrapolation", train_extrapolation, EXTRAPOLATION_RATE, RATES, "nats per token", "lower"
    ),
    Tuning(
        "normalisation_is_what_matters",
        train_normalisation,
        NORMALISATION_RATE,
        RATES,
        "nats per token",
        "lower",
    ),
)

POWERS = (3.0, 7.0, 15.0)


@paper.claim(
    says="The power can be switched on after training, and then helps beyond the training length.",
    reported="versions 1 to 3 call the re-weighting free of fine-tuning",
    metric="loss at 8 times the training length [nats/character]",
    expects=Beats("LSSA as trained", arm="with a power"),
    arms=("LSSA as trained", "with a power"),
    seeds=3,
)
def sharpening_without_retraining(seed: int, scale: Scale, device: str) -> dict[str, Measurement]:
    """LSSA is trained once in windows of 64; then powers 3, 7 and 15 are set without training. The
    power that is best at 4 times the length is judged at 8 times, so that it is not picked where it
    is judged.

    Differs from the paper: a small model on characters; later versions of the paper train with the
    power.
    """
    run = train_extrapolation("LSSA", seed, scale, EXTRAPOLATION_RATE["LSSA"], device)
    length = LENGTH[scale]

    def losses(power: float | None) -> dict[int, float]:
        set_power(run.model, power)
        return {multiple: run.loss_at(multiple * length) for multiple in (1, 4, 8)}

    plain = losses(None)
    sharpened = {power: losses(power) for power in POWERS}
    best = min(POWERS, key=lambda power: sharpened[power][4])
    at_8 = [(power, loss[8]) for power, loss in sharpened.items()]
    return {
        "LSSA as trained": Measurement(plain[8], {"loss at 1x": plain[1]}),
        "with a power": Measurement(
            sharpened[best][8],
            {"power": best, "loss at 1x": sharpened[best][1]},
            {"loss at 8x by power": at_8},
        ),
    }
