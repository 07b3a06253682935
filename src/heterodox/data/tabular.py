"""Tables: features and one target, embedded, downloaded or the user's own CSV file.

`load_tabular` gives the rows as they are; `split_table` cuts them into training, validation and
test part and makes numbers of them by what the training part alone says: missing numbers become
medians, missing words the most frequent one, words one column each, and numbers get mean 0 and
deviation 1.
"""

from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import torch
from jaxtyping import Float, Shaped
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor

from heterodox.data.known_tables import TABLES, Kind
from heterodox.data.registry import near
from heterodox.data.table_files import Column, read_csv

# A target of whole numbers is one of classes if it has at most so many values.
MOST_CLASSES = 20
# Words beyond the most frequent ones share a column.
MOST_WORDS = 100
# The least rows that can be cut into three parts.
FEWEST_ROWS = 10


@dataclass(frozen=True)
class TabularData:
    """Rows of features, with a number or a class for each.

    Attributes:
        name: the dataset's name, or the path that was given.
        columns: the features.
        target: float64 numbers, or int64 indices into `class_names`.
        target_name: of the target's column.
        class_names: what the indices stand for; () for regression.
    """

    name: str
    columns: tuple[Column, ...]
    target: np.ndarray
    target_name: str
    class_names: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        return "classification" if self.class_names else "regression"

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: np.ndarray) -> "TabularData":
        """The same table with some rows only, in the order of `rows`."""
        columns = tuple(Column(column.name, column.values[rows]) for column in self.columns)
        return TabularData(
            self.name, columns, self.target[rows], self.target_name, self.class_names
        )


@dataclass(frozen=True)
class TabularSplit:
    """A table as numbers, in three parts.

    Attributes:
        name, class_names: as in `TabularData`.
        train_x, validation_x, test_x: float32 features; (rows, features).
        train_y, validation_y, test_y: class indices, (rows,), or float32 targets, (rows, 1), in
            deviations of the training targets from their mean.
        feature_names: one a column.
        target_mean, target_scale: what a target is in its own unit: y · scale + mean.
    """

    name: str
    class_names: tuple[str, ...]
    train_x: Float[Tensor, "train features"]
    train_y: Shaped[Tensor, "train *one"]
    validation_x: Float[Tensor, "validation features"]
    validation_y: Shaped[Tensor, "validation *one"]
    test_x: Float[Tensor, "test features"]
    test_y: Shaped[Tensor, "test *one"]
    feature_names: tuple[str, ...]
    target_mean: float = 0.0
    target_scale: float = 1.0

    @property
    def kind(self) -> Kind:
        return "classification" if self.class_names else "regression"


def load_tabular(
    data: str | Path, *, target: str | None = None, kind: Kind | None = None
) -> TabularData:
    """A table by name, or from the user's own CSV file.

    Args:
        data: a name, see `table_names`, or the path of a CSV file with a header. A name goes before
            a file of the same name.
        target: the column to predict, for a file; the last one by default. A dataset has its own.
        kind: what the target is. By default words are classes, and so are at most 20 different
            whole numbers; other numbers are regression.

    Raises:
        ValueError: `data` is neither a name nor a file, or the file is no table with a header; the
            target is not one of its columns, has missing values, or only one value; `kind` is
            regression and the target is words.
        DataError: a dataset cannot be had, see `heterodox.data.fetch`.

    Example:
        >>> iris = load_tabular("iris")
        >>> len(iris), iris.kind, iris.class_names
        (150, 'classification', ('setosa', 'versicolor', 'virginica'))
    """
    if kind not in (None, "regression", "classification"):
        raise ValueError(f"kind: {kind!r} given, 'regression' or 'classification' expected")
    name = PurePath(data).as_posix()
    if name in TABLES:
        columns, own_target, own_kind = TABLES[name]()
        target, kind = target or own_target, kind or own_kind
    elif Path(data).is_file():
        columns = read_csv(Path(data))
    else:
        raise ValueError(
            f"data: {str(data)!r} given, an existing CSV file or one of {', '.join(TABLES)} "
            f"expected{near(name, 'tabular')}"
        )
    return _table(name, columns, target, kind)


def table_names() -> tuple[str, ...]:
    """The tables that `load_tabular` knows by name.

    Example:
        >>> table_names()[:4]
        ('diabetes', 'iris', 'wine', 'breast-cancer')
    """
    return tuple(TABLES)


def _table(name: str, columns: list[Column], target: str | None, kind: Kind | None) -> TabularData:
    names = [column.name for column in columns]
    target = target or names[-1]
    if target not in names:
        raise ValueError(f"target: {target!r} given, one of {', '.join(names)} expected")
    chosen = columns[names.index(target)]
    features = tuple(column for column in columns if column.name != target)
    if not features:
        raise ValueError(f"data: {name!r} has no column beside {target!r}, features expected")
    values = chosen.values
    missing = np.isnan(values) if chosen.is_numeric else np.array([v is None for v in values])
    if missing.any():
        row = int(missing.argmax()) + 1
        raise ValueError(
            f"target: row {row} of {target!r} in {name!r} is missing, a value in each row expected"
        )
    found = np.unique(values)
    if len(found) < 2:
        raise ValueError(
            f"target: {target!r} of {name!r} is {found.tolist()[0]!r} in every row, "
            "two or more values or classes expected"
        )
    if kind is None:
        whole = chosen.is_numeric and (values == np.round(values)).all()
        classes = not chosen.is_numeric or (whole and len(found) <= MOST_CLASSES)
        kind = "classification" if classes else "regression"
    if kind == "regression":
        if not chosen.is_numeric:
            raise ValueError(
                f"kind: 'regression' given, but {target!r} holds {found[0]!r}, numbers expected"
            )
        return TabularData(name, features, values.astype(np.float64), target)
    class_names = tuple(f"{value:g}" if chosen.is_numeric else str(value) for value in found)
    labels = np.searchsorted(found, values).astype(np.int64)
    return TabularData(name, features, labels, target, class_names)


