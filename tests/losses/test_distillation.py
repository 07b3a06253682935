import math

import pytest
import torch
import torch.nn.functional as F

from heterodox.losses.distillation import (
    FerKDLoss,
    SoftLabels,
    calibrate_soft_labels,
    compress_soft_labels,
    compressed_cross_entropy,
    recover_soft_labels,
    soft_cross_entropy,
)


def normal(*shape, seed=0, dtype=torch.float64):
    numbers = torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return numbers.to(dtype)


def probabilities(*shape, seed=0, dtype=torch.float64):
    return (2 * normal(*shape, seed=seed)).softmax(-1).to(dtype)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_it_is_torchs_cross_entropy_with_probabilities(reduction):
    logits, target = normal(9, 6), probabilities(9, 6, seed=1)
    expected = F.cross_entropy(logits, target, reduction=reduction)
    torch.testing.assert_close(soft_cross_entropy(logits, target, reduction=reduction), expected)
    halved = F.cross_entropy(logits / 4, target, reduction=reduction)
    actual = soft_cross_entropy(logits, target, temperature=4.0, reduction=reduction)
    torch.testing.assert_close(actual, halved)


def test_a_weight_of_zero_takes_a_row_out_of_the_mean():
    logits, target = normal(5, 4), probabilities(5, 4, seed=1)
    keep = torch.tensor([True, False, True, True, False])
    actual = soft_cross_entropy(logits, target, weight=keep)
    torch.testing.assert_close(actual, F.cross_entropy(logits[keep], target[keep]))
    each = F.cross_entropy(logits, target, reduction="none")
    weight = torch.tensor([0.5, 0.0, 2.0, 1.0, 0.25], dtype=torch.float64)
    mean = soft_cross_entropy(logits, target, weight=weight)
    torch.testing.assert_close(mean, (weight * each).sum() / weight.sum())


@pytest.mark.parametrize("rows", [0, 3])
def test_when_nothing_counts_loss_and_gradient_are_zero(rows):
    logits = (100 * normal(rows, 4)).requires_grad_()
    weight = torch.zeros(rows, dtype=torch.bool)
    for loss in (
        FerKDLoss()(logits, probabilities(rows, 4), weight),
        FerKDLoss()(logits, compress_soft_labels(probabilities(rows, 4), 2), weight),
    ):
        assert loss.item() == 0.0
        (gradient,) = torch.autograd.grad(loss, logits)
        assert not gradient.any()


