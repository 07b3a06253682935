"""Soft labels: kept as their k largest entries, recovered, and corrected where they are unsure.

    stored      the k largest p_c and their classes
    smooth      p̂_c = p_c if stored, (1 − Σ stored) / (C − k) otherwise
    renormalize p̂_c = p_c / Σ stored if stored, 0 otherwise
    hard        one-hot at the largest

    calibrated  conf(p) < T_L: 1 − ε on the true class, ε / (C − 1) elsewhere; otherwise p

Compression and recovery are those of the code of FKD (Shen and Xing, ECCV 2022, arXiv 2112.01528),
calibration is the idea of FerKD (Shen, ICCV 2023, arXiv 2312.17473). Its thresholds, ε and what
happens above T_H are a reconstruction: neither the paper's abstract nor its repository states them.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SUM_TOLERANCE = 1e-3

TREATMENTS = ("smooth", "hard", "discard", "soft")


class SoftLabels(NamedTuple):
    """The k largest entries of each row of probabilities.

    Attributes:
        indices: classes of the entries.
        values: the entries.
        num_classes: C, of the rows that they are from.

    Example:
        >>> labels = SoftLabels(torch.tensor([[1]]), torch.tensor([[0.9]]), num_classes=3)
        >>> recover_soft_labels(labels)
        tensor([[0.0500, 0.9000, 0.0500]])
    """

    indices: Int[Tensor, "rows kept"]
    values: Float[Tensor, "rows kept"]
    num_classes: int


def compress_soft_labels(probabilities: Float[Tensor, "rows classes"], k: int = 5) -> SoftLabels:
    """The `k` largest entries of each row, largest first.

    Args:
        probabilities: rows of sum 1.
        k: entries kept; 5 in FKD, 1 and 10 also occur there. All of them lose nothing.

    Raises:
        ValueError: `k` is not in 1 to C, or rows are no probabilities.

    Example:
        >>> compress_soft_labels(torch.tensor([[0.25, 0.5, 0.25]]), k=1).indices
        tensor([[1]])
    """
    check_probabilities("probabilities", probabilities)
    classes = probabilities.shape[1]
    if not 1 <= k <= classes:
        raise ValueError(f"k: {k} given, a number from 1 to the {classes} classes expected")
    values, indices = probabilities.topk(k, dim=-1)
    return SoftLabels(indices, values, classes)


def recover_soft_labels(
    soft_labels: SoftLabels, how: str = "smooth"
) -> Float[Tensor, "rows classes"]:
    """Rows of sum 1 from what `compress_soft_labels` kept of them.

    Args:
        soft_labels: as compressed.
        how: "smooth" spreads what is missing evenly over the classes that were not kept,
            "renormalize" gives those nothing, "hard" gives everything to the largest entry.

    Raises:
        ValueError: `how` is none of these, or shapes and classes of `soft_labels` do not fit; on a
            CPU also an index that is no class.

    Example:
        >>> labels = compress_soft_labels(torch.tensor([[0.5, 0.3, 0.1, 0.1]]), k=2)
        >>> recover_soft_labels(labels, how="renormalize")
        tensor([[0.6250, 0.3750, 0.0000, 0.0000]])
    """
    values, rest = filled_in(soft_labels, how)
    dense = rest.expand(len(values), soft_labels.num_classes)
    return dense.scatter(1, soft_labels.indices.long(), values)


def filled_in(soft_labels: SoftLabels, how: str) -> tuple[Tensor, Tensor]:
    """What a recovery gives to the kept classes, (rows, kept), and to each other, (rows, 1).

    Raises:
        ValueError: as `recover_soft_labels`.
    """
    indices, values, classes = soft_labels
    if how not in ("smooth", "renormalize", "hard"):
        raise ValueError(f"how: {how!r} given, 'smooth', 'renormalize' or 'hard' expected")
    if values.ndim != 2 or indices.shape != values.shape:
        raise ValueError(
            f"soft_labels: shapes {tuple(indices.shape)} and {tuple(values.shape)} given, "
            "(rows, kept) twice expected"
        )
    kept = values.shape[1]
    if not 1 <= kept <= classes:
        raise ValueError(
            f"soft_labels: {kept} entries a row given, from 1 to the {classes} classes expected"
        )
    if indices.device.type == "cpu" and indices.numel() and not torch.compiler.is_compiling():
        low, high = (int(x) for x in indices.aminmax())
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise ValueError(f"soft_labels: class {wrong} given, one in [0, {classes}) expected")
    nothing = torch.zeros_like(values[:, :1])
    if how == "renormalize":
        return values / values.sum(-1, keepdim=True), nothing
    if how == "hard":
        largest = values.argmax(-1, keepdim=True)
        return torch.zeros_like(values).scatter(1, largest, 1.0), nothing
    if kept == classes:
        return values, nothing
    return values, (1 - values.sum(-1, keepdim=True)).clamp(min=0) / (classes - kept)


def calibrate_soft_labels(
    soft: Float[Tensor, "rows classes"],
    labels: Int[Tensor, "rows"],
    lower: int | float,
    upper: int | float = 1.0,
    mode: str = "absolute",
    confidence: str = "max",
    below: str = "smooth",
    above: str = "soft",
    smoothing: int | float = 0.1,
) -> tuple[Float[Tensor, "rows classes"], Bool[Tensor, "rows"]]:
    """Soft labels whose confidence is below `lower`, or above `upper`, replaced or discarded.

    Args:
        soft: p, rows of sum 1.
        labels: the true class of each row.
        lower, upper: T_L and T_H; both inequalities are strict.
        mode: "absolute", or "quantile" if the thresholds are quantiles of the rows' confidences.
        confidence: "max" is the largest entry, "label" the entry of the true class.
        below, above: what takes the place of p on that side: "smooth" is the smoothed true class,
            "hard" its one-hot vector, "discard" keeps p and says so in the second result, "soft"
            keeps p.
        smoothing: ε of the smoothed class; 0.1 is label smoothing's usual value.

    Returns:
        The rows, and whether each counts.

    Raises:
        ValueError: `soft` is no rows of probabilities, a label is out of range, `lower` is above
            `upper` or one of them not in [0, 1], or an option is unknown.

    Example:
        >>> soft = torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.3, 0.3]])
        >>> calibrate_soft_labels(soft, torch.tensor([0, 2]), lower=0.5)[0]
        tensor([[0.9000, 0.1000, 0.0000],
                [0.0500, 0.0500, 0.9000]])
    """
    check_probabilities("soft", soft)
    check_labels(labels, *soft.shape)
    check_bands(lower, upper, mode, confidence, below, above, smoothing)
    sure = confidences(soft, labels, confidence)
    limits: list[float | Tensor] = [lower, upper]
    if mode == "quantile" and len(sure):
        limits = [quantile(sure, lower), quantile(sure, upper)]
    keep = torch.ones_like(sure, dtype=torch.bool)
    result = soft
    for chosen, treatment in ((sure < limits[0], below), (sure > limits[1], above)):
        if treatment == "discard":
            keep = keep & ~chosen
        elif treatment != "soft":
            share = smoothing if treatment == "smooth" else 0.0
            result = torch.where(chosen[:, None], smoothed(labels, soft, share), result)
    return result, keep


def confidences(
    soft: Float[Tensor, "rows classes"], labels: Int[Tensor, "rows"], confidence: str
) -> Float[Tensor, "rows"]:
    """The largest entry of each row ("max"), or the entry of its true class ("label")."""
    if confidence == "max":
        return soft.amax(-1)
    return soft.gather(1, labels[:, None].long())[:, 0]


def quantile(values: Float[Tensor, "values"], q: float) -> Float[Tensor, ""]:
    """As `torch.quantile`, which refuses more than 16 million values."""
    place = q * (len(values) - 1)
    ordered = values.sort().values
    low = int(place)
    return torch.lerp(ordered[low], ordered[min(low + 1, len(values) - 1)], place - low)


def smoothed(labels: Tensor, like: Tensor, smoothing: int | float) -> Tensor:
    """1 − ε on the true class and ε spread over the others; 1 if there is no other."""
    classes = like.shape[1]
    if classes == 1:
        return torch.ones_like(like)
    rows = torch.full_like(like, smoothing / (classes - 1))
    return rows.scatter(1, labels[:, None].long(), 1 - smoothing)


def check_probabilities(name: str, rows: Tensor) -> None:
    """Raises unless `rows` is (rows, classes), not negative, each of sum 1 up to 1e-3.

    Values are looked at where that does not hold up a compiled graph.
    """
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise ValueError(f"{name}: shape {tuple(rows.shape)} given, (rows, classes) expected")
    if rows.is_meta or torch.compiler.is_compiling() or len(rows) == 0:
        return
    # The sum of rounded numbers is off by no more than an ulp of their sum.
    tolerance = max(SUM_TOLERANCE, torch.finfo(rows.dtype).eps)
    total = rows.detach().sum(-1, dtype=torch.promote_types(rows.dtype, torch.float32))
    worst = float((total - 1).abs().max())
    if not worst <= tolerance:  # also if it is not a number
        raise ValueError(f"{name}: a row of sum 1 ± {worst:.4g} given, 1 ± {tolerance:g} expected")
    least = float(rows.detach().min())
    if least < -tolerance:
        raise ValueError(f"{name}: an entry of {least:.4g} given, none below 0 expected")


def check_labels(labels: Tensor, rows: int, classes: int) -> None:
    if labels.shape != (rows,):
        raise ValueError(f"labels: shape {tuple(labels.shape)} given, ({rows},) expected")
    if labels.is_meta or torch.compiler.is_compiling() or rows == 0:
        return
    low, high = (int(x) for x in labels.aminmax())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise ValueError(f"labels: {wrong} given, a class in [0, {classes}) expected")


def check_bands(
    lower: int | float,
    upper: int | float,
    mode: str,
    confidence: str,
    below: str,
    above: str,
    smoothing: int | float,
) -> None:
    """Raises unless the options of `calibrate_soft_labels` are among those it knows."""
    for name, number in {"lower": lower, "upper": upper, "smoothing": smoothing}.items():
        if not 0 <= number <= 1:
            raise ValueError(f"{name}: {number} given, a number in [0, 1] expected")
    if lower > upper:
        raise ValueError(f"lower: {lower} given, at most upper = {upper} expected")
    for name, given, known in (
        ("mode", mode, ("absolute", "quantile")),
        ("confidence", confidence, ("max", "label")),
        ("below", below, TREATMENTS),
        ("above", above, TREATMENTS),
    ):
        if given not in known:
            raise ValueError(f"{name}: {given!r} given, one of {', '.join(known)} expected")
