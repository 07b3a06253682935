"""Claims of "Theory, Analysis, and Best Practices for Sigmoid Self-Attention", arXiv 2409.04431."""

import math
import statistics
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import nn

from heterodox.attention.sigmoid import SigmoidAttention, sigmoid_attention_lipschitz_bound
from heterodox.attention.softmax import SoftmaxAttention
from heterodox.data import load_text
from heterodox.experiment import (
    AtMost,
    Beats,
    Measurement,
    NoWorseThan,
    Paper,
    Scale,
    Slope,
    Within,
)
from heterodox.experiment.tuning import Tuning
from heterodox.models.transformer import AttentionFactory, Block
from heterodox.tasks import images, language
from heterodox.training.seeding import seeded

paper = Paper.load("sigmoid-attention")

TEXT = "python-docs"

# Each arm's own best of the grid on seed 0, which no verdict uses: see results/tuning.
# Beyond it, 8e-3 was a little better on that seed for some arms, and 1.6e-2 unstable on others;
# the grid is the one that was set before the first run.
RATES = (1e-3, 2e-3, 4e-3)
LANGUAGE_RATE = {"softmax": 4e-3, "sigmoid": 4e-3, "sigmoid, b = 0": 4e-3}
VISION_RATE = {"softmax": 4e-3, "sigmoid": 4e-3}

VISION_DATA = {
    Scale.SMOKE: "digits",
    Scale.LAPTOP: "fashion-mnist",
    Scale.PAPER: "cifar10",
}
NORM_LENGTHS = {
    Scale.SMOKE: (16, 64, 256),
    Scale.LAPTOP: (64, 256, 1024),
    Scale.PAPER: (64, 256, 1024),
}
JACOBIAN_TOKENS = {Scale.SMOKE: 6, Scale.LAPTOP: 16, Scale.PAPER: 32}
JACOBIAN_WINDOWS = {Scale.SMOKE: 2, Scale.LAPTOP: 4, Scale.PAPER: 16}


def sigmoid_without_bias(
    embed_dim: int, num_heads: int, *, sequence_length: int, position: str | None = None
) -> nn.Module:
    return SigmoidAttention(embed_dim, num_heads, attention_bias=0.0, position=position)


LANGUAGE_ARMS: dict[str, str | AttentionFactory] = {
    "softmax": "softmax",
    "sigmoid": "sigmoid",
    "sigmoid, b = 0": sigmoid_without_bias,
}


def train_language(
    arm: str, seed: int, scale: Scale, rate: float, device: str = "cpu"
) -> language.TrainedLanguage:
    settings = replace(language.SETTINGS[scale], learning_rate=rate, evaluate_lengths=(1,))
    return language.train(
        attention=LANGUAGE_ARMS[arm], data=TEXT, seed=seed, settings=settings, device=device
    )


def train_vision(
    arm: str, seed: int, scale: Scale, rate: float, device: str = "cpu"
) -> images.TrainedImages:
    settings = replace(images.SETTINGS[scale], learning_rate=rate, layer_scale=1e-4)
    return images.train(
        model="vit",
        attention=arm,
        data=VISION_DATA[scale],
        seed=seed,
        settings=settings,
        device=device,
    )


TUNED = (
    Tuning("language_model", train_language, LANGUAGE_RATE, RATES, "nats per token", "lower"),
    Tuning("vision_transformer", train_vision, VISION_RATE, RATES, None, "higher"),
)


