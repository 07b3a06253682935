"""The network against its matrix, exact enumeration, and the theory for many neurons."""

import itertools
import math

import pytest
import torch

from heterodox.energy.multitasking_hopfield import (
    MultitaskingHopfield,
    dataset_entropy,
    hebbian_couplings,
    mattis_magnetization,
    recall_loss,
    sample_examples,
    sample_patterns,
    solve_self_consistency,
    supervised_couplings,
    unsupervised_couplings,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw_patterns(count=3, size=40, dilution=0.4):
    return sample_patterns(count, size, dilution, generator=generator(), dtype=torch.float64)


def draw_examples(quality=0.7, count=5, **options):
    return sample_examples(draw_patterns(**options), count, quality, generator=generator(1))


def draw_spins(*shape):
    uniform = torch.rand(*shape, generator=generator(2), dtype=torch.float64)
    return (uniform < 0.5).double() * 2 - 1


def networks():
    examples = draw_examples()
    return {
        "storing": (
            MultitaskingHopfield.from_patterns(draw_patterns()),
            hebbian_couplings(draw_patterns()),
        ),
        "supervised": (
            MultitaskingHopfield.from_examples(examples, quality=0.7),
            supervised_couplings(examples, 0.7),
        ),
        "unsupervised": (
            MultitaskingHopfield.from_examples(examples, supervised=False, quality=0.7),
            unsupervised_couplings(examples, 0.7),
        ),
    }


every = pytest.mark.parametrize("kind", ["storing", "supervised", "unsupervised"])


def test_couplings_are_the_double_sums_of_the_definition():
    examples, size = draw_examples(count=4, size=6), 6
    r = 0.7
    normalizer = r**2 + (1 - r**2) / 4
    supervised, unsupervised, stored = (torch.zeros(size, size).double() for _ in range(3))
    patterns = draw_patterns(size=size)
    for i, j in itertools.permutations(range(size), 2):
        for mu in range(3):
            stored[i, j] += patterns[mu, i] * patterns[mu, j] / size
            mean = examples[mu].mean(0)
            supervised[i, j] += mean[i] * mean[j] / (size * normalizer)
            for a in range(4):
                products = examples[mu, a, i] * examples[mu, a, j]
                unsupervised[i, j] += products / (size * 4 * normalizer)
    torch.testing.assert_close(hebbian_couplings(patterns), stored)
    torch.testing.assert_close(supervised_couplings(examples, r), supervised)
    torch.testing.assert_close(unsupervised_couplings(examples, r), unsupervised)


def test_one_perfect_example_is_the_pattern():
    patterns = draw_patterns()
    examples = patterns[:, None]
    for couplings in (supervised_couplings, unsupervised_couplings):
        assert torch.equal(couplings(examples, 1.0), hebbian_couplings(patterns))
        assert torch.equal(couplings(examples), hebbian_couplings(patterns))


def test_with_one_example_a_teacher_has_nothing_to_say():
    examples = draw_examples(count=1)
    torch.testing.assert_close(
        supervised_couplings(examples, 0.7), unsupervised_couplings(examples, 0.7)
    )


@every
def test_field_and_energy_are_those_of_the_matrix(kind):
    network, couplings = networks()[kind]
    spins = draw_spins(2, 7, 40)
    assert (couplings.diagonal() == 0).all()
    torch.testing.assert_close(network.local_field(spins), spins @ couplings)
    expected = -0.5 * torch.einsum("abi,ij,abj->ab", spins, couplings, spins)
    torch.testing.assert_close(network.energy(spins), expected)
    torch.testing.assert_close(network.energy(-spins), network.energy(spins))


def test_a_teacher_saves_rows():
    examples = draw_examples()
    assert MultitaskingHopfield.from_examples(examples).factors.shape == (3, 40)
    free = MultitaskingHopfield.from_examples(examples, supervised=False)
    assert free.factors.shape == (15, 40)


def test_the_energy_is_half_of_n_times_the_losses_less_constants():
    patterns, spins = draw_patterns(), draw_spins(5, 40)
    activity = patterns.square().mean(-1)
    losses = recall_loss(patterns, spins)
    constants = ((1 + activity) / 2).square().sum()
    # The energy leaves out i = j, which is half of the activities.
    expected = 20 * (losses.sum(-1) - constants) + activity.sum() / 2
    energy = MultitaskingHopfield.from_patterns(patterns).energy(spins)
    torch.testing.assert_close(energy, expected, atol=1e-12, rtol=1e-12)


def test_the_loss_is_the_product_of_both_distances():
    patterns, spins = draw_patterns(), draw_spins(5, 40)
    near, far = ((patterns - sign * spins[:, None]).square().sum(-1) / 80 for sign in (1, -1))
    torch.testing.assert_close(recall_loss(patterns, spins), near * far)


def test_without_blanks_the_energy_is_hopfields():
    patterns, spins = draw_patterns(dilution=0.0), draw_spins(40)
    overlaps = patterns @ spins
    expected = -(overlaps.square().sum() - 3 * 40) / (2 * 40)
    energy = MultitaskingHopfield.from_patterns(patterns).energy(spins)
    torch.testing.assert_close(energy, expected)


def test_turning_the_sign_of_a_pattern_changes_nothing():
    patterns = draw_patterns()
    turned = patterns * torch.tensor([[1.0], [-1.0], [1.0]])
    assert torch.equal(hebbian_couplings(turned), hebbian_couplings(patterns))


@pytest.mark.parametrize("dynamics", ["parallel", "sequential"])
def test_sampling_without_interaction_is_a_fair_coin_and_independent_of_the_start(dynamics):
    network = MultitaskingHopfield.from_patterns(draw_patterns())
    spins = network.sample(
        torch.ones(2000, 40).double(), 0.0, 1, dynamics=dynamics, generator=generator()
    )
    assert spins.mean().item() == pytest.approx(0, abs=0.01)
    assert spins.mean(0).abs().max() < 0.1


def test_the_sequential_law_is_that_of_the_energy():
    patterns = sample_patterns(3, 8, 0.3, generator=generator(3), dtype=torch.float64)
    network = MultitaskingHopfield.from_examples(
        sample_examples(patterns, 3, 0.8, generator=generator(4)), supervised=False, quality=0.8
    )
    states = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8))).double()
    law = (-2.0 * network.energy(states)).softmax(0)
    spins = network.sample(
        torch.ones(20_000, 8).double(), 2.0, 25, dynamics="sequential", generator=generator()
    )
    index = ((spins + 1) / 2 @ (2.0 ** torch.arange(7, -1, -1)).double()).long()
    share = torch.bincount(index, minlength=256) / len(spins)
    assert 0.5 * (share - law).abs().sum() < 0.05


