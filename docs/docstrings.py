"""How the reference reads docstrings and signatures."""

import dataclasses
import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """A section "Example:" is code, as "Examples:" is."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        if obj.docstring:
            text = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
            obj.docstring.value = text


class Shapes(griffe.Extension):
    """`Float[Tensor, "classes"]` keeps its quotes; other strings in types are names to look up."""

    def on_function(
        self, *, func: griffe.Function, loader: griffe.GriffeLoader, **kwargs: Any
    ) -> None:
        for parameter in func.parameters:
            _quote_shapes(parameter.annotation)
        _quote_shapes(func.returns)


def _quote_shapes(part: Any) -> None:
    if isinstance(part, list | tuple):
        for one in part:
            _quote_shapes(one)
    elif isinstance(part, griffe.ExprSubscript | griffe.ExprTuple | griffe.ExprBinOp):
        if isinstance(part, griffe.ExprSubscript) and _is_array(part.left):
            *kind, shape = part.slice.elements  # type: ignore[union-attr]
            if isinstance(shape, griffe.ExprName):
                part.slice.elements = [*kind, f'"{shape.name}"']  # type: ignore[union-attr]
        for field in dataclasses.fields(part):
            _quote_shapes(getattr(part, field.name))


def _is_array(left: Any) -> bool:
    return isinstance(left, griffe.ExprName) and left.canonical_path.startswith("jaxtyping.")
