import io

import pytest

from heterodox.training.progress import listening, progress_bar, report


def test_reports_reach_the_listener_and_stop_with_its_block():
    heard = []
    with listening(lambda step, total, metrics: heard.append((step, total, metrics))):
        report(1, 4, loss=0.5)
    report(2, 4, loss=0.25)
    assert heard == [(1, 4, {"loss": 0.5})]


def test_the_inner_listener_hears_and_the_outer_one_comes_back():
    outer, inner = [], []
    with listening(lambda step, total, metrics: outer.append(step)):
        with listening(lambda step, total, metrics: inner.append(step)):
            report(1, 2)
        report(2, 2)
    assert (outer, inner) == ([2], [1])


def test_a_listener_is_removed_when_its_block_raises():
    heard = []
    with (
        pytest.raises(KeyError),
        listening(lambda step, total, metrics: heard.append(step)),
    ):
        raise KeyError
    report(1, 2)
    assert heard == []


def test_a_pipe_gets_no_bar(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with progress_bar("training"):
        report(1, 2, loss=1.0)
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_unless_somebody_listens(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr", stream)
    with listening(lambda step, total, metrics: None), progress_bar("training"):
        report(1, 2, loss=1.0)
    assert stream.getvalue() == ""
    with progress_bar("training"):
        report(1, 2, loss=1.0)
    assert "training" in stream.getvalue()
