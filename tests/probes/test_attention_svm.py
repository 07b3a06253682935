"""The attention SVM against closed forms, its optimality conditions and a convex solver."""

import itertools

import numpy as np
import pytest
import torch

from heterodox.probes import attention_svm_solvers
from heterodox.probes.attention_svm import (
    InfeasibleError,
    direction_correlation,
    is_locally_optimal,
    solve_attention_svm,
    solve_svm_equivalence,
    token_scores,
)

NORMS = ("frobenius", "nuclear")
LARGEST = {"frobenius": "fro", "nuclear": "nuc"}


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def problem(sequences=6, length=8, dim=10, seed=0):
    """Unit tokens and queries, as in the paper's experiments, and a selection."""
    tokens = draw(sequences, length, dim, seed=seed)
    queries = draw(sequences, dim, seed=seed + 1000)
    generator = torch.Generator().manual_seed(seed)
    selected = torch.randint(length, (sequences,), generator=generator)
    unit = torch.nn.functional.normalize
    return unit(tokens, dim=-1), selected, unit(queries, dim=-1)


def differences(tokens, selected):
    own = tokens[torch.arange(len(tokens)), selected]
    return own[:, None] - tokens


def margins_by_loop(weight, tokens, selected, queries):
    rows = []
    for i, (own, query) in enumerate(zip(selected.tolist(), queries, strict=True)):
        row = [
            float((tokens[i, own] - tokens[i, t]) @ weight @ query) for t in range(tokens.shape[1])
        ]
        row[own] = float("inf")
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def size(weight, norm):
    return float(torch.linalg.matrix_norm(weight, LARGEST[norm]))


def test_two_tokens_have_a_closed_form_in_both_norms():
    tokens, queries = draw(1, 2, 5), draw(1, 4, seed=1)
    difference = tokens[0, 1] - tokens[0, 0]
    expected = torch.outer(difference, queries[0]) / (difference @ difference)
    expected = expected / (queries[0] @ queries[0])
    for norm in NORMS:
        svm = solve_attention_svm(tokens, torch.tensor([1]), queries, norm=norm)
        torch.testing.assert_close(svm.weight, expected, rtol=1e-6, atol=1e-9)
        assert svm.support() == [[0]]
        assert svm.selected.tolist() == [1]


@pytest.mark.parametrize("seed", range(3))
def test_the_frobenius_solution_meets_the_conditions_of_optimality(seed):
    tokens, selected, queries = problem(seed=seed)
    svm = solve_attention_svm(tokens, selected, queries)
    margins = margins_by_loop(svm.weight, tokens, selected, queries)
    torch.testing.assert_close(svm.margins, margins)
    assert svm.margins.min() >= 1 - 1e-9
    assert svm.dual.min() >= 0
    rest = svm.margins.nan_to_num(posinf=1.0) - 1
    assert (svm.dual * rest).abs().max() < 1e-8  # complementary slackness
    combined = torch.einsum("it,itd,ie->de", svm.dual, differences(tokens, selected), queries)
    torch.testing.assert_close(svm.weight, combined)
    assert svm.dual.sum().item() == pytest.approx(size(svm.weight, "frobenius") ** 2)
    assert svm.gap < 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_the_nuclear_solution_carries_its_own_certificate(seed):
    tokens, selected, queries = problem(seed=seed)
    svm = solve_attention_svm(tokens, selected, queries, norm="nuclear", tol=1e-6)
    assert margins_by_loop(svm.weight, tokens, selected, queries).min() >= 1 - 1e-9
    combined = torch.einsum("it,itd,ie->de", svm.dual, differences(tokens, selected), queries)
    lower = float(svm.dual.sum() / max(1.0, torch.linalg.matrix_norm(combined, 2).item()))
    assert svm.dual.min() >= 0
    # Weak duality, without the solver: no feasible weight is below `lower`.
    assert lower <= size(svm.weight, "nuclear") * (1 + 1e-12)
    assert 1 - lower / size(svm.weight, "nuclear") == pytest.approx(svm.gap, abs=1e-9)
    assert svm.gap <= 1e-6
    # Its singular directions are those in which the dual is at its bound.
    u, s, vt = torch.linalg.svd(svm.weight)
    rank = int((s > 1e-7).sum())
    touched = torch.diagonal(u.mT @ combined @ vt.mT)[:rank]
    torch.testing.assert_close(touched, torch.ones(rank, dtype=torch.float64), rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_each_solution_is_the_smaller_in_its_own_norm(seed):
    tokens, selected, queries = problem(seed=seed)
    frobenius, nuclear = (
        solve_attention_svm(tokens, selected, queries, norm=norm).weight for norm in NORMS
    )
    assert size(nuclear, "nuclear") < size(frobenius, "nuclear") - 1e-3
    assert size(frobenius, "frobenius") < size(nuclear, "frobenius") - 1e-3


@pytest.mark.parametrize("norm", NORMS)
def test_no_feasible_weight_nearby_is_smaller(norm):
    tokens, selected, queries = problem(4, 5, 6)
    svm = solve_attention_svm(tokens, selected, queries, norm=norm)
    for seed in range(30):
        other = svm.weight + 0.1 * draw(6, 6, seed=seed)
        other = other / margins_by_loop(other, tokens, selected, queries).min()
        feasible = margins_by_loop(other, tokens, selected, queries).min() > 0
        assert not feasible or size(other, norm) > size(svm.weight, norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(6, 8, 10), (5, 5, 20), (10, 5, 5), (2, 3, 15)])
