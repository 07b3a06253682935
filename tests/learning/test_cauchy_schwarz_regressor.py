import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from heterodox.learning.cauchy_schwarz_regressor import batches_of
from heterodox.losses.cauchy_schwarz import CauchySchwarzBottleneckRegressor

QUICK = {"hidden": 16, "bottleneck": 4, "epochs": 20, "lr": 1e-2, "random_state": 0}


@pytest.fixture(scope="module")
def diabetes():
    return load_diabetes(return_X_y=True)


@parametrize_with_checks([CauchySchwarzBottleneckRegressor(**QUICK)])
def test_it_keeps_the_contract_of_scikit_learn(estimator, check):
    check(estimator)


def test_the_defaults_are_those_of_the_authors_code():
    model = CauchySchwarzBottleneckRegressor()
    chosen = (model.hidden, model.bottleneck, model.epochs, model.batch_size, model.lr)
    assert chosen == (128, 128, 200, 128, 1e-4)
    assert (model.bandwidth_x, model.bandwidth_t, model.bandwidth_y) == (1.0, 1.0, 1.0)


def test_predictions_are_decoded_from_what_transform_returns(diabetes):
    model = CauchySchwarzBottleneckRegressor(**QUICK).fit(*diabetes)
    code = torch.from_numpy(model.transform(diabetes[0]))
    assert code.shape == (442, 4)
    with torch.no_grad():
        decoded = model.network_.decode(code)[:, 0].numpy()
    expected = decoded * diabetes[1].std() + diabetes[1].mean()
    np.testing.assert_allclose(model.predict(diabetes[0]), expected)


def test_it_predicts_and_its_loss_falls(diabetes):
    model = CauchySchwarzBottleneckRegressor(**QUICK).fit(*diabetes)
    assert model.score(*diabetes) > 0.4
    assert model.loss_curve_[-1] < 0.7 * model.loss_curve_[0]
    assert len(model.loss_curve_) == 20


def test_a_larger_beta_leaves_less_of_the_features_in_the_code(diabetes):
    from heterodox.losses.cauchy_schwarz import cauchy_schwarz_mutual_information

    X, y = StandardScaler().fit_transform(diabetes[0]), diabetes[1]
    left = []
    for beta in (0.0, 1.0):
        model = CauchySchwarzBottleneckRegressor(**QUICK, beta=beta).fit(X, y)
        code = torch.from_numpy(model.transform(X))
        left.append(cauchy_schwarz_mutual_information(torch.from_numpy(X), code, normalized=True))
    assert left[1] < 0.7 * left[0]


def test_several_targets_are_predicted_at_once_in_their_own_units(diabetes):
    X, y = diabetes
    both = np.column_stack([y, 1000 - 5 * y])
    predicted = CauchySchwarzBottleneckRegressor(**QUICK).fit(X, both).predict(X)
    assert predicted.shape == (442, 2)
    assert np.corrcoef(predicted[:, 0], y)[0, 1] > 0.6
    assert abs(predicted[:, 1].mean() - both[:, 1].mean()) < 100


def test_it_is_a_step_of_pipelines_and_searches(diabetes):
    X, y = diabetes
    pipeline = make_pipeline(StandardScaler(), CauchySchwarzBottleneckRegressor(**QUICK))
    search = GridSearchCV(
        pipeline, {"cauchyschwarzbottleneckregressor__beta": [0.0, 0.1]}, cv=2
    ).fit(X[:100], y[:100])
    assert search.best_score_ > -1
    assert search.best_estimator_[:-1].transform(X[:3]).shape == (3, 10)


def test_the_seed_decides_and_global_generators_are_left_alone(diabetes):
    X, y = diabetes[0][:60], diabetes[1][:60]
    before = torch.get_rng_state()
    first, second = (CauchySchwarzBottleneckRegressor(**QUICK).fit(X, y) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first.predict(X), second.predict(X))
    other = clone(first).set_params(random_state=1).fit(X, y)
    assert not np.allclose(other.predict(X), first.predict(X))


@pytest.mark.parametrize("rows", [2, 3, 9])
def test_few_rows_one_feature_and_a_row_left_over_are_no_trouble(rows):
    X = np.linspace(-1, 1, rows)[:, None]
    model = CauchySchwarzBottleneckRegressor(**QUICK, batch_size=4).fit(X, 3 * X[:, 0])
    assert np.isfinite(model.predict(X)).all()


def test_constant_features_and_targets_stay_finite():
    X = np.column_stack([np.linspace(-1, 1, 20), np.full(20, 1e6), np.zeros(20)])
    model = CauchySchwarzBottleneckRegressor(**QUICK).fit(X, np.full(20, 7.0))
    np.testing.assert_allclose(model.predict(X), 7.0, atol=0.5)
    assert (model.x_scale_[1:] == 1).all()


@pytest.mark.parametrize(("rows", "size"), [(1, 4), (2, 2), (5, 4), (8, 4), (9, 4), (10, 4)])
def test_batches_cover_every_row_once_and_none_has_a_single_row(rows, size):
    batches = batches_of(rows, size, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(batches).tolist()) == list(range(rows))
    assert min(map(len, batches)) > 1 or rows == 1


def test_the_median_width_and_other_parameters_reach_the_loss(diabetes):
    X, y = diabetes[0][:80], diabetes[1][:80]
    plain = CauchySchwarzBottleneckRegressor(**QUICK).fit(X, y).predict(X)
    for change in (
        {"bandwidth_t": "median"},
        {"information_bandwidth": "median"},
        {"bandwidth_x": 0.5},
        {"bandwidth_y": 2.0},
        {"normalized": False},
        {"beta": 0.5},
        {"final_lr": 1.0},
    ):
        changed = CauchySchwarzBottleneckRegressor(**QUICK).set_params(**change).fit(X, y)
        assert not np.allclose(changed.predict(X), plain), change


@pytest.mark.parametrize(
    "change",
    [
        {"hidden": 0},
        {"bottleneck": -1},
        {"epochs": 0},
        {"batch_size": 1},
        {"lr": 0.0},
        {"final_lr": 2},
        {"beta": -1},
        {"bandwidth_x": 0},
        {"bandwidth_t": "mean"},
    ],
)
def test_parameters_out_of_range_are_named(diabetes, change):
    with pytest.raises(ValueError, match=rf"^{next(iter(change))}: .*expected"):
        CauchySchwarzBottleneckRegressor(**change).fit(*diabetes)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(diabetes, bad):
    X, y = diabetes[0].copy(), diabetes[1].copy()
    X[3, 2] = bad
    with pytest.raises(ValueError, match="X contains"):
        CauchySchwarzBottleneckRegressor(**QUICK).fit(X, diabetes[1])
    y[3] = bad
    with pytest.raises(ValueError, match="y contains"):
        CauchySchwarzBottleneckRegressor(**QUICK).fit(diabetes[0], y)


def test_training_that_diverges_says_so(diabetes):
    with pytest.raises(ValueError, match=r"^lr: .*expected.*diverged"):
        CauchySchwarzBottleneckRegressor(**QUICK | {"lr": 1e30}).fit(*diabetes)
