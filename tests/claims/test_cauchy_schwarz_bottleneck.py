import math
from types import SimpleNamespace

import pytest
import torch

from heterodox.claims import cauchy_schwarz_bottleneck as claims
from heterodox.data.tabular import load_tabular, split_table
from heterodox.experiment import Scale


def sweep_of(*points):
    """(β, information, test error) as the claims keep them."""
    return [SimpleNamespace(beta=b, information=i, test=t) for b, i, t in points]


def test_the_error_at_half_the_information_lies_on_the_line_between_two_models():
    points = sweep_of((0, 0.8, 0.2), (0.1, 0.6, 0.3), (1, 0.2, 0.7))
    assert claims.at_half_the_information(points) == pytest.approx(0.5)


def test_without_enough_compression_it_is_the_error_of_the_most_compressed_model():
    points = sweep_of((0, 0.8, 0.2), (0.1, 0.5, 0.3), (1, 0.6, 0.7))
    assert claims.at_half_the_information(points) == 0.3
    assert claims.largest_compression(points) == pytest.approx(3 / 8)


def test_the_correlation_is_minus_one_if_information_always_falls_and_zero_if_it_never_changes():
    assert claims.falling(sweep_of((0, 3, 0), (0.1, 2, 0), (1, 1, 0))) == pytest.approx(-1)
    assert claims.falling(sweep_of((0, 1, 0), (0.1, 1, 0), (1, 1, 0))) == 0


def test_heavy_tails_are_those_of_students_t_and_leave_test_rows_alone():
    split = split_table(load_tabular("diabetes"), seed=0)
    many = claims.replace(split, train_y=torch.zeros(100_000, 1))
    noisy = claims.heavy_tailed(many, seed=3)
    assert torch.equal(noisy.test_y, split.test_y)
    assert not torch.equal(noisy.validation_y, split.validation_y)
    # Quartiles and 0.95 quantile of t with two degrees of freedom.
    quantiles = torch.quantile(noisy.train_y[:, 0] / claims.TAIL_SCALE, torch.tensor([0.25, 0.95]))
    assert quantiles.tolist() == pytest.approx([-1 / math.sqrt(1.5), 2.92], rel=0.03)


def test_every_arm_has_ten_candidates_and_the_method_spends_some_on_its_widths(monkeypatch):
    tried = []

    def point(arm, beta, name, seed, scale, rate, device, width_x=1.0, width_y=1.0):
        tried.append((beta, width_x, width_y))
        # The best widths are 0.5 and 2.
        rank = abs(width_x - 0.5) + abs(width_y - 2)
        return SimpleNamespace(beta=beta, width_x=width_x, width_y=width_y, rank=rank)

    monkeypatch.setattr(claims, "point", point)
    counts = {}
    for arm in claims.RATE:
        tried.clear()
        kept = claims.candidates(arm, "diabetes", 0, Scale.SMOKE, 1e-3, "cpu")
        counts[arm] = len(tried)
        if arm == "CS-IB":
            assert [p.beta for p in kept] == list(claims.FEW_BETAS)
            assert {(p.width_x, p.width_y) for p in kept} == {(0.5, 2.0)}
    assert set(counts.values()) == {10}


def test_what_the_released_script_minimises_is_the_sum_of_squared_errors():
    """Its Gram matrices of one-dimensional targets are each a single number."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    y, p = (torch.randn(20, generator=generator, dtype=torch.float64) for _ in range(2))

    def their_gram(a, b):
        norms = (a * a).sum(-1).unsqueeze(-1), (b * b).sum(-1).unsqueeze(-1)
        return (-(norms[0] + norms[1] - 2 * a @ b) / 2).exp()

    k = (-torch.cdist(x, x).square() / 2).exp()
    terms = [
        ((k * their_gram(a, b)).sum(-1) / (k**2).sum(-1)).sum().log()
        for a, b in ((y, y), (p, p), (p, y))
    ]
    theirs = terms[0] + terms[1] - 2 * terms[2]
    ours = claims.released_script(p[:, None], y[:, None], x, x, beta=0.0)
    torch.testing.assert_close(ours, theirs)
