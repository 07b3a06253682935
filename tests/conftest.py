"""What holds for all tests."""

import inspect

import pytest

# Under shape types wrong input meets a type error before it meets our ValueError, and torch.compile
# meets the type checker.
WITHOUT_SHAPE_TYPES = ("pytest.raises(ValueError", "torch.compile(")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out, under `--jaxtyping-packages`, the tests of bad input and of compilation."""
    if not config.getoption("--jaxtyping-packages"):
        return
    left_out = [item for item in items if _is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _is_left_out(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    source = inspect.getsource(item.function)
    return any(words in source for words in WITHOUT_SHAPE_TYPES)
