"""Claims of "Sequential Training of Neural Networks with Gradient Boosting", arXiv 1909.12098."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier, MLPRegressor

from heterodox.data.images import load_images
from heterodox.data.tabular import load_tabular, split_table
from heterodox.experiment import AtLeast, AtMost, Measurement, NoWorseThan, Paper, Scale
from heterodox.learning.boosting import BoostedNetworkClassifier, BoostedNetworkRegressor
from heterodox.tasks import images
from heterodox.training.seeding import derived_seed

paper = Paper.load("boosted-network")

CLASSES = {
    Scale.SMOKE: ("wine",),
    Scale.LAPTOP: ("breast-cancer", "wine", "digits"),
    Scale.PAPER: (
        "breast-cancer",
        "wine",
        "digits",
        *(
            f"uci-classification/{name}"
            for name in ("credit.g", "diabetes", "ionosphere", "segment", "sonar", "vehicle")
        ),
    ),
}
NUMBERS = {
    Scale.SMOKE: ("diabetes",),
    Scale.LAPTOP: ("diabetes", "uci-energy"),
    Scale.PAPER: ("diabetes", "uci-energy", "uci-boston", "uci-power-plant", "california-housing"),
}
UNITS = {Scale.SMOKE: 6, Scale.LAPTOP: 50, Scale.PAPER: 200}
ROWS = {Scale.SMOKE: 120, Scale.LAPTOP: 900, Scale.PAPER: None}
FOLDS = {Scale.SMOKE: 2, Scale.LAPTOP: 3, Scale.PAPER: 5}

# Six settings an arm, chosen by cross-validation inside the training part of each split.
GRIDS: dict[str, dict[str, list[Any]]] = {
    "GBNN": {"hidden_per_step": [1, 3], "learning_rate": [0.1, 0.5, 1.0]},
    "MLP, L-BFGS": {"alpha": [1e-4, 1e-1, 10.0], "hidden_layer_sizes": ["half", "all"]},
    "MLP, Adam": {"alpha": [1e-4, 1e-1, 10.0], "learning_rate_init": [1e-3, 1e-2]},
    "boosted trees": {"learning_rate": [0.05, 0.1, 0.2], "max_leaf_nodes": [7, 31]},
}


# Enough to converge, or nearly so: with 200 iterations in all, or batches of a third of the rows,
# networks that are trained as a whole would be stopped early, and each piece would not.
SOLVERS: dict[str, dict[str, Any]] = {
    "MLP, L-BFGS": {"solver": "lbfgs", "max_iter": 2000},
    "MLP, Adam": {"solver": "adam", "max_iter": 200, "batch_size": 32, "tol": 0.0},
}


def estimator(arm: str, kind: str, units: int, seed: int) -> Any:
    """An arm's estimator before it is tuned."""
    classifies = kind == "classification"
    if arm == "GBNN":
        boosted = BoostedNetworkClassifier if classifies else BoostedNetworkRegressor
        return boosted(units, random_state=seed)
    if arm == "boosted trees":
        trees = HistGradientBoostingClassifier if classifies else HistGradientBoostingRegressor
        return trees(max_iter=100, random_state=seed)
    mlp = MLPClassifier if classifies else MLPRegressor
    return mlp(
        hidden_layer_sizes=(units,), activation="logistic", random_state=seed, **SOLVERS[arm]
    )


