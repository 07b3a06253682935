"""Parallel updates of a Hopfield network: by factors, and by the matrix of couplings."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from heterodox.bench.workload import Case, Target, Workload, check_sizes
from heterodox.energy.multitasking_hopfield import MultitaskingHopfield
from heterodox.energy.sampling import sample_spins

BETA, STEPS = 20.0, 10

TARGETS = (Target("factors", "time", "4000x60x8", f"{STEPS} steps", 0.1),)

Run = Callable[[Tensor], object]
"""From first spins to spins after `STEPS` steps."""


def workload() -> Workload:
    return Workload(
        facts={
            "inverse temperature": f"{BETA:g}",
            "dtype": "float32; float64 in hopfieldnetwork",
            "size": "neurons x rows of factors x replicas",
        },
        cases=cases,
        prepare=prepare,
        targets=TARGETS,
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """One a size.

    Raises:
        ValueError: a size is not of the form 4000x60x8.
    """
    check_sizes(sizes, "neurons x rows x replicas", "4000x60x8")
    return [Case(size, f"{STEPS} steps") for size in sizes]


def prepare(make: Callable[[Tensor], Run], case: Case, device: str) -> Callable[[], object]:
    """A call of `make(factors)(spins)`; what is made from the factors is made before."""
    neurons, rows, replicas = map(int, case.size.split("x"))
    generator = torch.Generator().manual_seed(0)
    factors, spins = (
        torch.randint(2, (count, neurons), generator=generator) * 2.0 - 1
        for count in (rows, replicas)
    )
    run, spins = make(factors.to(device)), spins.to(device)
    return lambda: run(spins)


def by_factors(factors: Tensor) -> Run:
    network = MultitaskingHopfield(factors)
    return lambda spins: network.sample(spins, BETA, STEPS)


def dense(factors: Tensor) -> Run:
    """The textbook's matrix, with torch."""
    couplings = (factors.mT @ factors / factors.shape[1]).fill_diagonal_(0.0)

    def run(spins: Tensor) -> Tensor:
        for _ in range(STEPS):
            spins = sample_spins(spins @ couplings, BETA)
        return spins

    return run


def hopfieldnetwork(factors: Tensor) -> Run:
    """The package of that name, one replica after the other, as it has no batch."""
    from hopfieldnetwork import HopfieldNetwork

    network = HopfieldNetwork(N=factors.shape[1])
    matrix = (factors.mT @ factors / factors.shape[1]).fill_diagonal_(0.0)
    network.w = matrix.double().cpu().numpy()

    def run(spins: Tensor) -> list[object]:
        ends = []
        for row in spins.cpu().numpy():
            network.set_initial_neurons_state(row)
            network.update_neurons_with_finite_temp(STEPS, "sync", BETA)
            ends.append(network.S)
        return ends

    return run
