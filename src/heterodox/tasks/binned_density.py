"""Conditional densities in bins: a small network learns the law of z given x and y, known exactly.

    mixture    x, y ~ U(-.8, .8),               z ~ N(x, .01) or N(y, .01), each as likely
    gaussian   x ~ U(-.8, .8), y ~ N(x, .01),   z ~ N(y, .01)
    beta       x, y as in gaussian,             z ~ ± Beta(100 |x|, 100 |y|), each sign as likely

The toy problems of Gillman et al., "Fourier Head", ICLR 2025, arXiv 2410.22269, section 4.1, with
the sizes of the authors' code: 50 bins of [-1, 1] for all three numbers, an MLP 2-64-32 with ReLU
in front of the head, 5000 samples of which a fifth are for testing. A prediction is compared with
the probabilities of the bins under the law itself, at the test inputs before they were binned.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64
from scipy import stats
from torch import Tensor, nn

from heterodox.experiment.measurement import Curve, Measurement
from heterodox.experiment.scale import Scale
from heterodox.layers import smoothness
from heterodox.layers.fourier_head import FourierHead
from heterodox.models.forecaster import HeadFactory
from heterodox.tasks.series_bins import bins_of
from heterodox.training.batches import Shuffled
from heterodox.training.devices import fabric_on
from heterodox.training.history import History
from heterodox.training.loop import fit
from heterodox.training.seeding import derived_seed, generator_for, seeded

FAMILIES = ("mixture", "gaussian", "beta")

BINS = 50

# The standard deviation of all Gaussians, and the concentration of the Beta laws.
DEVIATION, CONCENTRATION = 0.1, 100.0

HIDDEN = (64, 32)


@dataclass(frozen=True)
class DensitySettings:
    """The sizes of a run.

    Args:
        samples: of which a fifth are for testing.
        epochs: passes over the training samples.
        batch_size: samples a step.
        learning_rate: of Adam, constant.
    """

    samples: int
    epochs: int
    batch_size: int
    learning_rate: float


SETTINGS: dict[Scale, DensitySettings] = {
    Scale.SMOKE: DensitySettings(samples=600, epochs=5, batch_size=32, learning_rate=2e-3),
    Scale.LAPTOP: DensitySettings(samples=5000, epochs=100, batch_size=128, learning_rate=2e-3),
    Scale.PAPER: DensitySettings(samples=5000, epochs=500, batch_size=32, learning_rate=1e-3),
}


@dataclass(frozen=True)
class TrainedDensity:
    """A trained network with its record.

    Attributes:
        model: in evaluation mode, on the device of training; from (x, y) to logits.
        history: the curve of the training loss.
        divergence: mean KL(truth || model) over the test inputs [nats]; NaN if training diverged.
        smoothness: mean over the test inputs of the predictions' smoothness.
    """

    model: nn.Module
    history: History
    divergence: float
    smoothness: float

    def measurement(self) -> Measurement:
        """The metric, the divergence; and a reading "smoothness"."""
        curves: dict[str, Curve] = {"training loss [nats]": self.history.loss}
        return Measurement(self.divergence, {"smoothness": self.smoothness}, curves)


def train(
    family: str,
    head: HeadFactory,
    *,
    seed: int,
    settings: DensitySettings = SETTINGS[Scale.LAPTOP],
    device: str = "cpu",
) -> TrainedDensity:
    """Trains the MLP with a head on samples of a law, and compares it with the law.

    Args:
        family: "mixture", "gaussian" or "beta".
        head: `(in_features, bins) -> Module`. What a Fourier head's `regularization` asks for is
            added to the loss.
        seed: of the samples, their order and the initialisation.
        settings: see `SETTINGS` for those of each scale.
        device: see `heterodox.training.fabric_on`.

    Raises:
        ValueError: `family` is none of these.

    Example:
        >>> run = train("mixture", nn.Linear, seed=0, settings=SETTINGS[Scale.SMOKE])
        >>> 0 < run.divergence < 3
        True
    """
    fabric = fabric_on(device)
    xy, z = samples(family, settings.samples, derived_seed(seed, "samples"))
    border = settings.samples * 4 // 5
    inputs, targets = centre_of_bin(xy).float(), bins_of(z, BINS, 1.0)
    with seeded(derived_seed(seed, "initialisation")):
        trunk = [
            *(nn.Linear(2, HIDDEN[0]), nn.ReLU()),
            *(nn.Linear(HIDDEN[0], HIDDEN[1]), nn.ReLU()),
        ]
        model = nn.Sequential(*trunk, head(HIDDEN[1], BINS))
    batches = Shuffled(
        (inputs[:border], targets[:border]), settings.batch_size, generator_for(seed, "order")
    )

    def loss(_: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        layer = model[-1]
        if not isinstance(layer, FourierHead):
            return F.cross_entropy(model(batch[0]), batch[1])
        logits, penalty = layer(model[:-1](batch[0]), return_penalty=True)
        return F.cross_entropy(logits, batch[1]) + penalty

    history = fit(
        model,
        torch.optim.Adam(model.parameters(), lr=settings.learning_rate),
        batches,
        loss,
        steps=settings.epochs * len(batches),
        fabric=fabric,
        seed=derived_seed(seed, "dropout"),
    )
    model.eval()
    truth = bin_probabilities(family, xy[border:]).to(fabric.device)
    with torch.no_grad():
        log_pmf = model(inputs[border:].to(fabric.device)).double().log_softmax(-1)
    if history.diverged:
        log_pmf = torch.full_like(log_pmf, torch.nan)
    divergence = F.kl_div(log_pmf, truth, reduction="batchmean").item()
    return TrainedDensity(model, history, divergence, smoothness(log_pmf.exp()).mean().item())


def samples(
    family: str, count: int, seed: int
) -> tuple[Float64[Tensor, "count 2"], Float64[Tensor, "count"]]:
    """Inputs (x, y) and outcomes z, drawn from the law.

    Example:
        >>> xy, z = samples("beta", 100, seed=0)
        >>> xy.shape, bool((z.abs() <= 1).all())
        (torch.Size([100, 2]), True)
    """
    _check_family(family)
    generator = np.random.default_rng(seed)
    x, y = generator.uniform(-0.8, 0.8, (2, count))
    if family != "mixture":
        y = generator.normal(x, DEVIATION)
    if family == "beta":
        sign = generator.choice((-1, 1), count)
        z = sign * generator.beta(CONCENTRATION * np.abs(x), CONCENTRATION * np.abs(y))
    else:
        centre = np.where(generator.random(count) < 0.5, x, y) if family == "mixture" else y
        z = generator.normal(centre, DEVIATION)
    return torch.from_numpy(np.stack((x, y), 1)), torch.from_numpy(z)


def bin_probabilities(family: str, xy: Float64[Tensor, "count 2"]) -> Float64[Tensor, "count bins"]:
    """The probability of every bin under the law of each (x, y), by its distribution function; the
    outer bins also hold what lies beyond [-1, 1].

    Example:
        >>> bin_probabilities("gaussian", torch.zeros(1, 2).double())[0, 24:26]
        tensor([0.1554, 0.1554], dtype=torch.float64)
    """
    _check_family(family)
    x, y = (xy[:, i : i + 1].numpy() for i in range(2))
    edges = np.linspace(-1, 1, BINS + 1)
    if family == "mixture":
        cdf = (stats.norm.cdf(edges, x, DEVIATION) + stats.norm.cdf(edges, y, DEVIATION)) / 2
    elif family == "gaussian":
        cdf = stats.norm.cdf(edges, y, DEVIATION)
    else:
        a, b = CONCENTRATION * np.abs(x), CONCENTRATION * np.abs(y)
        cdf = (1 + np.sign(edges) * stats.beta.cdf(np.abs(edges), a, b)) / 2
    cdf[:, 0], cdf[:, -1] = 0, 1
    return torch.from_numpy(np.diff(cdf))


def centre_of_bin(values: Float64[Tensor, "*batch"]) -> Float64[Tensor, "*batch"]:
    """The middle of the bin that each value is in."""
    return (2 * bins_of(values, BINS, 1.0).double() + 1) / BINS - 1


def _check_family(family: str) -> None:
    if family not in FAMILIES:
        raise ValueError(f"family: {family!r} given, one of {', '.join(FAMILIES)} expected")
