"""The fingerprint of a measure: what its result depends on, as a hash.

Starting from the measure's function, definitions are followed to the definitions that they name,
through every module of the package, and the syntax tree of each is hashed. So a result is found
again after a change of comments, docstrings, formatting or of unrelated code, and is not found
after a change of the implementation.

What is followed: names, attributes of imported modules, and strings that a slot knows ("sigmoid").
What is not: third-party code, whose versions are recorded with each result instead.
"""

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from heterodox.slots import Slot

_SLOT_PACKAGES = ("attention", "layers", "losses", "optim")
_EVERYTHING = "*"

Node = tuple[str, str]
"""(module, top-level name)."""


def code_fingerprint(function: Callable[..., Any], names: Iterable[str] = ()) -> str:
    """A hash of the code that `function` reaches.

    Args:
        function: defined at the top level of a module; of a `functools.partial`, the functions
            among its arguments count too.
        names: of components that the function is given, as a slot knows them.

    Example:
        >>> from heterodox.slots import lazy_exports
        >>> code_fingerprint(lazy_exports) == code_fingerprint(lazy_exports)
        True
    """
    starts = [*_starts(function), *(target for name in names for target in _slot_targets(name))]
    reached: dict[Node, str] = {}
    for start in starts:
        reached |= _reach(start)
    digest = hashlib.sha256()
    for node, text in sorted(reached.items()):
        digest.update(f"{node}\n{text}\n".encode())
    return digest.hexdigest()


def fingerprint(function: Callable[..., Any], settings: dict[str, Any]) -> str:
    """A hash of `settings`, which JSON can hold, and of the code that they and `function` reach."""
    text = json.dumps(settings, sort_keys=True, default=str)
    code = code_fingerprint(function, sorted(set(_strings(settings))))
    return hashlib.sha256(f"{code}\n{text}".encode()).hexdigest()


def _starts(function: Callable[..., Any]) -> Iterator[Node]:
    if isinstance(function, functools.partial):
        for part in (function.func, *function.args, *function.keywords.values()):
            if callable(part):
                yield from _starts(part)
        return
    function = inspect.unwrap(function)
    yield (function.__module__, function.__qualname__.split(".")[0])


