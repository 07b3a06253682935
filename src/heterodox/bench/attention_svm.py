"""The attention SVM: this library's solvers against a modelling package with general ones."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from heterodox.bench.workload import Case, Workload, check_sizes
from heterodox.probes.attention_svm import solve_attention_svm

NORMS = {"frobenius": "fro", "nuclear": "nuc"}


def workload() -> Workload:
    return Workload(
        facts={
            "data": "unit normal tokens and queries, random selection",
            "dtype": "float64",
            "accuracy": "1e-6 in the nuclear norm here, each solver's own default there",
            "size": "sequences x tokens x dimensions",
        },
        cases=cases,
        prepare=prepare,
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """Both norms at every size.

    Raises:
        ValueError: a size is not of the form 6x8x10.
    """
    check_sizes(sizes, "sequences x tokens x dimensions", "6x8x10")
    return [Case(size, "solve", norm) for size, norm in itertools.product(sizes, NORMS)]


def prepare(function: Callable[..., Any], case: Case, device: str) -> Callable[[], object]:
    """A call of `function(tokens, selected, queries, norm=...)`."""
    sequences, length, dim = map(int, case.size.split("x"))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(sequences, length, dim, dtype=torch.float64, generator=generator)
    queries = torch.randn(sequences, dim, dtype=torch.float64, generator=generator)
    tokens, queries = (F.normalize(x, dim=-1).to(device) for x in (tokens, queries))
    selected = torch.randint(length, (sequences,), generator=generator).to(device)
    return lambda: function(tokens, selected, queries, norm=case.variant)


def solve(
    tokens: Float[Tensor, "sequences length dim"],
    selected: Int[Tensor, "sequences"],
    queries: Float[Tensor, "sequences dim"],
    *,
    norm: Any,
) -> Float[Tensor, "dim dim"]:
    return solve_attention_svm(tokens, selected, queries, norm=norm).weight


def _solve_by_cvxpy(
    tokens: Float[Tensor, "sequences length dim"],
    selected: Int[Tensor, "sequences"],
    queries: Float[Tensor, "sequences dim"],
    *,
    norm: str,
    solver: str,
) -> Float[Tensor, "dim dim"]:
    """All constraints as one matrix, so that the solver counts and not their assembly."""
    import cvxpy

    own = tokens[torch.arange(len(tokens)), selected]
    others = F.one_hot(selected, tokens.shape[1]) == 0
    rows = torch.einsum("itd,ie->itde", own[:, None] - tokens, queries)[others]
    dim = tokens.shape[-1]
    weight = cvxpy.Variable((dim, dim))
    flat = cvxpy.reshape(weight, (dim * dim,), order="C")
    goal = cvxpy.Minimize(cvxpy.norm(weight, NORMS[norm]))
    cvxpy.Problem(goal, [rows.flatten(1).cpu().numpy() @ flat >= 1]).solve(solver=solver)
    return torch.as_tensor(weight.value)


cvxpy_clarabel = partial(_solve_by_cvxpy, solver="CLARABEL")
cvxpy_scs = partial(_solve_by_cvxpy, solver="SCS")
