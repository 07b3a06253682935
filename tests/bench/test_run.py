"""A whole benchmark on tiny sizes: its form, its targets, its errors."""

import json

import pytest

from heterodox.bench import Options, run_bench, write_bench
from heterodox.bench import run as run_module
from heterodox.bench.run import SMALLEST_MEMORY, check_writable, judged
from heterodox.bench.workload import Target
from heterodox.training.progress import listening


def tiny(**changes):
    fields = dict(sizes=["2x8"], threads=1, seconds=0.0, repeat=6)
    return Options(**(fields | changes))


@pytest.fixture(scope="module")
def tree():
    return run_bench("optimizer", tiny())


def test_the_tree_says_what_was_measured_where_and_how(tree):
    assert tree["slot"] == "optimizer" and tree["default"] == "adamw"
    kinds = {name: facts["kind"] for name, facts in tree["contestants"].items()}
    assert kinds == {"adamw": "default", "perp-grad": "component", "perp-grad-loop": "peer"}
    assert tree["threads"] == 1 and tree["device"] == "cpu"
    assert tree["settings"] == {"seconds": 0.0, "repeat": 6, "limit": 300.0}
    assert tree["environment"]["processor"] and tree["started"] <= tree["finished"]
    (case,) = tree["cases"]
    assert (case["size"], case["passes"], case["label"]) == ("2x8", "step", "2x8, step")
    assert list(case["results"]) == list(tree["contestants"])


def test_summaries_are_those_of_the_stored_rounds(tree):
    results = tree["cases"][0]["results"]
    for result in results.values():
        rounds = sorted(result["rounds"])
        assert len(rounds) == 6 and rounds[0] > 0
        assert result["seconds"]["median"] == pytest.approx((rounds[2] + rounds[3]) / 2)
        assert (
            rounds[0] <= result["seconds"]["lower_quartile"] <= result["seconds"]["upper_quartile"]
        )
        pairs = zip(result["rounds"], results["adamw"]["rounds"], strict=True)
        ratios = sorted(own / default for own, default in pairs)
        ratio = result["time_ratio"]
        assert ratio["median"] == pytest.approx((ratios[2] + ratios[3]) / 2)
        assert (ratio["low"], ratio["high"]) == pytest.approx((ratios[0], ratios[5]))
    assert results["adamw"]["time_ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}


def test_a_few_bytes_of_memory_give_no_ratio(tree):
    for result in tree["cases"][0]["results"].values():
        assert result["peak_bytes"] is None or result["peak_bytes"] < SMALLEST_MEMORY
        assert result["memory_ratio"] is None


def test_the_file_is_named_after_slot_and_processor_and_read_again(tree, tmp_path):
    named = tree | {
        "environment": tree["environment"] | {"processor": "Intel(R) Xeon(R) CPU @ 2.20GHz"}
    }
    path = write_bench(named, tmp_path / "new")
    assert path == tmp_path / "new" / "optimizer-intel-xeon-cpu-2.20ghz.json"
    assert json.loads(path.read_text()) == named
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_gpu_gives_the_file_its_name(tree, tmp_path):
    facts = tree["environment"] | {"device": "cuda:0 (NVIDIA A100-SXM4-40GB)"}
    path = write_bench(tree | {"environment": facts}, tmp_path)
    assert path.name == "optimizer-nvidia-a100-sxm4-40gb.json"


def test_peers_are_chosen_by_name():
    tree = run_bench("optimizer", tiny(against=[], repeat=1))
    assert list(tree["contestants"]) == ["adamw", "perp-grad"]
    assert tree["cases"][0]["results"]["perp-grad"]["time_ratio"]["low"] is None


def test_progress_grows_to_its_total():
    seen = []
    with listening(lambda step, total, metrics: seen.append((step, total))):
        run_bench("optimizer", tiny(sizes=["2x8", "1x8"], against=[], repeat=2))
    steps = [step for step, _ in seen]
    assert steps == sorted(steps)
    assert seen[-1] == (8, 8)  # two cases of two contestants and two rounds


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError("needs more than 1.0 GB"), "MemoryError: needs more than 1.0 GB"),
        (ValueError("is_causal: no\nmore"), "ValueError: is_causal: no"),
    ],
)
def test_who_cannot_do_a_case_is_left_out_of_it_with_the_reason(error, reason, monkeypatch):
    def peak(slot, name, case, device, threads):
        if name == "perp-grad":
            raise error
        return 3 * SMALLEST_MEMORY if name == "perp-grad-loop" else 2 * SMALLEST_MEMORY

    monkeypatch.setattr(run_module, "peak_above_inputs", peak)
    results = run_bench("optimizer", tiny(sizes=["mlp"]))
    assert results["cases"][0]["results"]["perp-grad"] == {"skipped": reason}
    assert results["cases"][0]["results"]["perp-grad-loop"]["memory_ratio"] == 1.5
    mlp = next(target for target in results["targets"] if target["case"].startswith("mlp"))
    assert mlp["measured"] is None and mlp["met"] is None


