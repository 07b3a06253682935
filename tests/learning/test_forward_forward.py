import math

import pytest
import torch
import torch.nn.functional as F

from heterodox.learning.forward_forward import forward_forward_loss, goodness, row_normalize


@pytest.mark.parametrize("theta", [0.0, 2.0, -1.5])
def test_the_loss_is_the_cross_entropy_of_sigma_of_goodness_minus_theta(theta):
    h = torch.randn(7, 5, dtype=torch.float64)
    logits = (h * h).sum(1) - theta
    for positive in (True, False):
        target = torch.full_like(logits, float(positive))
        expected = F.binary_cross_entropy(logits.sigmoid(), target)
        torch.testing.assert_close(forward_forward_loss(h, positive, theta=theta), expected)


def test_the_loss_of_one_row_has_its_closed_form():
    h = torch.tensor([[1.0, 2.0]], dtype=torch.float64)  # G = 5
    assert forward_forward_loss(h, True).item() == pytest.approx(math.log(1 + math.exp(-3)))
    assert forward_forward_loss(h, False).item() == pytest.approx(math.log(1 + math.exp(3)))


def test_the_loss_stays_finite_for_large_responses():
    h = torch.full((1, 4), 1e4, requires_grad=True)
    loss = forward_forward_loss(h, False)
    assert loss.item() == pytest.approx(4e8)
    loss.backward()
    assert h.grad.isfinite().all()


def test_gradients_match_finite_differences():
    h = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: forward_forward_loss(x, True), h)
    assert torch.autograd.gradcheck(lambda x: forward_forward_loss(x, False), h)
    assert torch.autograd.gradcheck(row_normalize, h)


def test_goodness_is_a_sum_of_squares():
    torch.testing.assert_close(
        goodness(torch.tensor([[3.0, 4.0], [0.0, 1.0]])), torch.tensor([25.0, 1.0])
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rows_get_unit_length_and_zeros_stay_zeros(dtype):
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]], dtype=dtype)
    expected = torch.tensor([[0.6, 0.8], [0, 0], [1, 0]], dtype=dtype)
    torch.testing.assert_close(row_normalize(x), expected, rtol=1e-2, atol=1e-3)
    assert row_normalize(x).dtype == dtype
    assert row_normalize(x[:0]).shape == (0, 2)


def test_epsilon_is_added_to_the_length():
    x = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(row_normalize(x, eps=5.0), x / 10)


def test_bad_input_names_the_argument():
    with pytest.raises(ValueError, match=r"^theta: .* expected"):
        forward_forward_loss(torch.ones(1, 2), True, theta=math.nan)
    with pytest.raises(ValueError, match=r"^h: .* expected"):
        forward_forward_loss(torch.ones(0, 2), True)
    with pytest.raises(ValueError, match=r"^eps: .* expected"):
        row_normalize(torch.ones(1, 2), eps=-1.0)
