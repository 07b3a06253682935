"""Decision rules against enumeration of every sequence of small automata."""

import itertools
import math

import pytest
import torch

from heterodox.probes import branch_and_bound as search
from heterodox.probes.decoding import (
    beam_search,
    exact_map,
    greedy,
    map_search,
    minimum_bayes_risk,
    sample,
    sequence_log_probability,
)

EOS = 2


class Automaton:
    """Random utilities that depend on the whole prefix; ids of prefixes are numbers to base V."""

    def __init__(self, seed, vocabulary=4, scale=2.0):
        self.vocabulary, self.calls = vocabulary, 0
        generator = torch.Generator().manual_seed(seed)
        self.table = scale * torch.randn(1000, vocabulary, generator=generator, dtype=torch.float64)

    def __call__(self, prefix):
        self.calls += 1
        place = torch.full((len(prefix),), 17, dtype=torch.int64)
        for token in prefix.unbind(1):
            place = (place * 31 + token + 1) % 1000
        return self.table[place]


def every_sequence(vocabulary, max_length):
    """All that end with the first `eos`, or at the longest length without one."""
    others = [v for v in range(vocabulary) if v != EOS]
    for length in range(max_length):
        for start in itertools.product(others, repeat=length):
            yield [*start, EOS]
    for start in itertools.product(others, repeat=max_length):
        yield list(start)


def probability_by_hand(utility, sequence, temperature):
    total = 0.0
    for t, token in enumerate(sequence):
        row = (utility(torch.tensor([sequence[:t]], dtype=torch.int64))[0] / temperature).tolist()
        top = max(row)
        total += row[token] - top - math.log(sum(math.exp(x - top) for x in row))
    return total


def best_of_all(utility, max_length, temperature):
    scored = [
        (probability_by_hand(utility, s, temperature), s)
        for s in every_sequence(utility.vocabulary, max_length)
    ]
    return max(scored)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("seed", range(8))
def test_exact_map_is_the_best_of_all_sequences(seed, temperature, monkeypatch):
    monkeypatch.setattr(search, "BLOCK", 3)
    monkeypatch.setattr(search, "FIRST_BEAM", 1)
    utility = Automaton(seed)
    score, best = best_of_all(utility, 4, temperature)
    sequence, found = exact_map(utility, EOS, 4, temperature)
    assert sequence == best and found == pytest.approx(score)


@pytest.mark.parametrize("seed", range(8))
def test_a_beam_that_holds_everything_is_exact(seed):
    utility = Automaton(seed)
    sequence, score = beam_search(utility, 4**4, EOS, 4)
    assert (sequence, score) == (
        exact_map(utility, EOS, 4)[0],
        pytest.approx(exact_map(utility, EOS, 4)[1]),
    )


@pytest.mark.parametrize("seed", range(8))
def test_a_beam_of_one_is_greedy_at_every_temperature(seed):
    utility = Automaton(seed)
    expected = greedy(utility, EOS, 6)
    for temperature in (0.0, 0.2, 1.0, 5.0):
        sequence, score = beam_search(utility, 1, EOS, 6, temperature)
        assert sequence == expected
        assert score == pytest.approx(
            sequence_log_probability(utility, sequence, temperature).item()
        )


@pytest.mark.parametrize("seed", range(8))
def test_at_a_small_temperature_the_map_is_the_greedy_sequence(seed):
    utility = Automaton(seed)
    for temperature in (0.0, 1e-3):
        assert exact_map(utility, EOS, 5, temperature)[0] == greedy(utility, EOS, 5)


def test_wider_beams_find_sequences_that_are_at_least_as_probable_as_narrow_greedy_ones():
    improved = 0
    for seed in range(20):
        utility = Automaton(seed)
        best = exact_map(utility, EOS, 5)[1]
        scores = [beam_search(utility, beam, EOS, 5)[1] for beam in (1, 5, 40)]
        assert all(score <= best + 1e-12 for score in scores)
        improved += scores[2] > scores[0]
    assert improved > 5


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_the_probabilities_of_all_sequences_sum_to_one(temperature):
    utility = Automaton(0, vocabulary=3)
    total = sum(
        sequence_log_probability(utility, s, temperature).exp().item() for s in every_sequence(3, 4)
    )
    assert total == pytest.approx(1)


def test_increasing_maps_change_no_greedy_choice_and_change_what_is_most_probable():
    changed = {"map": 0, "sample": 0}
    for seed in range(20):
        utility = Automaton(seed)
        cubed = lambda prefix, u=utility: u(prefix) ** 3  # noqa: E731
        for other in (cubed, lambda prefix, u=utility: 3 * u(prefix)):
            assert greedy(other, EOS, 5) == greedy(utility, EOS, 5)
            changed["map"] += exact_map(other, EOS, 5)[0] != exact_map(utility, EOS, 5)[0]
            changed["sample"] += sample(other, EOS, 5) != sample(utility, EOS, 5)
    assert min(changed.values()) > 0