def test_without_the_default_there_are_no_ratios(monkeypatch):
    def peak(slot, name, case, device, threads):
        if name == "adamw":
            raise MemoryError("too large")

    monkeypatch.setattr(run_module, "peak_above_inputs", peak)
    results = run_bench("optimizer", tiny())["cases"][0]["results"]
    assert results["perp-grad"]["time_ratio"] is None
    assert results["perp-grad"]["seconds"]["median"] > 0


def test_a_defect_is_not_taken_for_a_limit(monkeypatch):
    def peak(*arguments):
        raise TypeError("a defect")

    monkeypatch.setattr(run_module, "peak_above_inputs", peak)
    with pytest.raises(TypeError, match="a defect"):
        run_bench("optimizer", tiny())


def case(size, passes, variant="", **results):
    label = ", ".join(filter(None, (size, variant, passes)))
    return {
        "size": size,
        "passes": passes,
        "variant": variant,
        "label": label,
        "results": results,
    }


def took(median, peak=None, memory_ratio=None):
    ratio = {"median": median, "low": median - 0.1, "high": median + 0.1}
    return {"time_ratio": ratio, "peak_bytes": peak, "memory_ratio": memory_ratio}


class TestTargets:
    def met(self, target, *cases, device="cpu"):
        return [(t["case"], t["met"]) for t in judged([target], cases, "softmax", device)]

    def test_time_is_judged_in_every_variant(self):
        target = Target("sigmoid", "time", "2048", "forward", 1.3)
        found = self.met(
            target,
            case("2048", "forward", "causal", sigmoid=took(1.3)),
            case("2048", "forward", "full", sigmoid=took(1.31)),
            case("2048", "forward and backward", "full", sigmoid=took(9.0)),
            case("512", "forward", "full", sigmoid=took(9.0)),
        )
        assert found == [("2048, causal, forward", True), ("2048, full, forward", False)]

    def test_memory_is_judged_by_its_own_ratio(self):
        target = Target("sigmoid", "memory", "8192", "forward", 1.2)
        low, high = took(9.0, memory_ratio=1.1), took(0.5, memory_ratio=1.25)
        assert self.met(target, case("8192", "forward", sigmoid=low))[0][1] is True
        assert self.met(target, case("8192", "forward", sigmoid=high))[0][1] is False

    def test_memory_may_be_judged_by_its_bytes(self):
        target = Target("softplus", "memory", "16384", "forward", 1.0, reference=10**9)
        assert target.says("softmax") == "softplus takes at most 1 GB"
        (judgement,) = judged(
            [target],
            [case("16384", "forward", softplus=took(1.0, peak=1_500_000_000, memory_ratio=0.1))],
            "softmax",
            "cpu",
        )
        assert judgement["measured"]["median"] == 1.5 and judgement["met"] is False

    def test_what_was_not_measured_is_neither_met_nor_missed(self):
        target = Target("sigmoid", "time", "2048", "forward", 1.3)
        assert self.met(target, case("512", "forward")) == [("2048, forward", None)]
        left_out = case("2048", "forward", sigmoid={"skipped": "MemoryError: too large"})
        assert self.met(target, left_out) == [("2048, forward", None)]

    def test_targets_are_for_their_device(self):
        target = Target("sigmoid", "time", "2048", "forward", 1.0, device="cuda")
        done = case("2048", "forward", sigmoid=took(0.9))
        assert self.met(target, done) == []
        assert self.met(target, done, device="cuda") == [("2048, forward", True)]


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"seconds": -1.0}, "seconds"),
        ({"repeat": 0}, "repeat"),
        ({"limit": -1.0}, "limit"),
        ({"threads": 0}, "threads"),
        ({"device": "gpu"}, "device"),
        ({"sizes": ["big"]}, "sizes"),
        ({"against": ["apex"]}, "against"),
    ],
)
def test_bad_options_name_the_argument(changes, argument):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        run_bench("optimizer", tiny(**changes))


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        check_writable(tmp_path / "file")
    with pytest.raises(OSError):
        check_writable(tmp_path / "file" / "below")
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