def test_a_convex_solver_finds_the_same(norm, shape):
    cvxpy = pytest.importorskip("cvxpy")
    tokens, selected, queries = problem(*shape, seed=2)
    svm = solve_attention_svm(tokens, selected, queries, norm=norm)
    weight = cvxpy.Variable((shape[2], shape[2]))
    rows = differences(tokens, selected).numpy()
    constraints = [
        rows[i, t] @ weight @ queries[i].numpy() >= 1
        for i, t in itertools.product(range(shape[0]), range(shape[1]))
        if t != selected[i]
    ]
    goal = cvxpy.Problem(cvxpy.Minimize(cvxpy.norm(weight, LARGEST[norm])), constraints)
    goal.solve(solver=cvxpy.CLARABEL)
    assert size(svm.weight, norm) == pytest.approx(goal.value, rel=2e-6)
    theirs = torch.from_numpy(np.asarray(weight.value))
    assert direction_correlation(svm.weight, theirs) > 1 - 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_longer_tokens_need_smaller_weights(norm):
    tokens, selected, queries = problem()
    weight = solve_attention_svm(tokens, selected, queries, norm=norm).weight
    scaled = solve_attention_svm(1e3 * tokens, selected, queries, norm=norm).weight
    torch.testing.assert_close(1e3 * scaled, weight, rtol=1e-5, atol=1e-5)
    scaled = solve_attention_svm(tokens, selected, 1e-3 * queries, norm=norm).weight
    torch.testing.assert_close(1e-3 * scaled, weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_turning_all_tokens_and_queries_turns_the_weight(norm):
    tokens, selected, queries = problem()
    turn, other_turn = (torch.linalg.qr(draw(10, 10, seed=seed)).Q for seed in (7, 8))
    weight = solve_attention_svm(tokens, selected, queries, norm=norm).weight
    turned = solve_attention_svm(tokens @ turn.mT, selected, queries @ other_turn.mT, norm=norm)
    torch.testing.assert_close(turned.weight, turn @ weight @ other_turn.mT, rtol=0, atol=2e-5)


def test_the_query_is_the_first_token_by_default():
    tokens, selected, _ = problem()
    torch.testing.assert_close(
        solve_attention_svm(tokens, selected).weight,
        solve_attention_svm(tokens, selected, tokens[:, 0]).weight,
    )


@pytest.mark.parametrize("shape", [(5, 5, 8), (6, 8, 10), (8, 4, 9)])
def test_nuclear_solutions_have_a_rank_of_at_most_the_number_of_sequences(shape):
    tokens, selected, queries = problem(*shape)
    ranks = [
        int(
            torch.linalg.matrix_rank(
                solve_attention_svm(tokens, selected, queries, norm=norm).weight,
                atol=1e-7,
                rtol=0.0,
            )
        )
        for norm in NORMS
    ]
    assert ranks[1] < ranks[0] <= shape[0]


def test_problems_with_many_more_constraints_than_unknowns_are_solved():
    tokens, queries = draw(40, 30, 3), draw(40, 2, seed=1)
    planted = draw(3, 2, seed=2)
    logits = torch.einsum("itd,de,ie->it", tokens, planted, queries)
    for norm in NORMS:
        svm = solve_attention_svm(tokens, logits.argmax(-1), queries, norm=norm)
        assert svm.margins.min() >= 1 - 1e-9
        assert svm.gap <= 1e-6
        assert direction_correlation(svm.weight, planted) > 0.99


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["equal tokens", "conflict", "inner token", "zero query"])
def test_what_no_weight_separates_is_infeasible(norm, kind):
    tokens, selected, queries = problem(2, 3, 4)
    if kind == "equal tokens":
        tokens[1, (selected[1] + 1) % 3] = tokens[1, selected[1]]
    elif kind == "conflict":  # one dimension, where both sequences ask for the other sign
        tokens = torch.tensor([[[0.0], [1.0]], [[0.0], [1.0]]])
        selected, queries = torch.tensor([0, 1]), torch.ones(2, 1)
    elif kind == "inner token":
        tokens[0, selected[0]] = tokens[0, [t for t in range(3) if t != selected[0]]].mean(0)
    else:
        queries[1] = 0
    with pytest.raises(InfeasibleError, match=r"^selected: .* expected$"):
        solve_attention_svm(tokens, selected, queries, norm=norm)


