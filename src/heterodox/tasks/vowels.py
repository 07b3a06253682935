"""Vowel restoration: a line of text without its vowels, and the line that it was.

    th qck brwn fx -> the quick brown fox

Conditional generation from real text with real ambiguity. A share of training targets can be cut at
a random point, as real parallel corpora have it, which is what makes short outputs too probable.
Token 0 starts and ends a line.
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from heterodox.data.text import load_text
from heterodox.experiment.measurement import Curve
from heterodox.experiment.scale import Scale
from heterodox.losses.utility import utility_learning_loss
from heterodox.models.transducer import MonotonicTransducer, TransducerReader
from heterodox.optim import SCHEDULES
from heterodox.probes.prefix_reader import PrefixUtility
from heterodox.training.batches import Shuffled
from heterodox.training.devices import fabric_on
from heterodox.training.loop import fit
from heterodox.training.seeding import derived_seed, generator_for, seeded

VOWELS = "aeiouAEIOU"
EDGE = 0  # starts and ends a line
SHORTEST, LONGEST = 12, 48  # characters of a line
NO_TARGET = -100


@dataclass(frozen=True)
class VowelSettings:
    """The sizes of a run.

    Args:
        data: see `heterodox.data.load_text`.
        width, hidden: see `MonotonicTransducer`.
        steps, batch_size, warmup_steps: of training, with AdamW and a cosine schedule.
        lines: how many of the validation text are decoded, for each of fitting and testing.
        checkpoints: how many models of the second half of training are kept.
    """

    data: str
    width: int
    hidden: int
    steps: int
    batch_size: int
    warmup_steps: int
    lines: int
    checkpoints: int = 4


SETTINGS: dict[Scale, VowelSettings] = {
    Scale.SMOKE: VowelSettings("python-docs", 16, 24, 40, 16, 5, lines=4),
    Scale.LAPTOP: VowelSettings("tinyshakespeare", 96, 192, 500, 48, 50, lines=80),
    Scale.PAPER: VowelSettings("tinyshakespeare", 256, 768, 20_000, 128, 500, lines=1000),
}


@dataclass(frozen=True)
class Lines:
    """Lines as rows of tokens, 0 where they have ended."""

    sources: Int[Tensor, "lines source"]
    targets: Int[Tensor, "lines target"]

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class VowelData:
    """Characters and lines; those for fitting and testing are drawn by the seed."""

    characters: tuple[str, ...]
    training: Lines
    fitting: Lines
    testing: Lines

    def text(self, tokens: list[int]) -> str:
        """The line up to its end."""
        line = itertools.takewhile(lambda token: token != EDGE, tokens)
        return "".join(self.characters[token - 1] for token in line)

    @property
    def uses_source(self) -> Tensor:
        """Which tokens stand in a source: all but the edge and the vowels."""
        return torch.tensor([False] + [c not in VOWELS for c in self.characters])


def load_lines(settings: VowelSettings, seed: int) -> VowelData:
    """The lines of a text of 12 to 48 characters, with their sources.

    Raises:
        ValueError: the text has too few of them.

    Example:
        >>> data = load_lines(SETTINGS[Scale.SMOKE], seed=1)
        >>> line = data.training
        >>> sum(c in VOWELS for c in data.text(line.sources[0].tolist()))
        0
    """
    text = load_text(settings.data)
    training, held_out = _lines_of(text.train), _lines_of(text.validation)
    characters = tuple(sorted({c for line in training for c in line}))
    known = set(characters)
    held_out = [line for line in held_out if set(line) <= known]
    if len(held_out) < 2 * settings.lines:
        raise ValueError(
            f"lines: {settings.lines} given, at most half of the text's {len(held_out)} expected"
        )
    order = torch.randperm(len(held_out), generator=generator_for(seed, "lines")).tolist()
    chosen = [held_out[i] for i in order[: 2 * settings.lines]]
    number = {c: i for i, c in enumerate(characters, start=1)}
    return VowelData(
        characters,
        _encoded(training, number),
        _encoded(chosen[: settings.lines], number),
        _encoded(chosen[settings.lines :], number),
    )


def _lines_of(text: str) -> list[str]:
    lines = (line.strip() for line in text.splitlines())
    return [
        line
        for line in lines
        if SHORTEST <= len(line) <= LONGEST and line.isascii() and set(line) & set(VOWELS)
    ]


def _encoded(lines: list[str], number: dict[str, int]) -> Lines:
    sources = torch.zeros(len(lines), LONGEST, dtype=torch.int64)
    targets = torch.zeros(len(lines), LONGEST, dtype=torch.int64)
    for row, line in enumerate(lines):
        target = [number[c] for c in line]
        source = [number[c] for c in line if c not in VOWELS]
        targets[row, : len(target)] = torch.tensor(target)
        sources[row, : len(source)] = torch.tensor(source, dtype=torch.int64)
    return Lines(sources, targets)


def truncated(
    targets: Int[Tensor, "lines target"], share: float, generator: torch.Generator
) -> Int[Tensor, "lines target"]:
    """Targets of which a share ends at a random point before its end, perhaps at once."""
    length = (targets != EDGE).sum(1)
    cut = (torch.rand(len(targets), generator=generator) * length).long()
    chosen = torch.rand(len(targets), generator=generator) < share
    limit = torch.where(chosen, cut, length)
    return targets.masked_fill(torch.arange(targets.shape[1]) >= limit[:, None], EDGE)


@dataclass
class Restorer:
    """A trained model with its checkpoints, oldest first, and its validation loss by step."""

    model: MonotonicTransducer
    data: VowelData
    checkpoints: list[MonotonicTransducer] = field(default_factory=list)
    validation: Curve = field(default_factory=list)

    def utility(self, source: Int[Tensor, "source"]) -> PrefixUtility:
        """`utility(prefix)` for one line."""
        return _utility(self.model, source)

    def averaged(self, source: Int[Tensor, "source"]) -> Callable[[Tensor], Tensor]:
        """The logarithm of the mean of the checkpoints' softmax outputs."""
        utilities = [_utility(model, source) for model in self.checkpoints]

        def utility(prefix: Int[Tensor, "batch t"]) -> Float[Tensor, "batch vocabulary"]:
            log_p = torch.stack([each(prefix).log_softmax(-1) for each in utilities])
            return log_p.logsumexp(0)

        return utility

    @torch.no_grad()
    def read(
        self, lines: Lines
    ) -> tuple[Float[Tensor, "tokens vocabulary"], Int[Tensor, "tokens"]]:
        """Utilities of all positions, teacher-forced, and the tokens that stand there."""
        device = self.model.uses_source.device
        prefix, target = shifted(lines.targets)
        utility = self.model(lines.sources.to(device), prefix.to(device)).flatten(0, 1)
        counted = target.flatten() != NO_TARGET
        return utility[counted.to(device)].cpu(), target.flatten()[counted]


