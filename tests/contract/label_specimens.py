"""Specimens of losses for noisy labels and for stored soft labels."""

from functools import partial
from typing import Any

import torch
from tests.contract.specimen import Draw, Specimen
from torch import Tensor

EARLY = "heterodox.losses.early_learning"
DISTILLATION = "heterodox.losses.distillation"

CLASSES, EXAMPLES, KEPT = 7, 5, 3


def probabilities(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, CLASSES, generator=generator, dtype=torch.float64).softmax(-1)


SOFT = probabilities(1)


def logits_and_indices(draw: Draw) -> tuple[Tensor, ...]:
    return draw.normal(draw.batch, CLASSES), draw.below(EXAMPLES, draw.batch)


def logits_labels_and_indices(draw: Draw) -> tuple[Tensor, ...]:
    logits, index = logits_and_indices(draw)
    return logits, draw.below(CLASSES, draw.batch), index


def two_logits(draw: Draw) -> tuple[Tensor, ...]:
    return draw.normal(draw.batch, CLASSES), draw.normal(draw.batch, CLASSES)


# Sums that are 1 in every type.
SURE = torch.tensor([22, 4, 3, 2, 1, 0, 0]) / 32
UNSURE = torch.tensor([10, 8, 6, 3, 2, 2, 1]) / 32
ROWS = torch.stack([row.roll(shift) for row in (SURE, UNSURE) for shift in range(CLASSES)])


def drawn_probabilities(draw: Draw) -> Tensor:
    rows = draw.below(len(ROWS), draw.batch)
    return ROWS.to(draw.device, draw.dtype)[rows]


def logits_and_probabilities(draw: Draw) -> tuple[Tensor, ...]:
    return draw.normal(draw.batch, CLASSES), drawn_probabilities(draw)


def probabilities_and_labels(draw: Draw) -> tuple[Tensor, ...]:
    return drawn_probabilities(draw), draw.below(CLASSES, draw.batch)


def crops_and_probabilities(draw: Draw) -> tuple[Tensor, ...]:
    """Two crops of each image: its partner does not depend on the batch."""
    soft = draw.normal(draw.batch, 2, CLASSES).softmax(-1)
    return draw.normal(draw.batch, 2, 1, draw.head_dim, draw.length), soft


def images(draw: Draw) -> tuple[Tensor]:
    return (draw.normal(draw.batch, 1, 8, 6),)


def with_targets(component: Any, draw: Draw, **options: Any) -> Any:
    loss = component(EXAMPLES, CLASSES, **options)
    loss.targets.copy_(0.5 * probabilities(EXAMPLES))
    return loss


def plus(loss: Any, input: Tensor, peer: Tensor, index: Tensor) -> Tensor:
    """A step of ELR+ whose labels are what the targets say."""
    targets = loss.update(peer, index)
    return loss(input, targets.softmax(-1), targets, 3)


def peers_and_indices(draw: Draw) -> tuple[Tensor, ...]:
    return *two_logits(draw), draw.below(EXAMPLES, draw.batch)


def compressed(component: Any, rows: Tensor) -> Any:
    """Soft labels of as many rows, the same whatever the rows are."""
    soft = SOFT.to(rows).expand(len(rows), CLASSES)
    values, indices = soft.topk(KEPT)
    return component(indices.to(rows.device), values.to(rows), CLASSES)


def soft_labels() -> Any:
    from heterodox.losses.distillation import SoftLabels

    return SoftLabels


def stored(draw: Draw) -> tuple[Tensor]:
    return (draw.normal(draw.batch, KEPT).softmax(-1) / 2,)


def in_order(component: Any, values: Tensor) -> Any:
    indices = torch.arange(KEPT, device=values.device).expand(len(values), KEPT)
    return component(indices, values, CLASSES)


def bank(component: Any, draw: Draw) -> Any:
    weight = torch.randn(4, 48, generator=torch.Generator().manual_seed(0))
    return component.build(
        lambda crops: crops.flatten(1) @ weight.T,
        torch.rand(2, 1, 8, 6, generator=torch.Generator().manual_seed(1)),
        num_crops=3,
        k=2,
        generator=torch.Generator().manual_seed(2),
    )


def sum_of_crops(bank: Any, images: Tensor) -> Tensor:
    """All crops of the first image's boxes, in whatever order, for images in any arrangement."""
    images = images.flatten(0, -4)
    index = torch.zeros(len(images), dtype=torch.int64)
    return bank.crops(images, index, 3, torch.Generator().manual_seed(0))[0].sum(1)


def mixed(self_mix: Any, images: Tensor, soft: Tensor) -> Tensor:
    """Images and labels in one row."""
    parts = self_mix(images, soft, generator=torch.Generator().manual_seed(0))
    return torch.cat([part.flatten(1) for part in parts], dim=1)


DRAWN = "what is drawn comes from a generator on the CPU"
NO_TENSOR = {"shape types": "takes no tensor: the try multiplies one by its result"}
UNCHECKED = {"shape types": "a NamedTuple does not check what it is given"}

