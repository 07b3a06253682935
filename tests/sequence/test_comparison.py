"""The table of systems, against cases whose numbers are known."""

import pytest
import torch

from heterodox.sequence import (
    DynamicalSystem,
    compare,
    from_delta_rule,
    from_gated_rnn,
    from_linear_attention,
)


def constant(decay, length=200):
    one = torch.ones(length, 1, dtype=torch.float64)
    return from_gated_rnn(decay * one, one, one)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def test_a_constant_decay_remembers_a_geometric_number_of_positions():
    table = compare({"slow": constant(0.9), "fast": constant(0.5), "none": constant(0.0)})
    for name, decay in (("slow", 0.9), ("fast", 0.5), ("none", 0.0)):
        row = table[name]
        assert row.smallest_transition == row.largest_transition == decay
        assert row.memory_length == pytest.approx((1 + decay) / (1 - decay), rel=1e-6)
        assert row.kernel_rank == (decay > 0)


def test_equal_weights_remember_everything():
    one = torch.ones(12, 2, dtype=torch.float64)
    row = compare({"mean": from_linear_attention(one, one, torch.eye(3).double())})["mean"]
    assert row.memory_length == pytest.approx(12)
    assert row.largest_transition == pytest.approx(11 / 12)
    assert row.smallest_transition == pytest.approx(1 / 2)
    assert (row.state_size, row.kernel_rank) == (6, 3)


def test_no_more_passes_than_the_state_holds():
    query, key = draw(12, 2), draw(12, 2, seed=1)
    row = compare({"linear": from_linear_attention(query, key, torch.eye(2).double())})["linear"]
    assert row.kernel_rank == row.state_size == 4


def test_full_matrices_are_measured_by_their_eigenvalues():
    key = torch.nn.functional.normalize(draw(8, 2), dim=-1)
    beta = torch.full((8,), 0.75, dtype=torch.float64)
    row = compare({"delta": from_delta_rule(key, key, beta, torch.eye(2).double())})["delta"]
    assert row.smallest_transition == pytest.approx(0.25)
    assert row.largest_transition == pytest.approx(1)


def test_the_table_has_a_row_a_system():
    lines = str(compare({"slow": constant(0.9), "fast": constant(0.5)})).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["slow", "fast"]
    assert "memory length" in lines[0] and len({len(line) for line in lines}) == 1


def test_what_cannot_be_compared_is_named():
    with pytest.raises(ValueError, match=r"^systems: none given"):
        compare({})
    with pytest.raises(ValueError, match=r"^systems: 'short' of length 1"):
        compare({"short": constant(0.5, length=1)})


def test_a_batch_is_averaged():
    system = constant(0.5)
    fields = (system.transition, system.input_matrix, system.output_matrix)
    both = DynamicalSystem(*(torch.stack((x, x)) for x in fields))
    assert compare({"x": both})["x"] == compare({"x": system})["x"]
