"""How the reference reads the docstrings: a section "Example:" is code, as "Examples:" is."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """The name of the section that is rendered as a Python session."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        if obj.docstring:
            text = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
            obj.docstring.value = text
