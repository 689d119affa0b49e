"""What an audit leaves in a store: linked metrics once, finite only; files; a verdict on the version, written last."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.errors import RegistryError
from mlflow_lipschitz.mlflow_plugin.logging import (
    SECTION_END,
    SECTION_START,
    RowsDataset,
    log_audit,
    log_failure,
    loggable,
    with_section,
)
from mlflow_lipschitz.registry import tags
from mlflow_lipschitz.registry.promotion import promote
from tests.mlflow_plugin.audits import BLOCKING_POLICY, audited
from tests.registry.stores import fresh_name, log_onnx


def _run() -> str:
    client = MlflowClient()
    experiment = client.get_experiment_by_name("tests").experiment_id
    return client.create_run(experiment).info.run_id


def _linked(model_id: str) -> list[tuple[str, str]]:
    return [(metric.key, metric.run_id) for metric in MlflowClient().get_logged_model(model_id).metrics or []]


def test_everything_is_where_the_contract_says(store: str, tmp_path: Path) -> None:
    name, run_id = fresh_name(), _run()
    info = log_onnx(name)
    result = audited(f"models:/{name}/1", tmp_path / "out")
    log_audit(result, run_id=run_id)
    client = MlflowClient()

    files = {Path(f.path).name for f in client.list_artifacts(run_id, "lipschitz")}
    assert {"report.html", "points.parquet", "policy.yaml", "attestation.json", "validation.json"} <= files
    run = client.get_run(run_id)
    assert run.data.metrics["lipschitz/upper_max"] == result.metrics["lipschitz/upper_max"]
    assert run.data.tags[tags.VERDICT] == "passed"
    version = client.get_model_version(name, "1")
    assert version.tags[tags.VERDICT] == "passed"
    assert version.tags[tags.RUN_ID] == run_id
    assert version.tags[tags.POLICY] == result.policy.reference
    assert version.tags[tags.ATTESTATION].startswith(result.attestation.digest)
    assert "UNSIGNED" in version.tags[tags.ATTESTATION]
    assert "Lipschitz audit: passed" in version.description
    linked = _linked(info.model_id)
    assert ("lipschitz/upper_max", run_id) in linked
    assert len(linked) == len(set(linked)) == len(result.metrics)


def test_a_logged_audit_opens_promotion_and_a_blocked_one_does_not(store: str, tmp_path: Path) -> None:
    name = fresh_name()
    log_onnx(name)
    log_audit(audited(f"models:/{name}/1", tmp_path / "pass"), run_id=_run())
    assert promote(f"models:/{name}/1", alias="champion").version == "1"
    log_audit(audited(f"models:/{name}/1", tmp_path / "block", BLOCKING_POLICY), run_id=_run())
    with pytest.raises(Exception, match="its verdict is 'blocked'"):
        promote(f"models:/{name}/1", alias="champion")


def test_infinity_is_never_logged(store: str, tmp_path: Path) -> None:
    run_id = _run()
    result = audited(log_onnx().model_uri, tmp_path / "out")
    loose = {"lipschitz/upper_max": math.inf, "lipschitz/lower_max": -math.inf, "lipschitz/gap_median": math.nan}
    log_audit(replace(result, metrics={**result.metrics, **loose}), run_id=run_id)
    logged = MlflowClient().get_run(run_id).data.metrics
    assert not set(loose) & set(logged)
    assert all(logged[f"{name}_unbounded"] == 1 for name in loose)
    assert all(abs(value) < 1e300 for value in logged.values())


def test_names_and_values_mlflow_takes(store: str) -> None:
    metrics = {"lipschitz/monotone_fraction/" + "x" * 300: 1.0, "lipschitz/monotone_fraction/" + "x" * 301: 2.0}
    names = loggable(metrics)
    assert len(names) == 2
    assert all(len(name) <= 250 for name in names)
    MlflowClient().log_batch(_run(), metrics=[mlflow.entities.Metric(k, v, 0, 0) for k, v in names.items()])


def test_rows_are_recorded_by_a_digest_of_all_of_them(store: str, tmp_path: Path) -> None:
    result = audited(log_onnx().model_uri, tmp_path / "out")
    middle = result.rows.points.copy()
    middle[len(middle) // 2] += 1e-9
    digests = []
    for points in (result.rows.points, middle):
        run_id = _run()
        log_audit(replace(result, rows=replace(result.rows, points=points)), run_id=run_id)
        recorded = MlflowClient().get_run(run_id).inputs
        digests.append(recorded.dataset_inputs[0].dataset.digest)
        assert recorded.model_inputs[0].model_id == result.model.model_id
    assert digests[0] != digests[1]


def test_known_rows_are_not_recorded_again(store: str, tmp_path: Path) -> None:
    run_id = _run()
    log_audit(audited(log_onnx().model_uri, tmp_path / "out"), run_id=run_id, dataset=RowsDataset("mine", "abc"))
    assert not MlflowClient().get_run(run_id).inputs.dataset_inputs


def test_the_users_description_survives(store: str, tmp_path: Path) -> None:
    name = fresh_name()
    log_onnx(name)
    client = MlflowClient()
    client.update_model_version(name, "1", "Owned by risk.\n\n| a | b |")
    result = audited(f"models:/{name}/1", tmp_path / "out")
    log_audit(result, run_id=_run())
    log_audit(result, run_id=(last := _run()))
    text = client.get_model_version(name, "1").description
    assert text.startswith("Owned by risk.\n\n| a | b |")
    assert text.count(SECTION_START) == text.count(SECTION_END) == 1
    assert last in text


def test_a_description_without_room_is_left_alone(store: str, tmp_path: Path) -> None:
    name = fresh_name()
    log_onnx(name)
    client = MlflowClient()
    client.update_model_version(name, "1", "x" * 4990)
    log_audit(audited(f"models:/{name}/1", tmp_path / "out"), run_id=_run())
    version = client.get_model_version(name, "1")
    assert version.description == "x" * 4990
    assert version.tags[tags.VERDICT] == "passed"


def test_with_section_only_touches_ours() -> None:
    mine = with_section("before", "one")
    assert with_section(mine + "\n\nafter", r"\1 two") == f"before\n\n{SECTION_START}\n\\1 two\n{SECTION_END}\n\nafter"
    assert with_section("", "x") == f"{SECTION_START}\nx\n{SECTION_END}"
    broken = f"mine {SECTION_START} never closed"
    assert with_section(broken, "x").startswith(broken)


def test_a_run_deleted_midway_marks_nothing_as_passed(store: str, tmp_path: Path) -> None:
    name, run_id = fresh_name(), _run()
    log_onnx(name)
    result = audited(f"models:/{name}/1", tmp_path / "out")
    MlflowClient().delete_run(run_id)
    with pytest.raises(RegistryError, match="Was the run deleted"):
        log_audit(result, run_id=run_id)
    assert tags.VERDICT not in MlflowClient().get_model_version(name, "1").tags
    assert (result.directory / "attestation.json").is_file()


def test_a_failure_takes_a_passed_verdict_back(store: str, tmp_path: Path) -> None:
    name = fresh_name()
    log_onnx(name)
    result = audited(f"models:/{name}/1", tmp_path / "out")
    log_audit(result, run_id=_run())
    log_failure(result.model, (run_id := _run()))
    version = MlflowClient().get_model_version(name, "1")
    assert (version.tags[tags.VERDICT], version.tags[tags.RUN_ID]) == ("error", run_id)
    assert "passed" not in version.description.split("so nothing")[0]
    with pytest.raises(Exception, match=r"holds no attestation\.json"):
        promote(f"models:/{name}/1", alias="champion")
