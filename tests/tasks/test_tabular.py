import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LinearRegression
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from heterodox.data.table_files import Column
from heterodox.data.tabular import TabularData, load_tabular, split_table
from heterodox.losses.cauchy_schwarz import CauchySchwarzBottleneckLoss
from heterodox.tasks.tabular import TabularSettings, check, takes_code, train

TINY = TabularSettings(
    epochs=10, batch_size=16, learning_rate=1e-2, hidden=16, bottleneck=4, evaluations=2
)


def line(rows=120):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, 3))
    columns = tuple(Column(f"x{n}", x[:, n].copy()) for n in range(3))
    return TabularData("line", columns, 5 + 20 * x[:, 0], "y")


@pytest.mark.parametrize("model", ["mlp", "linear", "forest", "boosting", "gbnn"])
@pytest.mark.parametrize("data", ["line", "iris"])
def test_every_model_learns_numbers_and_classes(model, data):
    table = line() if data == "line" else load_tabular(data)
    run = train(model=model, data=table, settings=replace(TINY, epochs=25))
    assert run.test_error < (0.7 if data == "line" else 20)


@pytest.mark.parametrize("loss", ["default", "mse", "mae", "huber", "cauchy-schwarz"])
def test_every_loss_for_numbers_learns(loss):
    assert train(loss=loss, data=line(), settings=replace(TINY, epochs=25)).test_error < 0.7


def test_the_error_is_that_of_the_model_in_deviations_of_the_training_targets():
    run = train(data=line(), settings=TINY)
    output = run.model(run.split.test_x)
    own_unit = (output - run.split.test_y) * run.split.target_scale
    measured = run.measurement()
    assert measured.value == run.test_error
    rmse = own_unit.square().mean().sqrt().item()
    assert measured.readings["test RMSE in the target's unit"] == pytest.approx(rmse, rel=1e-4)
    assert run.test_error == pytest.approx(rmse / run.split.target_scale, rel=1e-4)


def test_the_error_of_classes_is_the_share_of_wrong_ones():
    run = train(data="iris", settings=TINY)
    wrong = (run.model(run.split.test_x).argmax(1) != run.split.test_y).double().mean().item()
    assert run.measurement().value == pytest.approx(100 * wrong)
    assert run.measurement().readings["test accuracy"] == pytest.approx(100 - 100 * wrong)


def test_an_estimator_of_the_callers_own_is_cloned_and_judged_alike():
    estimator = LinearRegression()
    run = train(model=estimator, data=line(), settings=TINY)
    assert not hasattr(estimator, "coef_") and run.model.coef_.shape == (3,)
    assert run.test_error < 1e-5
    tree = train(model=DecisionTreeClassifier(random_state=0), data="iris", settings=TINY)
    assert tree.split.kind == "classification" and tree.test_error < 20


def test_a_network_of_the_callers_own_gets_features_and_outputs():
    sizes = []

    def model(features, outputs):
        sizes.append((features, outputs))
        return nn.Linear(features, outputs)

    train(model=model, data="iris", settings=TINY)
    train(model=model, data=line(), settings=TINY)
    assert set(sizes) == {(4, 3), (3, 1)}


def test_a_loss_with_x_and_t_gets_standardised_features_and_the_code():
    seen = []

    def loss(input, target, x, t):
        seen.append((input.shape, target.shape, x.shape, t.shape))
        return F.mse_loss(input, target) + 0 * t.sum()

    assert takes_code(loss) and takes_code(CauchySchwarzBottleneckLoss())
    assert not takes_code(F.mse_loss) and not takes_code(nn.HuberLoss())
    train(loss=loss, data=line(), settings=TINY)
    assert set(map(tuple, seen[1:])) == {((16, 1), (16, 1), (16, 3), (16, 4))}


def test_a_loss_that_needs_a_code_is_refused_for_a_model_without_one():
    with pytest.raises(ValueError, match=r"^model: .*return_code expected"):
        train(model=nn.Linear, loss="cauchy-schwarz", data=line(), settings=TINY)


def test_arms_with_the_same_seed_see_the_same_rows_and_start_from_the_same_weights():
    first = {}
    for name in ("mse", "huber"):
        targets = []

        def loss(input, target, targets=targets):
            targets.append((input.detach(), target))
            return F.mse_loss(input, target)

        train(loss=loss, data=line(), settings=TINY, seed=3)
        first[name] = targets[1]
    for one, other in zip(first["mse"], first["huber"], strict=True):
        assert torch.equal(one, other)


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    first, second, other = (
        train(data=line(), settings=TINY, seed=seed).history for seed in (1, 1, 2)
    )
    assert first == second and first.loss != other.loss


def test_a_table_that_is_already_cut_is_taken_as_it_is():
    split = split_table(line(), seed=9)
    run = train(data=split, settings=TINY, seed=1)
    assert run.split is split


def test_a_file_of_the_callers_own_has_a_target_and_a_kind(tmp_path):
    path = tmp_path / "my.csv"
    rows = "".join(f"{n},{n % 2},{'a' if n % 2 else 'b'}\n" for n in range(60))
    path.write_text("x,y,z\n" + rows)
    assert train(data=path, settings=TINY).split.class_names == ("a", "b")
    settings = replace(TINY, target="y", kind="regression")
    assert train(data=str(path), settings=settings).split.kind == "regression"


def test_a_run_that_diverges_measures_nan():
    settings = replace(TINY, learning_rate=1e30, clip=None)
    for loss in ("default", "cauchy-schwarz"):
        run = train(data=line(), loss=loss, settings=settings, optimizer="sgd")
        assert run.history.diverged
        assert math.isnan(run.measurement().value)


def test_an_interrupted_run_resumes_to_the_same_errors(tmp_path):
    expected = train(data=line(), settings=TINY).history
    calls = []

    def loss(input, target):
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return F.mse_loss(input, target)

    reference = train(data=line(), loss=F.mse_loss, settings=TINY).history
    assert reference == expected
    with pytest.raises(KeyboardInterrupt):
        train(data=line(), loss=loss, settings=TINY, checkpoint=tmp_path / "run")
    resumed = train(data=line(), loss=loss, settings=TINY, checkpoint=tmp_path / "run")
    assert resumed.history == expected


def test_the_data_is_known_by_its_content():
    same, changed = line(), line()
    changed.columns[1].values[0] += 1
    assert check(data=line(), settings=TINY) == check(data=same, settings=TINY)
    assert check(data=line(), settings=TINY) != check(data=changed, settings=TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "transformer"}, "model: 'transformer' given, one of mlp, linear"),
        ({"model": 3}, "model: 3 given, a name, a callable or an estimator"),
        ({"loss": "hinge"}, "loss: 'hinge' given, one of mse"),
        ({"loss": "cross-entropy"}, "loss: 'cross-entropy' given, but the target of 'line' is num"),
        ({"loss": "mse", "data": "iris"}, "loss: 'mse' given, but the target of 'iris' is classes"),
        ({"optimizer": "adamm"}, "optimizer: 'adamm' given"),
        ({"model": "forest", "loss": "huber"}, "loss: 'huber' given, but an estimator"),
        ({"model": "linear", "optimizer": "sgd"}, "optimizer: 'sgd' given, but an estimator"),
        ({"data": "no-such-table"}, "data: 'no-such-table' given"),
        ({"loss": "cauchy-schwarz", "settings": replace(TINY, batch_size=1)}, "input: 1 rows"),
    ],
)
def test_bad_input_names_the_argument(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        train(**{"data": line(), "settings": TINY, **change})


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("hidden", 0), ("kind", "ranking")])
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}: .*expected"):
        replace(TINY, **{name: value})
