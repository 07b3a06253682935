"""The reconstructed estimators against counting, enumeration and the identity they rest on."""

import pytest
import torch

from heterodox.losses.utility import (
    best_temperature,
    fit_rank_frequencies,
    fit_temperature,
    frequencies_from_dynamics,
    utility_to_probability,
)


def utilities(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=generator)


FREQUENCIES = torch.tensor([0.5, 0.3, 0.1, 0.1, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (0, 5)])
def test_both_methods_give_distributions(shape):
    u = utilities(*shape)
    for p in (
        utility_to_probability(u),
        utility_to_probability(u, temperature=0.1),
        utility_to_probability(u, temperature=0.0),
        utility_to_probability(u, "rank", rank_frequencies=FREQUENCIES),
    ):
        assert p.shape == u.shape and (p >= 0).all()
        torch.testing.assert_close(p.sum(-1), torch.ones(shape[:-1], dtype=torch.float64))


def test_boltzmann_is_softmax_of_the_quotient():
    u = utilities(4, 5)
    expected = (u / 0.3).exp() / (u / 0.3).exp().sum(1, keepdim=True)
    torch.testing.assert_close(utility_to_probability(u, temperature=0.3), expected)


def test_temperature_zero_is_the_limit_and_ties_share():
    u = torch.tensor([[1.0, 2.0, 0.0], [2.0, 2.0, 0.0]])
    limit = utility_to_probability(u, temperature=0.0)
    assert limit.tolist() == [[0, 1, 0], [0.5, 0.5, 0]]
    torch.testing.assert_close(utility_to_probability(u, temperature=1e-3), limit)


def test_the_alternative_of_rank_r_has_the_frequency_of_rank_r():
    u = utilities(20, 5)
    p = utility_to_probability(u, "rank", rank_frequencies=FREQUENCIES)
    for row, probability in zip(u.tolist(), p.tolist(), strict=True):
        ranks = [sum(other > own for other in row) for own in row]
        assert probability == pytest.approx([FREQUENCIES[r].item() for r in ranks])


def test_rank_depends_on_order_alone():
    u = utilities(20, 5)
    expected = utility_to_probability(u, "rank", rank_frequencies=FREQUENCIES)
    for map_ in (lambda u: u**3, lambda u: 3 * u, torch.exp, lambda u: u - 100, torch.atan):
        actual = utility_to_probability(map_(u), "rank", rank_frequencies=FREQUENCIES)
        assert torch.equal(actual, expected)
    assert not torch.allclose(utility_to_probability(3 * u), utility_to_probability(u))


def test_tied_alternatives_share_the_mean_of_their_frequencies():
    u = torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    p = utility_to_probability(u, "rank", rank_frequencies=FREQUENCIES)
    assert p.tolist() == pytest.approx([0.5 / 3, 0.5, 0.5 / 3, 0.5 / 3, 0.0])
    equal = utility_to_probability(torch.zeros(5), "rank", rank_frequencies=FREQUENCIES.float())
    torch.testing.assert_close(equal, torch.full((5,), 0.2))


def test_a_single_alternative_is_certain():
    assert utility_to_probability(torch.zeros(2, 1)).tolist() == [[1], [1]]
    one = torch.ones(1)
    assert utility_to_probability(torch.zeros(2, 1), "rank", rank_frequencies=one).tolist() == [
        *([1], [1])
    ]
    assert fit_rank_frequencies(torch.zeros(2, 1), torch.tensor([0, 0])).tolist() == [1]


def test_impossible_alternatives_have_no_probability():
    u = torch.tensor([0.0, -torch.inf, 0.0])
    for t in (0.0, 0.5):
        assert utility_to_probability(u, temperature=t).tolist() == [0.5, 0.0, 0.5]


def test_rank_frequencies_are_smoothed_counts_that_never_rise():
    u = utilities(200, 5)
    # The truth is of rank 1 more often than of rank 0, which the fit must even out.
    order = u.argsort(1, descending=True)
    ranks = torch.tensor([0, 1, 1, 2]).repeat(50)
    target = order.gather(1, ranks[:, None])[:, 0]
    fitted = fit_rank_frequencies(u, target)
    counts = torch.tensor([75.0, 75.0, 50.0, 0.0, 0.0], dtype=torch.float64) + 0.1
    torch.testing.assert_close(fitted, counts / 200.5)
    assert fitted.dtype == torch.float64


def test_a_tied_truth_counts_for_each_of_its_ranks_in_part():
    u = torch.tensor([[2.0, 1.0, 1.0, 0.0]] * 4, dtype=torch.float64)
    fitted = fit_rank_frequencies(u, torch.tensor([0, 0, 1, 2]))
    expected = (torch.tensor([2.0, 1.0, 1.0, 0.0], dtype=torch.float64) + 0.125) / 4.5
    torch.testing.assert_close(fitted, expected)


def test_fitted_frequencies_can_be_used_in_every_precision():
    for dtype in (torch.bfloat16, torch.float32):
        u = utilities(30, 40).to(dtype)
        fitted = fit_rank_frequencies(u, torch.zeros(30, dtype=torch.int64))
        assert fitted.dtype == dtype
        assert utility_to_probability(u, "rank", rank_frequencies=fitted).dtype == dtype