def grid(arm: str, units: int) -> dict[str, list[Any]]:
    widths = {"half": (units // 2,), "all": (units,)}
    found = dict(GRIDS[arm])
    if "hidden_layer_sizes" in found:
        found["hidden_layer_sizes"] = [widths[size] for size in found["hidden_layer_sizes"]]
    return found


def tuned(arm: str, kind: str, x: np.ndarray, y: np.ndarray, scale: Scale, seed: int) -> Any:
    """The best of the arm's settings, fitted to all of x and y."""
    model = estimator(arm, kind, UNITS[scale], seed)
    folds = StratifiedKFold if kind == "classification" else KFold
    search = GridSearchCV(
        model,
        grid(arm, UNITS[scale]),
        cv=folds(FOLDS[scale], shuffle=True, random_state=seed),
        scoring="accuracy" if kind == "classification" else "neg_root_mean_squared_error",
    )
    with warnings.catch_warnings():
        # Adam makes all its epochs, and counts that as no convergence.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return search.fit(x, y).best_estimator_


def error(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Wrong answers [%], or the root mean square error in standard deviations of the target [%]."""
    if is_classifier(model):
        return 100 * float((model.predict(x) != y).mean())
    return 100 * float(np.sqrt(np.square(model.predict(x) - y).mean()))


def without_half_of_its_units(model: Any) -> Any:
    """The later half of a boosted network's pieces are left out; of an MLP, the hidden units with
    the smallest output weights."""
    if hasattr(model, "truncate"):
        return model.truncate(max(1, model.n_steps_ // 2))
    sizes = np.linalg.norm(model.coefs_[1], axis=1)
    model.coefs_[1] = np.where(
        (sizes.argsort().argsort() >= len(sizes) // 2)[:, None], model.coefs_[1], 0.0
    )
    return model


def merging_error(model: Any, x: np.ndarray) -> float:
    """Largest difference of the merged network from the sum of the pieces."""
    classifies = is_classifier(model)
    *_, last = (model.staged_decision_function if classifies else model.staged_predict)(x)
    factor = 2.0 if last.ndim == 1 and classifies else 1.0
    outputs = model.to_torch()(torch.from_numpy(x)).detach().numpy().reshape(last.shape)
    return float(np.abs(outputs - factor * last).max())


@paper.claim(
    name="classifies_as_well_as_trained_networks",
    says="A boosted network classifies as well as one of the same size that is trained as a whole.",
    reported="best or second best average rank on about a dozen sets, mostly within a deviation",
    metric="mean test error over the sets [%]",
    expects=(
        NoWorseThan("MLP, L-BFGS", margin=1.0, arm="GBNN"),
        NoWorseThan("MLP, Adam", margin=1.0, arm="GBNN"),
    ),
    reads="classification error",
    arms=tuple(GRIDS),
    seeds=10,
)
@paper.claim(
    name="predicts_numbers_as_well_as_trained_networks",
    says="In regression, too, it is as good as a network that is trained as a whole.",
    reported="competitive with networks trained by Adam, L-BFGS and SGD",
    metric="mean root mean square test error over the sets [% of the target's deviation]",
    expects=(
        NoWorseThan("MLP, L-BFGS", margin=3.0, arm="GBNN"),
        NoWorseThan("MLP, Adam", margin=3.0, arm="GBNN"),
    ),
    reads="regression error",
    arms=tuple(GRIDS),
    seeds=10,
)
@paper.claim(
    name="later_units_can_be_switched_off",
    says="The later half of its units can be switched off at test time, unlike half of the units "
    "of a network that is trained as a whole.",
    reported="less than a point of accuracy is lost with half of the units",
    metric="points of test error gained without half of the hidden units",
    expects=(AtMost("GBNN", 1.0), AtLeast("MLP, L-BFGS", 3.0)),
    reads="error gained without half of the units",
    arms=("GBNN", "MLP, L-BFGS"),
    seeds=10,
)
@paper.claim(
    name="pieces_are_one_network",
    says="All pieces together are one ordinary network with one hidden layer.",
    reported="by construction",
    metric="largest difference of its outputs from the sum of the pieces",
    expects=AtMost("GBNN", 1e-9),
    reads="difference of the merged network",
    arms=("GBNN",),
    seeds=10,
)
def tables(seed: int, scale: Scale) -> dict[str, Measurement]:
    """Small tables of classes (breast cancer, wine, handwritten digits) and of numbers (diabetes,
    energy) are cut at random into 80 % for training and 20 % for testing, at most 900 rows of each.
    Every arm chooses one of six settings by cross-validation in three folds of the training part.
    Networks have 50 hidden units; a piece has up to 200 iterations of L-BFGS, a network that is
    trained as a whole 2000, or 200 epochs of Adam with batches of 32. Units are left out of the
    networks that classify.

    Differs from the paper: five sets, random cuts and six settings an arm, where the paper has ten
    folds on a dozen sets, 200 units and a grid of sixty.
    """
    found = {arm: Measurement(0.0) for arm in GRIDS}
    errors: dict[str, dict[str, list[float]]] = {arm: {} for arm in GRIDS}
    for name in (*CLASSES[scale], *NUMBERS[scale]):
        split = split_table(load_tabular(name), seed=seed, rows=ROWS[scale])
        x = np.concatenate([split.train_x.numpy(), split.validation_x.numpy()]).astype(np.float64)
        y = np.concatenate([split.train_y.numpy(), split.validation_y.numpy()])
        kind = "classification" if split.class_names else "regression"
        test_x, test_y = split.test_x.numpy().astype(np.float64), split.test_y.numpy()
        if kind == "regression":
            y, test_y = y[:, 0], test_y[:, 0]
        for arm, readings in errors.items():
            model = tuned(arm, kind, x, y, scale, derived_seed(seed, arm) % 2**31)
            whole = error(model, test_x, test_y)
            readings.setdefault(kind, []).append(whole)
            found[arm].readings[f"error on {name}"] = whole
            if arm == "GBNN":
                readings.setdefault("merged", []).append(merging_error(model, test_x))
            if arm in ("GBNN", "MLP, L-BFGS") and kind == "classification":
                halved = error(without_half_of_its_units(model), test_x, test_y)
                readings.setdefault("halved", []).append(halved - whole)
    for arm, readings in errors.items():
        found[arm].readings["classification error"] = float(np.mean(readings["classification"]))
        found[arm].readings["regression error"] = float(np.mean(readings["regression"]))
        if "halved" in readings:
            gained = float(np.mean(readings["halved"]))
            found[arm].readings["error gained without half of the units"] = gained
        if "merged" in readings:
            found[arm].readings["difference of the merged network"] = max(readings["merged"])
    return {
        arm: replace(run, value=run.readings["classification error"]) for arm, run in found.items()
    }


@paper.claim(
    says="Boosting trains the last layers of a deep network as well as backpropagation does.",
    reported="competitive with the dense layers of convolutional networks on MNIST and CIFAR-10",
    metric="test accuracy [%]",
    better="higher",
    expects=NoWorseThan("dense head, Adam", margin=0.5, arm="GBNN head"),
    arms=("dense head, Adam", "GBNN head"),
    seeds=5,
)
def final_layers(seed: int, scale: Scale) -> dict[str, Measurement]:
    """A small convolutional network learns Fashion-MNIST; the features before its last layer are
    then given to a boosted network and to a network trained by Adam, both with one hidden layer of
    the same width. Each has one of its settings chosen by cross-validation.

    Differs from the paper: a small trunk and 3000 images, where the paper has large ones.
    """
    data = load_images("digits" if scale is Scale.SMOKE else "fashion-mnist")
    run = images.train(model="cnn", data=data, seed=seed, settings=images.SETTINGS[scale])

    @torch.no_grad()
    def features(pictures: torch.Tensor) -> np.ndarray:
        maps = run.model.get_submodule("features")(run.normalise(pictures))
        return maps.mean(dim=(2, 3)).double().numpy()

    count = {Scale.SMOKE: 120, Scale.LAPTOP: 3000, Scale.PAPER: 50_000}[scale]
    picked = torch.randperm(
        len(data.train_labels),
        generator=torch.Generator().manual_seed(derived_seed(seed, "features")),
    )[:count]
    x, y = features(data.train_images[picked]), data.train_labels[picked].numpy()
    test_x, test_y = features(data.test_images[:2000]), data.test_labels[:2000].numpy()
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    x, test_x = (x - mean) / deviation, (test_x - mean) / deviation
    found = {}
    for name, arm in (("dense head, Adam", "MLP, Adam"), ("GBNN head", "GBNN")):
        head = tuned(arm, "classification", x, y, scale, derived_seed(seed, arm) % 2**31)
        found[name] = Measurement(100 - error(head, test_x, test_y))
    return found
