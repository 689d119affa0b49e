"""An attacker who acts at the worst moment: right before or after one of MLflow's own calls, which still does what it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from mlflow.tracking import MlflowClient


@contextmanager
def at_call(monkeypatch: pytest.MonkeyPatch, method: str, act: Callable[[], object], *, first: bool) -> Iterator[None]:
    """`act` once, right before (`first`) or after the client's next call of `method`."""
    real, done = getattr(MlflowClient, method), []

    def interposed(self: MlflowClient, *arguments: object, **named: object) -> object:
        if first and not done:
            done.append(act())
        answer = real(self, *arguments, **named)
        if not first and not done:
            done.append(act())
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, method, interposed)
        yield
    assert done
