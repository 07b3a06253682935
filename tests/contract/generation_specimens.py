"""Specimens of what generates text, measures it and decides by utilities."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from tests.contract.specimen import Draw, Specimen
from torch import Tensor, nn

from heterodox.training.seeding import seeded

GENERATION = "heterodox.probes.generation"
DECODING = "heterodox.probes.decoding"
UTILITY = "heterodox.losses.utility"
HYPERFIT = "heterodox.learning.hyperfitting:hyperfit"

TOKENS = 6


def tokens(draw: Draw) -> tuple[Tensor]:
    return (draw.below(TOKENS, draw.batch, 5 + draw.length),)


def a_few_sequences(draw: Draw) -> tuple[Tensor]:
    return (draw.below(TOKENS, 4, 7),)


def a_matrix(draw: Draw) -> tuple[Tensor]:
    return (draw.normal(5, 5),)


def logits(draw: Draw) -> tuple[Tensor]:
    return (3 * draw.normal(draw.batch, TOKENS),)


def utilities_and_choices(draw: Draw) -> tuple[Tensor, ...]:
    return *logits(draw), draw.below(TOKENS, draw.batch)


def examples(draw: Draw) -> tuple[Tensor, ...]:
    return draw.normal(9, TOKENS), draw.below(TOKENS, 9)


def table(draw: Draw) -> tuple[Tensor]:
    """Utilities of the next token after each last token."""
    return (draw.normal(TOKENS, TOKENS),)


def dynamics(draw: Draw) -> tuple[Tensor, ...]:
    before, after, policy = (draw.normal(draw.batch, TOKENS) for _ in range(3))
    return before, after, policy


def against_a_corpus(measure: Any, x: Tensor, **options: Any) -> Tensor:
    corpus = torch.arange(40, device=x.device).view(4, 10) * 7 % TOKENS
    return measure(x, corpus, **options)


def blocked(blocker: Any, prefix: Tensor) -> Tensor:
    return blocker.blocked(prefix, 40).int()


class NextToken(nn.Module):
    """Logits that a table gives for the last token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(x)


def successor(x: Tensor) -> Tensor:
    return 99.0 * F.one_hot(x + 1, 20)


def as_numbers(mask: Any, x: Tensor) -> Tensor:
    return mask(x).int()


def ranked(convert: Any, u: Tensor) -> Tensor:
    frequencies = torch.linspace(0.3, 1 / 30, TOKENS, device=u.device).to(u)
    return convert(u, "rank", rank_frequencies=frequencies)


def hyperfitted(recipe: Any, sequences: Tensor) -> Tensor:
    """The losses of two epochs."""
    with seeded(0):
        model = NextToken()
    model.to(sequences.device, torch.float64)
    # Compiled, torch's Adam corrects its bias in float32.
    history = recipe(model, sequences, epochs=2, lr=0.1, optimizer=torch.optim.SGD)
    return torch.tensor(history.train_loss, dtype=torch.float64)


def by_a_table(rule: Any, utilities: Tensor) -> Tensor:
    """What a rule decides where utilities depend on the last token; token 0 ends a sequence."""

    def utility(prefix: Tensor) -> Tensor:
        last = prefix[:, -1] if prefix.shape[1] else prefix.new_ones(len(prefix))
        return utilities.double()[last]

    found = rule(utility)
    sequence = found[0] if isinstance(found, tuple) else found
    return torch.tensor(sequence, dtype=torch.float64)


def log_probability(rule: Any, utilities: Tensor) -> Tensor:
    table = utilities.double()
    return rule(lambda prefix: table[prefix.shape[1]].expand(len(prefix), -1), [1, 0, 2])


def consensus(rule: Any, similarity: Tensor) -> Tensor:
    return rule(similarity)[1]


def fitted_temperature(fit: Any, utilities: Tensor, choices: Tensor) -> Tensor:
    def likelihood(p: Tensor, y: Tensor) -> float:
        return p.gather(1, y[:, None]).log().mean().item()

    return torch.tensor(fit(utilities, choices, likelihood), dtype=torch.float64)


COUNTS = {"backward": "counts have no derivative"}
ON_NUMBERS = {"other device": "the size of the result depends on the numbers"}
WAITS = {"other device": "numbers are looked at by Python"}
GRAPH = "the input is checked by its numbers"
RULE = {**COUNTS, **WAITS, "shape types": "takes a function of prefixes"}

