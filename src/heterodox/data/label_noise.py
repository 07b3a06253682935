"""Label noise: drawn at random, drawn between classes that are alike, or made by people.

    symmetric     a share r of the examples gets a class drawn from all C, its own among them, so
                  that r (C − 1) / C are wrong
    other class   a share r of the examples gets a class drawn from the C − 1 others
    asymmetric    a share r of the examples of a class gets the class that it is taken for
    human         what people answered for the images of CIFAR-10: CIFAR-10N (arXiv 2110.12088)

Symmetric and asymmetric noise are those of Liu et al., NeurIPS 2020, arXiv 2007.00151, but that
asymmetric noise here looks at the true class only: their code draws from cats that have become dogs
once more.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from heterodox.data.cifar import load_cifar10n

CIFAR10_CONFUSIONS = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}
"""Truck to automobile, bird to airplane, cat and dog to each other, deer to horse."""

HUMAN_LABELS = ("aggre_label", "random_label1", "random_label2", "random_label3", "worse_label")

Noisy = tuple[Int[Tensor, "examples"], Bool[Tensor, "examples"]]


def symmetric_noise(
    labels: Int[Tensor, "examples"], rate: int | float, num_classes: int, generator: torch.Generator
) -> Noisy:
    """Labels of which exactly a share `rate`, rounded, is drawn anew from all classes.

    Args:
        labels: classes in [0, num_classes).
        rate: share that is drawn anew.
        num_classes: C.
        generator: on the CPU.

    Returns:
        The labels, and which were drawn anew; of these one in C has got its own class again.

    Raises:
        ValueError: `rate` is not in [0, 1], or a label is no class.

    Example:
        >>> labels = torch.zeros(1000, dtype=torch.int64)
        >>> noisy, flipped = symmetric_noise(labels, 0.4, 10, torch.Generator().manual_seed(0))
        >>> flipped.sum().item(), 330 < (noisy != labels).sum().item() < 390
        (400, True)
    """
    _check(labels, rate, num_classes)
    picked = _picked(torch.arange(len(labels)), rate, generator)
    drawn = torch.randint(num_classes, (len(picked),), generator=generator)
    return _relabelled(labels, picked, drawn)


def other_class_noise(
    labels: Int[Tensor, "examples"], rate: int | float, num_classes: int, generator: torch.Generator
) -> Noisy:
    """Labels of which exactly a share `rate`, rounded, is replaced by one of the other classes.

    Arguments and result as for `symmetric_noise`; every label that is drawn anew is wrong.

    Raises:
        ValueError: as `symmetric_noise`, or there are no two classes.

    Example:
        >>> labels = torch.zeros(10, dtype=torch.int64)
        >>> noisy, flipped = other_class_noise(labels, 0.2, 3, torch.Generator())
        >>> (noisy != labels).sum().item(), torch.equal(flipped, noisy != labels)
        (2, True)
    """
    _check(labels, rate, num_classes)
    if num_classes < 2:
        raise ValueError(f"num_classes: {num_classes} given, at least 2 expected")
    picked = _picked(torch.arange(len(labels)), rate, generator)
    shift = torch.randint(1, num_classes, (len(picked),), generator=generator)
    return _relabelled(labels, picked, (labels.cpu()[picked] + shift) % num_classes)


def asymmetric_noise(
    labels: Int[Tensor, "examples"],
    rate: int | float,
    mapping: Mapping[int, int],
    generator: torch.Generator,
) -> Noisy:
    """Labels of which, in each class of `mapping`, exactly a share `rate`, rounded, becomes the
    class that it maps to.

    Args:
        labels: classes.
        rate: share of each class.
        mapping: true class to wrong class; `CIFAR10_CONFUSIONS` is that of the paper.
        generator: on the CPU.

    Returns:
        The labels, and which were changed.

    Raises:
        ValueError: `rate` is not in [0, 1], or a class maps to itself.

    Example:
        >>> labels = torch.tensor([9, 9, 9, 9, 0])
        >>> noisy, flipped = asymmetric_noise(labels, 0.5, CIFAR10_CONFUSIONS, torch.Generator())
        >>> noisy.sort().values
        tensor([0, 1, 1, 9, 9])
    """
    _check(labels, rate, None)
    for source, target in mapping.items():
        if source == target:
            raise ValueError(f"mapping: {source} to itself given, another class expected")
    picked, drawn = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    for source, target in mapping.items():
        members = (labels.cpu() == source).nonzero()[:, 0]
        picked.append(_picked(members, rate, generator))
        drawn.append(torch.full((len(picked[-1]),), target))
    return _relabelled(labels, torch.cat(picked), torch.cat(drawn))


def human_noise(labels: Int[Tensor, "examples"], column: str = "worse_label") -> Noisy:
    """What people answered for the training images of CIFAR-10, in place of its labels.

    Args:
        labels: CIFAR-10's own labels of its training images in their order, or of the first of
            them; this is how it is known that the images are these.
        column: "aggre_label" (9 % wrong), "random_label1" to "random_label3" (17 to 18 %) or
            "worse_label" (40 %); see `heterodox.data.load_cifar10n`.

    Returns:
        The labels, and which are wrong.

    Raises:
        ValueError: `labels` are not these, or `column` is none of the five.
        DataError: CIFAR-10N is not in `$HETERODOX_DATA`.
    """
    if column not in HUMAN_LABELS:
        raise ValueError(f"column: {column!r} given, one of {', '.join(HUMAN_LABELS)} expected")
    table = load_cifar10n()
    true = table["clean_label"][: len(labels)].to(labels.device)
    if not torch.equal(true, labels):
        raise ValueError(
            f"labels: {len(labels)} given that are not those of CIFAR-10's first training images, "
            "those that people have labelled expected"
        )
    noisy = table[column][: len(labels)].to(labels.device)
    return noisy, noisy != labels


def _picked(members: Tensor, rate: int | float, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(members), generator=generator)
    return members[order[: round(rate * len(members))]]


def _relabelled(labels: Tensor, picked: Tensor, drawn: Tensor) -> Noisy:
    noisy, flipped = labels.clone(), torch.zeros_like(labels, dtype=torch.bool)
    noisy[picked.to(labels.device)] = drawn.to(labels)
    flipped[picked.to(labels.device)] = True
    return noisy, flipped


def _check(labels: Tensor, rate: int | float, num_classes: int | None) -> None:
    if labels.ndim != 1:
        raise ValueError(f"labels: shape {tuple(labels.shape)} given, (examples,) expected")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: {rate} given, a share in [0, 1] expected")
    if num_classes is None or len(labels) == 0:
        return
    low, high = (int(x) for x in labels.aminmax())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise ValueError(f"labels: {wrong} given, a class in [0, {num_classes}) expected")
