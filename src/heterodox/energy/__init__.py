"""Networks that are defined by an energy: associative memories and Boltzmann machines."""

from typing import TYPE_CHECKING

from heterodox.slots import lazy_exports

if TYPE_CHECKING:
    from heterodox.energy.monotone_boltzmann import (
        MonotoneBoltzmannMachine,
        MonotoneConvBoltzmannMachine,
        SolverInfo,
        focal_completion_loss,
        monotone_couplings,
        prox_softmax,
        solve_fixed_point,
    )
    from heterodox.energy.restricted_boltzmann import RestrictedBoltzmannMachine
    from heterodox.energy.sampling import sample_spins, sample_states

_EXPORTS = {
    "MonotoneBoltzmannMachine": "heterodox.energy.monotone_boltzmann",
    "MonotoneConvBoltzmannMachine": "heterodox.energy.monotone_boltzmann",
    "RestrictedBoltzmannMachine": "heterodox.energy.restricted_boltzmann",
    "SolverInfo": "heterodox.energy.monotone_boltzmann",
    "focal_completion_loss": "heterodox.energy.monotone_boltzmann",
    "monotone_couplings": "heterodox.energy.monotone_boltzmann",
    "prox_softmax": "heterodox.energy.monotone_boltzmann",
    "sample_spins": "heterodox.energy.sampling",
    "sample_states": "heterodox.energy.sampling",
    "solve_fixed_point": "heterodox.energy.monotone_boltzmann",
}

__all__ = [
    "MonotoneBoltzmannMachine",
    "MonotoneConvBoltzmannMachine",
    "RestrictedBoltzmannMachine",
    "SolverInfo",
    "focal_completion_loss",
    "monotone_couplings",
    "prox_softmax",
    "sample_spins",
    "sample_states",
    "solve_fixed_point",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
