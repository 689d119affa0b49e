"""Under pytest every function of the package checks its arguments and its answer against its annotations, with beartype.

An import hook decorates the functions as the modules are compiled. beartype's own hook refuses annotations such as
`Value | None` where `Value` is only defined further down or only imported for type checkers; here those are left unchecked and
everything else is checked. A check costs about a microsecond a call, which decides how long the suite takes: the
engine's tests make millions of calls.
"""

from __future__ import annotations

import ast
import dataclasses
import sys
import typing
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, FunctionType, ModuleType, UnionType
from typing import Annotated, Any, TypeVar

from beartype import BeartypeConf, beartype
from beartype.vale import Is

Class = TypeVar("Class", bound=type)

_CONFIGURATION = BeartypeConf(violation_type=TypeError)


def install(package: str) -> None:
    """From now on modules of `package` are imported with checks; it is an error if it has been imported already."""
    if package in sys.modules:
        raise RuntimeError(f"{package} was imported before its type checks were installed")
    sys.meta_path.insert(0, _Finder(package))


def checked_function(function: FunctionType) -> Any:
    """`function`, raising `TypeError` on what its annotations do not allow."""
    written = function.__annotations__
    function.__annotations__ = {name: _resolved(hint, function.__globals__) for name, hint in written.items()}
    wrapper = beartype(function, conf=_CONFIGURATION)
    wrapper.__annotations__ = written
    return wrapper


def checked_class(decorated: Class) -> Class:
    """A dataclass with its generated `__init__` checked; any other class as it is: its methods have been decorated."""
    if dataclasses.is_dataclass(decorated) and "__init__" in vars(decorated):
        decorated.__init__ = checked_function(decorated.__init__)  # type: ignore[misc]
    return decorated


def _resolved(hint: Any, names: dict[str, Any]) -> Any:
    def holder() -> None: ...

    holder.__annotations__ = {"hint": hint}
    try:
        return _by_type(typing.get_type_hints(holder, names, include_extras=True)["hint"])
    except (NameError, TypeError, AttributeError):  # names defined later, or imported for type checkers alone
        return Any


def _by_type(hint: Any) -> Any:
    """The hint with its protocols asked once per type of value: Python looks through all their members at every question."""
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return typing.Union[tuple(_by_type(part) for part in typing.get_args(hint))]  # noqa: UP007
    if not getattr(hint, "_is_runtime_protocol", False) or not getattr(hint, "_is_protocol", False):
        return hint
    answers: dict[type, bool] = {}

    def conforms(value: Any) -> bool:
        kind = type(value)
        if kind not in answers:
            answers[kind] = isinstance(value, hint)
        return answers[kind]

    return Annotated[object, Is[conforms]]


class _Decorating(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        # Innermost: other decorators hide the annotations.
        node.decorator_list.append(_reference("checked_function", node))
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        # Outermost: after @dataclass has written __init__.
        node.decorator_list.insert(0, _reference("checked_class", node))
        return self.generic_visit(node)


def _reference(name: str, place: ast.AST) -> ast.expr:
    found = ast.parse(f"__import__({__name__!r}, fromlist=['']).{name}", mode="eval").body
    for part in ast.walk(found):
        ast.copy_location(part, place)
    return found


class _Loader(SourceFileLoader):
    def path_stats(self, path: str) -> typing.NoReturn:
        # Compiled files hold the modules without checks: none is read or written.
        raise OSError("not cached")

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:  # type: ignore[override]
        tree = _Decorating().visit(ast.parse(data, path))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.package and not fullname.startswith(f"{self.package}."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec
