import copy
import math

import pytest
import torch
import torch.nn.functional as F

from heterodox.losses.early_learning import (
    EarlyLearningLoss,
    EarlyLearningPlusLoss,
    early_learning_regularizer,
    sigmoid_rampup,
    update_targets,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def loss_by_hand(logits, labels, targets, strength, clamp=1e-4):
    """The paper's sum, one example and one class at a time."""
    total = 0.0
    for z, y, t in zip(logits.tolist(), labels.tolist(), targets.tolist(), strict=True):
        exponentials = [math.exp(x - max(z)) for x in z]
        p = [x / sum(exponentials) for x in exponentials]
        clamped = [min(max(x, clamp), 1 - clamp) for x in p]
        agreement = sum(a * b for a, b in zip(clamped, t, strict=True))
        total += -math.log(p[y]) + strength * math.log(1 - agreement)
    return total / len(logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_strength_it_is_cross_entropy_to_the_last_bit(dtype, reduction):
    logits, labels = 5 * normal(33, 7, dtype=dtype), torch.arange(33) % 7
    loss = EarlyLearningLoss(33, 7, strength=0.0, reduction=reduction, dtype=dtype)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    for _ in range(3):
        value = loss(ours, labels, torch.arange(33))
        expected = F.cross_entropy(theirs, labels, reduction=reduction)
        assert torch.equal(value, expected)
        gradients = (
            torch.autograd.grad(x.sum(), z)[0] for x, z in ((value, ours), (expected, theirs))
        )
        assert torch.equal(*gradients)


def test_steps_are_those_of_the_papers_sums():
    loss = EarlyLearningLoss(6, 4, strength=3.0, momentum=0.7, dtype=torch.float64)
    memory = torch.zeros(6, 4, dtype=torch.float64)
    labels = torch.tensor([1, 3, 0])
    for step in range(4):
        logits, index = 3 * normal(3, 4, seed=step), torch.tensor([5, step % 2, 3])
        p = logits.softmax(-1).clamp(1e-4, 1 - 1e-4)
        for row, i in enumerate(index.tolist()):  # the update comes before the loss
            memory[i] = 0.7 * memory[i] + 0.3 * p[row] / p[row].sum()
        value = loss(logits, labels, index)
        assert value.item() == pytest.approx(loss_by_hand(logits, labels, memory[index], 3.0))
        torch.testing.assert_close(loss.targets, memory)


def test_the_first_step_of_two_equal_logits_is_known():
    # p = (½, ½), T = 0.3 p: log 2 + 3 log(1 − 0.15)
    loss = EarlyLearningLoss(1, 2, strength=3.0, momentum=0.7, dtype=torch.float64)
    value = loss(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0]), torch.tensor([0]))
    assert value.item() == pytest.approx(math.log(2) + 3 * math.log(0.85))


def test_targets_are_not_corrected_for_their_start_at_zero():
    loss = EarlyLearningLoss(2, 3, momentum=0.7)
    for step in range(1, 6):
        loss(normal(1, 3, seed=step, dtype=torch.float32), torch.tensor([0]), torch.tensor([1]))
        assert loss.targets[1].sum().item() == pytest.approx(1 - 0.7**step)
    assert not loss.targets[0].any()


def test_without_momentum_targets_are_the_prediction():
    targets, logits = normal(5, 3).abs(), normal(2, 3, seed=1)
    new = update_targets(targets, logits, torch.tensor([4, 0]), momentum=0.0, clamp=0.0)
    torch.testing.assert_close(targets[[4, 0]], logits.softmax(-1))
    assert torch.equal(new, targets[[4, 0]])


