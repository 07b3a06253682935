import pickle

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from heterodox.learning.boosting import (
    BoostedNetworkClassifier,
    BoostedNetworkRegressor,
    boosting_loss,
)
from heterodox.learning.boosting_piece import Piece, fit_piece

RANDOM = np.random.default_rng(0)


def example(kind, samples=7):
    """Coded targets and scores."""
    if kind == "binary":
        return np.sign(RANDOM.normal(size=samples)), RANDOM.normal(size=samples)
    y = RANDOM.normal(size=(samples, 3))
    y = np.eye(3)[y.argmax(1)] if kind == "multiclass" else y
    return y, RANDOM.normal(size=(samples, 3))


@pytest.mark.parametrize(("kind", "share"), [("squared", 0.5), ("binary", 1), ("multiclass", 1)])
def test_residuals_are_the_negative_gradient_of_the_loss(kind, share):
    loss, (y, F) = boosting_loss(kind), example(kind)
    slope = approx_fprime(F.ravel(), lambda flat: loss.loss(y, flat.reshape(F.shape)).sum(), 1e-7)
    np.testing.assert_allclose(loss.residual(y, F).ravel(), -share * slope, atol=1e-5)


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_the_newton_step_divides_slope_by_curvature(kind):
    loss, (y, F) = boosting_loss(kind), example(kind)
    f = RANDOM.normal(size=F.shape)

    def scores(flat):
        return loss.loss(y, flat.reshape(F.shape)).sum()

    h = 1e-4
    eye = np.eye(F.size) * h
    slope = [(scores(F.ravel() + e) - scores(F.ravel() - e)) / (2 * h) for e in eye]
    curvature = [
        (scores(F.ravel() + e) - 2 * scores(F.ravel()) + scores(F.ravel() - e)) / h**2 for e in eye
    ]
    # The curvature is the diagonal of the Hessian, which for two classes is all of it.
    expected = -(np.array(slope) @ f.ravel()) / (np.array(curvature) @ f.ravel() ** 2)
    assert loss.newton_step(y, F, f) == pytest.approx(expected, rel=1e-4)