@pytest.mark.parametrize("norm", NORMS)
def test_a_narrow_margin_is_found_all_the_same(norm):
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [2.0, -1e-3]]], dtype=torch.float64)
    svm = solve_attention_svm(tokens, torch.tensor([0]), torch.ones(1, 1).double(), norm=norm)
    expected = torch.tensor([[1.0], [2e3]], dtype=torch.float64)
    torch.testing.assert_close(svm.weight, expected, rtol=1e-5, atol=1e-6)


def test_a_gap_that_is_not_reached_is_an_error_and_no_answer():
    tokens, selected, queries = problem()
    with pytest.raises(RuntimeError, match=r"^tol: .* after 3 steps a relative gap"):
        solve_attention_svm(tokens, selected, queries, norm="nuclear", max_iterations=3)
    with pytest.raises(RuntimeError, match=r"^tol: 1e-15 given"):
        solve_attention_svm(tokens, selected, queries, norm="nuclear", tol=1e-15)


def test_half_precision_input_is_computed_in_float64():
    tokens, selected, queries = problem()
    low = tokens.bfloat16(), selected, queries.bfloat16()
    weight = solve_attention_svm(*low).weight
    assert weight.dtype == torch.float64
    torch.testing.assert_close(
        weight, solve_attention_svm(low[0].double(), selected, low[2].double()).weight
    )


def test_support_tokens_are_those_with_a_multiplier():
    tokens, selected, queries = problem()
    svm = solve_attention_svm(tokens, selected, queries)
    assert svm.support() == [row.nonzero().flatten().tolist() for row in svm.dual > 1e-9]
    assert svm.support(tol=1e6) == [[t for t in range(8) if t != own] for own in selected.tolist()]


def test_local_optimality_asks_for_higher_scores_than_the_support_tokens_only():
    tokens, selected, queries = problem(1, 4, 6)
    tokens[0, 3] = -50 * tokens[0, selected[0]]  # so far behind that it supports nothing
    svm = solve_attention_svm(tokens, selected, queries)
    support = svm.support()[0]
    far = next(t for t in range(4) if t not in support and t != selected[0])
    scores = torch.zeros(1, 4)
    scores[0, selected[0]] = 1.0
    scores[0, far] = 2.0
    assert is_locally_optimal(svm, scores)
    scores[0, support[0]] = 2.0
    assert not is_locally_optimal(svm, scores)
    scores[0, support[0]] = 1.0
    assert not is_locally_optimal(svm, scores)


def test_scores_are_the_label_times_the_projection():
    tokens, labels, value = draw(2, 3, 4, 5), torch.tensor([[1, -1, 1], [-1, -1, 1]]), draw(2, 5)
    scores = token_scores(tokens, value, labels)
    for r, i, t in itertools.product(range(2), range(3), range(4)):
        expected = float(labels[r, i]) * sum(
            float(a) * float(b) for a, b in zip(tokens[r, i, t], value[r], strict=True)
        )
        assert scores[r, i, t].item() == pytest.approx(expected)


