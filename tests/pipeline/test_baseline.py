"""A baseline's numbers come from an audit that vouches for its files; anything else leaves the gate closed."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.audit import audit
from mlflow_lipschitz.pipeline.baseline import baseline_of
from mlflow_lipschitz.policy import AuditPolicy, load_policy
from mlflow_lipschitz.registry import tags
from tests.registry.conftest import sqlite_store, store  # noqa: F401
from tests.registry.evidence import POLICY, audited_rows, record
from tests.registry.stores import artifact_folder, fresh_name, log_onnx, onnx_model, rows

CHECK = "  - {id: no-worse, type: no_regression, metric: lipschitz_upper, rel_tol: 0.1}\n"


def policy_with(baseline: str) -> AuditPolicy:
    return load_policy(POLICY.replace("{output: 0}", f"{{output: 0, baseline: '{baseline}'}}") + CHECK)


@pytest.fixture
def name(store: str) -> str:  # noqa: F811
    """Two versions; the first is the champion."""
    fresh = fresh_name()
    log_onnx(fresh, seed=0)
    log_onnx(fresh, seed=1)
    MlflowClient().set_registered_model_alias(fresh, "champion", "1")
    return fresh


def problem_of(name: str) -> str:
    """Why the champion is no baseline."""
    found = baseline_of(policy_with(f"models:/{name}@champion"), audited_rows())
    assert not found.bounds
    return found.problem


def outcome_of_an_audit(name: str, folder: Path, version: str = "2"):
    """The verdict of a real audit against the champion, and the outcome of its no_regression check."""
    result = audit(f"models:/{name}/{version}", rows(), policy_with(f"models:/{name}@champion"), out=folder)
    return result.verdict.status, next(check for check in result.verdict.checks if check.id == "no-worse")


def test_the_bounds_are_those_attested(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e")
    found = baseline_of(policy_with(f"models:/{name}@champion"), audited_rows())
    assert (dict(found.bounds), found.problem) == ({"lipschitz/upper_max": 7.5}, "")


def test_a_policy_without_such_a_check_looks_nowhere(store: str) -> None:  # noqa: F811
    found = baseline_of(
        load_policy(POLICY.replace("{output: 0}", "{output: 0, baseline: 'models:/nothing@here'}")), audited_rows()
    )
    assert (dict(found.bounds), found.problem) == ({}, "")


def test_an_audited_champion_is_compared_with(name: str, tmp_path: Path) -> None:
    first = audit(f"models:/{name}/1", rows(), load_policy(POLICY), out=tmp_path / "champion")
    assert first.verdict.status == "passed"
    _, check = outcome_of_an_audit(name, tmp_path / "itself", version="1")
    assert check.status == "certified"
    assert check.threshold == pytest.approx(1.1 * first.metrics["lipschitz/upper_max"])


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        (("radius: 0.05", "radius: 5"), "perturbation"),
        (("norm: linf", "norm: l2"), "perturbation"),
        (("seed: 7}}", "seed: 7}, immutable: [x0]}"), "inputs.immutable"),
        (("seed: 7}}", "seed: 7}, domain: {x0: [-9, 9]}}"), "inputs.domain"),
    ],
)
def test_an_audit_that_asked_another_question_is_no_baseline(
    name: str, tmp_path: Path, theirs: tuple[str, str], named: str
) -> None:
    policy = POLICY.replace(*theirs)
    assert policy != POLICY
    first = audit(f"models:/{name}/1", rows(), load_policy(policy), out=tmp_path / "champion")
    assert first.verdict.status == "passed"
    problem = problem_of(name)
    assert f"other {named}" in problem and "Audit it again with this policy and these rows" in problem


def test_an_audit_of_other_rows_is_no_baseline(name: str, tmp_path: Path) -> None:
    first = audit(f"models:/{name}/1", rows() * 0.5, load_policy(POLICY), out=tmp_path / "champion")
    assert first.verdict.status == "passed"
    assert "it had other rows" in problem_of(name)


def test_metrics_forged_on_the_run_change_nothing(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e")
    run_id = MlflowClient().get_model_version(name, "1").tags[tags.RUN_ID]
    MlflowClient().log_metric(run_id, "lipschitz/upper_max", 1e9)
    assert baseline_of(policy_with(f"models:/{name}@champion"), audited_rows()).bounds["lipschitz/upper_max"] == 7.5


def test_a_run_with_nothing_but_forged_metrics_is_no_baseline(name: str, tmp_path: Path) -> None:
    with mlflow.start_run() as run:
        mlflow.log_metric("lipschitz/upper_max", 1e9)
    MlflowClient().set_model_version_tag(name, "1", tags.RUN_ID, run.info.run_id)
    MlflowClient().set_model_version_tag(name, "1", tags.VERDICT, "passed")
    status, check = outcome_of_an_audit(name, tmp_path / "out")
    assert (status, check.status) == ("error", "error")
    assert f"run {run.info.run_id} holds no attestation.json" in check.message
    assert f"Audit it first: mlflow-lipschitz audit models:/{name}/1 --policy" in check.message


def test_a_tag_copied_from_another_version(name: str, tmp_path: Path) -> None:
    audited = record(name, tmp_path / "e", version="2")
    MlflowClient().set_model_version_tag(name, "1", tags.RUN_ID, audited.run_id)
    assert "written for version '2', not '1'" in problem_of(name)


def test_tampered_champion_files(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e")
    version = MlflowClient().get_model_version(name, "1")
    folder = artifact_folder(MlflowClient(), version.source.removeprefix("models:/"))
    (folder / "model.onnx").write_bytes(onnx_model(seed=5).SerializeToString())
    assert "not the audited ones: model.onnx" in problem_of(name)


def test_evidence_changed_after_the_audit(name: str, tmp_path: Path) -> None:
    audited = record(name, tmp_path / "e")
    (tmp_path / "e" / "summary.md").write_text("all is well")
    MlflowClient().log_artifact(audited.run_id, str(tmp_path / "e" / "summary.md"), "lipschitz")
    assert "summary.md is missing or has changed" in problem_of(name)


def test_a_blocked_champion(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e", status="blocked")
    assert "its verdict is 'blocked'" in problem_of(name)


def test_a_champion_nobody_audited(name: str) -> None:
    assert "no audit is on record" in problem_of(name)
    assert f"mlflow-lipschitz audit models:/{name}/1 --policy" in problem_of(name)


def test_a_first_version_without_a_champion(store: str, tmp_path: Path) -> None:  # noqa: F811
    name = fresh_name()
    log_onnx(name)
    status, check = outcome_of_an_audit(name, tmp_path / "out", version="1")
    assert (status, check.status) == ("error", "error")
    assert f"the baseline models:/{name}@champion cannot be read" in check.message
    assert "Audit and promote a first version under a policy without no_regression" in check.message


def test_a_model_that_is_not_registered_is_no_baseline(store: str) -> None:  # noqa: F811
    with mlflow.start_run() as run:
        mlflow.onnx.log_model(onnx_model(), name="model")
    found = baseline_of(policy_with(f"runs:/{run.info.run_id}/model"), audited_rows())
    assert not found.bounds
    assert "not a registered version" in found.problem


def test_links_among_the_champions_files(name: str, tmp_path: Path) -> None:
    record(name, tmp_path / "e")
    version = MlflowClient().get_model_version(name, "1")
    folder = artifact_folder(MlflowClient(), version.source.removeprefix("models:/"))
    (folder / "model.onnx").rename(folder / "other.onnx")
    (folder / "model.onnx").symlink_to(folder / "other.onnx")
    assert problem_of(name)
