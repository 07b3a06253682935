import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heterodox.losses import (
    LOSSES,
    StableMaxCrossEntropyLoss,
    log_stablemax,
    stablemax_cross_entropy,
)
from heterodox.losses.stablemax import stablemax

INF = math.inf


def s(x):
    """Equation of the paper, branch by branch, number by number."""
    values = [v + 1 if v >= 0 else 1 / (1 - v) for v in x.flatten().tolist()]
    return torch.tensor(values, dtype=torch.float64).reshape(x.shape)


def g(x):
    """The change of logits that turns softmax into StableMax."""
    return s(x).log()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def logits(*shape, scale=5.0, dtype=torch.float64):
    return (torch.randn(*shape, generator=generator(), dtype=torch.float64) * scale).to(dtype)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stablemax_is_s_over_its_sum(dim, dtype):
    z = logits(4, 7, 3, dtype=dtype)
    expected = s(z) / s(z).sum(dim, keepdim=True)
    torch.testing.assert_close(stablemax(z, dim), expected.to(dtype))
    torch.testing.assert_close(
        log_stablemax(z, dim), expected.log().to(dtype), rtol=1e-5, atol=2e-6
    )


def test_stablemax_sums_to_one_and_keeps_the_order_of_the_logits():
    z = logits(50, 9).sort(-1).values
    p = stablemax(z, -1)
    torch.testing.assert_close(p.sum(-1), torch.ones(50, dtype=torch.float64))
    assert (p.diff(dim=-1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [stablemax, log_stablemax])
def test_the_slope_of_s_is_one_on_both_sides_of_zero_and_at_zero(function, dtype):
    # Against a second class at 0: p = s / (s + 1), so dp/dx = s'(x) / 4 at 0 and d log p/dx = s'/2.
    slope = 0.25 if function is stablemax else 0.5
    for x in (0.0, -0.0, 1e-6, -1e-6):
        z = torch.tensor([x, 0.0], dtype=dtype, requires_grad=True)
        function(z, 0)[0].backward()
        assert z.grad[0].item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("function", [stablemax, log_stablemax])
def test_gradients_match_finite_differences(function):
    z = logits(3, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: function(z, 1), z)
    assert torch.autograd.gradgradcheck(lambda z: function(z, 1), z)


def test_the_loss_has_the_gradient_of_finite_differences():
    z = logits(6, 5).requires_grad_()
    target = torch.randint(5, (6,), generator=generator())
    assert torch.autograd.gradcheck(lambda z: stablemax_cross_entropy(z, target), z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_are_finite_at_zero_at_one_and_far_out(dtype):
    z = torch.tensor([[0.0, 1.0, -1.0, 6e4, -6e4]], dtype=dtype, requires_grad=True)
    for loss in (
        stablemax(z, 1)[0, 1],
        -log_stablemax(z, 1)[0, 1],
        stablemax_cross_entropy(z, torch.tensor([1])),
        stablemax_cross_entropy(z, torch.tensor([1]), compute_dtype=dtype),
    ):
        assert loss.dtype == dtype
        (gradient,) = torch.autograd.grad(loss, z)
        assert gradient.isfinite().all()


def test_logits_of_1e30_give_finite_values_and_gradients():
    z = torch.tensor([[1e30, -1e30, 1e30, 0.0]], requires_grad=True)
    torch.testing.assert_close(stablemax(z, 1), torch.tensor([[0.5, 0.0, 0.5, 0.0]]))
    loss = stablemax_cross_entropy(z, torch.tensor([1]))
    assert loss.item() == pytest.approx(2 * math.log(1e30) + math.log(2), rel=1e-6)
    for value in (loss, stablemax(z, 1)[0, 0], log_stablemax(z, 1)[0, 3]):
        (gradient,) = torch.autograd.grad(value, z)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_float32_result_rounded(dtype):
    z = logits(5, 11, scale=30, dtype=dtype)
    for function in (stablemax, log_stablemax):
        assert torch.equal(function(z, 1), function(z.float(), 1).to(dtype))
    assert stablemax(z, 1).dtype == dtype


def test_masked_entries_are_exactly_zero_and_change_nothing_else():
    z = logits(3, 6)
    masked = torch.cat([z, torch.full((3, 2), -INF, dtype=z.dtype)], 1).requires_grad_()
    p = stablemax(masked, 1)
    assert (p[:, 6:] == 0).all()
    torch.testing.assert_close(p[:, :6], stablemax(z, 1))
    (gradient,) = torch.autograd.grad(p[:, 0].sum(), masked)
    z.requires_grad_()
    (expected,) = torch.autograd.grad(stablemax(z, 1)[:, 0].sum(), z)
    torch.testing.assert_close(gradient[:, :6], expected)
    assert (gradient[:, 6:] == 0).all()
    (gradient,) = torch.autograd.grad(log_stablemax(masked, 1)[:, 0].sum(), masked)
    assert gradient.isfinite().all() and (gradient[:, 6:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_without_a_valid_entry_is_zero_with_zero_gradient(dtype):
    z = torch.tensor([[-INF, -INF], [0.0, 1.0]], dtype=dtype, requires_grad=True)
    p = stablemax(z, 1)
    assert torch.equal(p[0], torch.zeros(2, dtype=dtype))
    (gradient,) = torch.autograd.grad(p[:, 0].sum() * 1e30, z)
    assert torch.equal(gradient[0], torch.zeros(2, dtype=dtype)) and gradient.isfinite().all()


def test_softmax_does_not_care_about_a_shift_and_stablemax_does():
    z = torch.tensor([2.0, 1.0, 0.0])
    torch.testing.assert_close(stablemax(z, 0), torch.tensor([3.0, 2.0, 1.0]) / 6)
    torch.testing.assert_close(stablemax(z + 10, 0), torch.tensor([13.0, 12.0, 11.0]) / 36)


def test_a_gap_that_collapses_softmax_leaves_stablemax_a_loss_and_a_gradient():
    z = torch.tensor([[20.0, -20.0, 0.0]], requires_grad=True)
    target = torch.tensor([0])
    (softmax_gradient,) = torch.autograd.grad(F.cross_entropy(z, target), z)
    loss = stablemax_cross_entropy(z, target)
    (gradient,) = torch.autograd.grad(loss, z)
    assert F.cross_entropy(z, target) == 0 and softmax_gradient[0, 0] == 0
    assert loss.item() == pytest.approx(math.log((21 + 1 / 21 + 1) / 21)) and gradient[0, 0] < -1e-3


TARGETS = {
    "indices": lambda shape: torch.randint(
        shape[min(1, len(shape) - 1)],
        shape[:1] * (len(shape) > 1) + shape[2:],
        generator=generator(1),
    ),
    "probabilities": lambda shape: torch.rand(
        shape, generator=generator(1), dtype=torch.float64
    ).softmax(min(1, len(shape) - 1)),
}


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (4, 5, 3), (2, 5, 3, 2), (2, 5, 3, 2, 2), (0, 5)])
def test_the_loss_is_cross_entropy_of_changed_logits(
    shape, kind, reduction, weighted, label_smoothing
):
    z, target = logits(*shape), TARGETS[kind](shape)
    options = {
        "weight": torch.linspace(0.5, 2, 5, dtype=torch.float64) if weighted else None,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
    }
    expected = F.cross_entropy(g(z), target, **options)
    loss = stablemax_cross_entropy(z, target, **options)
    torch.testing.assert_close(loss, expected, equal_nan=True)
    module = StableMaxCrossEntropyLoss(**options)
    assert torch.equal(module(z, target).nan_to_num(7), loss.nan_to_num(7))
    if weighted:  # a float32 model: weight and probabilities have the type of the model
        options["weight"] = options["weight"].float()
    target = target.float() if kind == "probabilities" else target
    single = stablemax_cross_entropy(z.float(), target, **options)
    torch.testing.assert_close(single, expected.float(), equal_nan=True)


def test_the_loss_is_minus_the_log_of_stablemax_at_the_target():
    z, target = logits(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    p = s(z) / s(z).sum(1, keepdim=True)
    expected = -p[torch.arange(6), target].log().mean()
    torch.testing.assert_close(stablemax_cross_entropy(z, target), expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ignored_targets_count_neither_in_the_sum_nor_in_the_mean(
    reduction, ignore_index, label_smoothing, weighted
):
    z = logits(5, 4, 3)
    target = torch.randint(4, (5, 3), generator=generator(1))
    target[:2] = ignore_index
    options = {
        "weight": torch.linspace(0.5, 2, 4, dtype=torch.float64) if weighted else None,
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
    }
    loss = stablemax_cross_entropy(z, target, **options)
    torch.testing.assert_close(loss, F.cross_entropy(g(z), target, **options))


def test_the_mean_of_nothing_is_nan_and_its_sum_zero_as_in_torch():
    z, target = logits(3, 4), torch.full((3,), -100)
    assert stablemax_cross_entropy(z, target).isnan()
    assert stablemax_cross_entropy(z, target, reduction="sum") == 0
    empty = torch.empty(0, dtype=torch.long)
    assert stablemax_cross_entropy(z[:0], empty).isnan()


def test_the_loss_is_computed_in_float64_and_returned_in_the_type_of_the_model():
    # 1 + 1e-9 is 1 in float32, so there the loss of a float32 model would be exactly 0.
    z, target = torch.tensor([[1e9, 0.0]]), torch.tensor([0])
    loss = stablemax_cross_entropy(z, target)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(1e-9, rel=1e-4)
    assert stablemax_cross_entropy(z, target, compute_dtype=torch.float32) == 0


def test_autocast_gives_the_loss_the_type_that_cross_entropy_has_there():
    z, target = logits(4, 3, dtype=torch.bfloat16), torch.tensor([0, 1, 2, 0])
    with torch.autocast("cpu", torch.bfloat16):
        assert stablemax_cross_entropy(z, target).dtype == F.cross_entropy(z, target).dtype
        assert stablemax_cross_entropy(z.double(), target).dtype == torch.float64


def test_the_compiled_loss_is_the_eager_one():
    z, target = logits(4, 3, dtype=torch.float32).requires_grad_(), torch.tensor([0, 1, 2, 0])
    checks_shapes = hasattr(stablemax_cross_entropy, "__wrapped__")  # jaxtyping breaks the graph
    compiled = torch.compile(
        stablemax_cross_entropy, backend="aot_eager", fullgraph=not checks_shapes
    )
    torch.testing.assert_close(compiled(z, target), stablemax_cross_entropy(z, target))


def test_a_weight_moves_with_the_module_and_is_saved_as_in_torch():
    weight = torch.rand(3, generator=generator())
    module, peer = StableMaxCrossEntropyLoss(weight), nn.CrossEntropyLoss(weight)
    assert module.state_dict().keys() == peer.state_dict().keys()
    assert module.double().weight.dtype == torch.float64
    assert StableMaxCrossEntropyLoss().state_dict() == {}


def test_the_slot_builds_both_losses():
    z, target = logits(4, 3), torch.tensor([0, 1, 2, 0])
    assert LOSSES.default == "cross-entropy"
    for name, expected in (("cross-entropy", z), ("stablemax", g(z))):
        torch.testing.assert_close(LOSSES[name](z, target), F.cross_entropy(expected, target))


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("input", {"input": torch.tensor(1.0)}),
        ("target", {"target": torch.zeros(3, dtype=torch.long)}),
        ("target", {"target": torch.zeros(2, 4)}),
        ("weight", {"weight": torch.ones(2)}),
        ("reduction", {"reduction": "avg"}),
        ("label_smoothing", {"label_smoothing": 1.5}),
        ("compute_dtype", {"compute_dtype": torch.int64}),
        ("compute_dtype", {"compute_dtype": None}),
    ],
)
def test_bad_input_names_the_argument(argument, bad):
    good = {"input": torch.zeros(2, 3), "target": torch.zeros(2, dtype=torch.long)}
    with pytest.raises(ValueError, match=f"^{argument}: "):
        stablemax_cross_entropy(**{**good, **bad})