def test_correlation_ignores_positive_factors_and_notices_signs():
    a, b = draw(4, 5), draw(4, 5, seed=1)
    expected = np.corrcoef(np.r_[a.flatten(), -a.flatten()], np.r_[b.flatten(), -b.flatten()])
    assert direction_correlation(a, b) == pytest.approx(expected[0, 1])
    assert direction_correlation(3 * a, 0.2 * b) == pytest.approx(direction_correlation(a, b))
    assert direction_correlation(a, -a) == pytest.approx(-1)
    assert direction_correlation(a.float(), a) == pytest.approx(1)
    assert np.isnan(direction_correlation(a, 0 * b))


@pytest.mark.parametrize("norm", NORMS)
def test_the_general_form_without_company_is_the_svm(norm):
    tokens, selected, queries = problem()
    alone = torch.nn.functional.one_hot(selected, 8).double()
    direction, finite = solve_svm_equivalence(tokens, alone, queries, norm=norm)
    svm = solve_attention_svm(tokens, selected, queries, norm=norm)
    torch.testing.assert_close(direction, svm.weight, rtol=1e-5, atol=1e-5)
    assert not finite.any()


@pytest.mark.parametrize("norm", NORMS)
def test_the_general_form_keeps_ratios_and_equal_logits(norm):
    tokens, _, queries = problem(3, 4, 8)
    kept = torch.tensor([[0.7, 0.3, 0, 0], [0, 0, 1.0, 0], [0.2, 0, 0.5, 0.3]]).double()
    direction, finite = solve_svm_equivalence(tokens, kept, queries, norm=norm)

    def logits(weight):
        return torch.einsum("itd,de,ie->it", tokens, weight, queries)

    dropped = kept == 0
    for own, gone, mine in zip(logits(direction), dropped, kept > 0, strict=True):
        assert own[mine].max() - own[mine].min() < 1e-8
        assert own[gone].max() <= own[mine].min() - 1 + 1e-8
    inside = logits(finite).masked_fill(dropped, -torch.inf).softmax(-1)
    torch.testing.assert_close(inside, kept, rtol=1e-8, atol=1e-8)
    assert finite.any() and direction.any()


def equality_rows(tokens, queries, kept):
    """(x_s − x_t) zᵀ for all pairs of kept tokens, with their log ratios, one row each."""
    rows, ratios = [], []
    for i in range(len(tokens)):
        for s, t in itertools.combinations((kept[i] > 1e-3).nonzero().flatten().tolist(), 2):
            rows.append(torch.outer(tokens[i, s] - tokens[i, t], queries[i]).flatten())
            ratios.append(torch.log(kept[i, s] / kept[i, t]))
    return torch.stack(rows), torch.stack(ratios)


def test_the_finite_part_is_the_least_squares_solution_of_all_pairs():
    tokens, _, queries = problem(3, 4, 8)
    kept = torch.tensor([[0.7, 0.3, 0, 0], [0, 0, 1.0, 0], [0.2, 0, 0.5, 0.3]]).double()
    _, finite = solve_svm_equivalence(tokens, kept, queries)
    rows, ratios = equality_rows(tokens, queries, kept)
    torch.testing.assert_close(finite.flatten(), torch.linalg.pinv(rows) @ ratios)


@pytest.mark.parametrize("norm", NORMS)
def test_a_convex_solver_finds_the_same_general_form(norm):
    cvxpy = pytest.importorskip("cvxpy")
    tokens, _, queries = problem(3, 4, 6, seed=4)
    kept = torch.tensor([[0.7, 0.3, 0, 0], [0, 0, 1.0, 0], [0.2, 0, 0.5, 0.3]]).double()
    parts = solve_svm_equivalence(tokens, kept, queries, norm=norm)
    rows, ratios = (x.numpy() for x in equality_rows(tokens, queries, kept))
    weight = cvxpy.Variable((6, 6))
    flat = cvxpy.reshape(weight, (36,), order="C")
    margins = [
        (tokens[i, s] - tokens[i, t]).numpy() @ weight @ queries[i].numpy() >= 1
        for i in range(3)
        for s, t in itertools.permutations(range(4), 2)
        if kept[i, s] > 0 and kept[i, t] == 0
    ]
    for part, constraints in zip(
        parts, ([rows @ flat == 0, *margins], [rows @ flat == ratios]), strict=True
    ):
        goal = cvxpy.Problem(cvxpy.Minimize(cvxpy.norm(weight, LARGEST[norm])), constraints)
        goal.solve(solver=cvxpy.CLARABEL)
        assert size(part, norm) == pytest.approx(goal.value, rel=2e-6)


