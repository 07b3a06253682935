"""Claims of "Softmax-free Linear Transformers", arXiv 2207.03341."""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heterodox.attention.low_rank_baselines import (
    LinformerMix,
    MixedAttention,
    NystromMix,
    PerformerMix,
    SoftmaxMix,
)
from heterodox.attention.softmax_free import (
    SoftmaxFreeAttention,
    gaussian_kernel,
    newton_inverse,
)
from heterodox.bench import BENCHES
from heterodox.bench.contestants import contestant
from heterodox.bench.live_memory import peak_of_live_tensors
from heterodox.bench.timing import interleaved
from heterodox.bench.workload import Case
from heterodox.data.images import load_images
from heterodox.experiment import (
    AtLeast,
    AtMost,
    Beats,
    Measurement,
    Paper,
    RatioAtLeast,
    RatioAtMost,
    Scale,
)
from heterodox.experiment.expectation import Better, Effect, Values
from heterodox.experiment.statistics import judge, paired_interval
from heterodox.experiment.tuning import Tuning
from heterodox.models.soft import PostNormBlock, interpolated
from heterodox.models.transformer import INIT_STD, initialise
from heterodox.models.vision import patches
from heterodox.tasks import images
from heterodox.training.seeding import generator_for

paper = Paper.load("softmax-free-transformer")

DATA = {Scale.SMOKE: "digits", Scale.LAPTOP: "fashion-mnist", Scale.PAPER: "cifar10"}

# 28 x 28 pixels in patches of 2: 196 tokens, of which a ratio of 2 makes 49 bottleneck tokens.
PATCH, RATIO, WIDTH, HEADS, BLOCKS, FEATURES = 2, 2, 64, 2, 2, 64

# Each arm's own best of the grid on seed 0, which no verdict uses: see results/tuning.
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
RATE = {
    "softmax": 4e-3,
    "Nyström": 4e-3,
    "Linformer": 2e-3,
    "Performer": 4e-3,
    "SOFT": 2e-3,
    "SOFT++": 1e-3,
}

# Four times the tokens have four times the bottleneck tokens, whose inverse is what takes the time.
ENLARGED_IMAGES = {Scale.SMOKE: 100, Scale.LAPTOP: 200, Scale.PAPER: 10_000}

LINEAR = ("Nyström", "Linformer", "Performer")
SOFTMAX_FREE = ("SOFT", "SOFT++")


def settings(scale: Scale, rate: float) -> images.ImageSettings:
    """The image task's own; at laptop scale two passes over 5000 images."""
    usual = replace(images.SETTINGS[scale], learning_rate=rate, evaluations=1)
    if scale is Scale.SMOKE:
        return replace(usual, epochs=1, train_images=320, test_images=100)
    if scale is Scale.LAPTOP:
        return replace(usual, epochs=2, batch_size=16, train_images=5000, test_images=2000)
    return usual