def constant(*utilities):
    row = torch.tensor(utilities)
    return lambda prefix: row.expand(len(prefix), -1)


def test_an_end_that_comes_at_once():
    first = constant(0.0, 0.0, 9.0)
    for sequence in (
        greedy(first, EOS, 7),
        beam_search(first, 3, EOS, 7)[0],
        exact_map(first, EOS, 7)[0],
        sample(first, EOS, 7, top_p=0.0)[0],
    ):
        assert sequence == [EOS]


def test_a_longest_length_of_one():
    utility = constant(0.0, 1.0, 0.5)
    assert greedy(utility, EOS, 1) == [1]
    assert beam_search(utility, 2, EOS, 1)[0] == exact_map(utility, EOS, 1)[0] == [1]
    assert len(sample(utility, EOS, 1)[0]) == 1


def test_without_an_end_all_sequences_have_the_longest_length():
    utility = constant(0.0, 1.0, 0.5)
    assert greedy(utility, None, 3) == beam_search(utility, 2, None, 3)[0] == [1, 1, 1]
    assert exact_map(utility, None, 3)[0] == [1, 1, 1]
    assert len(sample(utility, None, 3)[0]) == 3


def test_of_equal_utilities_the_lowest_token_is_taken_everywhere():
    tied = constant(0.0, 1.0, -1.0, 1.0)
    assert greedy(tied, EOS, 3) == beam_search(tied, 1, EOS, 3)[0] == [1, 1, 1]
    assert beam_search(tied, 3, EOS, 3)[0] == exact_map(tied, EOS, 3)[0] == [1, 1, 1]
    fair = constant(0.0, 0.0, 0.0)
    assert exact_map(fair, 0, 1)[0] == [0]


def test_impossible_tokens_are_never_hypotheses():
    only = constant(0.0, -torch.inf, -torch.inf)
    assert beam_search(only, 3, EOS, 4) == ([0, 0, 0, 0], 0.0)
    assert exact_map(only, EOS, 4) == ([0, 0, 0, 0], 0.0)


def test_a_length_penalty_prefers_longer_sequences():
    # Ending at once has log-probability -1, going on to the end about -1.1.
    def utility(prefix):
        ends = [0.37, 0.2, 0.2][prefix.shape[1]]
        other = (1 - ends) * 0.8
        row = torch.tensor([other, 1 - ends - other, ends]).log()
        return row.expand(len(prefix), -1)

    short, score = beam_search(utility, 8, EOS, 3)
    assert short == [EOS] and score == pytest.approx(math.log(0.37))
    long, normalised = beam_search(utility, 8, EOS, 3, length_penalty=1.0)
    assert len(long) == 3
    assert normalised == pytest.approx(sequence_log_probability(utility, long).item() / 3)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(8))
def test_with_a_length_penalty_a_beam_that_holds_everything_finds_the_best_score(seed, alpha):
    utility = Automaton(seed)
    scores = {
        tuple(s): probability_by_hand(utility, s, 1.0) / len(s) ** alpha
        for s in every_sequence(4, 4)
    }
    sequence, score = beam_search(utility, 4**4, EOS, 4, length_penalty=alpha)
    assert score == pytest.approx(max(scores.values()))
    assert scores[tuple(sequence)] == pytest.approx(score)


def test_a_beam_makes_one_call_a_round():
    utility = Automaton(1)
    sequence, _ = beam_search(utility, 50, EOS, 6)
    assert utility.calls <= 6 and sequence


def test_the_search_says_whether_it_was_finished():
    utility = Automaton(3, vocabulary=6, scale=0.1)
    whole = map_search(utility, EOS, 6)
    cut = map_search(utility, EOS, 6, max_nodes=1)
    assert whole.proven and whole.nodes > 1
    assert not cut.proven and cut.nodes == 1
    assert cut.log_probability <= whole.log_probability
    # Nodes are pruned: there are 5^0 + ... + 5^5 prefixes.
    assert whole.nodes < sum(5**k for k in range(6))


def test_samples_have_the_frequencies_of_their_sequences():
    utility = Automaton(5, vocabulary=3, scale=1.0)
    drawn = sample(utility, EOS, 3, temperature=0.7, count=20_000)
    for s in every_sequence(3, 3):
        expected = math.exp(probability_by_hand(utility, s, 0.7))
        assert drawn.count(s) / 20_000 == pytest.approx(expected, abs=0.012)


