import json
import math
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heterodox.experiment import Measurement, Scale
from heterodox.experiment.store import (
    DamagedResult,
    JobKey,
    Record,
    Store,
    slug,
    write_json,
    write_text,
)


def key(**changes):
    fields = dict(
        paper="toy", measure="losses", arm="b = −log n", seed=1, scale=Scale.SMOKE, device="cpu"
    )
    return JobKey(**(fields | {"fingerprint": "0123456789abcdef"} | changes))


def record(value=1.5, **curves):
    return Record(
        measurements={"b = −log n": Measurement(value, {"r": math.nan}, curves)},
        seconds=1.0,
        cpu_seconds=0.5,
        peak_memory_bytes=1000,
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:00:01+00:00",
        environment={"torch": "2"},
        settings={"width": 3},
    )


@pytest.mark.parametrize("value", [1.5, math.inf, -math.inf, 1e-300, 0.1 + 0.2])
def test_what_is_written_is_read_again_to_the_last_bit(tmp_path, value):
    store = Store(tmp_path)
    store.write(key(), record(value, loss=[(0, 4.0), (1, math.inf)]))
    assert store.read(key()).measurements["b = −log n"].value == value
    again = store.read(key())
    assert math.isnan(again.measurements["b = −log n"].readings["r"])
    assert again.measurements["b = −log n"].curves == {"loss": [(0, 4.0), (1, math.inf)]}
    assert again.settings == {"width": 3}


def test_files_are_strict_json_that_a_person_can_read(tmp_path):
    Store(tmp_path).write(key(), record(math.nan, loss=[(0, 4.0), (100, 3.5e-7)]))
    text = (tmp_path / key().path).read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert "[0.0, 4.0]" in text
    assert text.count("\n") < 60


def test_another_fingerprint_is_another_result(tmp_path):
    store = Store(tmp_path)
    store.write(key(), record())
    assert store.read(key(fingerprint="f" * 16)) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"schema": 1}', b'{"schema": 99}', b"\xff\xfe", b'"text"'],
)
def test_a_damaged_file_is_reported_and_can_be_set_aside(tmp_path, content):
    store = Store(tmp_path)
    store.write(key(), record())
    (tmp_path / key().path).write_bytes(content)
    with pytest.raises(DamagedResult, match=str(key().path.name)):
        store.read(key())
    aside = store.set_aside(key())
    assert aside.read_bytes() == content
    assert store.read(key()) is None


@given(cut=st.integers(0, 600))
@settings(max_examples=30, deadline=None)
def test_a_truncated_file_is_never_taken_for_a_result(tmp_path_factory, cut):
    root = tmp_path_factory.mktemp("store")
    store = Store(root)
    store.write(key(), record())
    path = root / key().path
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole) - 2)])
    with pytest.raises(DamagedResult):
        store.read(key())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_text(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_never_see_half_a_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"n": [0] * 5000})
    stop = threading.Event()

    def rewrite():
        while not stop.is_set():
            write_json(path, {"n": [1] * 5000})

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(100):
            assert len(json.loads(path.read_text())["n"]) == 5000
    finally:
        stop.set()
        writer.join()


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_a_slug_stays_in_its_folder(text):
    name = slug(text)
    assert name and "/" not in name and "\\" not in name and not name.startswith(".")


def test_numbers_on_one_line_do_not_change_strings(tmp_path):
    tree = {"text": 'a [ 1,\n 2 ] "NaN" b', "list": ["NaN", 1.0, -2e-5], "mixed": ["x", 1]}
    write_json(tmp_path / "x.json", tree)
    assert json.loads((tmp_path / "x.json").read_text()) == tree