def test_the_general_form_of_what_keeps_everything_has_no_direction():
    tokens, _, queries = problem(2, 3, 5)
    direction, finite = solve_svm_equivalence(tokens, torch.full((2, 3), 1 / 3), queries)
    assert not direction.any() and finite.abs().max() < 1e-12


def test_ratios_that_no_weight_has_are_infeasible():
    tokens = torch.tensor([[[0.0], [1.0], [2.0]]])
    with pytest.raises(InfeasibleError, match=r"^probabilities: "):
        solve_svm_equivalence(tokens, torch.tensor([[0.2, 0.5, 0.3]]), torch.ones(1, 1))


def test_what_nnls_leaves_open_is_settled_on_the_active_set(monkeypatch):
    """Multipliers that are right to five digits only still lead to an exact solution."""
    tokens, selected, queries = problem()
    exact = solve_attention_svm(tokens, selected, queries).weight
    nnls = attention_svm_solvers.nnls

    def rough(*args, **keywords):
        u, residual = nnls(*args, **keywords)
        return u * (1 + 1e-5 * np.cos(np.arange(len(u)))), residual

    monkeypatch.setattr(attention_svm_solvers, "nnls", rough)
    torch.testing.assert_close(solve_attention_svm(tokens, selected, queries).weight, exact)


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("tokens", {"tokens": torch.zeros(2, 1, 3)}),
        ("tokens", {"tokens": torch.zeros(0, 4, 3)}),
        ("tokens", {"tokens": torch.zeros(4, 3)}),
        ("tokens", {"tokens": torch.full((2, 4, 3), torch.nan)}),
        ("queries", {"queries": torch.zeros(3, 3)}),
        ("queries", {"queries": torch.full((2, 3), torch.inf)}),
        ("selected", {"selected": torch.tensor([0, 4])}),
        ("selected", {"selected": torch.tensor([-1, 0])}),
        ("selected", {"selected": torch.tensor([0])}),
        ("selected", {"selected": torch.tensor([0.0, 1.0])}),
        ("norm", {"norm": "l1"}),
        ("tol", {"tol": 0.0}),
        ("max_iterations", {"max_iterations": 0}),
    ],
)
def test_bad_input_names_the_argument(argument, changes):
    given = {"tokens": draw(2, 4, 3), "selected": torch.tensor([0, 1]), "queries": draw(2, 3)}
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected$"):
        solve_attention_svm(**{**given, **changes})


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("probabilities", {"probabilities": torch.ones(2, 4)}),
        ("probabilities", {"probabilities": torch.ones(2, 3) / 3}),
        ("probabilities", {"probabilities": torch.tensor([[2.0, -1.0, 0, 0]]).expand(2, 4)}),
        ("threshold", {"threshold": 0.3}),
        ("threshold", {"threshold": 0.0}),
        ("norm", {"norm": "spectral"}),
    ],
)
def test_bad_input_to_the_general_form_names_the_argument(argument, changes):
    given = {"tokens": draw(2, 4, 3), "probabilities": torch.full((2, 4), 0.25)}
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected$"):
        solve_svm_equivalence(**{**given, **changes})


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("labels", lambda: token_scores(draw(2, 4, 3), draw(3), torch.tensor([1, 0]))),
        ("labels", lambda: token_scores(draw(2, 4, 3), draw(3), torch.tensor([1]))),
        ("value", lambda: token_scores(draw(2, 4, 3), draw(4), torch.tensor([1, 1]))),
        ("b", lambda: direction_correlation(draw(2, 3), draw(3, 2))),
        (
            "scores",
            lambda: is_locally_optimal(
                solve_attention_svm(draw(2, 4, 6), torch.tensor([0, 1])), draw(2, 3)
            ),
        ),
    ],
)
def test_bad_input_to_the_small_functions_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected$"):
        call()