SPECIMENS = (
    Specimen(
        f"{EARLY}:early_learning_regularizer",
        lambda d: (d.normal(d.batch, CLASSES),),
        call=lambda c, z: c(z, SOFT.to(z).expand(len(z), CLASSES), "none"),
        bad=(
            ("targets", lambda c, x: c(x[0], x[0][:, :2])),
            ("clamp", lambda c, x: c(x[0], x[0], clamp=0.5)),
            ("reduction", lambda c, x: c(x[0], x[0], reduction="average")),
        ),
    ),
    Specimen(
        f"{EARLY}:update_targets",
        logits_and_indices,
        call=lambda c, z, i: c(torch.zeros(EXAMPLES, CLASSES).to(z), z, i, 0.5),
        limits={"backward": "a running average, which gets no gradient"},
        bad=(
            ("index", lambda c, x: c(torch.zeros(1, CLASSES), x[0], x[1] + 1, 0.5)),
            ("momentum", lambda c, x: c(torch.zeros(EXAMPLES, CLASSES), *x, 1.0)),
        ),
    ),
    Specimen(
        f"{EARLY}:sigmoid_rampup",
        lambda d: (d.normal(d.batch),),
        call=lambda c, x: x * c(3, 10),
        limits=NO_TENSOR,
        bad=(("length", lambda c, x: c(1, -1)),),
    ),
    Specimen(
        f"{EARLY}:EarlyLearningLoss",
        logits_labels_and_indices,
        make=with_targets,
        batch="reduced",
        bad=(
            ("momentum", lambda c, x: c(EXAMPLES, CLASSES, momentum=1.0)),
            ("input", lambda c, x: c(EXAMPLES, 2)(*x)),
            ("index", lambda c, x: c(EXAMPLES, CLASSES)(*x[:2], x[2] - EXAMPLES)),
        ),
    ),
    Specimen(
        f"{EARLY}:EarlyLearningLoss",
        logits_labels_and_indices,
        make=partial(with_targets, reduction="none", strength=1.0),
        case="each",
    ),
    Specimen(
        f"{EARLY}:EarlyLearningPlusLoss",
        peers_and_indices,
        make=partial(with_targets, reduction="none", reweight_labels=True),
        call=plus,
        bad=(
            ("rampup_steps", lambda c, x: c(EXAMPLES, CLASSES, rampup_steps=-1)),
            ("soft_target", lambda c, x: c(EXAMPLES, CLASSES)(x[0], x[1][:1], x[0], 0)),
        ),
    ),
    Specimen(
        f"{DISTILLATION}:soft_cross_entropy",
        logits_and_probabilities,
        make=lambda c, d: partial(c, temperature=2.0, reduction="none"),
        bad=(
            ("target", lambda c, x: c(x[0], x[1][:1])),
            ("target", lambda c, x: c(x[0], 2 * x[1])),
            ("temperature", lambda c, x: c(*x, temperature=0.0)),
        ),
    ),
    Specimen(
        f"{DISTILLATION}:FerKDLoss",
        logits_and_probabilities,
        make=lambda c, d: c(),
        batch="reduced",
        bad=(("temperature", lambda c, x: c(temperature=0.0)),),
    ),
    Specimen(
        f"{DISTILLATION}:compressed_cross_entropy",
        lambda d: (d.normal(d.batch, CLASSES),),
        call=lambda c, z: c(z, compressed(soft_labels(), z), reduction="none"),
        bad=(("soft_labels", lambda c, x: c(x[0][:1], compressed(soft_labels(), x[0]))),),
    ),
    Specimen(
        f"{DISTILLATION}:compress_soft_labels",
        lambda d: (drawn_probabilities(d),),
        make=lambda c, d: partial(c, k=KEPT),
        call=lambda c, p: c(p).values,
        bad=(
            ("k", lambda c, x: c(x[0], CLASSES + 1)),
            ("probabilities", lambda c, x: c(2 * x[0])),
        ),
    ),
    Specimen(
        f"{DISTILLATION}:recover_soft_labels",
        stored,
        call=lambda c, v: c(in_order(soft_labels(), v)),
        limits=UNCHECKED,
        bad=(("how", lambda c, x: c(in_order(soft_labels(), x[0]), how="linear")),),
    ),
    Specimen(
        f"{DISTILLATION}:SoftLabels",
        stored,
        call=lambda c, v: in_order(c, v).values * 2,
        limits=UNCHECKED,
    ),
    Specimen(
        f"{DISTILLATION}:calibrate_soft_labels",
        probabilities_and_labels,
        make=lambda c, d: partial(c, lower=0.6),
        call=lambda c, p, labels: c(p, labels)[0],
        bad=(
            ("labels", lambda c, x: c(x[0], x[1] + CLASSES, 0.5)),
            ("lower", lambda c, x: c(*x, 0.9, 0.5)),
        ),
    ),
    Specimen(
        f"{DISTILLATION}:self_mix",
        crops_and_probabilities,
        call=mixed,
        graph_breaks=DRAWN,
        bad=(
            ("images", lambda c, x: c(x[0][:, :1], x[1][:, :1])),
            ("mode", lambda c, x: c(*x, mode="paste")),
        ),
    ),
    Specimen(
        f"{DISTILLATION}:SoftLabelBank",
        images,
        make=bank,
        call=sum_of_crops,
        graph_breaks=DRAWN,
        limits={"shape types": "takes images of whole numbers, and one image or a batch"},
        bad=(
            ("count", lambda c, x: bank(c, Draw()).crops(x[0][0], 0, 4)),
            ("index", lambda c, x: bank(c, Draw()).crops(x[0][0], 2, 1)),
        ),
    ),
)
