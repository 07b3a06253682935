"""Boosted networks: fitting them and predicting with them, beside scikit-learn's and the authors'.

The problem is breast cancer as numbers, 569 rows of 30 standardised features: the authors' package
takes its own classifiers for regressors with recent versions of scikit-learn, and the fit of a
piece is the same. Classifiers take the numbers 0 and 1 for classes.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler

from heterodox.bench.workload import Case, Workload
from heterodox.learning.boosting import BoostedNetworkClassifier, BoostedNetworkRegressor


def workload() -> Workload:
    return Workload(
        facts={
            "rows and features": "569 x 30",
            "subsample": "all rows",
            "iterations a piece": "at most 200",
            "size": "hidden units, added one by one",
        },
        cases=cases,
        prepare=prepare,
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """Fitting and predicting with so many units.

    Raises:
        ValueError: a size is no positive whole number.
    """
    for size in sizes:
        if not size.isdecimal() or int(size) < 1:
            raise ValueError(f"sizes: {size!r} given, a number of hidden units expected")
    return [Case(size, passes) for size in sizes for passes in ("fit", "predict")]


def prepare(make: Callable[[int], Any], case: Case, device: str) -> Callable[[], object]:
    """A call of `fit`, or of `predict` after one.

    Raises:
        ValueError: `device` is not the CPU.
    """
    if device != "cpu":
        raise ValueError(f"device: {device!r} given, 'cpu' expected")
    x, y = load_breast_cancer(return_X_y=True)
    x, y = StandardScaler().fit_transform(x), y.astype(np.float64)
    units = int(case.size)
    if case.passes == "fit":
        return lambda: _fitted(make(units), x, y)
    model = _fitted(make(units), x, y)
    return lambda: model.predict(x)


def _fitted(model: Any, x: np.ndarray, y: np.ndarray) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    return model


boosted = partial(BoostedNetworkRegressor, subsample=1.0, random_state=0)
boosted_classifier = partial(BoostedNetworkClassifier, subsample=1.0, random_state=0)


def mlp(units: int) -> Any:
    """scikit-learn's network of the same size, trained as a whole by L-BFGS."""
    return MLPRegressor(
        hidden_layer_sizes=(units,), activation="logistic", solver="lbfgs", random_state=0
    )


def mlp_classifier(units: int) -> Any:
    """The same network on classes."""
    return MLPClassifier(
        hidden_layer_sizes=(units,), activation="logistic", solver="lbfgs", random_state=0
    )


def boosted_trees(units: int) -> Any:
    """scikit-learn's gradient-boosted trees on classes, one tree in the place of each unit."""
    return HistGradientBoostingClassifier(max_iter=units, random_state=0)


def gbnn(units: int) -> Any:
    """The authors' package."""
    from gbnn import GNEGNERegressor

    return GNEGNERegressor(total_nn=units, subsample=1, random_state=0)
