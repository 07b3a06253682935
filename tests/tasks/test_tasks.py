import inspect
import subprocess
import sys

import pytest

from heterodox.experiment.scale import Scale
from heterodox.tasks import TASKS


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_a_tasks_table_entry_is_true(task):
    parameters = inspect.signature(task.load_train()).parameters
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())
    slots = set(task.slots)
    assert slots | {"seed", "settings", "device", "checkpoint"} <= set(parameters)
    assert ("data" in parameters) == (task.data is not None)
    for name, names in task.slots.items():
        assert parameters[name].default in names
    if task.data is not None:
        assert parameters["data"].default == task.data
    checked = set(inspect.signature(task.load_check()).parameters)
    assert checked == slots | {"settings"} | ({"data"} if task.data else set())
    settings = task.load_settings()
    assert set(settings) == set(Scale)
    assert all(s.learning_rate > 0 for s in settings.values())


def test_the_table_is_read_without_importing_torch():
    code = "import sys, heterodox.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("task", "choice"),
    [
        ("images", {"model": "vit", "attention": "deltanet"}),
        ("language", {"attention": "soft"}),
        ("recall", {"attention": "soft++"}),
    ],
)
def test_an_attention_that_cannot_do_the_task_is_refused_before_training(task, choice):
    settings = TASKS[task].load_settings()[Scale.SMOKE]
    with pytest.raises(ValueError, match=r"^(is_causal|position): "):
        TASKS[task].load_check()(settings=settings, **choice)