@paper.claim(
    name="matches_softmax_in_language",
    says="Properly normalised sigmoid attention matches softmax attention in language modelling.",
    reported="1B parameters, length 2048: loss and zero-shot accuracy equal within noise",
    metric="validation loss [nats/character]",
    reads="nats per token",
    expects=NoWorseThan("softmax", margin=0.02),
    arms=("softmax", "sigmoid"),
)
@paper.claim(
    name="bias_of_minus_log_n_is_needed",
    says="Large attention norms at the start harm sigmoid attention; a bias of -log n cures it.",
    reported="without the bias the training loss is higher and the start unstable (figures)",
    metric="validation loss [nats/character]",
    reads="nats per token",
    expects=Beats("sigmoid, b = 0", arm="sigmoid"),
    arms=("sigmoid, b = 0", "sigmoid"),
)
def language_model(
    arm: Literal["softmax", "sigmoid", "sigmoid, b = 0"], seed: int, scale: Scale, device: str
) -> Measurement:
    """A small decoder (rotary positions, pre-norm) learns the characters of Python's documentation;
    every arm has the same block, data order and budget, and its own best learning rate of three.

    Differs from the paper: at laptop scale a model of 0.2 million parameters at length 128 in place
    of 1 billion at length 2048, without QK-norm, so that the bias alone has to tame the norms.
    """
    return train_language(arm, seed, scale, LANGUAGE_RATE[arm], device).measurement()


def _norm_arms(scale: Scale, bias: str) -> dict[str, int]:
    names = ("short", "medium", "long")
    return {f"{bias}, {name}": n for name, n in zip(names, NORM_LENGTHS[scale], strict=True)}


# The three lengths of a scale stand in a ratio of 4, whatever they are.
GROWTH = {"b = 0, short": 1.0, "b = 0, medium": 4.0, "b = 0, long": 16.0}


@paper.claim(
    name="norm_without_bias_grows_with_length",
    says="At the start a row of sigmoid attention sums to about n/2, so its output grows with n.",
    reported="row sums of n/2 at initialisation (section on initial norms)",
    metric="norm of the attention output / that of softmax",
    expects=Slope(GROWTH, 0.9, 1.1, log=True),
    arms=tuple(GROWTH),
)
@paper.claim(
    name="norm_with_bias_is_that_of_softmax",
    says="With a bias of -log n the output at the start is as large as that of softmax.",
    reported="row sums of about 1 at initialisation",
    metric="norm of the attention output / that of softmax",
    expects=(
        Within("b = -log n, short", 0.3, 3),
        Within("b = -log n, medium", 0.3, 3),
        Within("b = -log n, long", 0.3, 3),
    ),
    arms=("b = -log n, short", "b = -log n, medium", "b = -log n, long"),
)
def norms_at_initialisation(seed: int, scale: Scale) -> dict[str, float]:
    """One layer with fresh weights on embedded real text, every token seeing every other: the norm
    of its output against that of softmax attention with the same weights, at three lengths n of
    which each is four times the one before (64, 256 and 1024 at laptop scale).

    Differs from the paper: the paper shows the norms of whole networks, layer by layer.
    """
    width, heads = 96, 3
    tokens = load_text(TEXT).encode("char")
    with seeded(seed), torch.no_grad():
        embedding = nn.Embedding(tokens.vocabulary_size, width)
        softmax = SoftmaxAttention(width, heads)
        start = int(torch.randint(len(tokens.train) - 2048, ()))
        ratios = {}
        for bias in ("b = 0", "b = -log n"):
            for arm, n in _norm_arms(scale, bias).items():
                x = embedding(tokens.train[None, start : start + n].long())
                sigmoid = SigmoidAttention(
                    width, heads, attention_bias=0.0 if bias == "b = 0" else -math.log(n)
                )
                sigmoid.load_state_dict(softmax.state_dict())
                ratios[arm] = float(sigmoid(x).norm() / softmax(x).norm())
    return ratios


@paper.claim(
    name="matches_softmax_in_vision",
    says="Sigmoid attention matches softmax attention in supervised image classification.",
    reported="ImageNet ViT-B/16: equal within noise",
    metric="test accuracy [%]",
    better="higher",
    expects=NoWorseThan("softmax", margin=1.0),
)
def vision_transformer(
    arm: Literal["softmax", "sigmoid"], seed: int, scale: Scale, device: str
) -> Measurement:
    """A small vision transformer with LayerScale 1e-4 in both arms learns Fashion-MNIST (digits at
    smoke scale); each arm has its own best learning rate of three.

    Differs from the paper: at laptop scale 12 000 images of 28 x 28 in patches of 4, three epochs.
    """
    return train_vision(arm, seed, scale, VISION_RATE[arm], device).measurement()


