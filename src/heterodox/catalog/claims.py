"""The claims of a paper, read from the source of its claims module without importing it.

A claim is a function under one or more `@paper.claim(says=..., metric=..., expects=...)`. The
module imports torch and the tasks; its syntax tree holds all that a listing needs, in milliseconds.
"""

import ast
from dataclasses import dataclass

from heterodox.catalog.entry import PaperEntry


@dataclass(frozen=True)
class ClaimText:
    """A claim as written in the source.

    Attributes:
        name: the `name` argument, or else the function's name.
        says: what the paper says, one sentence.
        reported: where and with which number the paper reports it; "" if not given.
        metric: what is measured, with its unit.
        expects: the expectation as a Python expression, for example
            `NoWorseThan('softmax', margin=0.02)`; several are separated by "; ".
        function: the function that measures it.
    """

    name: str
    says: str
    reported: str
    metric: str
    expects: str
    function: str


def read_claims(entry: PaperEntry) -> list[ClaimText]:
    """The claims of a paper in the order of its module; none if the paper is not available.

    Example:
        >>> from heterodox.catalog.entry import PaperEntry
        >>> unwritten = PaperEntry("no-such-paper", "", "", 2024, "loss", "", ())
        >>> read_claims(unwritten)
        []
    """
    if not entry.available:
        return []
    return parse_claims(entry.claims_source.read_text(encoding="utf-8"))


def parse_claims(source: str) -> list[ClaimText]:
    """The claims in the text of a claims module.

    Example:
        >>> source = '''
        ... @paper.claim(says="It is faster.", metric="ms", expects=LessThan("softmax"))
        ... def speed(arm, seed, scale): ...
        ... '''
        >>> parse_claims(source)[0].expects
        "LessThan('softmax')"
    """
    return [
        _claim_text(function.name, decorator)
        for function in ast.parse(source).body
        if isinstance(function, ast.FunctionDef)
        for decorator in function.decorator_list
        if isinstance(decorator, ast.Call)
        and isinstance(decorator.func, ast.Attribute)
        and decorator.func.attr == "claim"
    ]


def _claim_text(function: str, decorator: ast.Call) -> ClaimText:
    arguments = {keyword.arg: keyword.value for keyword in decorator.keywords}

    def text(argument: str, default: str) -> str:
        if argument not in arguments:
            return default
        value = arguments[argument]
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return value.value
        parts = value.elts if isinstance(value, ast.Tuple) else [value]
        return "; ".join(ast.unparse(part) for part in parts)

    return ClaimText(
        name=text("name", function),
        says=text("says", ""),
        reported=text("reported", ""),
        metric=text("metric", ""),
        expects=text("expects", ""),
        function=function,
    )
