"""Losses: cross-entropy, the default, and its alternatives. All take `(input, target, ...)`."""

from typing import TYPE_CHECKING

from heterodox.slots import Slot, lazy_exports

if TYPE_CHECKING:
    from heterodox.losses.cauchy_schwarz import (
        CauchySchwarzBottleneckLoss,
        cauchy_schwarz_bottleneck,
        cauchy_schwarz_divergence,
        cauchy_schwarz_mutual_information,
        conditional_cauchy_schwarz_divergence,
        gaussian_gram,
        median_bandwidth,
    )
    from heterodox.losses.distillation import (
        FerKDLoss,
        SoftLabelBank,
        SoftLabels,
        calibrate_soft_labels,
        compress_soft_labels,
        compressed_cross_entropy,
        recover_soft_labels,
        self_mix,
        soft_cross_entropy,
    )
    from heterodox.losses.early_learning import (
        EarlyLearningLoss,
        EarlyLearningPlusLoss,
        early_learning_regularizer,
        sigmoid_rampup,
        update_targets,
    )
    from heterodox.losses.factored_spherical import FactoredSphericalLinear
    from heterodox.losses.information_penalties import (
        nonlinear_information,
        normalized_hsic,
        variational_information,
    )
    from heterodox.losses.stablemax import (
        StableMaxCrossEntropyLoss,
        log_stablemax,
        stablemax_cross_entropy,
    )
    from heterodox.losses.utility import (
        UtilityLearningLoss,
        fit_rank_frequencies,
        fit_temperature,
        frequencies_from_dynamics,
        utility_learning_loss,
        utility_to_probability,
    )
    from heterodox.losses.z_loss import (
        ZLoss,
        spherical_softmax_loss,
        spherical_squared_loss,
        spherical_statistics,
        taylor_softmax_loss,
    )

LOSSES = Slot(
    "loss",
    {
        "cross-entropy": "torch.nn.functional:cross_entropy",
        "stablemax": "heterodox.losses.stablemax:stablemax_cross_entropy",
        "z-loss": "heterodox.losses.z_loss:z_loss",
        "taylor-softmax": "heterodox.losses.z_loss:taylor_softmax_loss",
        "spherical-softmax": "heterodox.losses.z_loss:spherical_softmax_loss",
        "spherical-squared": "heterodox.losses.z_loss:spherical_squared_loss",
    },
)

INDEXED_LOSSES = Slot("loss", {"elr": "heterodox.losses.early_learning:EarlyLearningLoss"})
"""Losses that keep something of every training example: called with `num_examples` and
`num_classes`, each makes a loss of `(input, target, index)`."""

REGRESSION_LOSSES = Slot(
    "loss",
    {
        "mse": "torch.nn.functional:mse_loss",
        "mae": "torch.nn.functional:l1_loss",
        "huber": "torch.nn.functional:huber_loss",
        "cauchy-schwarz": "heterodox.losses.cauchy_schwarz:cauchy_schwarz_bottleneck",
    },
)
"""Losses for numbers, of `(input, target)`; "cauchy-schwarz" also takes features and code, `x` and
`t`."""

_EXPORTS = {
    "CauchySchwarzBottleneckLoss": "heterodox.losses.cauchy_schwarz",
    "EarlyLearningLoss": "heterodox.losses.early_learning",
    "EarlyLearningPlusLoss": "heterodox.losses.early_learning",
    "FactoredSphericalLinear": "heterodox.losses.factored_spherical",
    "FerKDLoss": "heterodox.losses.distillation",
    "SoftLabelBank": "heterodox.losses.distillation",
    "SoftLabels": "heterodox.losses.distillation",
    "StableMaxCrossEntropyLoss": "heterodox.losses.stablemax",
    "ZLoss": "heterodox.losses.z_loss",
    "cauchy_schwarz_bottleneck": "heterodox.losses.cauchy_schwarz",
    "cauchy_schwarz_divergence": "heterodox.losses.cauchy_schwarz",
    "cauchy_schwarz_mutual_information": "heterodox.losses.cauchy_schwarz",
    "conditional_cauchy_schwarz_divergence": "heterodox.losses.cauchy_schwarz",
    "gaussian_gram": "heterodox.losses.cauchy_schwarz",
    "median_bandwidth": "heterodox.losses.cauchy_schwarz",
    "nonlinear_information": "heterodox.losses.information_penalties",
    "normalized_hsic": "heterodox.losses.information_penalties",
    "variational_information": "heterodox.losses.information_penalties",
    "calibrate_soft_labels": "heterodox.losses.distillation",
    "compress_soft_labels": "heterodox.losses.distillation",
    "compressed_cross_entropy": "heterodox.losses.distillation",
    "early_learning_regularizer": "heterodox.losses.early_learning",
    "log_stablemax": "heterodox.losses.stablemax",
    "recover_soft_labels": "heterodox.losses.distillation",
    "self_mix": "heterodox.losses.distillation",
    "sigmoid_rampup": "heterodox.losses.early_learning",
    "soft_cross_entropy": "heterodox.losses.distillation",
    "spherical_softmax_loss": "heterodox.losses.z_loss",
    "spherical_squared_loss": "heterodox.losses.z_loss",
    "spherical_statistics": "heterodox.losses.z_loss",
    "stablemax_cross_entropy": "heterodox.losses.stablemax",
    "taylor_softmax_loss": "heterodox.losses.z_loss",
    "update_targets": "heterodox.losses.early_learning",
    "UtilityLearningLoss": "heterodox.losses.utility",
    "fit_rank_frequencies": "heterodox.losses.utility",
    "fit_temperature": "heterodox.losses.utility",
    "frequencies_from_dynamics": "heterodox.losses.utility",
    "utility_learning_loss": "heterodox.losses.utility",
    "utility_to_probability": "heterodox.losses.utility",
}

__all__ = [
    "INDEXED_LOSSES",
    "LOSSES",
    "REGRESSION_LOSSES",
    "CauchySchwarzBottleneckLoss",
    "EarlyLearningLoss",
    "EarlyLearningPlusLoss",
    "FactoredSphericalLinear",
    "FerKDLoss",
    "SoftLabelBank",
    "SoftLabels",
    "StableMaxCrossEntropyLoss",
    "UtilityLearningLoss",
    "ZLoss",
    "calibrate_soft_labels",
    "cauchy_schwarz_bottleneck",
    "cauchy_schwarz_divergence",
    "cauchy_schwarz_mutual_information",
    "compress_soft_labels",
    "compressed_cross_entropy",
    "conditional_cauchy_schwarz_divergence",
    "early_learning_regularizer",
    "fit_rank_frequencies",
    "fit_temperature",
    "frequencies_from_dynamics",
    "gaussian_gram",
    "log_stablemax",
    "median_bandwidth",
    "nonlinear_information",
    "normalized_hsic",
    "recover_soft_labels",
    "self_mix",
    "sigmoid_rampup",
    "soft_cross_entropy",
    "spherical_softmax_loss",
    "spherical_squared_loss",
    "spherical_statistics",
    "stablemax_cross_entropy",
    "taylor_softmax_loss",
    "update_targets",
    "utility_learning_loss",
    "utility_to_probability",
    "variational_information",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
