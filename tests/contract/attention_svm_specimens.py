"""Specimens of `heterodox.probes.attention_svm`, whose numbers are float64 whatever it is given."""

from functools import partial
from typing import Any

import torch
from tests.contract.specimen import Draw, Specimen
from torch import Tensor, nn

ATTENTION_SVM = "heterodox.probes.attention_svm"

WIDTH = 8  # enough for any selection among the longest sequences to be separable
SEQUENCES = 2


def tokens_and_queries(draw: Draw) -> tuple[Tensor, Tensor]:
    return draw.normal(draw.batch, draw.length + 1, WIDTH), draw.normal(draw.batch, WIDTH)


def with_selection(draw: Draw) -> tuple[Tensor, ...]:
    return *tokens_and_queries(draw), draw.below(draw.length + 1, draw.batch)


def with_logits(draw: Draw) -> tuple[Tensor, ...]:
    """Logits so far apart that some tokens are kept and some are not."""
    return *tokens_and_queries(draw), 5 * draw.normal(draw.batch, draw.length + 1)


def runs(draw: Draw) -> tuple[Tensor, ...]:
    """Tokens, labels and value; the batch is one of runs."""
    return (
        draw.normal(draw.batch, SEQUENCES, draw.length + 1, WIDTH),
        2 * draw.below(2, draw.batch, SEQUENCES) - 1,
        draw.normal(draw.batch, WIDTH),
    )


def runs_with_initial(draw: Draw) -> tuple[Tensor, ...]:
    return *runs(draw), draw.normal(draw.batch, WIDTH, WIDTH)


def solved(solve: Any, tokens: Tensor, queries: Tensor, selected: Tensor) -> Tensor:
    return solve(tokens, selected, queries).weight


def both_parts(solve: Any, tokens: Tensor, queries: Tensor, logits: Tensor) -> Tensor:
    shares = logits.double().softmax(-1) if logits.is_floating_point() else logits
    direction, finite = solve(tokens, shares, queries)
    return direction + 2 * finite


def optimality(
    is_locally_optimal: Any, tokens: Tensor, queries: Tensor, selected: Tensor
) -> Tensor:
    from heterodox.probes.attention_svm import solve_attention_svm

    svm = solve_attention_svm(tokens, selected, queries)
    return torch.tensor(float(is_locally_optimal(svm, tokens[..., 0])), dtype=torch.float64)


def correlation(direction_correlation: Any, a: Tensor, b: Tensor) -> Tensor:
    return torch.tensor(direction_correlation(a, b), dtype=torch.float64)


def trained(train: Any, tokens: Tensor, labels: Tensor, value: Tensor, initial: Tensor) -> Tensor:
    return train(tokens, labels, value, steps=5, initial=initial).weight


def margins_of_head(probe: Any, tokens: Tensor) -> Tensor:
    return probe(tokens).margins


IN_NUMPY = {
    "backward": "a measurement, not a term of a loss",
    "other device": "solved with NumPy and SciPy",
}
LOOKS = "looks whether labels are -1 and 1"
EMPTY = {"empty batch": "without sequences there is nothing to separate"}

SPECIMENS = (
    Specimen(
        f"{ATTENTION_SVM}:solve_attention_svm",
        with_selection,
        call=solved,
        batch="reduced",
        returns=torch.float64,
        graph_breaks="solved with NumPy and SciPy",
        limits=IN_NUMPY | EMPTY,
        bad=(
            ("tokens", lambda c, x: c(x[0][:, :1], x[2], x[1])),
            ("selected", lambda c, x: c(x[0], x[2] + 9, x[1])),
            ("queries", lambda c, x: c(x[0], x[2], x[1][:1])),
            ("norm", lambda c, x: c(x[0], x[2], x[1], norm="l1")),
        ),
    ),
    Specimen(
        f"{ATTENTION_SVM}:solve_svm_equivalence",
        with_logits,
        call=both_parts,
        batch="reduced",
        returns=torch.float64,
        graph_breaks="solved with NumPy and SciPy",
        limits=IN_NUMPY | EMPTY,
        bad=(
            ("probabilities", lambda c, x: c(x[0], x[2], x[1])),
            ("threshold", lambda c, x: c(x[0], x[2].softmax(-1), x[1], threshold=1.0)),
        ),
    ),
    Specimen(
        f"{ATTENTION_SVM}:is_locally_optimal",
        with_selection,
        call=optimality,
        batch="reduced",
        returns=torch.float64,
        graph_breaks="solved with NumPy and SciPy",
        limits=IN_NUMPY | EMPTY,
    ),
    Specimen(
        f"{ATTENTION_SVM}:direction_correlation",
        lambda d: (d.normal(d.batch, 5), d.normal(d.batch, 5)),
        call=correlation,
        batch="none",
        returns=torch.float64,
        graph_breaks="returns a float of Python",
        limits={
            "backward": "a measurement, not a term of a loss",
            "other device": "returns a float of Python",
        },
        bad=(("b", lambda c, x: c(x[0], x[1].mT)),),
    ),
    Specimen(
        f"{ATTENTION_SVM}:token_scores",
        runs,
        call=lambda scores, x, y, v: scores(x, v, y),
        graph_breaks=LOOKS,
        limits={"other device": LOOKS},
        bad=(
            ("labels", lambda c, x: c(x[0], x[2], 2 * x[1])),
            ("value", lambda c, x: c(x[0], x[2][:, :1], x[1])),
        ),
    ),
    Specimen(
        f"{ATTENTION_SVM}:train_one_layer_attention",
        runs_with_initial,
        call=trained,
        returns=torch.float64,
        graph_breaks=LOOKS,
        limits={"backward": "trains by itself", "other device": LOOKS},
        bad=(
            ("labels", lambda c, x: c(x[0], 2 * x[1], x[2])),
            ("steps", lambda c, x: c(*x[:3], steps=-1)),
            ("initial", lambda c, x: c(*x[:3], initial=x[3][:1])),
        ),
    ),
    Specimen(
        f"{ATTENTION_SVM}:probe_head",
        lambda d: (d.normal(d.batch, d.length + 1, WIDTH),),
        make=lambda c, d: partial(
            c, nn.MultiheadAttention(WIDTH, 2, batch_first=True, device=d.device)
        ),
        call=margins_of_head,
        returns=torch.float64,
        graph_breaks="solved with NumPy and SciPy",
        limits=IN_NUMPY | EMPTY,
        bad=(
            ("head", lambda c, x: c(nn.MultiheadAttention(WIDTH, 2), x[0], 2)),
            ("module", lambda c, x: c(nn.Linear(WIDTH, WIDTH), x[0])),
        ),
    ),
)
