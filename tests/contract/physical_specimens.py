"""Specimens of physical layers and of local learning around them."""

from typing import Any

from tests.contract.specimen import Draw, Specimen
from torch import Tensor, nn

from heterodox.learning.physical import PhysicalLayer, ScatteringCavity

PHYSICAL = "heterodox.learning.physical"

CLASSES, READINGS = 2, 3


def rows(draw: Draw) -> tuple[Tensor]:
    return (draw.normal(draw.batch, draw.width),)


def rows_and_labels(draw: Draw) -> tuple[Tensor, ...]:
    return *rows(draw), draw.below(CLASSES, draw.batch)


def rows_and_target(draw: Draw) -> tuple[Tensor, ...]:
    return *rows(draw), draw.normal(draw.width)


def goods(draw: Draw) -> tuple[Tensor, ...]:
    return draw.normal(draw.batch), draw.normal(draw.batch)


def of_two_classes(overlay: Any, x: Tensor, label: Tensor) -> Tensor:
    return overlay(x, label, CLASSES)


def simulated(layer: Any, x: Tensor) -> Tensor:
    return layer.simulate(x)


class Rectifier(PhysicalLayer):
    """The least that a physical layer must say."""

    def respond(self, x: Tensor) -> Tensor:
        return x.abs()


def cavity(inputs: int) -> nn.Module:
    return ScatteringCavity(inputs, READINGS, modes=5)


def twin_of(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 6), nn.SiLU(), nn.Linear(6, READINGS))


BLACK = {"backward": "a reading has no gradient, which is the point"}
OF_BATCH = {
    **BLACK,
    "rows": "a label is marked by the largest number of the batch",
}
OF_LAYER = (
    ("out_features", lambda c, x: c(4, 0)),
    ("noise", lambda c, x: c(4, 3, noise=-1.0)),
    ("x", lambda c, x: c(9, 3)(x[0])),
)
OF_NETWORK = (
    ("num_classes", lambda c, x: c([cavity(8)], 8, 1)),
    ("features", lambda c, x: c([cavity(8)], 8, 9)),
    ("theta", lambda c, x: c([cavity(8)], 8, 2, theta=0.0)),
    ("lr", lambda c, x: c([cavity(8)], 8, 2, lr=0.0)),
    ("physics", lambda c, x: c([cavity(7)], 8, 2)),
    ("activation", lambda c, x: c([cavity(8)], 8, 2, activation="tanh")),
    ("x", lambda c, x: c([cavity(9)], 9, 2)(x[0])),
)

SPECIMENS = (
    Specimen(
        f"{PHYSICAL}:PhysicalLayer",
        rows,
        make=lambda c, d: Rectifier(d.width, d.width),
        limits=BLACK,
        bad=(
            ("in_features", lambda c, x: c(0, 3)),
            ("strength", lambda c, x: c(4, 4).drift(float("nan"))),
            *OF_LAYER,
        ),
    ),
    Specimen(
        f"{PHYSICAL}:BlackBox",
        rows,
        make=lambda c, d: c(abs, d.width, d.width),
        limits={
            **BLACK,
            "other device": "the function takes NumPy arrays, which 'meta' has none of",
        },
        bad=(("function", lambda c, x: c(lambda a: a[:, :1], 8, 8)(x[0])),),
    ),
    Specimen(
        f"{PHYSICAL}:ScatteringCavity",
        rows,
        make=lambda c, d: c(d.width, READINGS),
        call=simulated,
        bad=(
            ("modes", lambda c, x: c(4, 3, modes=0)),
            ("saturation", lambda c, x: c(4, 3, saturation=0.0)),
            *OF_LAYER,
        ),
    ),
    Specimen(
        f"{PHYSICAL}:MultimodeFiber",
        rows,
        make=lambda c, d: c(d.width, READINGS),
        call=simulated,
        bad=OF_LAYER,
    ),
    Specimen(
        f"{PHYSICAL}:ProgrammableCavity",
        rows,
        make=lambda c, d: c(d.width, READINGS),
        call=simulated,
        bad=OF_LAYER,
    ),
    Specimen(
        f"{PHYSICAL}:ProgrammableCavity",
        rows,
        make=lambda c, d: c(d.width, READINGS, bits=True),
        case="bits",
        limits=BLACK,
    ),
    Specimen(
        f"{PHYSICAL}:DigitalTwin",
        rows,
        make=lambda c, d: c(twin_of(d.width)),
        limits=BLACK,
        bad=(
            ("module", lambda c, x: c(nn.Tanh())),
            ("noise", lambda c, x: c(nn.Linear(2, 2), noise=-1.0)),
        ),
    ),
    Specimen(
        f"{PHYSICAL}:fit_twin",
        lambda d: (d.normal(6, 4), d.normal(6, 2)),
        call=lambda f, x, y: f(x.detach(), y.detach(), hidden=(3,), epochs=2)(x.detach()).detach(),
        batch="none",
        limits={
            "backward": "a twin is fitted by a loop of its own",
            "bfloat16": "Adam's small steps are lost in half precision",
            "other device": "what is fitted must be finite, which needs numbers",
            "compile": "an optimizer steps inside of the call",
        },
        bad=(
            ("y", lambda c, x: c(x[0], x[1][:1])),
            ("x", lambda c, x: c(x[0].half(), x[1].half())),
            ("epochs", lambda c, x: c(*x, epochs=0)),
            ("lr", lambda c, x: c(*x, lr=0.0)),
        ),
    ),
    Specimen(
        f"{PHYSICAL}:overlay_label",
        rows_and_labels,
        call=of_two_classes,
        limits={"rows": "a label is marked by the largest number of the batch"},
        bad=(
            ("num_classes", lambda c, x: c(*x, 1)),
            ("label", lambda c, x: c(x[0], x[1] + 2, 2)),
            ("x", lambda c, x: c(*x, 99)),
        ),
    ),
    Specimen(
        f"{PHYSICAL}:cosine_goodness",
        rows_and_target,
        batch="none",
        bad=(
            ("target", lambda c, x: c(x[0], x[1][:1])),
            ("activation", lambda c, x: c(*x, activation="relu")),
            ("eps", lambda c, x: c(*x, eps=0.0)),
        ),
    ),
    Specimen(
        f"{PHYSICAL}:local_contrast_loss",
        goods,
        batch="reduced",
        limits={"empty batch": "the mean over no rows is refused"},
        bad=(
            ("good_neg", lambda c, x: c(x[0], x[1][:1])),
            ("good_pos", lambda c, x: c(x[0][:0], x[1][:0])),
            ("theta", lambda c, x: c(*x, theta=0.0)),
        ),
    ),
    Specimen(
        f"{PHYSICAL}:PhysicalNetwork",
        rows,
        make=lambda c, d: c([cavity(d.width), cavity(d.width)], d.width, CLASSES),
        limits=OF_BATCH,
        bad=OF_NETWORK,
    ),
    Specimen(
        f"{PHYSICAL}:PhysicsAwareNetwork",
        rows,
        make=lambda c, d: c([cavity(d.width), cavity(d.width)], d.width, CLASSES),
        limits=BLACK,
        bad=(
            *OF_NETWORK,
            ("mode", lambda c, x: c([cavity(8)], 8, 2, mode="both")),
            ("twin", lambda c, x: c([cavity(8)], 8, 2, mode="aware")),
        ),
    ),
)
