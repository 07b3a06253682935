import math

import pytest
import torch
import torch.nn.functional as F

from heterodox.losses import LOSSES
from heterodox.losses.z_loss import (
    ZLoss,
    spherical_softmax_from_statistics,
    spherical_softmax_loss,
    spherical_squared_from_statistics,
    spherical_squared_loss,
    spherical_statistics,
    taylor_softmax_from_statistics,
    taylor_softmax_loss,
    z_loss,
)

DENSE = {
    "z-loss": lambda o, y, **k: z_loss(o, y, 0.7, 1.5, **k),
    "taylor-softmax": taylor_softmax_loss,
    "spherical-softmax": spherical_softmax_loss,
    "spherical-squared": spherical_squared_loss,
}
FROM_STATISTICS = {
    "z-loss": ZLoss(0.7, 1.5, "none").from_statistics,
    "taylor-softmax": taylor_softmax_from_statistics,
    "spherical-softmax": spherical_softmax_from_statistics,
    "spherical-squared": spherical_squared_from_statistics,
}
each_loss = pytest.mark.parametrize("name", DENSE)


def logits_and_target(rows=5, classes=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(classes, (rows,), generator=generator)


def test_the_z_loss_is_a_softplus_of_the_z_score():
    logits, target = logits_and_target()
    a, b = 0.7, 1.5
    expected = []
    for row, c in zip(logits.tolist(), target.tolist(), strict=True):
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((o - mean) ** 2 for o in row) / len(row))
        expected.append(math.log1p(math.exp(a * (b - (row[c] - mean) / deviation))) / a)
    result = z_loss(logits, target, a, b, reduction="none")
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))


def test_the_other_losses_are_what_their_names_say():
    logits, target = logits_and_target()
    one_hot = F.one_hot(target, 7)
    squared = (logits - one_hot).square().sum(-1)
    torch.testing.assert_close(spherical_squared_loss(logits, target, "none"), squared)
    taylor = 1 + logits + logits.square() / 2
    expected = -(taylor / taylor.sum(-1, keepdim=True)).log()
    rows = torch.arange(5)
    torch.testing.assert_close(taylor_softmax_loss(logits, target, "none"), expected[rows, target])
    shares = (logits.square() + 0.3) / (logits.square() + 0.3).sum(-1, keepdim=True)
    result = spherical_softmax_loss(logits, target, eps=0.3, reduction="none")
    torch.testing.assert_close(result, -shares.log()[rows, target])


@each_loss
def test_gradients_match_finite_differences(name):
    logits, target = logits_and_target()
    assert torch.autograd.gradcheck(lambda o: DENSE[name](o, target), logits.requires_grad_())
    statistics = [x.detach().requires_grad_() for x in spherical_statistics(logits, target)]
    assert torch.autograd.gradcheck(lambda *x: FROM_STATISTICS[name](*x, 7), statistics)


def test_gradients_in_the_statistics_are_the_papers():
    logits, target = logits_and_target()
    a, b, classes = 0.7, 1.5, 7
    chosen, total, square = (x.requires_grad_() for x in spherical_statistics(logits, target))
    loss = ZLoss(a, b, "sum").from_statistics(chosen, total, square, classes)
    gradients = torch.autograd.grad(loss, (chosen, total, square))
    mean = total / classes
    variance = square / classes - mean**2
    sigma = variance.sqrt()
    z = (chosen - mean) / sigma
    p = torch.sigmoid(a * (b - z))
    expected = (
        -p / sigma,
        p / (classes * sigma) * (1 - z * mean / sigma),
        p * z / (2 * classes * variance),
    )
    for actual, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(actual, reference)


@each_loss
def test_outputs_and_their_statistics_give_the_same_loss_and_gradient(name):
    logits, target = logits_and_target()
    direct = DENSE[name](logits.requires_grad_(), target, reduction="none")
    sums = FROM_STATISTICS[name](*spherical_statistics(logits, target), 7)
    torch.testing.assert_close(direct, sums)
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    gradients = [torch.autograd.grad((x * weights).sum(), logits)[0] for x in (direct, sums)]
    torch.testing.assert_close(*gradients)