def split_table(
    data: TabularData,
    seed: int,
    *,
    test_share: float = 0.2,
    validation_share: float = 0.16,
    rows: int | None = None,
) -> TabularSplit:
    """A random cut of the table, its numbers made by what the training part says.

    Args:
        data: the table.
        seed: of the cut; classes keep their shares in every part, if all have enough rows.
        test_share, validation_share: of the rows; 0.2 of all, and 0.2 of the rest, in the code of
            the Cauchy-Schwarz bottleneck.
        rows: at most so many are used, drawn by `seed`; None for all.

    Raises:
        ValueError: fewer than ten rows, shares that leave a part without rows, or a training part
            of a single class.

    Example:
        >>> split = split_table(load_tabular("diabetes"), seed=0)
        >>> split.train_x.shape, split.validation_x.shape, split.test_y.shape
        (torch.Size([283, 10]), torch.Size([71, 10]), torch.Size([88, 1]))
    """
    for name, share in {"test_share": test_share, "validation_share": validation_share}.items():
        if not 0 < share < 1:
            raise ValueError(f"{name}: {share} given, a share between 0 and 1 expected")
    if test_share + validation_share >= 1:
        raise ValueError(
            f"validation_share: {validation_share} given, less than {1 - test_share:g}, what is "
            "left of the rows, expected"
        )
    if rows is not None and rows < FEWEST_ROWS:
        raise ValueError(f"rows: {rows} given, at least {FEWEST_ROWS} or None expected")
    if len(data) < FEWEST_ROWS:
        raise ValueError(f"data: {len(data)} rows given, at least {FEWEST_ROWS} expected")
    numbers = np.random.default_rng(seed).permutation(len(data))[:rows]
    test_rows = max(1, round(test_share * len(numbers)))
    validation_rows = max(1, round(validation_share * len(numbers)))
    rest, test = _cut(data, numbers, test_rows, seed)
    train, validation = _cut(data, rest, validation_rows, seed)
    if data.class_names and len(np.unique(data.target[train])) < 2:
        raise ValueError(
            f"data: {data.name!r} has one class in its {len(train)} training rows, two or more "
            "expected"
        )
    names = [column.name for column in data.columns]
    encoder = _encoder(data.columns).fit(_as_object(data.take(train)))
    x = {
        part: torch.from_numpy(
            np.asarray(encoder.transform(_as_object(data.take(chosen))), dtype=np.float32)
        )
        for part, chosen in (("train", train), ("validation", validation), ("test", test))
    }
    mean, scale = 0.0, 1.0
    if data.kind == "regression":
        mean, scale = float(data.target[train].mean()), float(data.target[train].std())
        scale = scale if scale > 1e-12 * max(1.0, abs(mean)) else 1.0

    def targets(chosen: np.ndarray) -> Tensor:
        if data.class_names:
            return torch.from_numpy(data.target[chosen])
        return torch.from_numpy((data.target[chosen] - mean) / scale).float()[:, None]

    return TabularSplit(
        name=data.name,
        class_names=data.class_names,
        train_x=x["train"],
        train_y=targets(train),
        validation_x=x["validation"],
        validation_y=targets(validation),
        test_x=x["test"],
        test_y=targets(test),
        feature_names=tuple(map(str, encoder.get_feature_names_out(names))),
        target_mean=mean,
        target_scale=scale,
    )


def _cut(
    data: TabularData, numbers: np.ndarray, held_out: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """`numbers` without `held_out` of them, and these; by class where every class has enough."""
    strata = None
    if data.class_names:
        labels = data.target[numbers]
        counts = np.unique(labels, return_counts=True)[1]
        if counts.min() >= 2 and min(held_out, len(numbers) - held_out) >= len(counts):
            strata = labels
    kept, out = train_test_split(
        numbers, test_size=held_out, random_state=seed % 2**32, stratify=strata
    )
    return kept, out


def _encoder(columns: tuple[Column, ...]) -> ColumnTransformer:
    numeric = [n for n, column in enumerate(columns) if column.is_numeric]
    words = [n for n, column in enumerate(columns) if not column.is_numeric]
    of_numbers = make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler()
    )
    of_words = make_pipeline(
        SimpleImputer(strategy="most_frequent", missing_values=None, keep_empty_features=True),
        OneHotEncoder(
            handle_unknown="infrequent_if_exist", max_categories=MOST_WORDS, sparse_output=False
        ),
    )
    return ColumnTransformer(
        [("number", of_numbers, numeric), ("word", of_words, words)],
        verbose_feature_names_out=False,
        sparse_threshold=0,
    )


def _as_object(data: TabularData) -> np.ndarray:
    return np.column_stack([column.values.astype(object) for column in data.columns])
