"""Training of one attention layer against autograd, and where the paper says that it leads."""

import pytest
import torch
import torch.nn.functional as F

from heterodox.probes.attention_svm import (
    direction_correlation,
    is_locally_optimal,
    solve_attention_svm,
    solve_svm_equivalence,
    token_scores,
    train_one_layer_attention,
)

EPS = 2.220446049250313e-16


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def problem(*runs, sequences=6, length=8, dim=10, seed=0):
    """Tokens, labels, value and queries: the paper's synthetic setting."""
    return (
        F.normalize(draw(*runs, sequences, length, dim, seed=seed), dim=-1),
        draw(*runs, sequences, seed=seed + 1).sign(),
        F.normalize(draw(*runs, dim, seed=seed + 2), dim=-1),
        F.normalize(draw(*runs, sequences, dim, seed=seed + 3), dim=-1),
    )


def by_autograd(data, factors, steps, learning_rate, normalized):
    """The authors' loop: a layer, its loss, SGD on gradients divided by their norms."""
    tokens, labels, value, queries = data
    factors = [w.clone().requires_grad_() for w in factors]
    losses = []
    for _ in range(steps):
        weight = factors[0] if len(factors) == 1 else factors[0] @ factors[1].T
        outputs = []
        for x, z in zip(tokens, queries, strict=True):
            output = x.T @ torch.softmax(x @ weight @ z, 0)
            outputs.append(output @ value if value.ndim == 1 else (output @ value).relu().sum())
        loss = torch.log(1 + torch.exp(-labels * torch.stack(outputs))).mean()
        losses.append(loss.item())
        if len(factors) == 2:
            loss = loss + EPS * sum(w.norm() ** 2 for w in factors)
        gradients = torch.autograd.grad(loss, factors)
        with torch.no_grad():
            for w, g in zip(factors, gradients, strict=True):
                w -= learning_rate * (g / (g.norm() + EPS) if normalized else g)
    return [w.detach() for w in factors], losses


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("parameterization", ["W", "KQ"])
@pytest.mark.parametrize("units", [None, 4])
def test_steps_are_those_of_autograd(normalized, parameterization, units):
    tokens, labels, value, queries = problem(dim=5)
    queries = queries[:, :3]  # as in cross-attention, of another width
    value = value if units is None else draw(5, units)
    shapes = [(5, 3)] if parameterization == "W" else [(5, 2), (3, 2)]
    initial = [draw(*shape, seed=9 + i) for i, shape in enumerate(shapes)]
    path = train_one_layer_attention(
        tokens,
        labels,
        value,
        queries,
        parameterization=parameterization,
        steps=30,
        learning_rate=0.2,
        normalized=normalized,
        initial=initial[0] if parameterization == "W" else tuple(initial),
    )
    data = (tokens, labels, value, queries)
    factors, losses = by_autograd(data, initial, 30, 0.2, normalized)
    weight = factors[0] if len(factors) == 1 else factors[0] @ factors[1].T
    torch.testing.assert_close(path.weight, weight)
    torch.testing.assert_close(path.losses, torch.tensor(losses, dtype=torch.float64))
    logits = torch.einsum("itd,de,ie->it", tokens, weight, queries)
    torch.testing.assert_close(path.probabilities, logits.softmax(-1))
    assert torch.equal(path.selected, logits.argmax(-1))


@pytest.mark.parametrize("parameterization", ["W", "KQ"])
def test_runs_in_a_batch_are_those_alone(parameterization):
    data = problem(3, sequences=4, length=5, dim=6)
    together = train_one_layer_attention(*data, parameterization=parameterization, steps=50)
    # The batch draws its runs one after the other; hand each run its own.
    generator = torch.Generator().manual_seed(0)
    count = 1 if parameterization == "W" else 2
    drawn = [
        (2 * torch.rand(3, 6, 6, dtype=torch.float64, generator=generator) - 1) / 6**0.5
        for _ in range(count)
    ]
    for run in range(3):
        own = tuple(w[run] for w in drawn)
        alone = train_one_layer_attention(
            *(a[run] for a in data),
            parameterization=parameterization,
            steps=50,
            initial=own[0] if count == 1 else own,
        )
        torch.testing.assert_close(together.weight[run], alone.weight)
        torch.testing.assert_close(together.losses[run], alone.losses)
        assert torch.equal(together.selected[run], alone.selected)


def test_a_normalised_step_of_the_weight_has_the_length_of_the_learning_rate():
    path = train_one_layer_attention(*problem(), steps=40, learning_rate=0.3, record=range(41))
    steps = [(path.history[i + 1] - path.history[i]).norm().item() for i in range(40)]
    assert steps == pytest.approx([0.3] * 40, rel=1e-6)
    torch.testing.assert_close(path.history[40], path.weight)


@pytest.mark.parametrize("parameterization", ["W", "KQ"])
def test_losses_decrease_and_the_softmax_saturates(parameterization):
    path = train_one_layer_attention(*problem(10), parameterization=parameterization, steps=500)
    assert (path.losses[:, -1] < path.losses[:, 0]).all()
    assert (path.probabilities.amax(-1) > 0.999).double().mean() > 0.9


def test_the_penalty_moves_factors_whose_loss_has_no_gradient_left():
    tokens, labels, value, queries = problem()
    svm = solve_attention_svm(tokens, token_scores(tokens, value, labels).argmax(-1), queries)
    u, s, vt = torch.linalg.svd(1e3 * svm.weight)
    key, query = 2 * u * s.sqrt(), vt.mT * s.sqrt() / 2
    paths = [
        train_one_layer_attention(
            tokens,
            labels,
            value,
            queries,
            parameterization="KQ",
            initial=(key, query),
            steps=steps,
        ).weight
        for steps in (0, 1)
    ]
    shorter = (key - 0.1 * key / key.norm()) @ (query - 0.1 * query / query.norm()).mT
    expected = shorter - key @ query.mT
    torch.testing.assert_close(
        paths[1] - paths[0], expected, rtol=0, atol=0.05 * expected.abs().max().item()
    )


@pytest.mark.parametrize(("parameterization", "own"), [("W", "frobenius"), ("KQ", "nuclear")])
def test_each_parameterisation_ends_at_its_own_svm(parameterization, own):
    data = problem(5, seed=20)
    path = train_one_layer_attention(*data, parameterization=parameterization)
    for run in range(5):
        tokens, queries = data[0][run], data[3][run]
        towards = {
            norm: direction_correlation(
                path.weight[run],
                solve_attention_svm(tokens, path.selected[run], queries, norm=norm).weight,
            )
            for norm in ("frobenius", "nuclear")
        }
        assert towards.pop(own) > max(0.97, towards.popitem()[1] + 0.03)


def test_what_is_selected_is_locally_optimal():
    data = problem(20, seed=40)
    path = train_one_layer_attention(*data)
    scores = token_scores(*data[:1], data[2], data[1])
    optimal = [
        is_locally_optimal(
            solve_attention_svm(data[0][run], path.selected[run], data[3][run]), scores[run]
        )
        for run in range(20)
    ]
    assert sum(optimal) >= 18


def test_equal_scores_of_all_other_tokens_lead_to_the_best_one():
    tokens, labels, value, queries = problem(20, sequences=4, length=5, dim=8, seed=60)
    best = (torch.arange(4) % 5).expand(20, 4)
    # Tokens without a part along the value, but for one whose part has the label's sign.
    across = tokens - (tokens @ value[:, None, :, None]) * value[:, None, None, :]
    along = labels[..., None, None] * value[:, None, None, :]
    tokens = across + F.one_hot(best, 5)[..., None] * along
    path = train_one_layer_attention(tokens, labels, value, queries)
    assert torch.equal(path.selected, best)


def test_where_several_tokens_are_kept_the_weight_is_a_finite_part_and_a_direction():
    """The authors' ReLU head and their rules on which runs count, on a fifth of their runs."""
    runs, dim = 150, 4
    tokens, labels, _, queries = problem(runs, sequences=3, length=4, dim=dim, seed=80)
    value = draw(runs, dim, dim, seed=90)
    value = value / torch.linalg.matrix_norm(value, keepdim=True)
    path = train_one_layer_attention(tokens, labels, value, queries, steps=2000)
    errors = {"direction": [], "one token": [], "both": []}
    for x, z, w, p in zip(tokens, queries, path.weight, path.probabilities, strict=True):
        several = ((p > 1e-3).sum(-1) > 1).any() and (p <= 1e-6).any()
        if not several or ((p > 1e-6) & (p <= 1e-3)).any():
            continue
        direction, finite = solve_svm_equivalence(x, p, z)
        rest = w - finite
        guesses = {
            "direction": direction,
            "one token": solve_attention_svm(x, p.argmax(-1), z).weight,
            "both": finite + (rest * direction).sum() / direction.square().sum() * direction,
        }
        for name, guess in guesses.items():
            errors[name].append(1 - direction_correlation(w, guess))
    assert len(errors["both"]) >= 10
    median = {name: sorted(found)[len(found) // 2] for name, found in errors.items()}
    assert median["both"] < 0.02
    assert median["both"] < 0.7 * median["direction"] < 0.5 * median["one token"]


def test_the_seed_decides_on_the_initial_weight_and_nothing_else_does():
    data = problem()
    first, same, other = (
        train_one_layer_attention(*data, steps=0, seed=seed).weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert first.abs().max() <= 10**-0.5


def test_hidden_dim_bounds_the_rank():
    path = train_one_layer_attention(*problem(), parameterization="KQ", hidden_dim=2, steps=20)
    assert torch.linalg.matrix_rank(path.weight) == 2


def test_half_precision_input_is_trained_in_float64():
    tokens, labels, value, queries = (x.bfloat16() for x in problem())
    path = train_one_layer_attention(tokens, labels, value, queries, steps=5)
    exact = train_one_layer_attention(
        *(x.double() for x in (tokens, labels, value, queries)), steps=5
    )
    assert path.weight.dtype == path.losses.dtype == torch.float64
    torch.testing.assert_close(path.weight, exact.weight)


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("tokens", {"tokens": torch.zeros(3, 1, 4)}),
        ("tokens", {"tokens": torch.full((3, 5, 4), torch.inf)}),
        ("queries", {"queries": torch.zeros(2, 4)}),
        ("labels", {"labels": torch.ones(2)}),
        ("labels", {"labels": torch.tensor([1.0, 0.5, -1.0])}),
        ("value", {"value": torch.ones(5)}),
        ("value", {"value": torch.ones(4, 2, 2)}),
        ("parameterization", {"parameterization": "QK"}),
        ("steps", {"steps": -1}),
        ("learning_rate", {"learning_rate": 0.0}),
        ("hidden_dim", {"hidden_dim": 0}),
        ("record", {"record": (5,), "steps": 4}),
        ("initial", {"initial": torch.zeros(4, 3)}),
        ("initial", {"initial": (torch.zeros(4, 4), torch.zeros(4, 4))}),
        ("initial", {"initial": torch.zeros(4, 4), "parameterization": "KQ"}),
    ],
)
def test_bad_input_names_the_argument(argument, changes):
    given = {"tokens": draw(3, 5, 4), "labels": torch.tensor([1, -1, 1]), "value": draw(4)}
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected$"):
        train_one_layer_attention(**{**given, **changes})
