"""Specimens of `heterodox.energy`."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from tests.contract.specimen import Draw, Specimen
from torch import Tensor

MONOTONE = "heterodox.energy.monotone_boltzmann"
SAMPLING = "heterodox.energy.sampling"
HOPFIELD = "heterodox.energy.multitasking_hopfield"

STATES = (3, 2, 3, 1)
SIZE = sum(STATES)
LAYERS = [(4, 4, 4, 2), (3, 2, 2, 3), (2, 1, 1, 2)]
KERNELS = [[3], [3, 3], [0, 1, 1]]
EXACT: dict[str, Any] = {"tolerance": 1e-13, "max_iter": 500}


def numbers(draw: Draw) -> tuple[Tensor]:
    return (draw.normal(draw.batch, draw.length + 1),)


def patterns(draw: Draw) -> tuple[Tensor]:
    x = draw.below(3, draw.length, 2 * draw.head_dim).to(draw.dtype) - 1
    x[:, 0] = 1
    return (x,)


def examples(draw: Draw) -> tuple[Tensor]:
    flips = 2 * draw.below(2, draw.length, 3, 2 * draw.head_dim) - 1
    return (patterns(draw)[0][:, None] * flips,)


def patterns_and_spins(draw: Draw) -> tuple[Tensor, Tensor]:
    """Spins of several replicas; axis 0 of the patterns is none of replicas."""
    spins = 2 * draw.below(2, draw.batch, 2 * draw.head_dim) - 1
    return *patterns(draw), spins.to(draw.dtype)


def rows(draw: Draw) -> tuple[Tensor]:
    return (draw.normal(draw.length, SIZE),)


def potentials_and_targets(draw: Draw) -> tuple[Tensor, ...]:
    seen = draw.below(2, draw.batch, draw.length + 2)
    seen[:, 0] = 0
    target = draw.below(4, draw.batch, draw.length + 2)
    return draw.normal(draw.batch, 4, draw.length + 2), target, seen.to(draw.dtype)


def distributions(draw: Draw, states: int, *shape: int) -> Tensor:
    """(*shape, states): one state, or two with half each, which every dtype holds exactly."""
    first, second = (F.one_hot(draw.below(states, *shape), states) for _ in range(2))
    return (0.5 * (first + second)).to(draw.dtype)


def observation(draw: Draw) -> tuple[Tensor, Tensor]:
    """Distributions of all variables, of which some are observed."""
    values = torch.cat([distributions(draw, s, draw.batch) for s in STATES], 1)
    return values, draw.below(2, draw.batch, len(STATES)).to(draw.dtype)


def image(draw: Draw) -> tuple[Tensor, Tensor]:
    values = distributions(draw, 2, draw.batch, 2, 4, 4).movedim(-1, 2).flatten(1, 2)
    return values, draw.below(2, draw.batch, 2, 4, 4).to(draw.dtype)


def visible(draw: Draw) -> tuple[Tensor, Tensor]:
    values, mask = observation(draw)
    return values, mask.bool()


def layers_joined(machine: Any, values: Tensor, mask: Tensor) -> Tensor:
    maps = machine([values, None, None], [mask, None, None])
    return torch.cat([x.flatten(1) for x in maps], 1)


def solved(solve: Any, start: Tensor) -> Tensor:
    return solve(lambda q: 0.5 * torch.cos(q) + 0.25, start, tolerance=1e-13, max_iter=300)[0]


def energy_of(network: Any, patterns: Tensor, spins: Tensor) -> Tensor:
    return network.from_patterns(patterns).energy(spins)


def sampled_like(sample: Any, x: Tensor) -> Tensor:
    generator = torch.Generator(x.device).manual_seed(0)
    dtype = x.dtype if x.is_floating_point() else torch.float32
    return sample(3, x.shape[-1], 0.3, generator=generator, dtype=dtype, device=x.device)


def as_float(function: Any, x: Tensor) -> Tensor:
    return torch.tensor(function(x), dtype=torch.float64)


def overlaps_found(solve: Any, initial: Tensor) -> Tensor:
    return solve(3, 0.3, 5.0, initial=initial).magnetization


def drawn_examples(sample: Any, x: Tensor) -> Tensor:
    return sample(x, 2, 0.5, generator=torch.Generator(x.device).manual_seed(0))


def drawn_spins(sample: Any, field: Tensor) -> Tensor:
    return sample(field, 0.7, generator=torch.Generator(field.device).manual_seed(0))


def drawn_states(sample: Any, logits: Tensor) -> Tensor:
    return sample(logits, generator=torch.Generator(logits.device).manual_seed(0))


STOPS = "the solver stops when it has converged"
LOOKS = "looks whether what was observed are distributions"
DRAWS = {
    "float32": "torch draws other numbers in another dtype",
    "bfloat16": "torch draws other numbers in another dtype",
    "backward": "a draw has no gradient",
    "rows": "the random numbers of a row depend on its place",
    "compile": "a compiled function takes no generator",
    "other device": "a generator has a device of its own",
}

NUMBERS = {
    "backward": "a number of Python",
    "other device": "a number of Python",
}
CHECKED = {
    "backward": "finite differences leave the entries -1, 0 and 1, which are looked at",
}
LOOKS_AT_ENTRIES = "looks whether entries are -1, 0 and 1"
NO_TENSOR = {"shape types": "takes numbers and no tensor"}

SPECIMENS = (
    Specimen(
        f"{MONOTONE}:prox_softmax",
        numbers,
        make=lambda c, d: partial(c, alpha=0.125),
        bad=(
            ("alpha", lambda c, x: c(x[0], 0.0)),
            ("dim", lambda c, x: c(x[0], 0.5, 2)),
            ("x", lambda c, x: c(x[0][:, :0], 0.5)),
        ),
    ),
    Specimen(
        f"{MONOTONE}:monotone_couplings",
        rows,
        make=lambda c, d: partial(c, states=STATES, monotonicity=0.3),
        batch="none",
        bad=(
            ("A", lambda c, x: c(x[0][:, :3], STATES, 0.3)),
            ("states", lambda c, x: c(x[0], [3, 0], 0.3)),
            ("monotonicity", lambda c, x: c(x[0], STATES, 1.0)),
        ),
    ),
    Specimen(
        f"{MONOTONE}:solve_fixed_point",
        numbers,
        call=solved,
        graph_breaks=STOPS,
        limits={"backward": "implicit_fixed_point has the gradient", "other device": STOPS},
        bad=(
            ("start", lambda c, x: c(torch.cos, x[0].sum())),
            ("solver", lambda c, x: c(torch.cos, x[0], solver="newton")),
            ("tolerance", lambda c, x: c(torch.cos, x[0], tolerance=0.0)),
            ("max_iter", lambda c, x: c(torch.cos, x[0], max_iter=0)),
        ),
    ),
    Specimen(
        f"{MONOTONE}:focal_completion_loss",
        potentials_and_targets,
        make=lambda c, d: partial(c, temperature=1.3, beta=0.9),
        batch="reduced",
        bad=(
            ("potential", lambda c, x: c(x[0][:, :0], *x[1:])),
            ("target", lambda c, x: c(x[0], x[1][:1], x[2])),
            ("mask", lambda c, x: c(x[0], x[1], x[2][:1])),
            ("gamma", lambda c, x: c(*x, gamma=-1.0)),
            ("beta", lambda c, x: c(*x, beta=1.0)),
        ),
    ),
    Specimen(
        f"{MONOTONE}:MonotoneBoltzmannMachine",
        observation,
        make=lambda c, d: c(STATES, **EXACT),
        graph_breaks=STOPS,
        tolerance={torch.float32: 1e-4},
        limits={"other device": LOOKS},
        bad=(
            ("states", lambda c, x: c([])),
            ("rank", lambda c, x: c(STATES, rank=0)),
            ("alpha", lambda c, x: c(STATES, alpha=0.0)),
            ("monotonicity", lambda c, x: c(STATES, monotonicity=0.0)),
            ("observed", lambda c, x: c(STATES)(0 * x[0].float())),
            ("mask", lambda c, x: c(STATES)(x[0].float(), x[1][:, :2])),
        ),
    ),
    Specimen(
        f"{MONOTONE}:MonotoneConvBoltzmannMachine",
        image,
        make=lambda c, d: c(LAYERS, KERNELS, **EXACT),
        call=layers_joined,
        graph_breaks=STOPS,
        tolerance={torch.float32: 1e-4},
        limits={"other device": LOOKS},
        bad=(
            ("layers", lambda c, x: c([], [])),
            ("kernels", lambda c, x: c(LAYERS, KERNELS[:2])),
            ("observed", lambda c, x: c(LAYERS, KERNELS)([x[0]])),
            ("mask", lambda c, x: layers_joined(c(LAYERS, KERNELS), x[0].float(), x[1][:, :, 0])),
        ),
    ),
    Specimen(
        "heterodox.energy.restricted_boltzmann:RestrictedBoltzmannMachine",
        visible,
        make=lambda c, d: c(STATES, 5, tolerance=1e-13, max_iter=500),
        graph_breaks=STOPS,
        limits={"backward": "learns by contrastive divergence", "other device": LOOKS},
        bad=(
            ("hidden", lambda c, x: c(STATES, 0)),
            ("observed", lambda c, x: c(STATES, 2)(x[0][:, :2], x[1])),
            ("mask", lambda c, x: c(STATES, 2)(x[0].float(), x[1][:, :2])),
        ),
    ),
    Specimen(
        f"{SAMPLING}:sample_spins",
        numbers,
        call=drawn_spins,
        limits=DRAWS,
        bad=(
            ("beta", lambda c, x: c(x[0], -1.0)),
            ("current", lambda c, x: c(x[0], torch.inf)),
        ),
    ),
    Specimen(
        f"{SAMPLING}:sample_states",
        numbers,
        call=drawn_states,
        limits=DRAWS,
        bad=(("logits", lambda c, x: c(x[0][:, :0])),),
    ),
    Specimen(
        f"{HOPFIELD}:hebbian_couplings",
        patterns,
        batch="none",
        graph_breaks=LOOKS_AT_ENTRIES,
        limits=CHECKED,
        bad=(("patterns", lambda c, x: c(2 * x[0])), ("patterns", lambda c, x: c(x[0][:0]))),
    ),
    Specimen(
        f"{HOPFIELD}:supervised_couplings",
        examples,
        make=lambda c, d: partial(c, quality=0.7),
        batch="none",
        graph_breaks=LOOKS_AT_ENTRIES,
        limits=CHECKED,
        bad=(
            ("examples", lambda c, x: c(0 * x[0])),
            ("examples", lambda c, x: c(0.5 * x[0])),
            ("quality", lambda c, x: c(x[0], 0.0)),
        ),
    ),
    Specimen(
        f"{HOPFIELD}:unsupervised_couplings",
        examples,
        make=lambda c, d: partial(c, quality=0.7),
        batch="none",
        graph_breaks=LOOKS_AT_ENTRIES,
        limits=CHECKED,
        bad=(("examples", lambda c, x: c(x[0][0])), ("quality", lambda c, x: c(x[0], 1.5))),
    ),
    Specimen(
        f"{HOPFIELD}:mattis_magnetization",
        patterns_and_spins,
        batch="none",
        bad=(("spins", lambda c, x: c(x[0], x[1][:, 1:])),),
    ),
    Specimen(
        f"{HOPFIELD}:recall_loss",
        patterns_and_spins,
        batch="none",
        bad=(("spins", lambda c, x: c(x[0], x[1][:, 1:])),),
    ),
    Specimen(
        f"{HOPFIELD}:MultitaskingHopfield",
        patterns_and_spins,
        make=lambda c, d: c,
        call=energy_of,
        batch="none",
        graph_breaks=LOOKS_AT_ENTRIES,
        limits=CHECKED,
        bad=(
            ("factors", lambda c, x: c(x[0][0])),
            ("patterns", lambda c, x: c.from_patterns(3 * x[0])),
            ("examples", lambda c, x: c.from_examples(x[0])),
            ("spins", lambda c, x: c(x[0]).local_field(2 * x[1])),
            ("spins", lambda c, x: c(x[0]).energy(x[1][:, 1:])),
            ("beta", lambda c, x: c(x[0]).sample(x[1], -1.0, 1)),
            ("steps", lambda c, x: c(x[0]).sample(x[1], 1.0, -1)),
            ("dynamics", lambda c, x: c(x[0]).sample(x[1], 1.0, 1, dynamics="other")),
        ),
    ),
    Specimen(
        f"{HOPFIELD}:sample_examples",
        patterns,
        call=drawn_examples,
        batch="none",
        limits={check: reason for check, reason in DRAWS.items() if check == "backward"}
        | {
            "compile": "a compiled function takes no generator",
            "other device": "a generator has a device of its own",
        },
        bad=(
            ("patterns", lambda c, x: c(0.5 * x[0], 2, 0.5)),
            ("num_examples", lambda c, x: c(x[0], 0, 0.5)),
            ("quality", lambda c, x: c(x[0], 2, 0.0)),
        ),
    ),
    Specimen(
        f"{HOPFIELD}:estimate_normalizer",
        examples,
        call=as_float,
        batch="none",
        returns=torch.float64,
        graph_breaks="a number of Python",
        limits=NUMBERS,
        bad=(("examples", lambda c, x: c(0 * x[0])),),
    ),
    Specimen(
        f"{HOPFIELD}:estimate_quality",
        examples,
        call=as_float,
        batch="none",
        returns=torch.float64,
        graph_breaks="a number of Python",
        limits=NUMBERS,
        bad=(("examples", lambda c, x: c(x[0][:, :1])),),
    ),
    Specimen(
        f"{HOPFIELD}:solve_self_consistency",
        lambda d: (0.2 + 0.1 * d.normal(3).abs(),),
        call=overlaps_found,
        batch="none",
        returns=torch.float64,
        graph_breaks="iterates until it has converged",
        limits={"backward": "a measurement", "other device": "solved on the CPU"},
        bad=(
            ("num_patterns", lambda c, x: c(11, 0.3, 1.0)),
            ("dilution", lambda c, x: c(2, 1.0, 1.0)),
            ("beta", lambda c, x: c(2, 0.3, -1.0)),
            ("entropy", lambda c, x: c(2, 0.3, 1.0, entropy=-1.0)),
            ("initial", lambda c, x: c(2, 0.3, 1.0, initial=x[0])),
            ("damping", lambda c, x: c(2, 0.3, 1.0, damping=1.0)),
        ),
    ),
    Specimen(
        f"{HOPFIELD}:recall_free_energy",
        lambda d: (0.2 + 0.1 * d.normal(3).abs(),),
        make=lambda c, d: partial(c, dilution=0.3, beta=2.0, entropy=0.1),
        call=as_float,
        batch="none",
        returns=torch.float64,
        graph_breaks="a number of Python",
        limits=NUMBERS,
        bad=(("dilution", lambda c, x: c(x[0], 1.0, 1.0)),),
    ),
    Specimen(
        f"{HOPFIELD}:sample_patterns",
        patterns,
        call=sampled_like,
        batch="none",
        limits=NO_TENSOR
        | {
            "backward": "a draw has no gradient",
            "compile": "a compiled function takes no generator",
            "other device": "a generator has a device of its own",
        },
        bad=(
            ("num_patterns", lambda c, x: c(0, 3, 0.3)),
            ("size", lambda c, x: c(3, 0, 0.3)),
            ("dilution", lambda c, x: c(3, 3, 1.0)),
        ),
    ),
    Specimen(
        f"{HOPFIELD}:critical_dilution",
        numbers,
        call=lambda c, x: x * c(3),
        limits=NO_TENSOR,
        bad=(("num_patterns", lambda c, x: c(0)),),
    ),
    Specimen(
        f"{HOPFIELD}:dataset_normalizer",
        numbers,
        call=lambda c, x: x * c(5, 0.7),
        limits=NO_TENSOR,
        bad=(("num_examples", lambda c, x: c(0, 0.7)), ("quality", lambda c, x: c(5, 1.7))),
    ),
    Specimen(
        f"{HOPFIELD}:dataset_entropy",
        numbers,
        call=lambda c, x: x * c(5, 0.7),
        limits=NO_TENSOR,
        bad=(("num_examples", lambda c, x: c(0, 0.7)), ("quality", lambda c, x: c(5, 0.0))),
    ),
    Specimen(
        f"{HOPFIELD}:examples_needed",
        numbers,
        call=lambda c, x: x * c(0.3),
        limits=NO_TENSOR,
        bad=(("quality", lambda c, x: c(0.0)), ("confidence", lambda c, x: c(0.3, -1.0))),
    ),
)