def test_the_z_loss_does_not_change_with_shift_and_scale():
    logits, target = logits_and_target()
    expected = z_loss(logits, target, 0.7, 1.5)
    for scale, shift in ((3.0, 0.0), (1e-3, 2.0), (1e6, -4e5)):
        torch.testing.assert_close(z_loss(scale * logits + shift, target, 0.7, 1.5), expected)


def test_its_gradient_is_orthogonal_to_shift_and_scale():
    logits, target = logits_and_target()
    (gradient,) = torch.autograd.grad(z_loss(logits.requires_grad_(), target), logits)
    assert gradient.abs().max() > 0.01
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(5, dtype=torch.float64))
    along = (gradient * logits).sum(-1)
    torch.testing.assert_close(along, torch.zeros(5, dtype=torch.float64))


def test_a_sharp_z_loss_is_a_hinge():
    logits, target = logits_and_target()
    deviations = logits - logits.mean(-1, keepdim=True)
    z = (deviations / logits.std(-1, correction=0, keepdim=True))[torch.arange(5), target]
    for a in (1e4, 1e9):
        sharp = z_loss(logits, target, a, 0.5, reduction="none")
        torch.testing.assert_close(sharp, F.relu(0.5 - z), atol=2 / a, rtol=0)


def test_the_z_score_has_its_bounds():
    classes = 9
    one_hot = torch.eye(classes, dtype=torch.float64)[:1]
    best = z_loss(one_hot, torch.tensor([0]), 1e9, 100.0)
    worst = z_loss(-one_hot, torch.tensor([0]), 1e9, 100.0)
    assert best.item() == pytest.approx(100 - math.sqrt(classes - 1))
    assert worst.item() == pytest.approx(100 + math.sqrt(classes - 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.0, 0.1, 1234.5])
def test_identical_outputs_give_a_finite_loss_without_a_gradient(dtype, value):
    logits = torch.full((2, 1000), value, dtype=dtype, requires_grad=True)
    target = torch.tensor([3, 4])
    statistics = spherical_statistics(logits, target)
    for loss in (
        z_loss(logits, target, 0.5, 2.0),
        ZLoss(0.5, 2.0).from_statistics(*statistics, 1000),
    ):
        assert loss.item() == pytest.approx(2 * math.log1p(math.e), rel=5e-3)
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@each_loss
def test_outputs_that_are_not_finite_give_a_loss_that_is_not_finite(name, bad):
    logits, target = logits_and_target()
    logits[0, (target[0] + 1) % 7] = bad
    losses = DENSE[name](logits, target, reduction="none")
    assert not losses[0].isfinite() and losses[1:].isfinite().all()
    sums = FROM_STATISTICS[name](*spherical_statistics(logits, target), 7)
    assert not sums[0].isfinite() and sums[1:].isfinite().all()


def test_a_sum_of_squares_that_overflows_is_not_taken_for_a_number():
    logits = torch.tensor([[3e19, -3e19, 2e19]])
    assert z_loss(logits, torch.tensor([0])).isnan()
    statistics = spherical_statistics(logits, torch.tensor([0]))
    assert ZLoss().from_statistics(*statistics, 3).isnan()


@each_loss
def test_ignored_targets_contribute_nothing(name):
    logits, target = logits_and_target()
    counted = target.clone()
    counted[1] = -100
    logits.requires_grad_()
    rest = torch.tensor([0, 2, 3, 4])
    expected = DENSE[name](logits[rest], target[rest])
    loss = DENSE[name](logits, counted)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(x, logits)[0] for x in (loss, expected)]
    torch.testing.assert_close(*gradients)
    assert not gradients[0][1].any()
    assert DENSE[name](logits, counted, reduction="none")[1] == 0


@each_loss
def test_classes_may_be_in_another_dimension(name):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 7, 3, 2, generator=generator)
    target = torch.randint(7, (4, 3, 2), generator=generator)
    expected = DENSE[name](logits.movedim(1, -1).reshape(-1, 7), target.flatten())
    torch.testing.assert_close(DENSE[name](logits, target, class_dim=1), expected)
    torch.testing.assert_close(DENSE[name](logits.movedim(1, -1), target), expected)


def test_a_single_example_needs_no_batch_axis():
    logits, target = logits_and_target()
    each = z_loss(logits, target, reduction="none")
    torch.testing.assert_close(z_loss(logits[2], target[2]), each[2])


