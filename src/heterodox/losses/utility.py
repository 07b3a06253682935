"""Utilities: the loss that learns them and the estimators that read them, under one name.

`utility_learning_loss` and `UtilityLearningLoss` follow from Huang and Fei, "Utility-Probability
Duality of Neural Networks", 2023, arXiv 2305.14859 (see `utility_loss`). The estimators
`utility_to_probability`, with `fit_temperature` and `fit_rank_frequencies`, and
`frequencies_from_dynamics` are our reconstruction of what the paper only announces in its abstract
(see `utility_probability`).
"""

from heterodox.losses.utility_loss import UtilityLearningLoss, utility_learning_loss
from heterodox.losses.utility_probability import (
    best_temperature,
    fit_rank_frequencies,
    fit_temperature,
    frequencies_from_dynamics,
    utility_to_probability,
)

__all__ = [
    "UtilityLearningLoss",
    "best_temperature",
    "fit_rank_frequencies",
    "fit_temperature",
    "frequencies_from_dynamics",
    "utility_learning_loss",
    "utility_to_probability",
]