@paper.claim(
    says="The Jacobian of sigmoid attention is bounded by a quadratic in the size of its inputs.",
    reported="a theorem: it holds for every input",
    metric="inputs on which the bound is exceeded [%]",
    expects=(AtMost("fresh layer", 0.01), AtMost("trained layer", 0.01)),
    arms=("fresh layer", "trained layer"),
    seeds=3,
)
def jacobian_bound_holds(seed: int, scale: Scale) -> dict[str, Measurement]:
    """The exact spectral norm of one head's Jacobian, in float64, against the theorem's bound: on
    embedded real text at input scales 1, 2 and 4, for a fresh head and for the first head of a
    trained model. The curves show the norms of the sigmoid and of softmax with the same weights.

    Differs from the paper: nothing in the theorem; inputs are those of a small character model.
    """
    settings = replace(language.SETTINGS[scale], evaluate_lengths=(1,), steps=200)
    trained = language.train(attention="sigmoid", data=TEXT, seed=seed, settings=settings)
    with seeded(seed):
        fresh = SigmoidAttention(settings.width, settings.heads)
    first = cast(Block, trained.decoder.blocks[0])
    return {
        "fresh layer": _bound_against_actual(fresh, trained, scale),
        "trained layer": _bound_against_actual(
            cast(SigmoidAttention, first.attention), trained, scale
        ),
    }


def _bound_against_actual(
    layer: SigmoidAttention, trained: language.TrainedLanguage, scale: Scale
) -> Measurement:
    model = trained.decoder
    norm = cast(Block, model.blocks[0]).attention_norm
    head_dim = trained.settings.width // trained.settings.heads
    query, key, value = (part[:head_dim].double() for part in layer.qkv.weight.detach().chunk(3))
    n = JACOBIAN_TOKENS[scale]
    bias = -math.log(n)
    ratios = []
    curves: dict[str, list[tuple[float, float]]] = {"sigmoid": [], "softmax": [], "bound": []}
    windows = trained.text.validation[: n * JACOBIAN_WINDOWS[scale]].long().view(-1, n)
    for scaling in (1.0, 2.0, 4.0):
        sums = dict.fromkeys(curves, 0.0)
        for window in windows:
            with torch.no_grad():
                x = scaling * norm(model.embedding(window)).double()
            norms = {
                "sigmoid": _jacobian_norm(x, query, key, value, bias),
                "softmax": _jacobian_norm(x, query, key, value, None),
                "bound": float(sigmoid_attention_lipschitz_bound(x, query, key, value, bias=bias)),
            }
            ratios.append(norms["bound"] / norms["sigmoid"])
            sums = {name: sums[name] + norms[name] / len(windows) for name in sums}
        for name, mean in sums.items():
            curves[name].append((scaling, mean))
    exceeded = 100 * sum(ratio < 1 for ratio in ratios) / len(ratios)
    readings = {
        "median bound / actual": statistics.median(ratios),
        "smallest bound / actual": min(ratios),
    }
    return Measurement(exceeded, readings, curves)


def _jacobian_norm(
    x: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: float | None,
) -> float:
    """Spectral norm of X -> attention(X) for one head; softmax if `bias` is None."""

    def attention(x: torch.Tensor) -> torch.Tensor:
        logits = (x @ query.T) @ (x @ key.T).T / math.sqrt(len(query))
        weights = logits.softmax(-1) if bias is None else torch.sigmoid(logits + bias)
        return weights @ (x @ value.T)

    jacobian = torch.func.jacrev(attention)(x)
    return float(torch.linalg.matrix_norm(jacobian.reshape(-1, x.numel()), ord=2))
