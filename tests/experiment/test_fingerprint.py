import importlib
import sys
import textwrap

import pytest

from heterodox.experiment import fingerprint as module
from heterodox.experiment.fingerprint import code_fingerprint, fingerprint, reached_modules

SOURCE = {
    "claims.py": '''
        """Claims."""
        from laboratory import tasks
        from laboratory.layers import good, other
        from heterodox.experiment import Paper

        WIDTH = 3
        UNUSED = 4

        def measure(arm, seed, scale):
            """What is measured."""
            return tasks.train(good, WIDTH)

        def another(arm, seed, scale):
            return other(1)
        ''',
    "tasks.py": """
        import math

        def train(layer, width):
            # a comment
            return _step(layer(width))

        def _step(x):
            return math.exp(x)

        def not_reached():
            return 0
        """,
    "layers.py": """
        def good(x):
            return x + 1

        def other(x):
            return x + 2
        """,
}


@pytest.fixture
def laboratory(tmp_path, monkeypatch):
    """A package of three modules, and a function that edits it and fingerprints it anew."""
    root = tmp_path / "laboratory"
    root.mkdir()
    (root / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def of(changes=(), name="measure"):
        for file, text in SOURCE.items():
            text = textwrap.dedent(text)
            for old, new in changes:
                text = text.replace(old, new)
            (root / file).write_text(text)
        for loaded in [m for m in sys.modules if m.partition(".")[0] == "laboratory"]:
            del sys.modules[loaded]
        importlib.invalidate_caches()
        import linecache

        linecache.clearcache()
        module._reach.cache_clear()
        module._Module.read.cache_clear()
        return code_fingerprint(getattr(importlib.import_module("laboratory.claims"), name))

    yield of
    for loaded in [m for m in sys.modules if m.partition(".")[0] == "laboratory"]:
        del sys.modules[loaded]
    module._reach.cache_clear()
    module._Module.read.cache_clear()


@pytest.mark.parametrize(
    "change",
    [
        ("return x + 1", "return x + 1.5"),
        ("math.exp", "math.log"),
        ("WIDTH = 3", "WIDTH = 5"),
        ("tasks.train(good, WIDTH)", "tasks.train(other, WIDTH)"),
        ("_step(layer(width))", "_step(layer(width)) + 1"),
    ],
)
def test_a_change_of_what_is_reached_changes_it(laboratory, change):
    assert laboratory() != laboratory([change])


@pytest.mark.parametrize(
    "change",
    [
        ("# a comment", "# another comment"),
        ("What is measured.", "What is measured here."),
        ("UNUSED = 4", "UNUSED = 5"),
        ("return x + 2", "return x + 3"),
        ("return 0", "return 1"),
        ("return other(1)", "return other(2)"),
        ("    return tasks.train(good, WIDTH)", "    return tasks.train(\n        good, WIDTH)"),
        (
            "def measure(",
            'paper = Paper.load("z-loss")\n\n@paper.claim(says="words", metric="x", '
            'expects=(), arms=("a",))\ndef measure(',
        ),
    ],
)
def test_a_change_of_words_or_of_other_code_does_not(laboratory, change):
    assert laboratory() == laboratory([change])


def test_code_that_cannot_be_imported_here_is_followed_all_the_same(laboratory):
    fast = ("return _step(layer(width))", "from laboratory import fast; return fast.run(layer)")
    SOURCE["fast.py"] = "import no_such_accelerator\n\ndef run(layer):\n    return layer(1)\n"
    try:
        before = laboratory([fast])
        assert before != laboratory([fast, ("return layer(1)", "return layer(2)")])
        assert before == laboratory([fast, ("return x + 2", "return x + 4")])
    finally:
        del SOURCE["fast.py"]


def test_settings_are_part_of_it():
    assert fingerprint(textwrap.dedent, {"a": 1}) != fingerprint(textwrap.dedent, {"a": 2})
    assert fingerprint(textwrap.dedent, {"a": 1, "b": 2}) == fingerprint(
        textwrap.dedent, {"b": 2, "a": 1}
    )


def uses_a_slot_name():
    return "stablemax"


def uses_a_lazy_export():
    from heterodox.losses import stablemax_cross_entropy

    return stablemax_cross_entropy


@pytest.mark.parametrize("function", [uses_a_slot_name, uses_a_lazy_export])
def test_components_are_reached_by_slot_name_and_through_lazy_packages(function):
    reached = reached_modules(function)
    assert "heterodox.losses.stablemax" in reached
    assert "heterodox.optim.perp_grad" not in reached


def uses_sigmoid():
    return "sigmoid"


def test_other_names_of_a_slot_are_not_reached():
    reached = reached_modules(uses_sigmoid)
    assert "heterodox.attention.sigmoid" in reached
    assert "heterodox.attention.softplus" not in reached