def _strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _strings(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _strings(value)


def reached_modules(function: Callable[..., Any]) -> set[str]:
    """The modules in which `function` reaches a definition."""
    function = inspect.unwrap(function)
    return {module for module, _ in _reach((function.__module__, function.__qualname__))}


@functools.cache
def _reach(start: Node) -> dict[Node, str]:
    seen: dict[Node, str] = {}
    stack = [start]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        module = _Module.read(node[0])
        if node[1] == _EVERYTHING:
            seen[node] = ""
            stack.extend((node[0], name) for name in module.definitions)
            continue
        seen[node] = module.text(node[1])
        stack.extend(module.references(node[1]))
    return seen


class _Module:
    """The top-level definitions of a module and what each refers to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root = name.partition(".")[0]
        tree = ast.parse(_source(name))
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, Node] = {}
        loose: list[ast.stmt] = []
        for statement in tree.body:
            names = list(_defined(statement))
            for name in names:
                self.definitions.setdefault(name, []).append(statement)
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self.imports.update(_imported(statement, self.root))
            elif not names and not _is_docstring(statement):
                loose.append(statement)
        # Statements that define nothing may still act (register, patch): they belong to every name.
        self.loose = loose

    @staticmethod
    @functools.cache
    def read(name: str) -> "_Module":
        return _Module(name)

    def text(self, name: str) -> str:
        statements = self.definitions.get(name, [])
        return "\n".join(ast.dump(_plain(statement)) for statement in [*statements, *self.loose])

    def references(self, name: str) -> Iterator[Node]:
        local_imports = dict(self.imports)
        statements = [*self.definitions.get(name, []), *self.loose]
        for statement in statements:
            for part in ast.walk(statement):
                if isinstance(part, ast.Import | ast.ImportFrom):
                    local_imports.update(_imported(part, self.root))
        for statement in statements:
            yield from self._of(_plain(statement), local_imports)

    def _of(self, statement: ast.AST, imports: dict[str, Node]) -> Iterator[Node]:
        inside_attribute: set[int] = set()
        for part in ast.walk(statement):
            if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                target = imports.get(part.value.id)
                if target is not None and target[1] == _EVERYTHING:
                    inside_attribute.add(id(part.value))
                    yield from self._followed(target[0], part.attr)
            elif isinstance(part, ast.Name) and id(part) not in inside_attribute:
                if part.id in self.definitions:
                    yield (self.name, part.id)
                elif part.id in imports:
                    yield from self._followed(*imports[part.id])
            elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield from _slot_targets(part.value)

    def _followed(self, module: str, name: str) -> Iterator[Node]:
        """Only our own packages: third-party code is not followed, nor imported for it."""
        if module.partition(".")[0] in {self.root, "heterodox"}:
            yield from _resolve(module, name)


def _source(name: str) -> str:
    """Read, not imported: a kernel for a GPU need not be importable here."""
    loaded = sys.modules.get(name)
    spec = None if loaded is not None else importlib.util.find_spec(name)
    file = inspect.getsourcefile(loaded) if loaded is not None else spec and spec.origin
    return Path(file).read_text(encoding="utf-8") if file and file.endswith(".py") else ""


def _resolve(module: str, name: str) -> Iterator[Node]:
    """Where `name` of `module` is defined, followed through packages that only re-export."""
    package = _package(module)
    if name == _EVERYTHING:
        if package is None:
            yield (module, _EVERYTHING)
        return
    exports = getattr(package, "_EXPORTS", {})
    if name in exports:
        yield (exports[name], name)
    elif name in _Module.read(module).definitions:
        # A slot is a table of all names; which of them matters is seen from the strings used.
        if not isinstance(getattr(package, name, None), Slot):
            yield (module, name)
    elif name in _Module.read(module).imports:
        yield from _resolve(*_Module.read(module).imports[name])
    elif _is_module(f"{module}.{name}"):
        yield from _resolve(f"{module}.{name}", _EVERYTHING)


def _is_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@functools.cache
def _slot_targets(name: str) -> tuple[Node, ...]:
    targets = []
    for package in _SLOT_PACKAGES:
        for value in vars(importlib.import_module(f"heterodox.{package}")).values():
            if isinstance(value, Slot) and name in value:
                module, _, attribute = value.where(name).partition(":")
                if module.partition(".")[0] == "heterodox":
                    targets.append((module, attribute))
    return tuple(targets)


def _defined(statement: ast.stmt) -> Iterator[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            for target in targets:
                yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.AugAssign(target=ast.Name(id=name)):
            yield name
        case ast.If() | ast.Try() | ast.With():
            for child in ast.walk(statement):
                if child is not statement and isinstance(child, ast.stmt):
                    yield from _defined(child)


def _imported(statement: ast.stmt, root: str) -> dict[str, Node]:
    if isinstance(statement, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: (
                alias.name if alias.asname else alias.name.partition(".")[0],
                _EVERYTHING,
            )
            for alias in statement.names
        }
    assert isinstance(statement, ast.ImportFrom)
    module = statement.module or ""
    return {
        alias.asname or alias.name: (
            (f"{module}.{alias.name}", _EVERYTHING)
            if module.partition(".")[0] in {root, "heterodox"} and _is_submodule(module, alias.name)
            else (module, alias.name)
        )
        for alias in statement.names
    }


def _is_submodule(module: str, name: str) -> bool:
    package = _package(module)
    if package is None or name in getattr(package, "_EXPORTS", {}):
        return False
    return _is_module(f"{module}.{name}")


def _package(name: str) -> ModuleType | None:
    """The package of that name, imported; None if it is a plain module."""
    loaded = sys.modules.get(name)
    if loaded is None:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.submodule_search_locations is None:
            return None
        loaded = importlib.import_module(name)
    return loaded if hasattr(loaded, "__path__") else None


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


class _Strip(ast.NodeTransformer):
    """Drops docstrings, and the decorators by which a claim is worded."""

    def visit(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            if node.body and _is_docstring(node.body[0]):
                node.body = node.body[1:] or [ast.Pass()]
            if isinstance(node, ast.FunctionDef):
                node.decorator_list = [d for d in node.decorator_list if not _words_a_claim(d)]
        return node


def _words_a_claim(decorator: ast.expr) -> bool:
    return (
        isinstance(decorator, ast.Call)
        and isinstance(decorator.func, ast.Attribute)
        and decorator.func.attr in {"claim", "many_seeds"}
    )


def _plain(statement: ast.stmt) -> ast.stmt:
    text = ast.unparse(statement)
    plain = _Strip().visit(ast.parse(text).body[0])
    assert isinstance(plain, ast.stmt)
    return plain
