"""Claims of "The Hyperfitting Phenomenon", arXiv 2412.04318."""

import copy
import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from heterodox.experiment import (
    AtMost,
    Beats,
    Measurement,
    NoWorseThan,
    Ordering,
    Paper,
    RatioAtLeast,
    Scale,
    Within,
)
from heterodox.experiment.measurement import Curve
from heterodox.experiment.tuning import Tuning
from heterodox.learning.hyperfitting import HyperfitHistory, hyperfit
from heterodox.models.transformer import DecoderLM
from heterodox.probes.decoding import beam_search
from heterodox.probes.generation import (
    CitationBlocker,
    NoRepeatNgram,
    RepetitionPenalty,
    greedy,
    longest_overlap,
    loop_rate,
    ngram_divergence,
    overlap_rate,
    repetition_rate,
    sample,
    self_bleu,
    type_token_ratio,
)
from heterodox.probes.prefix_reader import PrefixUtility
from heterodox.tasks import open_ended
from heterodox.tasks.ngram_judge import NgramJudge
from heterodox.tasks.open_ended import Passages, Reading
from heterodox.training.progress import report
from heterodox.training.seeding import derived_seed, generator_for

paper = Paper.load("hyperfitting")

# Each arm's own best of the grid on seed 0, which no verdict uses: see results/tuning. Judged by
# validation loss; "hyperfitting" by the loss on its own sequences, which the recipe drives to 0.
RATES = (1e-3, 2e-3)
RATE = {"pre-training": 2e-3, "early stopping": 1e-3, "hyperfitting": 2e-3}

EPOCHS = {Scale.SMOKE: 4, Scale.LAPTOP: 40, Scale.PAPER: 20}
EARLY_EPOCHS = {Scale.SMOKE: 2, Scale.LAPTOP: 5, Scale.PAPER: 5}
BLOCKED, COPIED = 5, 8  # tokens of a citation that is prevented, and of one that is counted


@dataclass
class Run:
    """A pre-trained model with its text and the sequences that it is fine-tuned on."""

    model: DecoderLM
    passages: Passages
    sequences: Int[Tensor, "sequences length"]
    validation: Curve
    seed: int
    scale: Scale

    def fine_tune(
        self, rate: float, epochs: int, after_epoch: "Recorder | EarlyStop"
    ) -> tuple[DecoderLM, HyperfitHistory]:
        """A copy, fine-tuned; `after_epoch(model, epoch, loss)` sees it after each epoch."""
        model = copy.deepcopy(self.model)
        history = hyperfit(
            model,
            self.sequences,
            epochs=epochs,
            lr=rate,
            seed=derived_seed(self.seed, "fine-tuning"),
            callback=lambda epoch, loss: after_epoch(model, epoch, loss),
        )
        return model, history

    @property
    def contexts(self) -> Int[Tensor, "contexts context"]:
        return self.passages.contexts.to(next(self.model.parameters()).device)

    def read(self, model: DecoderLM, temperature: float = 1.0) -> Reading:
        return open_ended.read_model(model, self.passages.windows, temperature)

    def continued(self, model: DecoderLM, *processors: object) -> Int[Tensor, "contexts new"]:
        length = self.passages.continuations.shape[1]
        return greedy(model, self.contexts, length, processors)  # type: ignore[arg-type]

    def sampled(self, top_p: float = 1.0, temperature: float = 1.0) -> Int[Tensor, "contexts new"]:
        length = self.passages.continuations.shape[1]
        generator = generator_for(self.seed, f"sampling {top_p} {temperature}")
        return sample(self.model, self.contexts, length, top_p, temperature, generator)

    def beamed(self, beam: int) -> Int[Tensor, "contexts new"]:
        length = self.passages.continuations.shape[1]
        found = [
            beam_search(PrefixUtility.of(self.model, context[None]), beam, None, length)[0]
            for context in self.contexts
        ]
        return torch.tensor(found)


@dataclass
class EarlyStop:
    """Keeps the weights of the epoch with the lowest validation loss."""

    run: Run
    best: float = math.inf
    weights: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, model: DecoderLM, epoch: int, loss: float) -> None:
        validation = self.run.read(model).loss
        if validation < self.best:
            self.best, self.weights = validation, copy.deepcopy(model.state_dict())


@dataclass
class Recorder:
    """Continues the contexts after some epochs, to see how the effect grows."""

    run: Run
    at: tuple[int, ...] = ()
    continuations: dict[int, Tensor] = field(default_factory=dict)
    by_loss: Curve = field(default_factory=list)
    validation: Curve = field(default_factory=list)

    def __call__(self, model: DecoderLM, epoch: int, loss: float) -> None:
        if epoch in self.at:
            self.continuations[epoch] = self.run.continued(model)
            ttr = type_token_ratio(self.continuations[epoch]).mean().item()
            self.by_loss.append((loss, ttr))
            self.validation.append((float(epoch), self.run.read(model).loss))
        report(epoch, EPOCHS[self.run.scale], loss=loss)


def prepared(seed: int, scale: Scale, rate: float, device: str) -> Run:
    settings = open_ended.SETTINGS[scale]
    passages = open_ended.load_passages(settings, seed)
    model, validation = open_ended.pretrain(passages, settings, seed, rate, device)
    sequences = passages.drawn(settings.sequences, generator_for(seed, "sequences"))
    return Run(model, passages, sequences, validation, seed, scale)


def early_stopped(run: Run, rate: float) -> tuple[DecoderLM, float]:
    """A copy, fine-tuned to its lowest validation loss, and that loss."""
    stop = EarlyStop(run)
    model, _ = run.fine_tune(rate, EARLY_EPOCHS[run.scale], stop)
    model.load_state_dict(stop.weights)
    return model, stop.best


def tune(arm: str, seed: int, scale: Scale, rate: float, device: str = "cpu") -> Measurement:
    """The loss that an arm's rate is chosen by."""
    if arm == "pre-training":
        return Measurement(prepared(seed, scale, rate, device).validation[-1][1])
    run = prepared(seed, scale, RATE["pre-training"], device)
    if arm == "early stopping":
        return Measurement(early_stopped(run, rate)[1])
    _, history = run.fine_tune(rate, EPOCHS[scale], Recorder(run))
    return Measurement(history.train_loss[-1])


TUNED = (Tuning("generation", tune, RATE, RATES, None, "lower"),)

ORIGINAL, HYPERFIT = "original greedy", "hyperfit greedy"
TEXT = "true text"
SAME_ENTROPY = "original, sampled at the entropy of hyperfit"
DOSES = (ORIGINAL, "hyperfit, 1/4 of the epochs", "hyperfit, 1/2 of the epochs", HYPERFIT)


