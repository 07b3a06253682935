"""Training of adapters by gradients that are given, not found by autograd."""

import pytest
import torch

from heterodox.tasks.adapters import AdapterSettings, digit_rows, train, window

SHORT = AdapterSettings(steps=20, evaluate_every=5)


def test_rows_have_a_deviation_of_one_half_and_the_target_is_the_row_below():
    rows, others = digit_rows()
    assert rows.shape[1] == others.shape[1] == 4
    torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(4) / 4, atol=1e-2, rtol=0)
    x, target = window(rows, 3)
    assert len(x) == 256 and torch.equal(x[1:], target[:-1])


@pytest.mark.parametrize("adapted", ["q", "qv", "qkv"])
def test_polynomial_gradients_train_like_exact_ones(adapted):
    exact = train(adapted=adapted, settings=SHORT)
    polynomial = train(method="polynomial", adapted=adapted, settings=SHORT)
    assert polynomial.value == pytest.approx(exact.value, rel=1e-4)
    assert exact.readings["share of the first loss"] < 1
    assert [step for step, _ in exact.curves["held-out loss"]] == [0, 5, 10, 15, 20]


def test_a_seed_decides_on_everything():
    values = [train(seed=seed, settings=SHORT).value for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize(
    ("options", "argument"),
    [({"adapted": ""}, "adapted"), ({"adapted": "o"}, "adapted"), ({"method": "sgd"}, "method")],
)
def test_bad_input_names_the_argument(options, argument):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        train(**options, settings=SHORT)
