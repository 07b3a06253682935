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
    from heterodox.energy.multitasking_hopfield import (
        MultitaskingHopfield,
        SelfConsistency,
        critical_dilution,
        dataset_entropy,
        dataset_normalizer,
        estimate_normalizer,
        estimate_quality,
        examples_needed,
        hebbian_couplings,
        mattis_magnetization,
        recall_free_energy,
        recall_loss,
        sample_examples,
        sample_patterns,
        solve_self_consistency,
        supervised_couplings,
        unsupervised_couplings,
    )
    from heterodox.energy.restricted_boltzmann import RestrictedBoltzmannMachine
    from heterodox.energy.sampling import sample_spins, sample_states

_EXPORTS = {
    "MonotoneBoltzmannMachine": "heterodox.energy.monotone_boltzmann",
    "MonotoneConvBoltzmannMachine": "heterodox.energy.monotone_boltzmann",
    "MultitaskingHopfield": "heterodox.energy.multitasking_hopfield",
    "RestrictedBoltzmannMachine": "heterodox.energy.restricted_boltzmann",
    "SelfConsistency": "heterodox.energy.multitasking_hopfield",
    "SolverInfo": "heterodox.energy.monotone_boltzmann",
    "critical_dilution": "heterodox.energy.multitasking_hopfield",
    "dataset_entropy": "heterodox.energy.multitasking_hopfield",
    "dataset_normalizer": "heterodox.energy.multitasking_hopfield",
    "estimate_normalizer": "heterodox.energy.multitasking_hopfield",
    "estimate_quality": "heterodox.energy.multitasking_hopfield",
    "examples_needed": "heterodox.energy.multitasking_hopfield",
    "focal_completion_loss": "heterodox.energy.monotone_boltzmann",
    "hebbian_couplings": "heterodox.energy.multitasking_hopfield",
    "mattis_magnetization": "heterodox.energy.multitasking_hopfield",
    "monotone_couplings": "heterodox.energy.monotone_boltzmann",
    "prox_softmax": "heterodox.energy.monotone_boltzmann",
    "recall_free_energy": "heterodox.energy.multitasking_hopfield",
    "recall_loss": "heterodox.energy.multitasking_hopfield",
    "sample_examples": "heterodox.energy.multitasking_hopfield",
    "sample_patterns": "heterodox.energy.multitasking_hopfield",
    "sample_spins": "heterodox.energy.sampling",
    "sample_states": "heterodox.energy.sampling",
    "solve_fixed_point": "heterodox.energy.monotone_boltzmann",
    "solve_self_consistency": "heterodox.energy.multitasking_hopfield",
    "supervised_couplings": "heterodox.energy.multitasking_hopfield",
    "unsupervised_couplings": "heterodox.energy.multitasking_hopfield",
}

__all__ = [
    "MonotoneBoltzmannMachine",
    "MonotoneConvBoltzmannMachine",
    "MultitaskingHopfield",
    "RestrictedBoltzmannMachine",
    "SelfConsistency",
    "SolverInfo",
    "critical_dilution",
    "dataset_entropy",
    "dataset_normalizer",
    "estimate_normalizer",
    "estimate_quality",
    "examples_needed",
    "focal_completion_loss",
    "hebbian_couplings",
    "mattis_magnetization",
    "monotone_couplings",
    "prox_softmax",
    "recall_free_energy",
    "recall_loss",
    "sample_examples",
    "sample_patterns",
    "sample_spins",
    "sample_states",
    "solve_fixed_point",
    "solve_self_consistency",
    "supervised_couplings",
    "unsupervised_couplings",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