# What a grid of so many tokens a side is given; the bottleneck, the landmarks and the keys of
# Linformer are equally many.
ATTENTION: dict[str, Callable[[int], nn.Module]] = {
    "softmax": lambda side: MixedAttention(WIDTH, HEADS, SoftmaxMix()),
    "Nyström": lambda side: MixedAttention(WIDTH, HEADS, NystromMix(RATIO)),
    "Linformer": lambda side: MixedAttention(
        WIDTH, HEADS, LinformerMix(side**2, (side // RATIO) ** 2)
    ),
    "Performer": lambda side: MixedAttention(WIDTH, HEADS, PerformerMix(WIDTH // HEADS, FEATURES)),
    "SOFT": lambda side: SoftmaxFreeAttention(WIDTH, HEADS, RATIO),
    "SOFT++": lambda side: SoftmaxFreeAttention(WIDTH, HEADS, RATIO, normalize=True),
}


class GridClassifier(nn.Module):
    """SOFT's post-norm blocks with any attention, on patches of images of any resolution."""

    def __init__(self, image_shape: tuple[int, int, int], classes: int, *, arm: str) -> None:
        super().__init__()
        channels, side = image_shape[0], image_shape[1] // PATCH
        self.embedding = nn.Linear(channels * PATCH**2, WIDTH)
        self.positions = nn.Parameter(torch.empty(1, WIDTH, side, side))
        self.blocks = nn.ModuleList(
            PostNormBlock(WIDTH, ATTENTION[arm](side)) for _ in range(BLOCKS)
        )
        self.readout = nn.Linear(WIDTH, classes)
        initialise(self)
        nn.init.trunc_normal_(self.positions, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)

    def forward(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2] // PATCH, pixels.shape[3] // PATCH
        positions = interpolated(self.positions, height, width).flatten(2).mT
        x = self.embedding(patches(pixels, PATCH)) + positions
        for block in self.blocks:
            x = block(x, height, width)
        return self.readout(x.mean(dim=1))


def train(
    arm: str, seed: int, scale: Scale, rate: float, device: str = "cpu"
) -> images.TrainedImages:
    return images.train(
        model=partial(GridClassifier, arm=arm),
        data=DATA[scale],
        seed=seed,
        settings=settings(scale, rate),
        device=device,
    )


TUNED = (Tuning("vision", train, RATE, RATES, None, "higher"),)


@dataclass(frozen=True)
class BestAtLeast:
    """The best of `arms` is better than the best of `rivals`, or worse by less than `margin`."""

    arms: tuple[str, ...]
    rivals: tuple[str, ...]
    margin: float = 0.0

    def effects(self, values: Values, better: Better) -> list[Effect]:
        runs = [values.get(arm, {}) for arm in (*self.arms, *self.rivals)]
        ours, theirs = runs[: len(self.arms)], runs[len(self.arms) :]
        per_seed = {
            seed: best_of(ours, seed) - best_of(theirs, seed)
            for seed in sorted(set.intersection(*map(set, runs)))
        }
        if not per_seed:
            return []
        interval = paired_interval(list(per_seed.values()))
        verdict = judge(interval, "above", -self.margin)
        label = f"best of {', '.join(self.arms)} − best of {', '.join(self.rivals)}"
        return [Effect(label, per_seed, "above", -self.margin, interval, verdict)]

    def describe(self, better: Better) -> str:
        margin = f" − {self.margin:g}" if self.margin else ""
        return (
            f"the best of {', '.join(self.arms)} {better} than the best of "
            f"{', '.join(self.rivals)}{margin}"
        )


def best_of(runs: list[Mapping[int, float]], seed: int) -> float:
    """The highest; an arm that diverged is never the best one."""
    return max((run[seed] for run in runs if math.isfinite(run[seed])), default=math.nan)


@paper.claim(
    name="beats_linear_approximations_of_softmax",
    says="At equal cost softmax-free attention is better than linear approximations of softmax.",
    reported="ImageNet, Tiny: SOFT 79.3, Nyströmformer 78.6, Linformer 78.2, Performer 76.1 %",
    metric="test accuracy [%]",
    better="higher",
    expects=BestAtLeast(SOFTMAX_FREE, LINEAR),
    seeds=3,
)
@paper.claim(
    name="matches_softmax",
    says="Softmax-free attention is as good as softmax attention.",
    reported="ImageNet, Tiny: SOFT 79.3 %, softmax 79.1 %",
    metric="test accuracy [%]",
    better="higher",
    expects=BestAtLeast(SOFTMAX_FREE, ("softmax",), margin=1.0),
    arms=("softmax", "SOFT", "SOFT++"),
    seeds=3,
)
@paper.claim(
    name="normalisation_transfers_to_more_tokens",
    says="Normalised, it keeps its accuracy on images of a resolution that it was not trained at.",
    reported="SOFT needs the normalisation for dense prediction at other resolutions",
    metric="accuracy lost at twice the side [points]",
    reads="accuracy lost at twice the side",
    expects=Beats("SOFT", by=1.0, arm="SOFT++"),
    arms=SOFTMAX_FREE,
    seeds=3,
)
@paper.claim(
    name="normalisation_bounds_the_spectral_norm",
    says="The spectral norm of the attention map grows with the number of tokens; normalised, it "
    "does not.",
    reported="a bound for each of the two (propositions on the spectral norm)",
    metric="spectral norm at four times as many tokens / at the training number",
    reads="growth of the spectral norm",
    expects=(AtLeast("SOFT", 2.0), RatioAtMost("SOFT++", "SOFT", 0.5)),
    arms=SOFTMAX_FREE,
    seeds=3,
)
def vision(
    arm: Literal["softmax", "Nyström", "Linformer", "Performer", "SOFT", "SOFT++"],
    seed: int,
    scale: Scale,
    device: str,
) -> Measurement:
    """Two post-norm blocks of width 64 with 2 heads learn Fashion-MNIST in patches of 2 x 2, so
    that there are 196 tokens, and 49 bottleneck tokens, landmarks or projected keys (64 random
    features for the Performer). No arm has a local term; each has its own best learning rate of
    four. Then 200 test images are enlarged to twice their side, four times as many tokens, with
    bilinearly interpolated positions, for all arms but Linformer, which has no other length.

    Differs from the paper: 5000 images, two epochs and one stage in place of ImageNet, 300 epochs
    and a pyramid; the paper changes the resolution for detection and segmentation.
    """
    run = train(arm, seed, scale, RATE[arm], device)
    result = run.measurement()
    if arm == "Linformer":
        return result
    data, count = load_images(DATA[scale]), ENLARGED_IMAGES[scale]
    pixels, labels = data.test_images[:count].to(device), data.test_labels[:count]
    usual, enlarged = (accuracy(run, pixels, labels, times) for times in (1, 2))
    readings = {
        "accuracy at twice the side": enlarged,
        "accuracy lost at twice the side": usual - enlarged,
    }
    curves = dict(result.curves)
    if arm in SOFTMAX_FREE:
        norms = [(times, spectral_norm(run, pixels[:16], times)) for times in (1, 2)]
        readings["spectral norm"] = norms[0][1]
        readings["growth of the spectral norm"] = norms[1][1] / norms[0][1]
        side = pixels.shape[2] // PATCH
        curves["spectral norm by tokens"] = [((side * times) ** 2, norm) for times, norm in norms]
    return replace(result, readings=result.readings | readings, curves=curves)


def enlarge(run: images.TrainedImages, pixels: Tensor, times: int) -> Tensor:
    """What the model takes, bilinearly enlarged."""
    shown = run.normalise(pixels)
    if times == 1:
        return shown
    return F.interpolate(shown, scale_factor=times, mode="bilinear", align_corners=False)


@torch.no_grad()
def accuracy(run: images.TrainedImages, pixels: Tensor, labels: Tensor, times: int) -> float:
    right = 0
    for some, truth in zip(pixels.split(250), labels.split(250), strict=True):
        right += int((run.model(enlarge(run, some, times)).argmax(-1).cpu() == truth).sum())
    return 100 * right / len(labels)


POWER_STEPS = 50


@torch.no_grad()
def spectral_norm(run: images.TrainedImages, pixels: Tensor, times: int) -> float:
    """The mean of `map_norms` over blocks, heads and images."""
    norms: list[float] = []

    def note(layer: nn.Module, arguments: tuple[Tensor, int, int]) -> None:
        assert isinstance(layer, SoftmaxFreeAttention)
        norms.append(map_norms(layer, *arguments).mean().item())

    layers = [layer for layer in run.model.modules() if isinstance(layer, SoftmaxFreeAttention)]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        run.model(enlarge(run, pixels, times))
    finally:
        for handle in handles:
            handle.remove()
    return statistics.mean(norms)


def map_norms(layer: SoftmaxFreeAttention, x: Tensor, height: int, width: int) -> Tensor:
    """The spectral norm of each n x n map P W Pᵀ: the largest eigenvalue of W Pᵀ P."""
    query = layer.scaled_queries(x)
    tokens = layer.bottleneck_tokens(query, height, width)
    kernel, among = gaussian_kernel(query, tokens), gaussian_kernel(tokens, tokens)
    inverse = newton_inverse(among, layer.iterations, layer.ridge)
    if layer.normalize:
        root = among.sum(-1).rsqrt()
        inverse = root[..., :, None] * inverse * root[..., None, :]
    step = inverse @ (kernel.mT @ kernel)
    vector = inverse.sum(-1, keepdim=True)
    for _ in range(POWER_STEPS):
        vector = step @ F.normalize(vector, dim=2)
    return vector.norm(dim=(2, 3))


COST_ARMS = {
    "softmax": "softmax",
    "softmax, weights stored": "dense-softmax",
    "SOFT": "soft",
    "SOFT++": "soft++",
}
COST_SIDES = {
    Scale.SMOKE: (14, 28),
    Scale.LAPTOP: (14, 28, 56, 112),
    Scale.PAPER: (14, 28, 56, 112),
}
# Where memory is compared; with all weights stored, larger grids would not fit everywhere.
MEMORY_SIDE = {Scale.SMOKE: 28, Scale.LAPTOP: 56, Scale.PAPER: 56}
PASSES = "forward and backward"


@paper.claim(
    name="time_is_linear_in_the_number_of_tokens",
    says="The time of softmax-free attention is linear in the number of tokens.",
    reported="linear complexity in space and time (abstract)",
    metric="exponent of the time over the number of tokens",
    expects=(AtMost("SOFT", 1.2), AtMost("SOFT++", 1.2), AtLeast("softmax", 1.7)),
    arms=("softmax", "SOFT", "SOFT++"),
    seeds=3,
)
@paper.claim(
    name="no_matrix_of_all_pairs_is_stored",
    says="No matrix with one number for each pair of tokens is formed.",
    reported="linear complexity in space and time (abstract)",
    metric="peak memory of forward and backward [matrices of n x n numbers]",
    reads="n x n matrices",
    expects=(
        AtMost("SOFT", 1.0),
        AtMost("SOFT++", 1.0),
        AtLeast("softmax, weights stored", 2.0),
    ),
    arms=("softmax", "softmax, weights stored", "SOFT", "SOFT++"),
    seeds=3,
)
def cost(seed: int, scale: Scale) -> dict[str, Measurement]:
    """Forward and backward pass of one layer with 2 heads of 32 channels and 49 bottleneck tokens,
    on grids of 14 x 14 to 112 x 112 random tokens; layers take turns on each grid. Memory is the
    most that tensors hold at once. Softmax is torch's scaled_dot_product_attention, which stores no
    weights either; the arm that does stops at 56 x 56, where memory is compared.

    Differs from the paper: a layer alone, on a CPU, where the paper has whole networks on a GPU.
    """
    workload = BENCHES["attention-vision"]()
    times: dict[str, list[tuple[float, float]]] = {arm: [] for arm in COST_ARMS}
    peaks: dict[str, list[tuple[float, float]]] = {arm: [] for arm in COST_ARMS}
    for side in COST_SIDES[scale]:
        case = Case(str(side**2), PASSES)
        arms = {
            arm: name
            for arm, name in COST_ARMS.items()
            if side <= MEMORY_SIDE[scale] or name != "dense-softmax"
        }
        calls = {
            arm: workload.prepare(contestant("attention-vision", name), case, "cpu")
            for arm, name in arms.items()
        }
        for arm, call in calls.items():
            peaks[arm].append((side**2, peak_of_live_tensors(call)))  # and a warm-up
        short = side <= 28
        timings = interleaved(calls, seconds=0.2 if short else 0.0, repeat=5 if short else 3)
        for arm, timing in timings.items():
            times[arm].append((side**2, timing.quartiles[1]))
    tokens = MEMORY_SIDE[scale] ** 2
    return {
        arm: Measurement(
            exponent(times[arm]),
            {
                "n x n matrices": dict(peaks[arm])[tokens] / (4 * tokens**2),
                f"peak memory at {tokens} tokens [MB]": dict(peaks[arm])[tokens] / 1e6,
            },
            {
                "milliseconds by tokens": [(n, 1e3 * seconds) for n, seconds in times[arm]],
                "peak memory by tokens [MB]": [(n, peak / 1e6) for n, peak in peaks[arm]],
            },
        )
        for arm in COST_ARMS
    }


def exponent(points: list[tuple[float, float]]) -> float:
    """The slope of the least-squares line through the logarithms."""
    x, y = np.log(np.asarray(points)).T
    return float(np.polyfit(x, y, 1)[0])


ITERATIONS = 20
TOKENS, HEAD_DIM, MATRICES = 49, 32, 8


def unrolled_inverse(matrix: Tensor) -> Tensor:
    """Newton's iteration as autograd sees it: a graph through every step."""
    ridged = matrix + 0.01 * torch.eye(matrix.shape[-1])
    inverse = ridged * (0.9 * 2 / matrix.sum(-1).amax(-1).square())[:, None, None]
    for _ in range(ITERATIONS):
        inverse = 2 * inverse - inverse @ ridged @ inverse
    return inverse


def exact_inverse(matrix: Tensor) -> Tensor:
    return torch.linalg.inv(matrix + 0.01 * torch.eye(matrix.shape[-1]))


INVERSES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "unrolled": unrolled_inverse,
    "closed form": partial(newton_inverse, iterations=ITERATIONS),
}


@paper.claim(
    name="closed_form_gradient_is_exact",
    says="The gradient of the inverse needs no iteration: the closed form gives it exactly.",
    reported="a theorem: it holds for every matrix on which the iteration has converged",
    metric="difference from the gradient through torch.linalg.inv, relative",
    expects=AtMost("closed form", 1e-4),
    arms=("unrolled", "closed form"),
)
@paper.claim(
    name="closed_form_gradient_is_cheap",
    says="The closed form stores none of the iterations.",
    reported="backward propagation through 20 iterations is what the closed form avoids",
    metric="memory kept for the backward pass [MB]",
    reads="memory kept [MB]",
    expects=RatioAtLeast("unrolled", "closed form", 10.0),
    arms=("unrolled", "closed form"),
)
def backward(seed: int, scale: Scale) -> dict[str, Measurement]:
    """Kernels of 49 random tokens of 32 channels, at mean distances at which 20 iterations converge
    in float32, and random gradients of their inverses; the same for both arms. Memory counts every
    storage that autograd keeps, once, but for the matrices themselves.

    Differs from the paper: random tokens, at a spread drawn by the seed, in place of a network's.
    """
    generator = generator_for(seed, "tokens")
    spread = 0.2 + 0.2 * torch.rand((), generator=generator)
    tokens = spread * torch.randn(MATRICES, TOKENS, HEAD_DIM, generator=generator)
    kernels = (-torch.cdist(tokens, tokens).square() / 2).exp().requires_grad_()
    upstream = torch.randn(kernels.shape, generator=generator)
    (expected,) = torch.autograd.grad(exact_inverse(kernels), kernels, upstream)
    results = {}
    for arm, inverse in INVERSES.items():
        kept: dict[int, int] = {}

        def note(x: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() != kernels.untyped_storage().data_ptr():
                kept[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            result = inverse(kernels)
        (gradient,) = torch.autograd.grad(result, kernels, upstream)
        difference = float((gradient - expected).norm() / expected.norm())
        results[arm] = Measurement(difference, {"memory kept [MB]": sum(kept.values()) / 1e6})
    return results