def _utility(model: MonotonicTransducer, source: Int[Tensor, "source"]) -> PrefixUtility:
    device = model.uses_source.device
    with torch.no_grad():
        memory = model.encode(source[source != EDGE][None].to(device))
    edge = torch.full((1, 1), EDGE, dtype=torch.int64, device=device)
    return PrefixUtility(lambda: TransducerReader(model, memory), edge)


def shifted(
    targets: Int[Tensor, "lines target"],
) -> tuple[Int[Tensor, "lines longer"], Int[Tensor, "lines longer"]]:
    """What a model reads, and what it must say: the line and one end, then nothing."""
    start = torch.nn.functional.pad(targets, (1, 0), value=EDGE)
    wanted = torch.nn.functional.pad(targets, (0, 1), value=EDGE)
    ended = (wanted == EDGE).cumsum(1) > 1
    return start, wanted.masked_fill(ended, NO_TARGET)


def restore(
    settings: VowelSettings, seed: int, rate: float, noise: float = 0.0, device: str = "cpu"
) -> Restorer:
    """Trains a model on the lines of a text.

    Args:
        noise: share of training targets that are cut, anew in each batch.

    Example:
        >>> from dataclasses import replace
        >>> tiny = replace(SETTINGS[Scale.SMOKE], steps=4, checkpoints=2)
        >>> len(restore(tiny, seed=1, rate=1e-3).checkpoints)
        2
    """
    data = load_lines(settings, seed)
    with seeded(derived_seed(seed, "initialisation")):
        model = MonotonicTransducer(data.uses_source, settings.width, settings.hidden)
    restorer = Restorer(model, data)
    cuts = generator_for(seed, "cuts")
    descent = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)

    def loss(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        sources, targets = batch
        targets = truncated(targets.cpu(), noise, cuts).to(targets.device) if noise else targets
        longest = int((targets != EDGE).any(0).sum())
        prefix, wanted = shifted(targets[:, :longest])
        return utility_learning_loss(
            model(sources, prefix).flatten(0, 1), wanted.flatten(), ignore_index=NO_TARGET
        )

    every = max(1, settings.steps // (2 * settings.checkpoints))

    def evaluate(_: torch.nn.Module) -> dict[str, float]:
        restorer.checkpoints.append(copy.deepcopy(model).eval())
        utility, target = restorer.read(data.fitting)
        return {"validation loss": utility_learning_loss(utility, target).item()}

    batches = Shuffled(
        (data.training.sources, data.training.targets),
        settings.batch_size,
        generator_for(seed, "order"),
    )
    history = fit(
        model,
        descent,
        batches,
        loss,
        steps=settings.steps,
        scheduler=SCHEDULES["cosine"](descent, settings.steps, settings.warmup_steps),
        clip=1.0,
        evaluate=evaluate,
        evaluate_every=every,
        fabric=fabric_on(device),
        seed=derived_seed(seed, "training"),
    )
    model.eval()
    restorer.checkpoints = restorer.checkpoints[-settings.checkpoints :]
    restorer.validation = history.evaluations["validation loss"]
    return restorer
