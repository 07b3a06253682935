"""Tables known by name: how each is read, which column is its target, and of what kind."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from heterodox.data.download import fetch
from heterodox.data.spreadsheet import read_sheet
from heterodox.data.table_files import Column, read_arff, read_csv, read_numbers

Kind = Literal["regression", "classification"]

Read = tuple[list[Column], str, Kind]


def _embedded(loader: str, kind: Kind) -> Callable[[], Read]:
    def read() -> Read:
        from sklearn import datasets

        bunch = getattr(datasets, loader)()
        columns = [
            Column(str(name), np.ascontiguousarray(values, dtype=np.float64))
            for name, values in zip(bunch.feature_names, bunch.data.T, strict=True)
        ]
        target = bunch.target.astype(np.float64)
        if kind == "classification":
            target = np.asarray(bunch.target_names).astype(str).astype(object)[bunch.target]
        return [*columns, Column("target", target)], "target", kind

    return read


def _uci(name: str, features: int, unused: int = 0) -> Callable[[], Read]:
    """One of the sets of numbers: features, the target, and columns that are not used."""

    def read() -> Read:
        (path,) = fetch(name).values()
        names = [f"x{n}" for n in range(features)] + ["y"] + [f"unused{n}" for n in range(unused)]
        return read_numbers(path, names)[: features + 1], "y", "regression"

    return read


def _california() -> Read:
    """Block groups as scikit-learn has them: averages by household, values in 100 000 dollars."""
    (path,) = fetch("california-housing").values()
    names = (
        *("Longitude", "Latitude", "HouseAge", "rooms", "bedrooms"),
        *("Population", "households", "MedInc", "MedHouseVal"),
    )
    raw = {column.name: column.values for column in read_numbers(path, names, ",")}
    households = raw["households"]
    values = {
        "MedInc": raw["MedInc"],
        "HouseAge": raw["HouseAge"],
        "AveRooms": raw["rooms"] / households,
        "AveBedrms": raw["bedrooms"] / households,
        "Population": raw["Population"],
        "AveOccup": raw["Population"] / households,
        "Latitude": raw["Latitude"],
        "Longitude": raw["Longitude"],
        "MedHouseVal": raw["MedHouseVal"] / 100_000,
    }
    columns = [Column(name, column) for name, column in values.items()]
    return columns, "MedHouseVal", "regression"


def _bikes(file: str) -> Callable[[], Read]:
    def read() -> Read:
        # The count is the sum of casual and registered users; the others name the row.
        dropped = ("instant", "dteday", "casual", "registered")
        columns = read_csv(fetch("bike-sharing")[file])
        return [c for c in columns if c.name not in dropped], "cnt", "regression"

    return read


def _uci_class(member: str) -> Callable[[], Read]:
    def read() -> Read:
        (archive,) = fetch("uci-classification").values()
        columns = read_arff(archive, f"{member}.arff")
        target = columns[0].name if member == "wine" else columns[-1].name
        return columns, target, "classification"

    return read


def _vowels() -> Read:
    """Formants in the steady state and at three times; rows are named like w01ae, a woman and a
    vowel."""
    (path,) = fetch("vowel-formants").values()
    _, *rows = read_sheet(path)
    times = ("steady", "20%", "50%", "80%")
    names = [f"F{formant} {time}" for time in times for formant in (1, 2, 3)]
    numbers = np.array([row[1:] for row in rows], dtype=np.float64)
    vowels = np.array([str(row[0])[3:] for row in rows], dtype=object)
    columns = [Column(name, values) for name, values in zip(names, numbers.T, strict=True)]
    return [*columns, Column("vowel", vowels)], "vowel", "classification"


UCI_CLASSES = (
    *(
        "balance.scale",
        "breast.w",
        "car",
        "credit.g",
        "diabetes",
        "glass",
        "haberman",
        "ionosphere",
    ),
    *("iris", "optdigits", "segment", "sonar", "tic-tac-toe", "vehicle", "vowel", "wine", "zoo"),
)

TABLES: dict[str, Callable[[], Read]] = {
    "diabetes": _embedded("load_diabetes", "regression"),
    "iris": _embedded("load_iris", "classification"),
    "wine": _embedded("load_wine", "classification"),
    "breast-cancer": _embedded("load_breast_cancer", "classification"),
    "digits": _embedded("load_digits", "classification"),
    "uci-boston": _uci("uci-boston", 13),
    "uci-energy": _uci("uci-energy", 8),
    "uci-naval": _uci("uci-naval", 16, unused=1),
    "uci-power-plant": _uci("uci-power-plant", 4),
    "uci-protein": _uci("uci-protein", 9),
    "california-housing": _california,
    "bike-sharing/hour": _bikes("hour.csv"),
    "bike-sharing/day": _bikes("day.csv"),
    "vowel-formants": _vowels,
    **{f"uci-classification/{member}": _uci_class(member) for member in UCI_CLASSES},
}
