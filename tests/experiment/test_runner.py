import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from tests.experiment import toy_claims

from heterodox.experiment import Measure, Paper, Scale
from heterodox.experiment.claim import Claim
from heterodox.experiment.expectation import Beats
from heterodox.experiment.runner import Options, run

ROOT = Path(__file__).parents[2]


def options(out, **changes):
    return Options(**({"scale": Scale.SMOKE, "out": out, "jobs": 2} | changes))


def quiet():
    return Console(file=open(os.devnull, "w"), force_terminal=False)


def results(tree):
    """What a run found, without when and how long."""
    keep = ("name", "verdict", "values", "effects", "readings", "curves", "failed")
    return [{field: claim[field] for field in keep} for claim in tree["claims"]]


def test_a_run_measures_every_arm_and_seed_and_judges(tmp_path):
    (tree,) = run([toy_claims.paper], options(tmp_path), quiet()).trees
    verdicts = {claim["name"]: claim["verdict"] for claim in tree["claims"]}
    assert verdicts == {"losses": "holds", "also_read": "holds", "joint": "holds"}
    losses = tree["claims"][0]
    assert set(losses["values"]) == {"base", "better", "equal", "diverges"}
    assert set(losses["values"]["base"]) == {"1", "2", "3"}
    assert losses["values"]["diverges"]["1"] == "NaN"
    assert json.loads((tmp_path / "smoke" / "toy.json").read_text()) == tree


def test_values_are_those_of_the_function_itself(tmp_path):
    (tree,) = run([toy_claims.paper], options(tmp_path), quiet()).trees
    expected = toy_claims.losses("better", 2, Scale.SMOKE).value
    assert tree["claims"][0]["values"]["better"]["2"] == expected


def test_the_time_of_a_run_counts_once_however_many_claims_share_it(tmp_path):
    (tree,) = run([toy_claims.paper], options(tmp_path), quiet()).trees
    records = [json.loads(file.read_text()) for file in (tmp_path / "jobs").rglob("*.json")]
    assert len(records) == 4 * 3 + 3
    total = sum(record["seconds"] for record in records)
    assert tree["seconds"] == pytest.approx(total, abs=0.1)


def test_a_second_run_measures_nothing_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("TOY_SECONDS", "0")
    first = run([toy_claims.slow], options(tmp_path / "out", jobs=1), quiet())
    second = run([toy_claims.slow], options(tmp_path / "out", jobs=1), quiet())
    assert len((tmp_path / "log").read_text().splitlines()) == 6
    assert results(first.trees[0]) == results(second.trees[0])
    run([toy_claims.slow], options(tmp_path / "out", jobs=1, fresh=True), quiet())
    assert len((tmp_path / "log").read_text().splitlines()) == 12


def test_more_seeds_add_to_those_that_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("TOY_SECONDS", "0")
    run([toy_claims.slow], options(tmp_path / "out", jobs=1), quiet())
    run([toy_claims.slow], options(tmp_path / "out", jobs=1, seeds=4), quiet())
    assert (tmp_path / "log").read_text().splitlines()[6:] == ["a 4", "b 4"]


def test_one_claim_can_be_measured_alone(tmp_path):
    (tree,) = run([toy_claims.paper], options(tmp_path), quiet(), claims=["also_read"]).trees
    (claim,) = tree["claims"]
    assert claim["name"] == "also_read"
    assert set(claim["values"]) == {"base", "better"}


def test_a_job_that_raises_does_not_take_the_rest_down(tmp_path):
    outcome = run([toy_claims.faulty], options(tmp_path), quiet(), claims=["raising"])
    (broken,) = outcome.broken
    assert "RuntimeError: no luck" in broken.error and "Traceback" in broken.error
    claim = outcome.trees[0]["claims"][0]
    assert claim["verdict"] == "inconclusive"
    assert claim["failed"] == [{"arm": "b", "seed": 2, "error": "RuntimeError: no luck"}]
    assert set(claim["values"]["b"]) == {"1", "3"}


def test_a_worker_that_dies_costs_only_its_own_job(tmp_path):
    outcome = run([toy_claims.faulty], options(tmp_path), quiet(), claims=["dying"])
    (broken,) = outcome.broken
    assert "the worker died" in broken.error
    claim = next(c for c in outcome.trees[0]["claims"] if c["name"] == "dying")
    assert set(claim["values"]["a"]) == {"1", "2", "3"}
    assert set(claim["values"]["b"]) == {"1", "3"}


def test_a_damaged_result_is_set_aside_and_measured_again(tmp_path):
    before = run([toy_claims.paper], options(tmp_path), quiet(), claims=["joint"]).trees[0]
    victim = next((tmp_path / "jobs" / "smoke" / "toy" / "joint").glob("*.json"))
    victim.write_text("{ half a fi")
    with Console(record=True, file=open(os.devnull, "w"), width=300) as console:
        after = run([toy_claims.paper], options(tmp_path), console, claims=["joint"]).trees[0]
    assert "damaged result" in console.export_text()
    assert results(before) == results(after)
    assert victim.with_name(victim.name + ".damaged").read_text() == "{ half a fi"