def test_the_regularisers_gradient_is_that_of_the_paper():
    logits = normal(4, 5).requires_grad_()
    t = normal(4, 5, seed=1).softmax(-1)
    early_learning_regularizer(logits, t, "sum", clamp=0.0).backward()
    p = logits.detach().softmax(-1)
    expected = torch.empty_like(p)
    for i in range(4):
        for c in range(5):
            pull = sum((t[i, k] - t[i, c]) * p[i, k] for k in range(5))
            expected[i, c] = p[i, c] * pull / (1 - p[i] @ t[i])
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_its_gradient_matches_finite_differences(reduction):
    t = normal(3, 4, seed=1).softmax(-1)
    logits = normal(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: early_learning_regularizer(z, t, reduction, clamp=0.0), logits
    )
    loss = EarlyLearningLoss(3, 4, clamp=0.0, reduction=reduction, dtype=torch.float64)
    loss(logits, torch.tensor([0, 1, 3]), torch.arange(3))
    loss.eval()
    assert torch.autograd.gradcheck(
        lambda z: loss(z, torch.tensor([0, 1, 3]), torch.arange(3)), logits
    )


def test_targets_get_no_gradient():
    t = normal(2, 3).softmax(-1).requires_grad_()
    early_learning_regularizer(normal(2, 3).requires_grad_(), t).backward()
    assert t.grad is None


def test_the_gradient_of_a_wrong_label_is_cancelled_and_that_of_a_right_one_is_not():
    past = torch.tensor([[0.9, 0.05, 0.05]], dtype=torch.float64)
    z = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64)
    loss = EarlyLearningLoss(1, 3, strength=3.0, momentum=0.999, dtype=torch.float64)
    size = {}
    for label in (0, 1):
        for name, strength in (("cross-entropy", 0.0), ("ELR", 3.0)):
            loss.targets.copy_(past)
            loss.strength = strength
            logits = z.clone().requires_grad_()
            loss(logits, torch.tensor([label]), torch.tensor([0])).backward()
            size[label, name] = logits.grad[0, 0].item()  # descent lowers the true class if > 0
    assert size[1, "cross-entropy"] > 0.5
    assert size[1, "ELR"] < 0.2 * size[1, "cross-entropy"]
    assert size[0, "ELR"] < size[0, "cross-entropy"] < 0


