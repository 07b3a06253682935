"""The tables say what the files say."""

import copy
import io
import json

import pytest
from rich.console import Console

from heterodox.bench import benchmark_tables
from heterodox.bench.tables import print_bench, skipped


def result(median, ratio, peak, memory_ratio, *, interval=True):
    low, high = (ratio - 0.05, ratio + 0.05) if interval else (None, None)
    return {
        "seconds": {
            "median": median,
            "lower_quartile": 0.9 * median,
            "upper_quartile": 1.1 * median,
        },
        "rounds": [median],
        "calls_per_round": 1,
        "time_ratio": {"median": ratio, "low": low, "high": high},
        "peak_bytes": peak,
        "memory_ratio": memory_ratio,
    }


def case(size, **results):
    return {
        "size": size,
        "passes": "forward",
        "variant": "causal",
        "label": f"{size}, causal, forward",
        "results": results,
    }


def target(measured, met, label="2048, causal, forward"):
    return {
        "says": "sigmoid takes at most 1.3 times the time of softmax",
        "contestant": "sigmoid",
        "quantity": "time",
        "limit": 1.3,
        "case": label,
        "measured": measured,
        "met": met,
    }


TREE = {
    "schema": 1,
    "slot": "attention",
    "default": "softmax",
    "contestants": {
        "softmax": {"kind": "default", "where": "torch"},
        "sigmoid": {"kind": "component", "where": "heterodox"},
    },
    "facts": {"heads": "8"},
    "settings": {"seconds": 2.0, "repeat": 7},
    "device": "cpu",
    "threads": 2,
    "load_average": 0.25,
    "started": "2026-01-02T00:00:00+00:00",
    "finished": "2026-01-02T00:01:00+00:00",
    "environment": {
        "heterodox": "0.1.0",
        "torch": "2.9.0",
        "processor": "Some CPU",
        "cores": "4",
        "device": "cpu",
    },
    "cases": [
        case(
            "2048",
            softmax=result(0.020, 1.0, 5_000_000, 1.0),
            sigmoid=result(0.025, 1.25, 6_000_000, 1.2),
        ),
        case(
            "8192",
            softmax=result(1.5, 1.0, 2_000_000_000, 1.0, interval=False),
            sigmoid={"skipped": "MemoryError: needs more than 1.0 GB"},
        ),
    ],
    "targets": [
        target({"median": 1.25, "low": 1.2, "high": 1.3}, True),
        target({"median": 1.5, "low": None, "high": None}, False),
        target(None, None, "16384, forward"),
    ],
}


@pytest.fixture
def stored(tmp_path):
    (tmp_path / "attention-some-cpu.json").write_text(json.dumps(TREE))
    return tmp_path


def test_a_cell_holds_ratio_interval_median_and_quartiles(stored):
    text = benchmark_tables(stored)
    assert "| sigmoid | 1.25 [1.20, 1.30]<br>25.0 ms (22.5 ms to 27.5 ms) | – |\n" in text
    assert "| softmax | 1.00 [0.95, 1.05]<br>20.0 ms (18.0 ms to 22.0 ms) | 1.00<br>1.50 s" in text
    assert "| sigmoid | 1.20<br>6.00 MB | – |" in text
    assert "| softmax | 1.00<br>5.00 MB | 1.00<br>2.00 GB |" in text


def test_machine_threads_date_and_what_was_left_out_stand_on_the_page(stored):
    text = benchmark_tables(stored)
    assert text.startswith("## Attention: Some CPU, 2 threads\n")
    assert "2026-01-02" in text and "0.2 of 4" in text
    left_out = "- sigmoid left out (MemoryError: needs more than 1.0 GB): 8192, causal, forward"
    assert left_out in text


def test_targets_are_met_missed_or_not_measured(stored):
    text = benchmark_tables(stored)
    says = "sigmoid takes at most 1.3 times the time of softmax"
    assert f"| {says} | 2048, causal, forward | 1.3 | 1.25 [1.20, 1.30] | ✓ met |\n" in text
    assert f"| {says} | 2048, causal, forward | 1.3 | 1.50 | ✗ missed |\n" in text
    assert f"| {says} | 16384, forward | 1.3 | – | not measured |" in text


def test_every_row_of_a_table_has_the_columns_of_its_head(stored):
    lines = benchmark_tables(stored).splitlines()
    assert sum(line.startswith("| ---") for line in lines) == 3
    width = None
    for line in lines:
        if not line.startswith("|"):
            width = None
            continue
        width = width or line.count("|")
        assert line.count("|") == width


def test_every_file_gets_a_section(stored):
    gpu = copy.deepcopy(TREE)
    gpu["device"] = "cuda:0"
    gpu["environment"]["device"] = "cuda:0 (Some GPU)"
    (stored / "attention-some-gpu.json").write_text(json.dumps(gpu))
    text = benchmark_tables(stored)
    assert text.count("\n## ") == 1 and "## Attention: cuda:0 (Some GPU)\n" in text


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"slot": 1}'])
def test_a_file_of_another_form_is_named(stored, content):
    (stored / "b.json").write_text(content)
    with pytest.raises(ValueError, match=r"^folder: .*b\.json is not a stored benchmark"):
        benchmark_tables(stored)


def test_the_terminal_shows_every_contestant_and_target():
    out = io.StringIO()
    print_bench(TREE, Console(file=out, width=200))
    text = out.getvalue()
    assert text.count("sigmoid ") >= 2 and "25.0 ms" in text and "[1.20, 1.30]" in text
    assert "✗ missed: sigmoid takes at most 1.3 times" in text


def test_left_out_contestants_are_one_line_each():
    assert skipped(TREE) == [
        "sigmoid left out (MemoryError: needs more than 1.0 GB): 8192, causal, forward"
    ]