def test_sequential_updates_without_temperature_never_raise_the_energy():
    network, _ = networks()["unsupervised"]
    spins = draw_spins(50, 40)
    energy = network.energy(spins)
    for step in range(20):
        spins = network.sample(spins, math.inf, 1, dynamics="sequential", generator=generator(step))
        after = network.energy(spins)
        assert (after <= energy + 1e-12).all()
        energy = after
    # They have come to rest, and what rests there rests under parallel updates too.
    assert torch.equal(network.sample(spins, math.inf, 1, dynamics="parallel"), spins)


def test_a_parallel_step_without_temperature_is_the_sign_of_the_field():
    network, couplings = networks()["storing"]
    spins = draw_spins(50, 40)
    field = spins @ couplings
    expected = torch.where(field.abs() < 1e-12, spins, field.sign())
    assert torch.equal(network.sample(spins, math.inf, 1), expected)


@pytest.mark.parametrize("dynamics", ["parallel", "sequential"])
def test_a_neuron_without_a_field_stays_as_it_is_without_temperature(dynamics):
    network = MultitaskingHopfield.from_patterns(torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    spins = torch.tensor([[1.0, -1.0, -1.0, 1.0]])
    after = network.sample(spins, math.inf, 1, dynamics=dynamics, generator=generator())
    assert torch.equal(after[:, 2:], spins[:, 2:])


def test_permuting_neurons_permutes_the_result(monkeypatch):
    patterns, spins = draw_patterns(), draw_spins(6, 40)
    order = torch.randperm(40, generator=generator(5))
    noise = [torch.rand(6, 40, generator=generator(7 + n), dtype=torch.float64) for n in range(5)]

    def run(patterns, spins, stream):
        stream = iter(stream)
        monkeypatch.setattr(torch, "rand", lambda *shape, **options: next(stream))
        return MultitaskingHopfield.from_patterns(patterns).sample(spins, 2.0, 5)

    expected = run(patterns, spins, noise)[:, order]
    assert torch.equal(
        run(patterns[:, order], spins[:, order], [x[:, order] for x in noise]), expected
    )


def test_replicas_are_independent_and_keep_their_shape():
    network, _ = networks()["storing"]
    spins = draw_spins(2, 3, 40)
    assert network.sample(spins, 2.0, 0).equal(spins)
    after = network.sample(spins, 2.0, 4, generator=generator())
    assert after.shape == (2, 3, 40) and set(after.unique().tolist()) == {-1.0, 1.0}
    assert network.sample(spins[:0], 2.0, 4).shape == (0, 3, 40)


@pytest.mark.parametrize("supervised", [True, False])
@pytest.mark.parametrize(
    ("dilution", "quality", "error"),
    [(0.3, 0.8, 0.02), (0.8, 0.8, 0.02), (0.5, 0.4, 0.05)],  # the last is near a phase boundary
)
def test_magnetisations_of_many_neurons_are_those_of_the_theory(
    supervised, dilution, quality, error
):
    patterns = sample_patterns(3, 20_000, dilution, generator=generator(6))
    examples = sample_examples(patterns, 20, quality, generator=generator(7))
    network = MultitaskingHopfield.from_examples(examples, supervised=supervised, quality=quality)
    theory = solve_self_consistency(3, dilution, 40.0, entropy=dataset_entropy(20, quality))
    assert theory.converged
    start = hierarchical(patterns)
    spins = network.sample(start, 40.0, 60, generator=generator(8))
    found = mattis_magnetization(patterns, spins)
    torch.testing.assert_close(found.double(), theory.magnetization, atol=error, rtol=0)
    assert found.mean().item() == pytest.approx(theory.magnetization.mean().item(), abs=0.01)


def hierarchical(patterns):
    """Each neuron follows the first pattern that is not blank there."""
    spins = torch.ones_like(patterns[0])
    for pattern in patterns.flip(0):
        spins = torch.where(pattern == 0, spins, pattern)
    return spins


def test_a_network_that_knows_no_quality_takes_it_from_the_examples():
    examples = draw_examples(quality=0.6, count=10, size=20_000)
    known = MultitaskingHopfield.from_examples(examples, quality=0.6)
    guessed = MultitaskingHopfield.from_examples(examples)
    torch.testing.assert_close(known.factors, guessed.factors, rtol=0.01, atol=0)


def test_no_matrix_of_couplings_is_formed():
    # 10^5 neurons: a matrix of float32 would take 40 GB.
    patterns = sample_patterns(3, 100_000, 0.4, generator=generator())
    network = MultitaskingHopfield.from_patterns(patterns)
    spins = network.sample(hierarchical(patterns)[None], 40.0, 3, generator=generator())
    m = mattis_magnetization(patterns, spins)[0]
    assert m.tolist() == pytest.approx([0.6, 0.24, 0.096], abs=0.01)
    assert network.energy(spins).item() / 100_000 == pytest.approx(-0.213, abs=0.005)


def test_the_state_comes_back_equal():
    network, _ = networks()["supervised"]
    other = MultitaskingHopfield(torch.zeros(3, 40, dtype=torch.float64))
    other.load_state_dict(network.state_dict())
    spins = draw_spins(4, 40)
    assert torch.equal(other.local_field(spins), network.local_field(spins))


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("patterns", lambda: MultitaskingHopfield.from_patterns(torch.zeros(0, 4))),
        ("patterns", lambda: MultitaskingHopfield.from_patterns(torch.full((2, 4), 2.0))),
        ("patterns", lambda: hebbian_couplings(torch.ones(4))),
        ("examples", lambda: MultitaskingHopfield.from_examples(torch.ones(2, 0, 4))),
        ("examples", lambda: MultitaskingHopfield.from_examples(torch.zeros(2, 3, 4))),
        ("examples", lambda: supervised_couplings(torch.full((2, 3, 4), 0.5))),
        ("quality", lambda: unsupervised_couplings(torch.ones(2, 3, 4), 2.0)),
        ("factors", lambda: MultitaskingHopfield(torch.zeros(3))),
        ("spins", lambda: networks()["storing"][0].energy(torch.ones(3))),
        ("spins", lambda: networks()["storing"][0].local_field(torch.zeros(40))),
        ("spins", lambda: networks()["storing"][0].sample(torch.zeros(40), 1.0, 1)),
        ("spins", lambda: mattis_magnetization(torch.ones(2, 4), torch.ones(3))),
        ("spins", lambda: recall_loss(torch.ones(2, 4), torch.ones(()))),
        ("beta", lambda: networks()["storing"][0].sample(draw_spins(40), -1.0, 1)),
        ("steps", lambda: networks()["storing"][0].sample(draw_spins(40), 1.0, -1)),
        (
            "dynamics",
            lambda: networks()["storing"][0].sample(draw_spins(40), 1.0, 1, dynamics="glauber"),
        ),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: .*\bexpected"):
        call()