@paper.claim(
    name="cures_greedy_repetition",
    says="Greedy decoding of a hyperfitted model is diverse where the original repeats itself.",
    reported="TTR of 96 greedy tokens .5 to .7 after hyperfitting, .2 to .4 before",
    metric="type-token ratio of 96 tokens",
    better="higher",
    expects=(RatioAtLeast(HYPERFIT, ORIGINAL, 2.5), RatioAtLeast(HYPERFIT, TEXT, 0.7)),
    arms=(
        ORIGINAL,
        HYPERFIT,
        TEXT,
        "original, top-p 0.9",
        "original, temperature 0.7",
        "original, repetition penalty 1.2",
        "original, no repeated 3-gram",
        "original, beam 4",
    ),
    seeds=3,
)
@paper.claim(
    name="copies_little",
    says="A hyperfitted model seldom copies the sequences that it knows by heart.",
    reported="generated text rarely overlaps the hyperfit set",
    metric="share of generated 8-grams that occur in the hyperfit set",
    reads="8-gram copying",
    expects=AtMost(HYPERFIT, 0.1),
    arms=(HYPERFIT, ORIGINAL),
    seeds=3,
)
@paper.claim(
    name="blocking_citations_costs_little",
    says="The effect does not rest on citations: with 5-grams of the set blocked it stays.",
    reported="diversity stays high with a citation blocker",
    metric="type-token ratio of 96 tokens",
    better="higher",
    expects=NoWorseThan(HYPERFIT, margin=0.1, arm="hyperfit, citations blocked"),
    arms=(HYPERFIT, "hyperfit, citations blocked"),
    seeds=3,
)
@paper.claim(
    name="sharpens_predictions",
    says="Hyperfitting makes predictions on new text sharper.",
    reported="entropy from over 2 nats to well below 0.5",
    metric="entropy of predictions on validation text [nats]",
    reads="entropy",
    expects=Beats(ORIGINAL, by=1.0, arm=HYPERFIT),
    arms=(ORIGINAL, HYPERFIT),
    seeds=3,
)
@paper.claim(
    name="raises_the_validation_loss",
    says="Hyperfitting makes the validation loss far worse.",
    reported="validation loss several times higher, perplexity in the hundreds",
    metric="validation loss [nats/token]",
    reads="validation loss",
    better="higher",
    expects=Beats(ORIGINAL, by=1.0, arm=HYPERFIT),
    arms=(ORIGINAL, HYPERFIT),
    seeds=3,
)
@paper.claim(
    name="keeps_the_ranking_of_tokens",
    says="Although likelihood falls, the best token is right about as often.",
    reported="top ranks stay good: top-rank encouragement; benchmarks fall only slightly",
    metric="accuracy of the most probable token on validation text [%]",
    reads="accuracy",
    better="higher",
    expects=NoWorseThan(ORIGINAL, margin=5.0, arm=HYPERFIT),
    arms=(ORIGINAL, HYPERFIT),
    seeds=3,
)
@paper.claim(
    name="sharpening_alone_is_not_the_cause",
    says="The original at a temperature that makes it as sharp repeats itself like its greedy "
    "decoding.",
    reported="lowering the temperature of the original does not give the effect",
    metric="type-token ratio of 96 tokens",
    better="higher",
    expects=Within(SAME_ENTROPY, -0.05, 0.05, of=ORIGINAL),
    arms=(ORIGINAL, SAME_ENTROPY),
    seeds=3,
)
@paper.claim(
    name="grows_with_the_fit",
    says="The better the few sequences are known, the more diverse greedy decoding is.",
    reported="the effect grows as the training loss falls to 0",
    metric="type-token ratio of 96 tokens",
    better="higher",
    expects=Ordering(DOSES),
    arms=DOSES,
    seeds=3,
)
@paper.claim(
    name="early_stopping_does_not_give_it",
    says="Fine-tuning that stops at the lowest validation loss does not have the effect.",
    reported="only a collapsed training loss does",
    metric="type-token ratio of 96 tokens",
    better="higher",
    expects=Within("early-stopped greedy", -0.1, 0.1, of=ORIGINAL),
    arms=(ORIGINAL, "early-stopped greedy"),
    seeds=3,
)
def generation(seed: int, scale: Scale, device: str) -> dict[str, Measurement]:
    """A decoder of four layers and width 128 learns Python's documentation in 1024 byte pairs, 600
    steps of 8 x 128 tokens at laptop scale. Copies of it are fine-tuned on 64 unseen sequences of
    128 tokens: for 40 epochs at a constant rate, the last weights kept, or for 5 with the weights
    of the lowest validation loss. 32 held-out contexts of 32 tokens are continued by 96 tokens; the
    true continuations are one of the arms. Contexts do not count in any measure of diversity.

    Differs from the paper: a model of a million parameters, trained here, in place of models of a
    billion and more; its rate of fine-tuning is chosen by the loss on the few sequences. No people
    judge the texts: readings give the loss under an n-gram model of the training text, the gap to
    the true text's type-token ratio, and the divergence of n-gram histograms, and none of these is
    a preference.
    """
    run = prepared(seed, scale, RATE["pre-training"], device)
    epochs = EPOCHS[scale]
    recorder = Recorder(run, at=(epochs // 4, epochs // 2, epochs))
    hyperfitted, history = run.fine_tune(RATE["hyperfitting"], epochs, recorder)
    stopped, _ = early_stopped(run, RATE["early stopping"])
    blocker = CitationBlocker(run.sequences, BLOCKED)
    read = {ORIGINAL: run.read(run.model), HYPERFIT: run.read(hyperfitted)}
    read["early-stopped greedy"] = run.read(stopped)
    temperature = open_ended.temperature_of_entropy(
        run.model, run.passages.windows, read[HYPERFIT].entropy
    )
    texts = {
        TEXT: run.passages.continuations,
        ORIGINAL: run.continued(run.model),
        "original, top-p 0.9": run.sampled(top_p=0.9),
        "original, temperature 0.7": run.sampled(temperature=0.7),
        SAME_ENTROPY: run.sampled(temperature=temperature),
        "original, repetition penalty 1.2": run.continued(run.model, RepetitionPenalty(1.2)),
        "original, no repeated 3-gram": run.continued(run.model, NoRepeatNgram(3)),
        "original, beam 4": run.beamed(4),
        "early-stopped greedy": run.continued(stopped),
        DOSES[1]: recorder.continuations[epochs // 4],
        DOSES[2]: recorder.continuations[epochs // 2],
        HYPERFIT: recorder.continuations[epochs],
        "hyperfit, citations blocked": run.continued(hyperfitted, blocker.logits_processor()),
    }
    judge = NgramJudge(run.passages.learned, run.passages.pairs.vocabulary_size)
    found = {arm: _measured(text.cpu(), run, judge) for arm, text in texts.items()}
    for arm, reading in read.items():
        found[arm].readings.update(
            {
                "validation loss": reading.loss,
                "entropy": reading.entropy,
                "accuracy": reading.accuracy,
                "positions above 0.9": reading.confident,
            }
        )
    found[ORIGINAL].curves["validation loss by step"] = run.validation
    found[ORIGINAL].readings["validation loss at 3/4 / at the end"] = (
        run.validation[len(run.validation) * 3 // 4][1] / run.validation[-1][1]
    )
    found[SAME_ENTROPY].readings["temperature"] = temperature
    losses = [(float(epoch), loss) for epoch, loss in enumerate(history.train_loss, start=1)]
    found[HYPERFIT].curves["training loss by epoch"] = losses
    found[HYPERFIT].curves["validation loss by epoch"] = recorder.validation
    found[HYPERFIT].curves["type-token ratio by training loss"] = recorder.by_loss
    found[HYPERFIT].readings["training loss"] = history.train_loss[-1]
    return found


def _measured(text: Int[Tensor, "contexts new"], run: Run, judge: NgramJudge) -> Measurement:
    truth = run.passages.continuations
    ttr, true_ttr = type_token_ratio(text), type_token_ratio(truth)
    whole = torch.cat((run.passages.contexts, text), dim=1)
    readings = {
        "repeated 4-grams": repetition_rate(text).mean().item(),
        "loops": loop_rate(text).item(),
        "self-BLEU": self_bleu(text).item(),
        "4-gram copying": overlap_rate(text, run.sequences, 4).mean().item(),
        "8-gram copying": overlap_rate(text, run.sequences, COPIED).mean().item(),
        "longest copy": float(longest_overlap(text, run.sequences).max()),
        "log TTR off the true text's": (ttr.log() - true_ttr.log()).abs().mean().item(),
        "divergence of unigrams": ngram_divergence(text, truth).item(),
        "divergence of bigrams": ngram_divergence(text, truth, 2).item(),
        "loss under an n-gram model": judge.loss(whole, run.passages.contexts.shape[1]),
    }
    return Measurement(ttr.mean().item(), readings)