def test_a_row_that_does_not_count_may_be_infinite():
    logits = torch.tensor([[0.0, 1.0], [math.inf, 0.0]])
    target = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    loss = soft_cross_entropy(logits, target, weight=torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(loss, F.cross_entropy(logits[:1], target[:1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits = normal(8, 6, dtype=dtype)
    target = probabilities(8, 6, seed=1, dtype=torch.float32)
    expected = F.cross_entropy(logits.float(), target).to(dtype)
    assert torch.equal(soft_cross_entropy(logits, target), expected)
    # Probabilities rounded to half precision are still probabilities.
    soft_cross_entropy(logits, target.to(dtype))


def test_compression_keeps_the_largest_entries():
    labels = compress_soft_labels(probabilities(20, 9), k=4)
    assert labels.num_classes == 9
    for row, indices, values in zip(probabilities(20, 9), *labels[:2], strict=True):
        assert sorted(row.tolist())[-4:] == sorted(values.tolist())
        assert torch.equal(row[indices], values)


@pytest.mark.parametrize("how", ["smooth", "renormalize", "hard"])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_recovered_rows_sum_to_1_and_are_right_where_something_was_kept(how, k):
    soft = probabilities(30, 8)
    labels = compress_soft_labels(soft, k)
    dense = recover_soft_labels(labels, how)
    torch.testing.assert_close(dense.sum(-1), torch.ones(30, dtype=torch.float64))
    for row, original in zip(dense, soft, strict=True):
        order = original.argsort(descending=True)
        kept, others = order[:k], order[k:]
        if how == "smooth":
            assert torch.equal(row[kept], original[kept])
            rest = (1 - original[kept].sum()) / max(1, 8 - k)
            assert (row[others] - rest).abs().max() < 1e-15 if len(others) else True
        elif how == "renormalize":
            torch.testing.assert_close(row[kept], original[kept] / original[kept].sum())
            assert not row[others].any()
        else:
            assert row[order[0]] == 1 and row.sum() == 1


def test_keeping_everything_loses_nothing():
    soft = probabilities(7, 5)
    for how in ("smooth", "renormalize"):
        recovered = recover_soft_labels(compress_soft_labels(soft, 5), how)
        torch.testing.assert_close(recovered, soft, rtol=0, atol=1e-15)
    assert torch.equal(recover_soft_labels(compress_soft_labels(soft, 5)), soft)


def test_a_single_class_is_certain():
    labels = compress_soft_labels(torch.ones(3, 1), k=1)
    assert torch.equal(recover_soft_labels(labels), torch.ones(3, 1))
    logits = torch.randn(3, 1, requires_grad=True)
    assert FerKDLoss()(logits, labels).item() == 0.0
    soft, keep = calibrate_soft_labels(torch.ones(3, 1), torch.zeros(3, dtype=torch.int64), 0.5)
    assert torch.equal(soft, torch.ones(3, 1)) and keep.all()


@pytest.mark.parametrize("how", ["smooth", "renormalize", "hard"])
@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_compressed_loss_is_that_of_recovered_labels(how, k, weighted):
    logits = (3 * normal(9, 6)).requires_grad_()
    labels = compress_soft_labels(probabilities(9, 6, seed=1), k)
    weight = torch.arange(9) % 3 if weighted else None
    for reduction in ("mean", "sum", "none"):
        pair = [
            compressed_cross_entropy(logits, labels, how, 2.0, weight, reduction),
            soft_cross_entropy(logits, recover_soft_labels(labels, how), 2.0, weight, reduction),
        ]
        torch.testing.assert_close(*pair)
        gradients = [torch.autograd.grad((x * x).sum(), logits)[0] for x in pair]
        torch.testing.assert_close(*gradients)


def test_the_compressed_loss_takes_what_a_bank_stores():
    logits = normal(9, 6, dtype=torch.float32)
    labels = compress_soft_labels(probabilities(9, 6, dtype=torch.float32), 3)
    stored = SoftLabels(labels.indices.to(torch.int16), labels.values.half(), 6)
    expected = FerKDLoss(temperature=2.0)(logits, labels)
    actual = FerKDLoss(temperature=2.0)(logits, stored)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_calibration_corrects_the_unsure_and_leaves_the_sure():
    soft = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.35, 0.25], [0.6, 0.2, 0.2]])
    labels = torch.tensor([1, 2, 0])
    result, keep = calibrate_soft_labels(soft, labels, lower=0.6, smoothing=0.2)
    assert torch.equal(result[[0, 2]], soft[[0, 2]])  # at the threshold is not below it
    torch.testing.assert_close(result[1], torch.tensor([0.1, 0.1, 0.8]))
    assert keep.all()


@pytest.mark.parametrize(
    ("below", "expected", "counts"),
    [
        ("smooth", [0.05, 0.05, 0.9], True),
        ("hard", [0.0, 0.0, 1.0], True),
        ("soft", [0.4, 0.35, 0.25], True),
        ("discard", [0.4, 0.35, 0.25], False),
    ],
)
def test_what_takes_the_place_of_unsure_labels(below, expected, counts):
    soft = torch.tensor([[0.4, 0.35, 0.25], [0.8, 0.1, 0.1]])
    result, keep = calibrate_soft_labels(soft, torch.tensor([2, 2]), 0.5, below=below)
    torch.testing.assert_close(result, torch.tensor([expected, [0.8, 0.1, 0.1]]))
    assert keep.tolist() == [counts, True]


def test_sure_labels_above_the_upper_threshold_may_become_hard():
    soft = torch.tensor([[0.4, 0.6], [0.2, 0.8], [0.05, 0.95]])
    result, _ = calibrate_soft_labels(soft, torch.tensor([0, 0, 1]), 0.0, 0.8, above="hard")
    torch.testing.assert_close(result, torch.tensor([[0.4, 0.6], [0.2, 0.8], [0.0, 1.0]]))


def test_confidence_may_be_that_of_the_label():
    soft, labels = torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([1, 1])
    for confidence, corrected in (("max", [False, True]), ("label", [True, False])):
        _, keep = calibrate_soft_labels(
            soft,
            labels,
            lower=0.7 if confidence == "label" else 0.8,
            confidence=confidence,
            below="discard",
        )
        assert (~keep).tolist() == corrected


@pytest.mark.parametrize("q", [0.0, 0.15, 0.3, 0.77, 1.0])
def test_quantiles_correct_their_share(q):
    soft, labels = probabilities(101, 4), torch.zeros(101, dtype=torch.int64)
    sure = soft.amax(-1)
    _, keep = calibrate_soft_labels(soft, labels, q, 1.0, mode="quantile", below="discard")
    assert torch.equal(~keep, sure < torch.quantile(sure, q))


def test_open_bands_change_nothing_and_calibrating_twice_is_calibrating_once():
    soft, labels = probabilities(50, 4), torch.arange(50) % 4
    for mode in ("absolute", "quantile"):
        same, keep = calibrate_soft_labels(soft, labels, 0.0, 1.0, mode, above="hard")
        assert torch.equal(same, soft) and keep.all()
    for below in ("smooth", "hard", "discard"):
        once, kept = calibrate_soft_labels(soft, labels, 0.6, below=below)
        twice, still = calibrate_soft_labels(once, labels, 0.6, below=below)
        assert torch.equal(once, twice) and torch.equal(kept, still)
        assert not torch.equal(once, soft) or below == "discard"


def test_nothing_is_calibrated_to_nothing():
    empty = torch.zeros(0, 4)
    soft, keep = calibrate_soft_labels(
        empty, torch.zeros(0, dtype=torch.int64), 0.2, mode="quantile"
    )
    assert soft.shape == (0, 4) and keep.shape == (0,)
    assert recover_soft_labels(compress_soft_labels(empty, 2)).shape == (0, 4)


SOFT, LABELS, LOGITS = probabilities(2, 3), torch.tensor([0, 2]), normal(2, 3)
KEPT = compress_soft_labels(SOFT, 2)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("k", lambda: compress_soft_labels(SOFT, 4)),
        ("k", lambda: compress_soft_labels(SOFT, 0)),
        ("probabilities", lambda: compress_soft_labels(SOFT * 1.01, 2)),
        ("probabilities", lambda: compress_soft_labels(SOFT * math.nan, 2)),
        ("probabilities", lambda: compress_soft_labels(torch.tensor([[1.5, -0.5]]), 2)),
        ("probabilities", lambda: compress_soft_labels(SOFT[0], 2)),
        ("how", lambda: recover_soft_labels(KEPT, "linear")),
        ("soft_labels", lambda: recover_soft_labels(KEPT._replace(num_classes=1))),
        ("soft_labels", lambda: recover_soft_labels(KEPT._replace(indices=KEPT.indices + 2))),
        ("soft_labels", lambda: recover_soft_labels(KEPT._replace(indices=KEPT.indices - 2))),
        ("soft_labels", lambda: recover_soft_labels(KEPT._replace(values=KEPT.values[:, :1]))),
        ("soft", lambda: calibrate_soft_labels(SOFT * 0.99, LABELS, 0.5)),
        ("labels", lambda: calibrate_soft_labels(SOFT, LABELS + 1, 0.5)),
        ("labels", lambda: calibrate_soft_labels(SOFT, LABELS - 1, 0.5)),
        ("labels", lambda: calibrate_soft_labels(SOFT, LABELS[:1], 0.5)),
        ("lower", lambda: calibrate_soft_labels(SOFT, LABELS, 0.9, 0.8)),
        ("lower", lambda: calibrate_soft_labels(SOFT, LABELS, -0.1)),
        ("upper", lambda: calibrate_soft_labels(SOFT, LABELS, 0.5, 1.1)),
        ("smoothing", lambda: calibrate_soft_labels(SOFT, LABELS, 0.5, smoothing=2.0)),
        ("mode", lambda: calibrate_soft_labels(SOFT, LABELS, 0.5, mode="rank")),
        ("confidence", lambda: calibrate_soft_labels(SOFT, LABELS, 0.5, confidence="entropy")),
        ("below", lambda: calibrate_soft_labels(SOFT, LABELS, 0.5, below="drop")),
        ("above", lambda: calibrate_soft_labels(SOFT, LABELS, 0.5, above="drop")),
        ("target", lambda: soft_cross_entropy(LOGITS, SOFT * 0.99)),
        ("target", lambda: soft_cross_entropy(LOGITS, SOFT[:1])),
        ("weight", lambda: soft_cross_entropy(LOGITS, SOFT, weight=torch.ones(3))),
        ("weight", lambda: soft_cross_entropy(LOGITS, SOFT, weight=torch.tensor([1.0, -1.0]))),
        ("weight", lambda: FerKDLoss()(LOGITS, KEPT, torch.tensor([1.0, math.nan]))),
        ("temperature", lambda: soft_cross_entropy(LOGITS, SOFT, temperature=0.0)),
        ("temperature", lambda: FerKDLoss(temperature=-1.0)),
        ("reduction", lambda: soft_cross_entropy(LOGITS, SOFT, reduction="median")),
        ("input", lambda: soft_cross_entropy(LOGITS[0], SOFT[0])),
        ("soft_labels", lambda: compressed_cross_entropy(LOGITS[:1], KEPT)),
        ("how", lambda: compressed_cross_entropy(LOGITS, KEPT, how="linear")),
    ],
)
def test_bad_input_names_the_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
        call()