def test_the_start_is_the_best_constant():
    y = np.array([1.0, 1.0, 1.0, -1.0, -1.0])
    loss = boosting_loss("binary")
    best = loss.loss(y, np.full(5, loss.initial(y))).mean()
    assert all(loss.loss(y, np.full(5, loss.initial(y) + d)).mean() > best for d in (-0.01, 0.01))
    assert boosting_loss("squared").initial(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist() == [2, 5]


def test_extreme_scores_stay_finite():
    for kind in ("binary", "multiclass"):
        loss, (y, F) = boosting_loss(kind), example(kind)
        for scores in (1e4 * F, -1e4 * F):
            assert np.isfinite(loss.loss(y, scores)).all()
            assert np.isfinite(loss.residual(y, scores)).all()
            assert np.isfinite(loss.newton_step(y, scores, np.ones_like(F)))


def test_a_step_without_curvature_is_zero():
    for kind in ("squared", "binary", "multiclass"):
        loss, (y, F) = boosting_loss(kind), example(kind)
        assert loss.newton_step(y, F, np.zeros_like(F)) == 0


@pytest.mark.parametrize("activation", ["logistic", "tanh", "relu"])
def test_the_gradient_of_a_piece_is_that_of_its_objective(activation, monkeypatch):
    X, r = RANDOM.normal(size=(9, 3)), RANDOM.normal(size=(9, 2))

    def minimize(objective, start, **options):
        value, gradient = objective(start)
        slope = approx_fprime(start, lambda x: objective(x)[0], 1e-7)
        np.testing.assert_allclose(gradient, slope, atol=1e-5)
        W, b, V, c = start[:12].reshape(3, 4), start[12:16], start[16:24].reshape(4, 2), start[24:]
        f = Piece(W, b, V, c).predict(X, activation)
        by_hand = 0.5 * ((r - f) ** 2).sum(1).mean() + 0.3 / 2 / 9 * ((W**2).sum() + (V**2).sum())
        assert value == pytest.approx(by_hand)
        raise StopIteration

    monkeypatch.setattr("heterodox.learning.boosting_piece.minimize", minimize)
    with pytest.raises(StopIteration):
        fit_piece(X, r, 4, activation, 0.3, 10, np.random.RandomState(0))


def load_several_targets(return_X_y):
    X, y = load_diabetes(return_X_y=return_X_y)
    return X, np.stack([y, y**2 / 100], axis=1)


CASES = {
    "binary": (BoostedNetworkClassifier, load_breast_cancer),
    "multiclass": (BoostedNetworkClassifier, load_wine),
    "regression": (BoostedNetworkRegressor, load_diabetes),
    "several targets": (BoostedNetworkRegressor, load_several_targets),
}
REGRESSION = ("regression", "several targets")


def fitted(case, **options):
    estimator, load = CASES[case]
    X, y = load(return_X_y=True)
    X = StandardScaler().fit_transform(X)[::2]
    options = {"max_iter": 40, "random_state": 0} | options
    return estimator(options.pop("n_hidden", 9), **options).fit(X, y[::2]), X, y[::2]


def raw(model, X):
    return getattr(model, "decision_function", model.predict)(X)


@pytest.mark.parametrize("activation", ["logistic", "tanh", "relu"])
@pytest.mark.parametrize("case", CASES)
def test_the_merged_network_is_the_sum_of_its_pieces(case, activation):
    model, X, _ = fitted(case, hidden_per_step=2, learning_rate=0.5, activation=activation)
    assert model.n_steps_ == 4
    staged = getattr(model, "staged_decision_function", model.staged_predict)
    *_, last = staged(X)
    np.testing.assert_allclose(raw(model, X), last, atol=1e-9)
    network = model.to_torch()
    outputs = network(torch.from_numpy(X)).detach().numpy()
    factor = 2 if case == "binary" else 1
    np.testing.assert_allclose(outputs.reshape(last.shape), factor * last, atol=1e-9)
    assert network[0].weight.shape == (8, X.shape[1])
    mlp = model.to_mlp()
    assert case in REGRESSION or (mlp.predict(X) == model.predict(X)).all()
    if case in REGRESSION:
        np.testing.assert_allclose(mlp.predict(X), model.predict(X))
    else:
        np.testing.assert_allclose(mlp.predict_proba(X), model.predict_proba(X), atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_a_stage_is_the_truncated_network(case):
    model, X, _ = fitted(case)
    stages = list(model.staged_predict(X))
    assert len(stages) == model.n_steps_ == 9
    for steps in (1, 5, 9):
        short = model.truncate(steps)
        assert len(short.estimators_) == short.n_steps_ == steps
        if case in REGRESSION:
            np.testing.assert_allclose(short.predict(X), stages[steps - 1])
        else:
            assert (short.predict(X) == stages[steps - 1]).all()
    assert model.n_steps_ == 9
    for steps in (0, 10):
        with pytest.raises(ValueError, match=r"^n_steps: .* expected"):
            model.truncate(steps)


@pytest.mark.parametrize("case", CASES)
def test_exact_steps_on_all_samples_never_raise_the_loss(case):
    model, *_ = fitted(case, step_size="exact", subsample=1.0)
    assert (np.diff(model.train_losses_) <= 1e-12).all()
    assert min(model.step_sizes_) >= 0


def test_an_exact_step_is_a_minimum_along_the_piece():
    model, X, y = fitted("binary", step_size="exact", n_hidden=1)
    loss, target = boosting_loss("binary"), np.where(y == 1, 1.0, -1.0)
    start, f = model.initial_prediction_, model.estimators_[0].predict(X, "logistic").ravel()
    at = [loss.loss(target, start + model.step_sizes_[0] * k * f).sum() for k in (0.99, 1.0, 1.01)]
    assert at[1] < min(at[0], at[2])


def test_one_step_is_a_least_squares_network_about_the_mean():
    model, X, y = fitted("regression", n_hidden=3, hidden_per_step=3, subsample=1.0)
    piece, iterations = fit_piece(
        X, (y - y.mean())[:, None], 3, "logistic", 1e-4, 40, np.random.RandomState(0)
    )
    expected = y.mean() + piece.predict(X, "logistic").ravel()
    np.testing.assert_allclose(model.predict(X), expected)
    assert model.n_iter_ == iterations > 1


@pytest.mark.parametrize("case", CASES)
def test_a_rate_of_zero_keeps_the_constant(case):
    model, X, y = fitted(case, learning_rate=0.0)
    if case == "binary":
        constant = np.log((y == 1).sum() / (y == 0).sum()) / 2
    else:
        constant = 0.0 if case == "multiclass" else y.mean(0)
    np.testing.assert_allclose(raw(model, X), np.zeros_like(raw(model, X)) + constant)


def test_the_seed_decides_and_nothing_else():
    first, X, _ = fitted("binary")
    np.random.seed(3)
    again, *_ = fitted("binary")
    other, *_ = fitted("binary", random_state=1)
    assert (first.decision_function(X) == again.decision_function(X)).all()
    assert (first.decision_function(X) != other.decision_function(X)).any()


@pytest.mark.parametrize("labels", [("yes", "no"), (0, 1), (3, 7), (True, False)])
def test_labels_of_any_kind_keep_their_order(labels):
    X = np.linspace(-1, 1, 20)[:, None]
    y = np.array([labels[0]] * 10 + [labels[1]] * 10)
    model = BoostedNetworkClassifier(2, random_state=0).fit(X, y)
    assert model.classes_.tolist() == sorted(labels)
    assert (model.predict(X) == y).mean() > 0.9
    column = model.classes_.tolist().index(labels[1])
    assert model.predict_proba(X)[-1, column] > 0.5


def test_two_samples_and_a_single_feature_suffice():
    model = BoostedNetworkClassifier(3, subsample=1.0, random_state=0)
    model.fit([[0.0], [1.0]], [0, 1])
    assert model.predict([[0.0], [1.0]]).tolist() == [0, 1]


def test_a_constant_target_is_predicted_everywhere():
    X = RANDOM.normal(size=(12, 3))
    model = BoostedNetworkRegressor(5, random_state=0).fit(X, np.full(12, 0.1))
    np.testing.assert_allclose(model.predict(10 * X), 0.1)
    assert model.n_steps_ == 1


def test_several_targets_share_their_units():
    X = RANDOM.normal(size=(60, 3))
    y = np.stack([X[:, 0], X[:, 1] ** 2], axis=1)
    model = BoostedNetworkRegressor(20, subsample=1.0, random_state=0).fit(X, y)
    assert model.predict(X).shape == (60, 2)
    assert model.score(X, y) > 0.9
    assert model.to_torch()[2].weight.shape == (2, 20)


def test_it_works_in_pipelines_searches_and_pickles():
    X, y = load_wine(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), BoostedNetworkClassifier(4, max_iter=20))
    grid = {"boostednetworkclassifier__hidden_per_step": [1, 2]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, y)
    assert search.score(X, y) > 0.8
    copied = pickle.loads(pickle.dumps(search.best_estimator_))
    assert (copied.predict(X) == search.predict(X)).all()
    assert clone(pipeline).get_params()["boostednetworkclassifier__n_hidden"] == 4


# SkipTest: for input of packages that are not installed.
@pytest.mark.parametrize(
    ("estimator", "check"),
    [
        pytest.param(estimator, check, id=f"{type(estimator).__name__}-{check.func.__name__}")
        for model in (BoostedNetworkClassifier, BoostedNetworkRegressor)
        for estimator, check in estimator_checks_generator(model(6, max_iter=40))
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_it_keeps_the_contract_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("n_hidden", {"n_hidden": 2, "hidden_per_step": 3}),
        ("n_hidden", {"n_hidden": 0}),
        ("n_hidden", {"n_hidden": 4.5}),
        ("max_iter", {"max_iter": None}),
        ("hidden_per_step", {"hidden_per_step": 0}),
        ("max_iter", {"max_iter": 0}),
        ("learning_rate", {"learning_rate": -0.1}),
        ("alpha", {"alpha": float("nan")}),
        ("subsample", {"subsample": 0.0}),
        ("subsample", {"subsample": 1.5}),
        ("activation", {"activation": "sine"}),
        ("step_size", {"step_size": "long"}),
    ],
)
def test_bad_parameters_name_themselves(argument, options):
    for estimator in (BoostedNetworkClassifier, BoostedNetworkRegressor):
        with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
            estimator(**options).fit([[0.0], [1.0]], [0, 1])


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"^y: a single class given"):
        BoostedNetworkClassifier(2).fit([[0.0], [1.0]], [1, 1])
    with pytest.raises(ValueError, match=r"^kind: 'hinge' given"):
        boosting_loss("hinge")
    for call in ("predict", "staged_predict", "to_mlp"):
        with pytest.raises(NotFittedError):
            result = getattr(BoostedNetworkRegressor(), call)(*[[[0.0]]] * (call != "to_mlp"))
            list(result)
