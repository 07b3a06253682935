"""Gradient descent on the weights of one attention layer, and where it leads.

    f(X_i, z_i) = vᵀ X_iᵀ softmax(X_i W z_i),   L = mean_i log(1 + exp(−y_i f_i)),   W = K Qᵀ or W

Tarzanagh et al., "Transformers as Support Vector Machines", 2023, arXiv 2308.16898. Only W, or K
and Q, is trained, and logits are not scaled. The step is the authors', along the normalised
gradient,

    W ← W − η G / (‖G‖_F + ε),   ε = 2.2e-16,

for K and Q each by its own norm, with ε (‖K‖² + ‖Q‖²) added to the loss: it keeps the factors
balanced when the gradient of the loss has vanished, where they would stop otherwise. Gradients are
written out, in float64, for any number of runs at once.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from heterodox.probes.attention_margins import check_labels, checked_queries

EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class AttentionPath:
    """What training came to, in float64; every tensor has the axes of the runs first.

    Attributes:
        weight: the last W, or K Qᵀ; (dim, query_dim).
        losses: before each step, without the penalty on K and Q; (steps,).
        selected: the arg-max of the last softmax; (sequences,).
        probabilities: the last softmax; (sequences, length).
        history: step -> W after so many steps, for the steps of `record`.
    """

    weight: Float[Tensor, "*runs dim query_dim"]
    losses: Float[Tensor, "*runs steps"]
    selected: Int[Tensor, "*runs sequences"]
    probabilities: Float[Tensor, "*runs sequences length"]
    history: dict[int, Tensor]


@torch.no_grad()
def train_one_layer_attention(
    tokens: Float[Tensor, "*runs sequences length dim"],
    labels: Float[Tensor, "*runs sequences"] | Int[Tensor, "*runs sequences"],
    value: Float[Tensor, "..."],
    queries: Float[Tensor, "*runs sequences query_dim"] | None = None,
    *,
    parameterization: Literal["W", "KQ"] = "W",
    steps: int = 1000,
    learning_rate: float = 0.1,
    normalized: bool = True,
    initial: Tensor | tuple[Tensor, Tensor] | None = None,
    hidden_dim: int | None = None,
    seed: int = 0,
    record: Collection[int] = (),
) -> AttentionPath:
    """Trains the attention weights of one layer by full-batch gradient descent.

    All of `tokens`, `labels`, `value` and `queries` may have axes of runs in front: the runs are
    trained together, each as it would be alone from the same `initial`.

    Args:
        tokens, queries: as for `solve_attention_svm`; computed with in float64.
        labels: y, of −1 and 1.
        value: v, (dim,), the fixed linear head; or V, (dim, units), for the head Σ relu(Vᵀ o) of
            the authors' experiments in which several tokens are kept.
        parameterization: "W", or "KQ" for the factors of W = K Qᵀ.
        steps: 1000 in the paper's figures.
        learning_rate: η; 0.1 in the authors' code.
        normalized: False takes plain steps −η G, as the convergence theorems do.
        initial: W, (dim, query_dim); or (K, Q), (dim, hidden_dim) and (query_dim, hidden_dim). By
            default drawn as `nn.Linear` draws: uniform within 1/√inputs.
        hidden_dim: columns of K and Q; `dim` by default.
        seed: of the initial weights.
        record: steps after which W is kept, 0 for the initial one.

    Raises:
        ValueError: shapes disagree, a label is neither −1 nor 1, numbers are not finite,
            `parameterization` is unknown, `steps` is negative, `learning_rate` or `hidden_dim` is
            not positive, or a step of `record` is not among the steps.

    Example:
        >>> tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> path = train_one_layer_attention(tokens, torch.tensor([1]), torch.tensor([0.0, 1.0]))
        >>> path.selected, bool(path.losses[-1] < path.losses[0])
        (tensor([1]), True)
    """
    queries = checked_queries(tokens, queries)
    check_labels(tokens, labels)
    runs, dim, query_dim = tokens.shape[:-3], tokens.shape[-1], queries.shape[-1]
    if value.shape[: len(runs) + 1] != (*runs, dim) or value.ndim > len(runs) + 2:
        raise ValueError(
            f"value: shape {tuple(value.shape)} given, {(*runs, dim)} or {(*runs, dim, 'units')} "
            "expected"
        )
    if parameterization not in ("W", "KQ"):
        raise ValueError(f"parameterization: {parameterization!r} given, 'W' or 'KQ' expected")
    if steps < 0:
        raise ValueError(f"steps: {steps} given, a number that is not negative expected")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate: {learning_rate} given, a positive number expected")
    hidden = dim if hidden_dim is None else hidden_dim
    if hidden < 1:
        raise ValueError(f"hidden_dim: {hidden} given, a positive number expected")
    if any(not 0 <= step <= steps for step in record):
        raise ValueError(f"record: {sorted(record)} given, steps from 0 to {steps} expected")
    shapes = [(dim, query_dim)] if parameterization == "W" else [(dim, hidden), (query_dim, hidden)]
    factors = _initial(initial, runs, shapes, seed, tokens)

    x, z, y, v = (a.to(tokens.device, torch.float64) for a in (tokens, queries, labels, value))
    is_linear = v.ndim == len(runs) + 1
    units = x @ (v[..., None] if is_linear else v)[..., None, :, :]
    losses, history = [], {}
    for step in range(steps + 1):
        weight = factors[0] if parameterization == "W" else factors[0] @ factors[1].mT
        if step in record:
            history[step] = weight.clone()
        logits = (x @ (z @ weight.mT)[..., None]).squeeze(-1)
        softmax = logits.softmax(-1)
        if step == steps:
            break
        if is_linear:
            score = units.squeeze(-1)
        else:
            active = (softmax[..., None, :] @ units).squeeze(-2) > 0
            score = (units @ active.to(x)[..., None]).squeeze(-1)
        output = (softmax * score).sum(-1)  # relu is linear in the units that are active
        losses.append(F.softplus(-y * output).mean(-1))
        upstream = -y * (-y * output).sigmoid() / y.shape[-1]
        change = upstream[..., None] * softmax * (score - output[..., None])
        gradient = (change[..., None, :] @ x).squeeze(-2).mT @ z
        factors = _stepped(factors, gradient, learning_rate, normalized)
    return AttentionPath(
        weight=weight,
        losses=torch.stack(losses, -1) if losses else x.new_zeros(*runs, 0),
        selected=softmax.argmax(-1),
        probabilities=softmax,
        history=history,
    )


def _stepped(
    factors: list[Tensor], gradient: Tensor, learning_rate: float, normalized: bool
) -> list[Tensor]:
    """A step of W, or of K and Q by the chain rule and the penalty."""
    if len(factors) == 1:
        slopes = [gradient]
    else:
        key, query = factors
        slopes = [gradient @ query + 2 * EPS * key, gradient.mT @ key + 2 * EPS * query]
    if normalized:
        slopes = [g / (torch.linalg.matrix_norm(g, keepdim=True) + EPS) for g in slopes]
    return [w - learning_rate * g for w, g in zip(factors, slopes, strict=True)]


def _initial(
    initial: Tensor | tuple[Tensor, Tensor] | None,
    runs: torch.Size,
    shapes: list[tuple[int, int]],
    seed: int,
    like: Tensor,
) -> list[Tensor]:
    if initial is None:
        generator = torch.Generator().manual_seed(seed)
        drawn = [
            torch.rand(*runs, *shape, dtype=torch.float64, generator=generator) for shape in shapes
        ]
        return [
            ((2 * w - 1) / math.sqrt(shape[0])).to(like.device)
            for w, shape in zip(drawn, shapes, strict=True)
        ]
    given = (initial,) if isinstance(initial, Tensor) else tuple(initial)
    # The width of K and Q is theirs to choose.
    width = given[0].shape[-1] if len(shapes) == 2 and given[0].ndim else None
    expected = [(*runs, rows, width or columns) for rows, columns in shapes]
    if [tuple(w.shape) for w in given] != expected:
        raise ValueError(
            f"initial: shapes {[tuple(w.shape) for w in given]} given, {expected} expected"
        )
    return [w.detach().to(like.device, torch.float64) for w in given]