def test_a_generator_decides_and_the_global_one_is_left_alone():
    utility, before = Automaton(5, scale=0.3), torch.get_rng_state()
    one, same, other = (
        sample(utility, EOS, 9, generator=torch.Generator().manual_seed(s), count=5)
        for s in (1, 1, 2)
    )
    assert one == same != other
    assert sample(utility, EOS, 9, count=0) == []
    assert torch.equal(torch.get_rng_state(), before)


def test_the_log_probability_is_differentiable():
    row = torch.tensor([0.3, 1.0, -0.5], dtype=torch.float64, requires_grad=True)
    utility = lambda prefix: row.expand(len(prefix), -1)  # noqa: E731
    sequence_log_probability(utility, [0, 2], 0.5).backward()
    counts = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    expected = (counts - 2 * (row / 0.5).softmax(0)) / 0.5
    torch.testing.assert_close(row.grad, expected.detach())


def test_a_context_is_read_and_is_not_part_of_the_result():
    seen = []

    def utility(prefix):
        seen.append(prefix.tolist())
        return torch.tensor([[0.0, 1.0, 0.0]])

    assert greedy(utility, EOS, 2, context=[5, 6]) == [1, 1]
    assert seen == [[[5, 6]], [[5, 6, 1]]]


def test_the_consensus_is_the_candidate_nearest_to_the_others():
    similarity = torch.tensor([[1.0, 0.1, 0.6], [0.2, 1.0, 0.9], [0.5, 0.8, 1.0]])
    index, expected = minimum_bayes_risk(similarity)
    torch.testing.assert_close(expected, similarity.mean(1))
    assert index == 2
    weights = torch.tensor([0.9, 0.05, 0.05])
    index, expected = minimum_bayes_risk(similarity, weights.log())
    torch.testing.assert_close(expected, similarity @ weights)
    assert index == 0
    assert minimum_bayes_risk(torch.ones(1, 1))[0] == 0
    assert minimum_bayes_risk(torch.ones(3, 3))[0] == 0


BAD = {
    "NaN": lambda prefix: torch.full((len(prefix), 3), torch.nan),
    "+inf": lambda prefix: torch.full((len(prefix), 3), torch.inf),
    "-inf": lambda prefix: torch.full((len(prefix), 3), -torch.inf),
    "shape": lambda prefix: torch.zeros(len(prefix), 2, 3),
    "rows": lambda prefix: torch.zeros(len(prefix) + 1, 3),
}
RULES = {
    "greedy": lambda u, **o: greedy(u, o.pop("eos", EOS), o.pop("max_length", 4), **o),
    "beam": lambda u, **o: beam_search(
        u, o.pop("beam", 2), o.pop("eos", EOS), o.pop("max_length", 4), **o
    ),
    "map": lambda u, **o: exact_map(u, o.pop("eos", EOS), o.pop("max_length", 4), **o),
    "sample": lambda u, **o: sample(u, o.pop("eos", EOS), o.pop("max_length", 4), **o),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("utility", BAD)
def test_utilities_that_are_none_are_refused(rule, utility):
    with pytest.raises(ValueError, match=r"^utility: .*expected"):
        RULES[rule](BAD[utility])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("eos", [-1, 4])
def test_an_end_outside_of_the_vocabulary_is_refused(rule, eos):
    with pytest.raises(ValueError, match=r"^eos: .*expected"):
        RULES[rule](Automaton(0), eos=eos)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        *((("max_length"), lambda u, r=rule: RULES[r](u, max_length=0)) for rule in RULES),
        *(
            ("temperature", lambda u, r=rule: RULES[r](u, temperature=-0.1))
            for rule in RULES
            if rule != "greedy"
        ),
        ("beam", lambda u: beam_search(u, 0, EOS, 4)),
        ("length_penalty", lambda u: beam_search(u, 2, EOS, 4, length_penalty=-1.0)),
        ("max_nodes", lambda u: exact_map(u, EOS, 4, max_nodes=0)),
        ("top_p", lambda u: sample(u, EOS, 4, top_p=1.1)),
        ("count", lambda u: sample(u, EOS, 4, count=-1)),
        ("temperature", lambda u: sequence_log_probability(u, [1], -1.0)),
        ("sequence", lambda u: sequence_log_probability(u, [1, 4])),
        ("similarity", lambda u: minimum_bayes_risk(torch.zeros(2, 3))),
        ("similarity", lambda u: minimum_bayes_risk(torch.zeros(0, 0))),
        ("similarity", lambda u: minimum_bayes_risk(torch.full((2, 2), torch.nan))),
        ("log_weights", lambda u: minimum_bayes_risk(torch.zeros(2, 2), torch.zeros(3))),
        ("log_weights", lambda u: minimum_bayes_risk(torch.eye(2), torch.full((2,), torch.nan))),
    ],
)
def test_bad_input_names_the_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
        call(Automaton(0))
