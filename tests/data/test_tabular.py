import numpy as np
import pytest
import torch

from heterodox.data import DataError, availability, dataset, datasets
from heterodox.data.table_files import Column, read_numbers
from heterodox.data.tabular import TabularData, load_tabular, split_table, table_names

CSV = """rooms,kind,age,price
3,flat,10,100.5
4,house,,200.5
2,flat,30,90
5,house,5,300
3,NA,8,150
4,house,12,210
2,flat,40,80
6,house,2,400
3,flat,9,140
4,house,7,220
1,flat,50,60
5,castle,100,500
"""


@pytest.fixture
def file(tmp_path):
    def write(text, name="my.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def here(name):
    """Whether a table can be loaded without a download."""
    own = name.partition("/")[0]
    registered = {entry.name for entry in datasets("tabular")}
    return own not in registered or availability(dataset(own)) in ("embedded", "local", "cached")


def test_every_table_belongs_to_a_registered_dataset():
    registered = {entry.name for entry in datasets()}
    assert {name.partition("/")[0] for name in table_names()} <= registered
    tabular = {entry.name for entry in datasets("tabular")}
    assert tabular <= {name.partition("/")[0] for name in table_names()}


@pytest.mark.parametrize(
    ("name", "rows", "features", "classes"),
    [
        ("diabetes", 442, 10, 0),
        ("iris", 150, 4, 3),
        ("wine", 178, 13, 3),
        ("breast-cancer", 569, 30, 2),
        ("digits", 1797, 64, 10),
        ("uci-boston", 506, 13, 0),
        ("uci-energy", 768, 8, 0),
        ("uci-naval", 11934, 16, 0),
        ("uci-power-plant", 9568, 4, 0),
        ("uci-protein", 45730, 9, 0),
        ("california-housing", 20640, 8, 0),
        ("bike-sharing/hour", 17379, 12, 0),
        ("bike-sharing/day", 731, 11, 0),
        ("uci-classification/wine", 178, 13, 3),
        ("uci-classification/credit.g", 1000, 20, 2),
        ("uci-classification/breast.w", 699, 9, 2),
        ("uci-classification/vowel", 990, 13, 11),
    ],
)
def test_known_tables_have_their_rows_features_and_classes(name, rows, features, classes):
    if not here(name):
        pytest.skip(f"{name} is not on this computer")
    table = load_tabular(name)
    assert (len(table), len(table.columns), len(table.class_names)) == (rows, features, classes)
    split = split_table(table, seed=0, rows=400)
    for part in ("train", "validation", "test"):
        assert getattr(split, f"{part}_x").isfinite().all()


def test_california_housing_is_as_scikit_learn_derives_it():
    if not here("california-housing"):
        pytest.skip("california-housing is not on this computer")
    table = load_tabular("california-housing")
    first = {column.name: column.values[0] for column in table.columns}
    # The first row that sklearn.datasets.fetch_california_housing documents.
    expected = {"MedInc": 8.3252, "HouseAge": 41.0, "AveRooms": 6.98412698, "AveBedrms": 1.02380952}
    expected |= {"Population": 322.0, "AveOccup": 2.55555556, "Latitude": 37.88}
    for column, value in expected.items():
        assert first[column] == pytest.approx(value)
    assert table.target[0] == pytest.approx(4.526)


def test_a_file_gives_numbers_words_and_what_is_missing(file):
    table = load_tabular(file(CSV))
    assert (table.target_name, table.kind, len(table)) == ("price", "regression", 12)
    columns = {column.name: column.values for column in table.columns}
    assert columns["rooms"][:3].tolist() == [3.0, 4.0, 2.0]
    assert np.isnan(columns["age"][1]) and columns["kind"][4] is None


def test_another_column_may_be_the_target(file):
    table = load_tabular(file(CSV.replace("NA", "flat")), target="kind")
    assert table.class_names == ("castle", "flat", "house")
    assert table.target[:2].tolist() == [1, 2]
    assert [column.name for column in table.columns] == ["rooms", "age", "price"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_cells_are_cut_by_comma_semicolon_or_tab(file, delimiter):
    table = load_tabular(file(CSV.replace(",", delimiter)))
    assert [column.name for column in table.columns] == ["rooms", "kind", "age"]


def test_a_byte_order_mark_and_quotes_are_understood(tmp_path):
    path = tmp_path / "quoted.csv"
    path.write_text('a,"b, c"\n"1","2.5"\n2,3.5\n', encoding="utf-8-sig")
    table = load_tabular(path)
    assert table.target_name == "b, c" and table.columns[0].name == "a"


def test_few_whole_numbers_are_classes_unless_told_otherwise(file):
    text = "x,y\n" + "".join(f"{n},{n % 3}\n" for n in range(30))
    assert load_tabular(file(text)).class_names == ("0", "1", "2")
    assert load_tabular(file(text), kind="regression").kind == "regression"
    many = "x,y\n" + "".join(f"{n},{n}\n" for n in range(30))
    assert load_tabular(file(many)).kind == "regression"
    assert len(load_tabular(file(many), kind="classification").class_names) == 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "data: .* has 0 rows, a header"),
        ("a,b\n", "data: .* has 0 rows, a header"),
        ("1,2\n3,4\n", "data: .* begins with numbers"),
        ("a,a\n1,2\n", "data: column 'a' .* twice"),
        ("a,b\n1,2\n3\n", "data: row 2 .* has 1 cells, 2"),
        ("a,b\n1,2\ninf,3\n", "data: row 2 of column 'a' .* infinite"),
        ("a,b\n1,2\n2,\n", "target: row 2 of 'b' .* missing"),
        ("a,b\n1,yes\n2,yes\n", "target: 'b' .* is 'yes' in every row"),
        ("a,b\n1,7\n2,7\n", "target: 'b' .* is 7.0 in every row"),
        ("b\n1\n2\n", "data: .* has no column beside 'b'"),
    ],
)
def test_files_that_are_no_tables_are_refused_by_name(file, text, message):
    with pytest.raises(ValueError, match=f"^{message}.*expected"):
        load_tabular(file(text))


