"""The type checks that the whole suite runs under can fail."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from tests import type_checks

SOURCE = """
from __future__ import annotations
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from nowhere import Unknown


@runtime_checkable
class Named(Protocol):
    @property
    def name(self) -> str: ...


def names(first: Named, second: Named | None) -> None: ...


def whole(count: int, later: Later | None = None, unknown: Unknown | None = None) -> list[str]:
    return ["text"] if count else [0]


def outer(text: str) -> object:
    def inner(count: int) -> int:
        return count

    return inner


@contextmanager
def opened(path: str) -> Iterator[str]:
    yield path


@dataclass(frozen=True)
class Later:
    size: int

    @property
    def wrong(self) -> str:
        return self.size

    @classmethod
    def of(cls, size: int) -> Later:
        return cls(size)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module imported with checks."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    (tmp_path / "checked_sample.py").write_text(SOURCE)
    type_checks.install("checked_sample")
    try:
        import checked_sample
    finally:
        sys.modules.pop("checked_sample", None)
    return checked_sample


def test_arguments_and_answers_are_checked(module: ModuleType) -> None:
    assert module.whole(1, unknown=1) == ["text"]
    for wrong in (lambda: module.whole("1"), lambda: module.whole(0)):
        with pytest.raises(TypeError, match="violates type hint"):
            wrong()


def test_inner_functions_methods_and_decorated_functions_are_checked(module: ModuleType) -> None:
    with module.opened("x") as path:
        assert path == "x"
    for wrong in (
        lambda: module.outer("x")("y"),
        lambda: module.Later("1"),
        lambda: module.Later.of("1"),
        lambda: module.Later(1).wrong,
        lambda: module.opened(1).__enter__(),
    ):
        with pytest.raises(TypeError, match="violates type hint"):
            wrong()


def test_protocols_are_checked(module: ModuleType) -> None:
    path = Path("x")
    module.names(path, path)
    module.names(path, None)
    for wrong in (lambda: module.names("x", None), lambda: module.names(path, "x"), lambda: module.names(None, None)):
        with pytest.raises(TypeError, match="violates type hint"):
            wrong()


def test_the_package_is_checked() -> None:
    with pytest.raises(TypeError, match="violates type hint"):
        Interval(0, 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="violates type hint"):
        evaluate("graph", np.zeros((1, 2)))  # type: ignore[arg-type]


def test_checks_that_come_too_late_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="before its type checks"):
        type_checks.install("mlflow_lipschitz")