def test_saturated_logits_have_a_finite_loss_and_gradient():
    logits = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 1e4, 0.0]], requires_grad=True)
    loss = EarlyLearningLoss(2, 3, momentum=0.0)
    for label in (0, 1):
        value = loss(logits, torch.full((2,), label), torch.arange(2))
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite() and gradient.isfinite().all()
    # Where p is clamped, only cross-entropy has a gradient.
    regularizer = early_learning_regularizer(logits, torch.eye(3)[:2])
    assert not torch.autograd.grad(regularizer, logits)[0].any()
    assert regularizer.item() == pytest.approx(math.log(1e-4), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits = (4 * normal(8, 5)).to(dtype)
    half, full = EarlyLearningLoss(8, 5), EarlyLearningLoss(8, 5)
    labels, index = torch.arange(8) % 5, torch.arange(8)
    for _ in range(3):
        value, expected = half(logits, labels, index), full(logits.float(), labels, index)
        assert value.dtype == dtype
        assert torch.equal(value, expected.to(dtype))
    assert torch.equal(half.targets, full.targets)


def test_targets_may_be_stored_in_float16():
    small, full = EarlyLearningLoss(4, 3, dtype=torch.float16), EarlyLearningLoss(4, 3)
    for step in range(5):
        logits = normal(4, 3, seed=step, dtype=torch.float32)
        values = [loss(logits, torch.arange(4) % 3, torch.arange(4)) for loss in (small, full)]
        torch.testing.assert_close(*values, rtol=2e-3, atol=2e-3)
    assert small.targets.dtype == torch.float16


def test_the_state_dict_carries_the_targets():
    loss, other = EarlyLearningLoss(4, 3), EarlyLearningLoss(4, 3)
    loss(torch.randn(4, 3), torch.arange(4) % 3, torch.arange(4))
    other.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert torch.equal(loss.targets, other.targets) and loss.targets.any()


@pytest.mark.parametrize("kind", [EarlyLearningLoss, EarlyLearningPlusLoss])
def test_evaluation_leaves_targets_alone(kind):
    loss = kind(4, 3)
    loss.targets.fill_(0.25)
    loss.eval()
    if kind is EarlyLearningLoss:
        loss(torch.randn(2, 3), torch.tensor([0, 1]), torch.tensor([0, 3]))
    else:
        assert torch.equal(loss.update(torch.randn(2, 3), torch.tensor([0, 3])), loss.targets[:2])
    assert (loss.targets == 0.25).all()


def test_of_a_repeated_index_the_last_row_counts_unless_it_is_refused():
    logits, index = normal(2, 3), torch.tensor([1, 1])
    targets = torch.zeros(2, 3, dtype=torch.float64)
    update_targets(targets, logits, index, momentum=0.0, clamp=0.0)
    torch.testing.assert_close(targets[1], logits[1].softmax(-1))
    with pytest.raises(ValueError, match=r"^index: duplicate index 1 given"):
        update_targets(targets, logits, index, momentum=0.0, check_indices=True)
    with pytest.raises(ValueError, match=r"^index: duplicate index 1 given"):
        EarlyLearningLoss(2, 3, check_indices=True)(logits, torch.tensor([0, 1]), index)


def test_one_class_and_one_example_are_no_special_case():
    loss = EarlyLearningLoss(1, 1, momentum=0.7)
    logits = torch.randn(1, 1, requires_grad=True)
    value = loss(logits, torch.tensor([0]), torch.tensor([0]))
    assert value.item() == pytest.approx(3 * math.log(1 - 0.3 * (1 - 1e-4)), rel=1e-5)
    value.backward()
    assert not logits.grad.any()


def test_plus_without_mixing_and_ramp_is_elr_with_targets_from_outside():
    elr = EarlyLearningLoss(5, 4, strength=2.0, momentum=0.6, clamp=1e-4, dtype=torch.float64)
    plus = EarlyLearningPlusLoss(5, 4, strength=2.0, momentum=0.6, dtype=torch.float64)
    labels, index = torch.tensor([0, 3, 2]), torch.tensor([4, 0, 2])
    for step in range(3):
        own, peer = normal(3, 4, seed=step), normal(3, 4, seed=10 + step)
        outside = plus.update(peer, index)
        elr.eval().targets.copy_(plus.targets)
        expected = elr(own, labels, index)
        actual = plus(own, F.one_hot(labels, 4).double(), outside, step)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(outside, plus.targets[index])


def test_plus_updates_without_a_clamp():
    plus = EarlyLearningPlusLoss(1, 2, momentum=0.0, dtype=torch.float64)
    new = plus.update(torch.tensor([[30.0, 0.0]], dtype=torch.float64), torch.tensor([0]))
    assert new[0, 1].item() == pytest.approx(math.exp(-30), rel=1e-6)


def test_plus_fades_the_regulariser_in():
    plus = EarlyLearningPlusLoss(2, 3, strength=3.0, rampup_steps=10)
    logits, y = torch.randn(2, 3, generator=generator()), torch.eye(3)[:2]
    q = torch.full((2, 3), 0.3)
    at = {step: plus(logits, y, q, step).item() for step in (0, 5, 10, 99)}
    entropy = F.cross_entropy(logits, y).item()
    full = at[10] - entropy
    assert at[99] == at[10]
    assert at[0] - entropy == pytest.approx(math.exp(-5) * full, rel=1e-4)
    assert at[5] - entropy == pytest.approx(math.exp(-5 / 4) * full, rel=1e-4)


def test_reweighted_labels_are_those_that_the_targets_agree_with():
    logits, q = normal(1, 3), torch.tensor([[0.6, 0.1, 0.3]], dtype=torch.float64)
    y = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    plus = EarlyLearningPlusLoss(1, 3, strength=0.0, reweight_labels=True)
    expected = F.cross_entropy(logits, torch.tensor([[6 / 7, 1 / 7, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(plus(logits, y, q, 0), expected)
    # Nothing left of the label: it stays.
    torch.testing.assert_close(plus(logits, y, q * 0, 0), F.cross_entropy(logits, y))


def test_the_ramp_is_that_of_the_paper():
    assert sigmoid_rampup(0, 0) == sigmoid_rampup(7, 0) == sigmoid_rampup(40, 40) == 1.0
    assert sigmoid_rampup(10, 40) == pytest.approx(math.exp(-5 * 0.75**2))


LOGITS, INDEX = torch.zeros(2, 3), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("momentum", lambda: EarlyLearningLoss(4, 3, momentum=1.0)),
        ("momentum", lambda: EarlyLearningPlusLoss(4, 3, momentum=-0.1)),
        ("strength", lambda: EarlyLearningLoss(4, 3, strength=-1.0)),
        ("strength", lambda: EarlyLearningLoss(4, 3, strength=math.nan)),
        ("clamp", lambda: EarlyLearningLoss(4, 3, clamp=0.5)),
        ("reduction", lambda: EarlyLearningLoss(4, 3, reduction="median")),
        ("num_examples", lambda: EarlyLearningLoss(0, 3)),
        ("num_classes", lambda: EarlyLearningLoss(4, 0)),
        ("rampup_steps", lambda: EarlyLearningPlusLoss(4, 3, rampup_steps=-1)),
        ("index", lambda: EarlyLearningLoss(4, 3)(LOGITS, INDEX, torch.tensor([0, 4]))),
        ("index", lambda: EarlyLearningLoss(4, 3)(LOGITS, INDEX, torch.tensor([-1, 0]))),
        ("index", lambda: EarlyLearningLoss(4, 3).eval()(LOGITS, INDEX, torch.tensor([0, 4]))),
        ("index", lambda: EarlyLearningLoss(4, 3)(LOGITS, INDEX[:1], INDEX[:1])),
        ("target", lambda: EarlyLearningLoss(4, 3)(LOGITS, INDEX[:1], INDEX)),
        ("target", lambda: EarlyLearningLoss(4, 3)(LOGITS, torch.tensor([0, 3]), INDEX)),
        ("target", lambda: EarlyLearningLoss(4, 3)(LOGITS, torch.tensor([0, -1]), INDEX)),
        ("target", lambda: EarlyLearningLoss(4, 3)(LOGITS, INDEX.float(), INDEX)),
        ("input", lambda: EarlyLearningLoss(4, 5)(LOGITS, INDEX, INDEX)),
        ("input", lambda: update_targets(torch.zeros(4, 5), LOGITS, INDEX, 0.7)),
        ("momentum", lambda: update_targets(torch.zeros(4, 3), LOGITS, INDEX, 1.0)),
        ("targets", lambda: early_learning_regularizer(LOGITS, LOGITS[:1])),
        ("input", lambda: early_learning_regularizer(LOGITS[0], LOGITS[0])),
        ("soft_target", lambda: EarlyLearningPlusLoss(4, 3)(LOGITS, LOGITS[:1], LOGITS, 0)),
        ("ensemble_target", lambda: EarlyLearningPlusLoss(4, 3)(LOGITS, LOGITS, LOGITS[:1], 0)),
        ("length", lambda: sigmoid_rampup(1, -1)),
        ("step", lambda: sigmoid_rampup(-1, 1)),
    ],
)
def test_bad_input_names_the_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
        call()


def test_a_refused_batch_leaves_targets_as_they_were():
    loss = EarlyLearningLoss(4, 3)
    with pytest.raises(ValueError, match=r"^index: "):
        loss(LOGITS, INDEX, torch.tensor([0, 9]))
    with pytest.raises(ValueError, match=r"^target: 3 given"):
        loss(LOGITS, torch.tensor([0, 3]), INDEX)
    assert not loss.targets.any()


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_labels_and_indices_may_be_of_any_whole_type(dtype):
    logits, labels, index = normal(3, 4), torch.tensor([3, 0, 2]), torch.tensor([4, 1, 0])
    small, full = (EarlyLearningLoss(5, 4, dtype=torch.float64) for _ in range(2))
    found = small(logits, labels.to(dtype), index.to(torch.int32))
    assert torch.equal(found, full(logits, labels, index))


def test_an_empty_batch_is_what_it_is_for_cross_entropy():
    nothing = torch.zeros(0, dtype=torch.int64)
    loss = EarlyLearningLoss(4, 3)
    assert loss(LOGITS[:0], nothing, nothing).isnan()
    assert EarlyLearningLoss(4, 3, reduction="sum")(LOGITS[:0], nothing, nothing) == 0
    assert not loss.targets.any()