SPECIMENS = (
    Specimen(
        f"{GENERATION}:type_token_ratio",
        tokens,
        returns=torch.float32,
        graph_breaks=GRAPH,
        limits=COUNTS,
        bad=(
            ("tokens", lambda c, x: c(x[0][:, :0])),
            ("window", lambda c, x: c(*x, window=0)),
        ),
    ),
    Specimen(
        f"{GENERATION}:repetition_rate",
        tokens,
        make=lambda c, d: partial(c, n=2),
        returns=torch.float32,
        graph_breaks=GRAPH,
        limits={**COUNTS, **ON_NUMBERS},
        bad=(("n", lambda c, x: c(*x, n=0)), ("tokens", lambda c, x: c(*x, n=99))),
    ),
    Specimen(
        f"{GENERATION}:self_bleu",
        a_few_sequences,
        make=lambda c, d: partial(c, max_n=2),
        batch="none",
        returns=torch.float32,
        graph_breaks=GRAPH,
        limits={**COUNTS, **ON_NUMBERS},
        bad=(
            ("sequences", lambda c, x: c(x[0][:1])),
            ("reduction", lambda c, x: c(*x, reduction="sum")),
        ),
    ),
    Specimen(
        f"{GENERATION}:predictive_entropy",
        logits,
        bad=(("logits", lambda c, x: c(x[0] * torch.nan)),),
    ),
    Specimen(
        f"{GENERATION}:nucleus_mask",
        logits,
        make=lambda c, d: partial(c, p=0.7),
        call=as_numbers,
        returns=torch.int32,
        limits={"backward": "a mask has no derivative"},
        bad=(("p", lambda c, x: c(*x, 1.5)), ("logits", lambda c, x: c(x[0] * torch.inf, 0.5))),
    ),
    Specimen(
        f"{GENERATION}:overlap_rate",
        tokens,
        call=partial(against_a_corpus, n=2),
        returns=torch.float32,
        graph_breaks=GRAPH,
        limits={**COUNTS, **ON_NUMBERS},
        bad=(
            ("n", lambda c, x: c(*x, x[0], n=0)),
            ("tokens", lambda c, x: c(*x, x[0], n=99)),
            ("corpus", lambda c, x: c(*x, x[0] - 9, n=2)),
        ),
    ),
    Specimen(
        f"{GENERATION}:longest_overlap",
        tokens,
        call=against_a_corpus,
        returns=torch.int64,
        graph_breaks=GRAPH,
        limits={**COUNTS, **ON_NUMBERS},
        bad=(("corpus", lambda c, x: c(*x, x[0].double())),),
    ),
    Specimen(
        f"{GENERATION}:CitationBlocker",
        tokens,
        make=lambda c, d: c(torch.arange(40).view(4, 10) * 7 % TOKENS, n=2),
        call=blocked,
        returns=torch.int32,
        graph_breaks=GRAPH,
        limits={**COUNTS, **ON_NUMBERS},
        bad=(
            ("n", lambda c, x: c(*x, n=0)),
            ("corpus", lambda c, x: c(x[0].float())),
            ("vocab_size", lambda c, x: c(x[0] + 5).blocked(x[0], 2)),
        ),
    ),
    Specimen(
        f"{GENERATION}:greedy",
        tokens,
        make=lambda c, d: partial(c, successor),
        call=lambda rule, x: rule(x, 3),
        returns=torch.int64,
        graph_breaks=GRAPH,
        limits={**COUNTS, **WAITS},
        bad=(
            ("length", lambda c, x: c(F.one_hot, *x, -1)),
            ("context", lambda c, x: c(F.one_hot, x[0][:, :0], 2)),
        ),
    ),
    Specimen(
        f"{GENERATION}:sample",
        tokens,
        make=lambda c, d: partial(c, successor),
        call=lambda rule, x: rule(x, 3),
        returns=torch.int64,
        graph_breaks=GRAPH,
        limits={**COUNTS, **WAITS},
        bad=(
            ("top_p", lambda c, x: c(F.one_hot, *x, 2, top_p=-0.1)),
            ("temperature", lambda c, x: c(F.one_hot, *x, 2, temperature=0.0)),
        ),
    ),
    Specimen(
        HYPERFIT,
        a_few_sequences,
        call=hyperfitted,
        batch="none",
        returns=torch.float64,
        graph_breaks="a training loop",
        limits={
            "backward": "it trains, and is not differentiated",
            "other device": "losses go to lists of Python",
        },
        bad=(
            ("lr", lambda c, x: c(NextToken(), *x, lr=0.0)),
            ("sequences", lambda c, x: c(NextToken(), x[0].float())),
            ("sequences", lambda c, x: c(NextToken(), x[0][:0])),
            ("sequences", lambda c, x: c(NextToken(), x[0] + TOKENS)),
        ),
    ),
    Specimen(
        f"{UTILITY}:utility_learning_loss",
        utilities_and_choices,
        make=lambda c, d: partial(c, temperature=2.0),
        batch="reduced",
        bad=(
            ("target", lambda c, x: c(x[0], x[1] + TOKENS)),
            ("temperature", lambda c, x: c(*x, temperature=-1.0)),
            ("reduction", lambda c, x: c(*x, reduction="average")),
        ),
    ),
    Specimen(
        f"{UTILITY}:UtilityLearningLoss",
        utilities_and_choices,
        make=lambda c, d: c(0.0, reduction="none"),
        bad=(("temperature", lambda c, x: c(-1.0)),),
    ),
    Specimen(
        f"{UTILITY}:utility_to_probability",
        logits,
        make=lambda c, d: partial(c, temperature=0.5),
        bad=(
            ("method", lambda c, x: c(*x, "softmax")),
            ("rank_frequencies", lambda c, x: c(*x, "rank")),
            ("utility", lambda c, x: c(x[0] * torch.nan)),
        ),
    ),
    Specimen(
        f"{UTILITY}:utility_to_probability",
        logits,
        make=lambda c, d: partial(ranked, c),
        case="rank",
        limits={"backward": "ranks have no derivative"},
    ),
    Specimen(
        f"{UTILITY}:fit_rank_frequencies",
        examples,
        batch="none",
        graph_breaks="the isotonic fit is scikit-learn's",
        limits={**COUNTS, **WAITS, "compile": "dynamo cannot trace what scikit-learn imports"},
        bad=(
            ("target", lambda c, x: c(x[0], x[1] - TOKENS)),
            ("utility", lambda c, x: c(x[0][:0], x[1][:0])),
        ),
    ),
    Specimen(
        f"{UTILITY}:fit_temperature",
        examples,
        call=fitted_temperature,
        batch="none",
        returns=torch.float64,
        tolerance={torch.float32: 1e-2, torch.bfloat16: 0.3},
        graph_breaks="a search by Python's numbers",
        limits={"backward": "a search is not differentiated", **WAITS},
        bad=(("target", lambda c, x: c(x[0], x[1] + TOKENS, max)),),
    ),
    Specimen(
        f"{UTILITY}:frequencies_from_dynamics",
        dynamics,
        make=lambda c, d: partial(c, learning_rate=0.5, steps=4),
        bad=(
            ("final", lambda c, x: c(x[0], x[1][:1], x[2], 0.5, 4)),
            ("steps", lambda c, x: c(*x, 0.5, 0)),
        ),
    ),
    *(
        Specimen(
            f"{DECODING}:{name}",
            table,
            make=make,
            call=by_a_table,
            case=case,
            batch="none",
            returns=torch.float64,
            graph_breaks="a search by Python's numbers",
            limits=RULE,
            bad=bad,
        )
        for name, case, make, bad in (
            (
                "greedy",
                "utility",
                lambda c, d: partial(c, eos=0, max_length=5),
                (("max_length", lambda c, x: c(max, 0, 0)),),
            ),
            (
                "beam_search",
                "",
                lambda c, d: partial(c, beam=3, eos=0, max_length=5),
                (("beam", lambda c, x: c(max, 0, 0, 5)),),
            ),
            (
                "exact_map",
                "",
                lambda c, d: partial(c, eos=0, max_length=5),
                (("temperature", lambda c, x: c(max, 0, 5, -1.0)),),
            ),
        )
    ),
    Specimen(
        f"{DECODING}:sequence_log_probability",
        table,
        call=log_probability,
        batch="none",
        returns=torch.float64,
        graph_breaks="a sum over the tokens of a list",
        limits={**WAITS, "shape types": "takes a function of prefixes"},
        bad=(("sequence", lambda c, x: c(lambda prefix: x[0][:1], [TOKENS])),),
    ),
    Specimen(
        f"{DECODING}:minimum_bayes_risk",
        a_matrix,
        call=consensus,
        batch="none",
        graph_breaks="the best candidate is a number of Python's",
        limits=WAITS,
        bad=(
            ("similarity", lambda c, x: c(x[0][:2])),
            ("log_weights", lambda c, x: c(*x, torch.zeros(2))),
        ),
    ),
)