def test_a_single_class_is_certain_for_probabilities():
    logits, target = torch.randn(4, 1), torch.zeros(4, dtype=torch.long)
    assert torch.equal(taylor_softmax_loss(logits, target), torch.zeros(()))
    torch.testing.assert_close(spherical_softmax_loss(logits, target), torch.zeros(()))


@pytest.mark.parametrize("loss", [z_loss, taylor_softmax_loss])
def test_half_precision_is_computed_in_float32(loss):
    logits, target = logits_and_target(8, 5000, torch.bfloat16)
    exact = loss(logits.double(), target)
    assert loss(logits, target).dtype == torch.bfloat16
    assert loss(logits, target).item() == pytest.approx(exact.item(), rel=4e-3)


def test_autocast_gives_float32_as_with_cross_entropy():
    logits, target = logits_and_target(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert z_loss(logits, target).dtype == F.cross_entropy(logits, target).dtype


def test_reductions_and_the_module_agree():
    logits, target = logits_and_target()
    each = z_loss(logits, target, 0.3, 2.0, reduction="none")
    torch.testing.assert_close(ZLoss(0.3, 2.0)(logits, target), each.mean())
    torch.testing.assert_close(ZLoss(0.3, 2.0, "sum")(logits, target), each.sum())
    statistics = spherical_statistics(logits, target)
    torch.testing.assert_close(ZLoss(0.3, 2.0, "sum").from_statistics(*statistics, 7), each.sum())


def test_the_family_is_in_the_slot():
    logits, target = logits_and_target()
    for name in ("taylor-softmax", "spherical-softmax", "spherical-squared"):
        torch.testing.assert_close(LOSSES[name](logits, target), DENSE[name](logits, target))
    torch.testing.assert_close(LOSSES["z-loss"](logits, target), z_loss(logits, target, 1.0, 0.0))


O, Y = torch.zeros(2, 3), torch.tensor([0, 2])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: z_loss(O, Y, a=0.0), "a: 0.0 given"),
        (lambda: z_loss(O, Y, a=-1.0), "a: -1.0 given"),
        (lambda: z_loss(O, Y, a=math.nan), "a: nan given"),
        (lambda: z_loss(O, Y, b=math.inf), "b: inf given"),
        (lambda: z_loss(O, Y, eps=0.0), "eps: 0.0 given"),
        (lambda: z_loss(O.long(), Y), "input: torch.int64 given"),
        (lambda: z_loss(O[:, :1], Y * 0), "input: 1 classes given"),
        (lambda: z_loss(O[:, :0], Y * 0), "input: 0 classes given"),
        (lambda: z_loss(O, torch.tensor([0, 3])), "target: 3 given, class indices from 0 to 2"),
        (lambda: z_loss(O, torch.tensor([0, -1])), "target: -1 given"),
        (lambda: z_loss(O, Y[:1]), r"target: shape \(1,\) given"),
        (lambda: z_loss(O, Y.double()), "target: torch.float64 given"),
        (lambda: z_loss(O.sum(), Y[0]), r"input: shape \(\) given"),
        (lambda: z_loss(O, Y, class_dim=2), r"input: shape \(2, 3\) given"),
        (lambda: z_loss(O, Y, reduction="average"), "reduction: 'average' given"),
        (lambda: ZLoss(a=-1.0), "a: -1.0 given"),
        (lambda: ZLoss(reduction="average"), "reduction: 'average' given"),
        (lambda: ZLoss().from_statistics(O[:, 0], O[:, 0], O[:, 0], 1), "num_classes: 1 given"),
        (lambda: spherical_softmax_loss(O, Y, eps=-0.1), "eps: -0.1 given"),
        (lambda: taylor_softmax_loss(O, Y + 1), "target: 3 given"),
        (lambda: spherical_squared_loss(O, Y, "average"), "reduction: 'average' given"),
        (lambda: spherical_statistics(O, Y - 100), "target: -100 given"),
        (lambda: spherical_statistics(O.int(), Y), "input: torch.int32 given"),
    ],
)
def test_bad_input_names_the_argument(call, message):
    with pytest.raises(ValueError, match=f"^{message}.* expected"):
        call()