def start(out, log, seconds):
    code = (
        "import sys; from pathlib import Path; from rich.console import Console\n"
        "from heterodox.experiment.runner import Options, run\n"
        "from tests.experiment import toy_claims\n"
        "run([toy_claims.slow], Options(scale='smoke', out=Path(sys.argv[1]), jobs=2), Console())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(out)],
        cwd=ROOT,
        env=os.environ | {"TOY_LOG": str(log), "TOY_SECONDS": str(seconds)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # Whoever started the tests in the background has switched Ctrl-C off.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        text=True,
    )


def wait_for(condition, seconds=200):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def stored(out):
    return sorted((out / "jobs").rglob("*.json"))


@pytest.mark.parametrize("everything", [True, False], ids=["with its workers", "alone"])
def test_killed_in_the_middle_it_resumes_to_the_same_result(tmp_path, everything, monkeypatch):
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(out, log, 1.0)
    wait_for(lambda: len(stored(out)) >= 2)
    if everything:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    before = {path: path.read_bytes() for path in stored(out)}
    assert 2 <= len(before) < 6
    again = start(out, log, 0.0)
    text = again.communicate(timeout=200)[0]
    assert again.returncode == 0, text
    assert "runs are in" in text
    assert all(path.read_bytes() == content for path, content in before.items())
    assert max(Counter(log.read_text().splitlines()).values()) == 1
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log2"))
    monkeypatch.setenv("TOY_SECONDS", "0")
    undisturbed = run([toy_claims.slow], options(tmp_path / "other", jobs=1), quiet()).trees[0]
    resumed = json.loads((out / "smoke" / "slow.json").read_text())
    assert results(resumed) == results(undisturbed)


def test_two_runs_in_one_folder_share_the_work(tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    first, second = start(out, log, 0.3), start(out, log, 0.3)
    for process in (first, second):
        text = process.communicate(timeout=200)[0]
        assert process.returncode == 0, text
    runs = Counter(log.read_text().splitlines())
    assert len(runs) == 6 and max(runs.values()) == 1
    assert json.loads((out / "smoke" / "slow.json").read_text())["claims"][0]["verdict"] == "holds"


def test_ctrl_c_stops_the_workers_and_keeps_what_is_done(tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(out, log, 2.0)
    wait_for(lambda: len(stored(out)) >= 1)
    os.killpg(process.pid, signal.SIGINT)
    text = process.communicate(timeout=30)[0]
    assert "KeyboardInterrupt" in text
    kept = len(stored(out))
    time.sleep(2.5)
    assert len(stored(out)) == kept


def batched_paper():
    paper = Paper(toy_claims.slow.entry)
    measure = Measure("m", one_seed, ("a", "b"), many=many_seeds, many_at=(Scale.SMOKE,))
    paper.add(Claim("m", "s", "", "x", "lower", (Beats("a"),), measure, None, ("a", "b"), 3))
    return paper


def one_seed(arm, seed, scale):
    return {"a": 1.0, "b": 0.5}[arm] + 0.01 * seed


def many_seeds(arm, seeds, scale):
    assert len(seeds) > 1
    return [one_seed(arm, seed, scale) for seed in seeds]


def test_seeds_computed_together_are_stored_one_by_one(tmp_path):
    together = run([batched_paper()], options(tmp_path / "a", jobs=1), quiet()).trees[0]
    records = [json.loads(path.read_text()) for path in stored(tmp_path / "a")]
    assert len(records) == 6 and {record["together"] for record in records} == {3}
    single = run(
        [batched_paper()], options(tmp_path / "b", jobs=1, scale=Scale.LAPTOP), quiet()
    ).trees[0]
    assert results(together) == results(single)


@pytest.mark.parametrize(
    ("changes", "argument"),
    [({"seeds": 0}, "seeds"), ({"jobs": 0}, "jobs"), ({"engine": "x"}, "engine")],
)
def test_bad_options_name_the_argument(tmp_path, changes, argument):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        options(tmp_path, **changes)


def test_a_folder_that_cannot_be_written_is_said_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^out: .*file.*expected"):
        run([toy_claims.paper], options(tmp_path / "file" / "out"), quiet())


def test_an_unknown_claim_lists_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"^claim: 'x' given, one of losses, also_read, joint"):
        run([toy_claims.paper], options(tmp_path), quiet(), claims=["x"])


def test_a_real_ray_runs_the_same_jobs(tmp_path):
    pytest.importorskip("ray", reason="ray is not installed")
    code = (
        "import sys; from pathlib import Path; from rich.console import Console\n"
        "import ray; ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        "from heterodox.experiment.runner import Options, run\n"
        "from tests.experiment import toy_claims\n"
        "run([toy_claims.paper], Options(scale='smoke', out=Path(sys.argv[1]), engine='ray'),"
        " Console())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "ray")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ray_tree = json.loads((tmp_path / "ray" / "smoke" / "toy.json").read_text())
    local = run([toy_claims.paper], options(tmp_path / "local"), quiet()).trees[0]
    assert results(ray_tree) == results(local)


def test_a_real_dask_runs_the_same_jobs(tmp_path):
    pytest.importorskip("dask.distributed", reason="dask is not installed")
    import dask
    from dask.distributed import LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        dask.config.set({"scheduler-address": cluster.scheduler_address}),
    ):
        tree = run([toy_claims.paper], options(tmp_path / "d", engine="dask"), quiet()).trees[0]
    local = run([toy_claims.paper], options(tmp_path / "local"), quiet()).trees[0]
    assert results(tree) == results(local)
