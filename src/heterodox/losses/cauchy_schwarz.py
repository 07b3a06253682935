"""The Cauchy-Schwarz divergence as a loss for regression, and as a penalty on what a code keeps.

    D(p; q) = log ∫p² + log ∫q² − 2 log ∫pq  ≥ 0

Unlike the Kullback-Leibler divergence it has a closed form for kernel density estimates, so that
neither a Gaussian output nor a variational bound nor noise in the code is needed. Yu et al., ICLR
2024, arXiv 2404.17951. Here are its parts:

- `heterodox.losses.gaussian_kernels`: Gram matrices and the median width;
- `heterodox.losses.cauchy_schwarz_divergences`: of two samples, of two conditional densities, and
  mutual information;
- `heterodox.losses.gaussian_row_sums`: how memory stays linear in the batch;
- `heterodox.losses.cauchy_schwarz_objective`: both terms of the objective from shared matrices;
- `heterodox.learning.cauchy_schwarz_regressor`: an estimator for scikit-learn.
"""

from heterodox.losses.cauchy_schwarz_divergences import (
    cauchy_schwarz_divergence,
    cauchy_schwarz_mutual_information,
    conditional_cauchy_schwarz_divergence,
)
from heterodox.losses.cauchy_schwarz_objective import (
    CauchySchwarzBottleneckLoss,
    cauchy_schwarz_bottleneck,
)
from heterodox.losses.gaussian_kernels import gaussian_gram, median_bandwidth
from heterodox.slots import lazy_exports

__all__ = [
    "CauchySchwarzBottleneckLoss",
    "cauchy_schwarz_bottleneck",
    "cauchy_schwarz_divergence",
    "cauchy_schwarz_mutual_information",
    "conditional_cauchy_schwarz_divergence",
    "gaussian_gram",
    "median_bandwidth",
]

# The regressor trains, which losses do not: it lives on a higher floor and is looked up there.
__getattr__ = lazy_exports(
    __name__,
    {"CauchySchwarzBottleneckRegressor": "heterodox.learning.cauchy_schwarz_regressor"},
)
