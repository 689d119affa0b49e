"""Small models in a real SQLite store, and the command line as a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlflow_lipschitz.cli.__main__ import run
from tests.registry.conftest import sqlite_store, store  # noqa: F401

POLICY = """\
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: tests, version: 1}
model: {output: 0}
perturbation: {norm: linf, radius: 0.01}
checks:
  - {id: steadiness, type: lipschitz_at_most, max: LIMIT}
"""


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run one command: arguments -> exit code and what was printed."""

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A policy that every small network passes."""
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY.replace("LIMIT", "1000.0"))
    return path


@pytest.fixture
def strict_policy(tmp_path: Path) -> Path:
    """A policy that no network passes that answers to its input."""
    path = tmp_path / "strict.yaml"
    path.write_text(POLICY.replace("LIMIT", "0.0"))
    return path