def test_one_example_is_enough_to_fit():
    u, target = utilities(1, 5), torch.tensor([2])
    assert fit_rank_frequencies(u, target).sum().item() == pytest.approx(1)
    assert fit_temperature(u, target, lambda p, y: p.max().item()) < 0.1


def test_the_temperature_is_where_the_metric_is_highest():
    u = utilities(4000, 5) / 5
    generator = torch.Generator().manual_seed(1)
    target = torch.multinomial((u / 0.4).softmax(1), 1, generator=generator)[:, 0]

    def likelihood(p, target):
        return p.gather(1, target[:, None]).log().mean().item()

    tau = fit_temperature(u, target, likelihood)
    assert tau == pytest.approx(0.4, abs=0.03)
    best = likelihood(utility_to_probability(u, temperature=tau), target)
    for other in (0.9 * tau, 1.1 * tau):
        assert best > likelihood(utility_to_probability(u, temperature=other), target)


@pytest.mark.parametrize("peak", [0.01, 0.05, 0.07, 0.5, 0.93, 1.0, 7.0])
def test_the_search_finds_a_peak_or_the_end_next_to_it(peak):
    found = best_temperature(lambda tau: -abs(tau - peak))
    assert found == pytest.approx(min(max(peak, 0.05), 1.0), rel=0.01)


@pytest.mark.parametrize("rates", ["constant", "decaying"])
def test_frequencies_come_back_from_training_dynamics(rates):
    """Tabular SGD, one choice a step: the identity that the estimator is."""
    generator = torch.Generator().manual_seed(0)
    contexts, alternatives, steps = 4, 6, 300
    u = torch.randn(contexts, alternatives, dtype=torch.float64, generator=generator)
    initial = u.clone()
    choices = torch.randint(alternatives, (steps, contexts), generator=generator) ** 2 % 6
    rate = torch.full((steps,), 0.2) if rates == "constant" else 0.5 / torch.arange(1, steps + 1)
    rate = rate.double()
    policy, weighted = torch.zeros_like(u), torch.zeros_like(u)
    for t in range(steps):
        pi, chosen = u.softmax(1), torch.nn.functional.one_hot(choices[t], alternatives)
        policy += rate[t] * pi
        weighted += rate[t] * chosen
        u = u + rate[t] * (chosen - pi)
    found = frequencies_from_dynamics(initial, u, policy / rate.sum(), rate.mean().item(), steps)
    torch.testing.assert_close(found, weighted / rate.sum(), atol=1e-12, rtol=0)
    counted = torch.stack([column.bincount(minlength=6) for column in choices.T]) / steps
    close = torch.allclose(found, counted.double(), atol=1e-12)
    assert close == (rates == "constant")


def test_steps_may_differ_between_contexts():
    u = torch.zeros(2, 2, dtype=torch.float64)
    found = frequencies_from_dynamics(u, u + 0.5, u, 0.5, torch.tensor([[1], [2]]))
    assert found.tolist() == [[1, 1], [0.5, 0.5]]


U, Y = utilities(4, 5), torch.tensor([0, 1, 2, 3])


def nothing(p, target):
    return 0.0


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("method", lambda: utility_to_probability(U, "softmax")),
        ("temperature", lambda: utility_to_probability(U, temperature=-1.0)),
        ("rank_frequencies", lambda: utility_to_probability(U, "rank")),
        ("rank_frequencies", lambda: utility_to_probability(U, rank_frequencies=FREQUENCIES)),
        ("rank_frequencies", lambda: utility_to_probability(U, "rank", 1.0, FREQUENCIES[:4])),
        ("rank_frequencies", lambda: utility_to_probability(U, "rank", 1.0, 2 * FREQUENCIES)),
        ("rank_frequencies", lambda: utility_to_probability(U, "rank", 1.0, FREQUENCIES - 0.1)),
        ("utility", lambda: utility_to_probability(U * torch.nan)),
        ("utility", lambda: utility_to_probability(U + torch.inf)),
        ("utility", lambda: utility_to_probability(U - torch.inf)),
        ("utility", lambda: utility_to_probability(U[:, :0])),
        ("utility", lambda: fit_rank_frequencies(U[:0], Y[:0])),
        ("utility", lambda: fit_rank_frequencies(U, Y[:2])),
        ("utility", lambda: fit_rank_frequencies(U * torch.nan, Y)),
        ("target", lambda: fit_rank_frequencies(U, Y + 2)),
        ("target", lambda: fit_temperature(U, Y - 1, nothing)),
        ("score", lambda: best_temperature(lambda tau: torch.nan)),
        ("final", lambda: frequencies_from_dynamics(U, U[:1], U, 0.1, 3)),
        ("mean_probability", lambda: frequencies_from_dynamics(U, U, U[:1], 0.1, 3)),
        ("learning_rate", lambda: frequencies_from_dynamics(U, U, U, 0.0, 3)),
        ("steps", lambda: frequencies_from_dynamics(U, U, U, 0.1, 0)),
    ],
)
def test_bad_input_names_the_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
        call()