def test_other_bad_input_names_the_argument(file, tmp_path):
    path = file(CSV)
    with pytest.raises(ValueError, match=r"^target: 'prize' given, one of rooms, kind"):
        load_tabular(path, target="prize")
    with pytest.raises(ValueError, match=r"^kind: 'regression' given, but 'kind' holds"):
        load_tabular(file(CSV.replace("NA", "flat")), target="kind", kind="regression")
    with pytest.raises(ValueError, match=r"^kind: 'ranking' given"):
        load_tabular(path, kind="ranking")
    with pytest.raises(ValueError, match=r"^data: 'diabets' given.*did you mean 'diabetes'"):
        load_tabular("diabets")
    (tmp_path / "latin.csv").write_bytes("a,b\n1,é\n2,f\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"^data: byte 6 .* not UTF-8.*expected"):
        load_tabular(tmp_path / "latin.csv")


def test_a_file_of_numbers_of_the_wrong_width_is_a_data_error(tmp_path):
    (tmp_path / "data.txt").write_text("1 2\n3 4\n")
    with pytest.raises(DataError, match="2 columns, 3 expected"):
        read_numbers(tmp_path / "data.txt", ("a", "b", "c"))


def numbers(rows=100, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(3.0, 2.0, size=(rows, 2))
    x[::7, 1] = np.nan
    words = np.array(["low" if value < 3 else "high" for value in x[:, 0]], dtype=object)
    words[::9] = None
    columns = (Column("a", x[:, 0]), Column("b", x[:, 1]), Column("w", words))
    return TabularData("ours", columns, 100 + 10 * x[:, 0], "y")


def test_the_parts_are_disjoint_and_together_all_rows():
    table = numbers()
    table = TabularData("ours", (Column("id", np.arange(100.0)),), table.target, "y")
    split = split_table(table, seed=3)
    parts = [getattr(split, f"{part}_x")[:, 0] for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [64, 16, 20]
    assert len(torch.cat(parts).unique()) == 100
    again, other = split_table(table, seed=3), split_table(table, seed=4)
    assert torch.equal(split.train_x, again.train_x)
    assert not torch.equal(split.train_x, other.train_x)


def test_only_the_training_rows_decide_how_numbers_are_made():
    split = split_table(numbers(), seed=0)
    x = split.train_x.double()
    assert x[:, :2].mean(0).abs().max() < 1e-6
    assert x[:, :2].std(0, unbiased=False).sub(1).abs().max() < 1e-6
    assert split.test_x[:, :2].mean(0).abs().max() > 1e-3
    assert split.train_y.mean().abs() < 1e-6
    assert split.train_y.std(unbiased=False).item() == pytest.approx(1, abs=1e-5)
    own_unit = split.train_y * split.target_scale + split.target_mean
    assert 90 < own_unit.mean() < 170


def test_changing_a_test_row_changes_nothing_in_training():
    table = numbers()
    reference = split_table(table, seed=0)
    changed = numbers()
    row = next(
        n
        for n in range(100)
        if abs(
            (table.target[n] - reference.target_mean) / reference.target_scale
            - reference.test_y[0, 0].item()
        )
        < 1e-5
    )
    changed.columns[0].values[row] = 1e6
    split = split_table(changed, seed=0)
    assert torch.equal(split.train_x, reference.train_x)
    assert not torch.equal(split.test_x, reference.test_x)


def test_words_become_columns_and_missing_ones_the_most_frequent():
    split = split_table(numbers(), seed=0)
    assert split.feature_names == ("a", "b", "w_high", "w_low")
    assert split.train_x[:, 2:].sum(1).eq(1).all()


def test_a_word_that_training_has_not_seen_is_no_error():
    words = np.array(["a", "b"] * 50, dtype=object)
    table = TabularData("ours", (Column("w", words),), np.arange(100.0), "y")
    seen = split_table(table, seed=0)
    assert seen.train_x.shape[1] == 2
    for row in range(100):
        words[row] = "new" if row % 50 == 0 else words[row]
    assert split_table(table, seed=0).test_x.isfinite().all()


def test_constant_and_empty_columns_become_zeros():
    columns = (
        Column("constant", np.full(40, 5.0)),
        Column("empty", np.full(40, np.nan)),
        Column("x", np.arange(40.0)),
    )
    split = split_table(TabularData("ours", columns, np.arange(40.0), "y"), seed=0)
    assert (split.train_x[:, :2] == 0).all() and (split.test_x[:, :2] == 0).all()


def test_classes_keep_their_shares_in_every_part():
    split = split_table(load_tabular("iris"), seed=5)
    for part, count in (("train", 32), ("validation", 8), ("test", 10)):
        assert getattr(split, f"{part}_y").bincount().tolist() == [count] * 3
    assert split.train_y.dtype == torch.int64


def test_a_class_of_a_single_row_does_not_stop_the_cut():
    labels = np.array([0] * 20 + [1] * 20 + [2])
    table = TabularData("ours", (Column("x", np.arange(41.0)),), labels, "y", ("a", "b", "c"))
    assert len(split_table(table, seed=0).test_y) == 8


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("test_share", {"test_share": 0.0}),
        ("validation_share", {"validation_share": 1.0}),
        ("validation_share", {"test_share": 0.6, "validation_share": 0.5}),
        ("rows", {"rows": 3}),
    ],
)
def test_cuts_that_make_no_sense_are_refused(argument, arguments):
    with pytest.raises(ValueError, match=rf"^{argument}: .*expected"):
        split_table(numbers(), seed=0, **arguments)


def test_too_few_rows_and_a_single_class_in_training_are_refused():
    with pytest.raises(ValueError, match=r"^data: 5 rows given"):
        split_table(numbers(5), seed=0)
    labels = np.array([0] * 39 + [1])
    table = TabularData("ours", (Column("x", np.arange(40.0)),), labels, "y", ("a", "b"))
    with pytest.raises(ValueError, match=r"^data: 'ours' has one class in its .*expected"):
        for seed in range(10):
            split_table(table, seed=seed)
