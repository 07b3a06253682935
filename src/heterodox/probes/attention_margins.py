"""The attention SVM: the smallest W that separates one token of every sequence from the others.

    W_mm(α) = argmin ‖W‖   subject to   (x_{i,α_i} − x_{it})ᵀ W z_i ≥ 1   for all i and all t ≠ α_i

with the Frobenius norm ("W-SVM") or the nuclear norm ("KQ-SVM": the least (‖K‖² + ‖Q‖²)/2 of all
factors with K Qᵀ = W). Tarzanagh et al., "Transformers as Support Vector Machines", 2023, arXiv
2308.16898. Its general form, for heads that keep several tokens, is `solve_svm_equivalence`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from heterodox.probes.attention_svm_solvers import (
    Constraints,
    InfeasibleError,
    least_frobenius,
    least_nuclear,
)

Norm = Literal["frobenius", "nuclear"]


@dataclass(frozen=True)
class AttentionSVM:
    """A solution of the attention SVM, in float64 on the device of the tokens.

    Attributes:
        weight: W, (dim, query_dim); logits are xᵀ W z.
        dual: λ ≥ 0, (sequences, length), 0 at the selected token. With the Frobenius norm
            W = Σ λ_it (x_{i,α_i} − x_it) z_iᵀ; with the nuclear norm that sum has spectral norm at
            most 1, and W's singular directions as its own where it is 1.
        margins: (x_{i,α_i} − x_it)ᵀ W z_i, at least 1; infinite at the selected token itself.
        gap: how far ‖W‖ may be above the optimum, as a part of ‖W‖: the duality gap.
        norm: "frobenius" or "nuclear".
    """

    weight: Float[Tensor, "dim query_dim"]
    dual: Float[Tensor, "sequences length"]
    margins: Float[Tensor, "sequences length"]
    gap: float
    norm: Norm

    @property
    def selected(self) -> Int[Tensor, "sequences"]:
        """α: the token of each sequence that W separates from the others."""
        return self.margins.argmax(-1)

    def support(self, tol: float = 1e-4) -> list[list[int]]:
        """The support tokens of each sequence: those whose margin is 1, up to `tol`."""
        return [row.nonzero().flatten().tolist() for row in self.margins <= 1 + tol]


def solve_attention_svm(
    tokens: Float[Tensor, "sequences length dim"],
    selected: Int[Tensor, "sequences"],
    queries: Float[Tensor, "sequences query_dim"] | None = None,
    *,
    norm: Norm = "frobenius",
    tol: float = 1e-6,
    max_iterations: int = 200_000,
) -> AttentionSVM:
    """The hard-margin SVM that attention weights are said to converge to in direction.

    Almost every set of tokens is separable, whatever is selected, if
    dim ≥ max(length − 1, sequences).

    Args:
        tokens: x, the keys of every sequence; computed with in float64.
        selected: α, the index of a token in each sequence.
        queries: z; by default the first token of each sequence, as in self-attention.
        norm: "frobenius", what training W leads to, or "nuclear", what training key and query
            factors leads to. The first solution is unique, the second has rank at most
            min(sequences, dim).
        tol: largest relative duality gap of the nuclear norm; about 1e-7 is what float64 allows.
            The Frobenius norm is exact to rounding.
        max_iterations: of the nuclear norm, of which about 15 are used.

    Raises:
        ValueError: shapes disagree, a sequence has one token, an index is out of range, numbers are
            not finite, `tol` is not in (0, 1), or `norm` is unknown.
        InfeasibleError: (a ValueError) no weight separates the selected tokens.
        RuntimeError: `tol` was not reached.

    Example:
        >>> tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> svm = solve_attention_svm(tokens, torch.tensor([0]), torch.tensor([[2.0, 0.0]]))
        >>> svm.weight
        tensor([[ 0.2500,  0.0000],
                [-0.2500,  0.0000]], dtype=torch.float64)
        >>> svm.support()
        [[1]]
    """
    queries = checked_queries(tokens, queries)
    sequences, length, _ = tokens.shape
    if selected.shape != (sequences,) or selected.dtype.is_floating_point:
        raise ValueError(
            f"selected: {selected.dtype} of shape {tuple(selected.shape)} given, an index for each "
            f"of {sequences} sequences expected"
        )
    if selected.min() < 0 or selected.max() >= length:
        raise ValueError(
            f"selected: indices from {int(selected.min())} to {int(selected.max())} given, "
            f"0 to {length - 1} expected"
        )
    _check_options(norm, tol, max_iterations)
    others = torch.ones(sequences, length, dtype=torch.bool, device=tokens.device)
    others[torch.arange(sequences), selected] = False
    problem = _Problem.of(tokens, queries, selected, others)
    try:
        weight, dual, gap = problem.solve(
            np.ones(problem.count), np.zeros(problem.count, dtype=bool), norm, tol, max_iterations
        )
    except InfeasibleError as error:
        raise InfeasibleError(f"selected: {error}") from None
    margins, multipliers = np.full(others.shape, np.inf), np.zeros(others.shape)
    margins[others.cpu().numpy()] = problem.constraints.values(problem.inside(weight))
    multipliers[others.cpu().numpy()] = dual
    found = [torch.as_tensor(x, device=tokens.device) for x in (weight, multipliers, margins)]
    return AttentionSVM(found[0], found[1], found[2], gap, norm)


def solve_svm_equivalence(
    tokens: Float[Tensor, "sequences length dim"],
    probabilities: Float[Tensor, "sequences length"],
    queries: Float[Tensor, "sequences query_dim"] | None = None,
    *,
    norm: Norm = "frobenius",
    threshold: float = 1e-3,
) -> tuple[Float[Tensor, "dim query_dim"], Float[Tensor, "dim query_dim"]]:
    """The two parts of W where attention keeps several tokens R_i: W ≈ finite + C · direction.

    The direction is the smallest W that gives all of R_i the same logit and every other token one
    that is lower by at least 1. The finite part is the smallest W whose softmax within R_i has the
    ratios of `probabilities`. Predict a trained W by `finite + C * direction` with C fitted to it
    by least squares.

    Args:
        tokens, queries, norm: as for `solve_attention_svm`.
        probabilities: the softmax that training ended with.
        threshold: R_i are the tokens above it; 1e-3 in the authors' code.

    Returns:
        (direction, finite). The direction is zero if nothing was dropped, the finite part if one
        token of each sequence was kept.

    Raises:
        ValueError: as `solve_attention_svm`; or rows of `probabilities` are no distributions, or
            have nothing above `threshold`.
        InfeasibleError: (a ValueError) no weight separates R_i, or has these ratios.

    Example:
        >>> tokens = torch.eye(3)[None]
        >>> kept = torch.tensor([[0.5, 0.5, 0.0]])
        >>> direction, finite = solve_svm_equivalence(tokens, kept)
        >>> (3 * direction[:, 0]).round().tolist(), finite[:, 0].tolist()
        ([1.0, 1.0, -2.0], [0.0, 0.0, 0.0])
    """
    queries = checked_queries(tokens, queries)
    if probabilities.shape != tokens.shape[:2]:
        raise ValueError(
            f"probabilities: shape {tuple(probabilities.shape)} given, {tuple(tokens.shape[:2])} "
            "expected"
        )
    shares = probabilities.detach().double()
    if not ((shares >= 0).all() and ((shares.sum(-1) - 1).abs() < 1e-3).all()):
        raise ValueError("probabilities: rows that are no distributions given, those expected")
    _check_options(norm, 0.5, 1)
    if not (shares.amax(-1) > threshold).all() or threshold <= 0:
        raise ValueError(
            f"threshold: {threshold} given, a positive number below the largest probability of "
            "each sequence expected"
        )
    kept, top = shares > threshold, shares.argmax(-1)
    others = torch.ones_like(kept)
    others[torch.arange(len(top)), top] = False
    problem = _Problem.of(tokens, queries, top, others)
    ratios = shares.gather(1, top[:, None]) / shares.clamp(min=threshold)
    equal = kept[others].cpu().numpy()
    log_ratios = ratios.log()[others].cpu().numpy()
    parts = [np.zeros(problem.shape), np.zeros(problem.shape)]
    try:
        if not equal.all():
            parts[0], *_ = problem.solve(np.where(equal, 0.0, 1.0), equal, norm, 1e-6, 1000)
        if equal.any() and log_ratios[equal].any():
            only = problem.restricted(equal)
            parts[1], *_ = only.solve(
                log_ratios[equal], np.ones(only.count, dtype=bool), norm, 1e-6, 1000
            )
    except InfeasibleError as error:
        raise InfeasibleError(f"probabilities: {error}") from None
    direction, finite = (torch.as_tensor(part, device=tokens.device) for part in parts)
    return direction, finite


def token_scores(
    tokens: Float[Tensor, "*runs sequences length dim"],
    value: Float[Tensor, "*runs dim"],
    labels: Float[Tensor, "*runs sequences"] | Int[Tensor, "*runs sequences"],
) -> Float[Tensor, "*runs sequences length"]:
    """γ_it = y_i vᵀ x_it, whose largest is the token that a linear head would have selected.

    Args:
        tokens: x.
        value: v, the head.
        labels: y, of −1 and 1.

    Raises:
        ValueError: shapes disagree, or a label is neither −1 nor 1.

    Example:
        >>> token_scores(torch.eye(2)[None], torch.tensor([3.0, 1.0]), torch.tensor([-1]))
        tensor([[-3., -1.]])
    """
    check_labels(tokens, labels)
    if value.shape != (*tokens.shape[:-3], tokens.shape[-1]):
        raise ValueError(
            f"value: shape {tuple(value.shape)} given, "
            f"{(*tokens.shape[:-3], tokens.shape[-1])} expected"
        )
    along = (tokens @ value[..., None, :, None]).squeeze(-1)
    return labels.to(tokens.dtype)[..., None] * along


def direction_correlation(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> float:
    """⟨A, B⟩ / (‖A‖ ‖B‖) in the Frobenius norm: 1 for one direction; NaN if one of them is zero.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> direction_correlation(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        0.6
    """
    if a.shape != b.shape:
        raise ValueError(f"b: shape {tuple(b.shape)} given, a's {tuple(a.shape)} expected")
    a, b = (x.detach().double().cpu().flatten() for x in (a, b))
    return float(a @ b / (a.norm() * b.norm()))


def is_locally_optimal(svm: AttentionSVM, scores: Float[Tensor, "sequences length"]) -> bool:
    """Whether gradient descent may end at this SVM: all its support tokens have lower scores than
    the token that is selected. Several selections may be locally optimal; that of the largest
    scores is.

    Args:
        svm: a solution of `solve_attention_svm`.
        scores: of `token_scores`.

    Raises:
        ValueError: `scores` is of another shape than the margins.

    Example:
        >>> tokens = torch.eye(3)[None]
        >>> scores = token_scores(tokens, torch.tensor([0.0, 2.0, 1.0]), torch.tensor([1]))
        >>> [is_locally_optimal(solve_attention_svm(tokens, torch.tensor([t])), scores)
        ...  for t in range(3)]
        [False, True, False]
    """
    if scores.shape != svm.margins.shape:
        raise ValueError(
            f"scores: shape {tuple(scores.shape)} given, {tuple(svm.margins.shape)} expected"
        )
    return all(
        row[token] < row[selected]
        for row, selected, tokens in zip(
            scores.tolist(), svm.selected.tolist(), svm.support(), strict=True
        )
        for token in tokens
    )


def checked_queries(tokens: Tensor, queries: Tensor | None) -> Tensor:
    """The queries, after a check of what every function here takes: (*runs, sequences, length, dim)
    tokens and (*runs, sequences, query_dim) queries.
    """
    if tokens.ndim < 3 or 0 in tokens.shape[-3:] or tokens.shape[-2] < 2:
        raise ValueError(
            f"tokens: shape {tuple(tokens.shape)} given, (sequences, length, dim) with a length of "
            "at least 2 expected"
        )
    if queries is None:
        queries = tokens[..., 0, :]
    elif queries.shape[:-1] != tokens.shape[:-2] or queries.shape[-1] == 0:
        raise ValueError(
            f"queries: shape {tuple(queries.shape)} given, "
            f"{(*tokens.shape[:-2], 'query_dim')} expected"
        )
    for name, given in (("tokens", tokens), ("queries", queries)):
        if not given.isfinite().all():
            raise ValueError(f"{name}: numbers that are not finite given, finite ones expected")
    return queries


def check_labels(tokens: Tensor, labels: Tensor) -> None:
    if tokens.ndim < 3 or labels.shape != tokens.shape[:-2]:
        raise ValueError(
            f"labels: shape {tuple(labels.shape)} given, one for each sequence of tokens of shape "
            f"{tuple(tokens.shape)} expected"
        )
    if not (labels.abs() == 1).all():
        raise ValueError("labels: other numbers than -1 and 1 given, these expected")


def _check_options(norm: str, tol: float, max_iterations: int) -> None:
    if norm not in ("frobenius", "nuclear"):
        raise ValueError(f"norm: {norm!r} given, 'frobenius' or 'nuclear' expected")
    if not 0 < tol < 1:
        raise ValueError(f"tol: {tol} given, a number between 0 and 1 expected")
    if max_iterations < 1:
        raise ValueError(f"max_iterations: {max_iterations} given, a positive number expected")


@dataclass(frozen=True)
class _Problem:
    """Constraints in the span of differences and queries, where both norms have their minimum."""

    constraints: Constraints
    token_basis: np.ndarray
    query_basis: np.ndarray

    @classmethod
    def of(
        cls, tokens: Tensor, queries: Tensor, top: Tensor, others: Bool[Tensor, "sequences length"]
    ) -> "_Problem":
        """One constraint for each of `others`: how far `top` of its sequence is above it."""
        x, z = (a.detach().double().cpu().numpy() for a in (tokens, queries))
        top_token = x[np.arange(len(x)), top.cpu().numpy()]
        mask = others.cpu().numpy()
        differences = (top_token[:, None] - x)[mask]
        token_basis, query_basis = _basis(differences), _basis(z)
        right = np.repeat(z @ query_basis, mask.sum(-1), axis=0)
        count = len(differences)
        constraints = Constraints(
            differences @ token_basis, right, np.ones(count), np.zeros(count, dtype=bool)
        )
        return cls(constraints, token_basis, query_basis)

    @property
    def count(self) -> int:
        return len(self.constraints.bound)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.token_basis), len(self.query_basis)

    def inside(self, weight: np.ndarray) -> np.ndarray:
        return self.token_basis.T @ weight @ self.query_basis

    def restricted(self, rows: np.ndarray) -> "_Problem":
        c = self.constraints
        kept = Constraints(c.left[rows], c.right[rows], c.bound[rows], c.equal[rows])
        return _Problem(kept, self.token_basis, self.query_basis)

    def solve(
        self, bound: np.ndarray, equal: np.ndarray, norm: str, tol: float, max_iterations: int
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """W, the dual and the gap. The Frobenius solution also tells whether there is any."""
        c = Constraints(self.constraints.left, self.constraints.right, bound, equal)
        weight, dual = least_frobenius(c)
        if norm == "nuclear":
            weight, dual, gap = least_nuclear(c, tol, max_iterations)
        else:
            upper, lower = np.linalg.norm(weight), np.linalg.norm(c.combined(dual))
            gap = float(max(1 - bound @ dual / (upper * lower), 0.0))
        return self.token_basis @ weight @ self.query_basis.T, dual, gap


def _basis(rows: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span the rows; the unit vectors where there are as many rows."""
    if len(rows) >= rows.shape[1]:
        return np.eye(rows.shape[1])
    return np.linalg.qr(rows.T)[0]
