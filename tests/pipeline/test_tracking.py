"""However an audit ends, its run does not stay RUNNING."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.errors import InvalidData
from mlflow_lipschitz.pipeline.tracking import audit_run
from mlflow_lipschitz.registry.pull import PulledModel, pull
from tests.registry.conftest import sqlite_store, store  # noqa: F401
from tests.registry.stores import log_onnx

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def model() -> PulledModel:
    return pull(log_onnx().model_uri)


def newest(model: PulledModel, count: int = 1) -> list[Run]:
    client = MlflowClient()
    experiment = client.get_run(str(model.run_id)).info.experiment_id
    return list(client.search_runs([experiment], order_by=["attributes.start_time DESC"], max_results=count))


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), "KILLED"), (InvalidData("bad row"), "FAILED")])
def test_an_audit_that_stops_ends_its_run(
    error: BaseException, status: str, model: PulledModel, tmp_path: Path
) -> None:
    with pytest.raises(type(error)), audit_run(model, None, tmp_path):
        raise error
    assert newest(model)[0].info.status == status
    with audit_run(model, None, tmp_path):
        pass
    assert newest(model)[0].info.status == "FINISHED"


def test_an_interruption_between_the_stores_answer_and_ours_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, model: PulledModel, tmp_path: Path
) -> None:
    created = MlflowClient.create_run

    def interrupted(*arguments: Any, **options: Any) -> Any:
        created(*arguments, **options)
        raise KeyboardInterrupt

    with audit_run(model, None, tmp_path) as other:  # of somebody else: it must go on
        # Injected where a signal cannot be placed reliably: the run exists, and its id never arrives.
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "create_run", interrupted)
            with pytest.raises(KeyboardInterrupt), audit_run(model, None, tmp_path / "new"):
                raise AssertionError("never reached")
        runs = newest(model, 2)
        assert {run.info.run_id == other: run.info.status for run in runs} == {True: "RUNNING", False: "KILLED"}


def test_the_run_of_an_audit_that_was_killed_by_force_is_ended_by_the_next_one(
    model: PulledModel, tmp_path: Path
) -> None:
    with audit_run(model, None, tmp_path) as killed:
        note = (tmp_path / "work" / "run.json").read_bytes()
    assert not (tmp_path / "work").exists()
    client = MlflowClient()
    for label, status in (("0" * 32, "RUNNING"), (None, "KILLED")):
        (tmp_path / "work").mkdir(exist_ok=True)
        forged = json.loads(note) | ({"label": label} if label else {})
        (tmp_path / "work" / "run.json").write_text(json.dumps(forged))
        client.set_terminated(killed, status="RUNNING")
        with audit_run(model, None, tmp_path):
            # Only who knows the label of the run can have it ended.
            assert client.get_run(killed).info.status == status
    client.set_terminated(killed, status="FINISHED")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "run.json").write_bytes(note)
    with audit_run(model, None, tmp_path):
        assert client.get_run(killed).info.status == "FINISHED"


@pytest.mark.parametrize("note", [b"", b"\xff", b"[]", b'{"run_id": "../x", "label": 3}', b"{}" * 5000])
def test_a_note_that_says_nothing_is_no_reason_not_to_audit(note: bytes, model: PulledModel, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "run.json").write_bytes(note)
    with audit_run(model, None, tmp_path) as run_id:
        assert json.loads((tmp_path / "work" / "run.json").read_text())["run_id"] == run_id
