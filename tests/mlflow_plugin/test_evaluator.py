"""`mlflow.evaluate` with our evaluator: asked in every form, silent unasked, linked once, readable when it fails."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models.evaluation.evaluator_registry import _model_evaluation_registry
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.errors import InvalidData, PolicyError, UntrustedModel, UsageError
from mlflow_lipschitz.mlflow_plugin.evaluator import LipschitzEvaluator
from mlflow_lipschitz.registry import tags
from mlflow_lipschitz.registry.promotion import promote
from tests.mlflow_plugin.audits import BLOCKING_POLICY, write_policy
from tests.registry.stores import fresh_name, log_linear, log_onnx, rows


@pytest.fixture(autouse=True)
def registered() -> None:
    """A source tree that was never installed has no entry points; this is what MLflow does with ours."""
    if not _model_evaluation_registry.is_registered("lipschitz"):
        _model_evaluation_registry.register("lipschitz", LipschitzEvaluator)


@pytest.fixture
def policy(store: str, tmp_path: Path) -> str:
    return str(write_policy(tmp_path))


def _evaluate(model, policy: str, **options):
    with mlflow.start_run():
        return mlflow.models.evaluate(
            model,
            data=rows(),
            model_type="lipschitz",
            evaluators="lipschitz",
            evaluator_config={"policy": policy, **options},
        )


def _linked(model_id: str) -> list[tuple[str, str | None]]:
    found = MlflowClient().get_logged_model(model_id).metrics or []
    return sorted((metric.key, metric.run_id) for metric in found if metric.key.startswith("lipschitz/"))


def _history(run_id: str, key: str) -> int:
    return len(MlflowClient().get_metric_history(run_id, key))


def test_a_flat_config_for_one_name(policy: str) -> None:
    name = fresh_name()
    log_onnx(name)
    result = _evaluate(f"models:/{name}/1", policy)
    assert result.metrics["lipschitz/certified_fraction"] == 1.0
    assert "lipschitz/report.html" in result.artifacts
    assert result.artifacts["lipschitz/attestation.json"].content["_type"].startswith("https://in-toto.io")
    assert MlflowClient().get_model_version(name, "1").tags[tags.VERDICT] == "passed"


def test_a_nested_config_for_a_list_and_the_older_spelling(policy: str) -> None:
    info = log_onnx(fresh_name())
    with mlflow.start_run(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = mlflow.evaluate(
            info.model_uri,
            data=rows(),
            model_type="lipschitz",
            evaluators=["lipschitz"],
            evaluator_config={"lipschitz": {"policy": policy}},
        )
    assert result.metrics["lipschitz/upper_max"] > 0


def test_beside_the_default_evaluator(policy: str) -> None:
    info = log_linear(fresh_name())
    with mlflow.start_run() as run:
        result = mlflow.models.evaluate(
            info.model_uri,
            data=rows(),
            targets=rows()[:, 0],
            model_type="regressor",
            evaluators=["default", "lipschitz"],
            evaluator_config={"default": {"log_explainer": False}, "lipschitz": {"policy": policy}},
        )
    assert {"mean_squared_error", "lipschitz/upper_max"} <= set(result.metrics)
    assert _history(run.info.run_id, "lipschitz/upper_max") == 1


@pytest.mark.parametrize("form", ["version", "alias", "run", "id", "object"])
def test_each_form_of_model_is_linked_exactly_once(policy: str, form: str) -> None:
    """MLflow logs our metrics itself for some forms and not for others; either way there is one value."""
    name = fresh_name()
    info = log_onnx(name)
    MlflowClient().set_registered_model_alias(name, "candidate", "1")
    model = {
        "version": f"models:/{name}/1",
        "alias": f"models:/{name}@candidate",
        "run": f"runs:/{info.run_id}/model",
        "id": info.model_uri,
        "object": None,
    }[form] or mlflow.pyfunc.load_model(f"models:/{name}/1")
    with mlflow.start_run() as run:
        result = mlflow.models.evaluate(
            model, data=rows(), model_type="lipschitz", evaluators="lipschitz", evaluator_config={"policy": policy}
        )
    linked = _linked(info.model_id)
    assert linked == [(key, run.info.run_id) for key in sorted(result.metrics)]
    assert all(_history(run.info.run_id, key) == 1 for key in result.metrics)
    assert MlflowClient().get_model_version(name, "1").tags[tags.RUN_ID] == run.info.run_id
    assert promote(f"models:/{name}/1", alias="champion").version == "1"


def test_our_metrics_are_shown_on_mlflows_dataset(policy: str) -> None:
    info = log_onnx(name := fresh_name())
    with mlflow.start_run() as run:
        mlflow.models.evaluate(
            f"models:/{name}/1",
            rows(),
            model_type="lipschitz",
            evaluators="lipschitz",
            evaluator_config={"policy": policy},
        )
    recorded = MlflowClient().get_run(run.info.run_id).inputs.dataset_inputs
    assert len(recorded) == 1
    shown = {(m.dataset_name, m.dataset_digest) for m in MlflowClient().get_logged_model(info.model_id).metrics}
    assert shown == {(recorded[0].dataset.name, recorded[0].dataset.digest)}


@pytest.mark.parametrize("config", [None, {"log_explainer": False}, {"default": {"log_explainer": False}}])
def test_unasked_it_says_nothing(store: str, config: dict | None) -> None:
    info = log_linear(fresh_name())
    with mlflow.start_run():
        result = mlflow.models.evaluate(
            info.model_uri, data=rows(), targets=rows()[:, 0], model_type="regressor", evaluator_config=config
        )
    assert not any(name.startswith("lipschitz") for name in result.metrics)


def test_our_own_key_asks_even_without_evaluators(policy: str) -> None:
    info = log_linear(fresh_name())
    with mlflow.start_run():
        result = mlflow.models.evaluate(
            info.model_uri,
            data=rows(),
            targets=rows()[:, 0],
            model_type="regressor",
            evaluator_config={"lipschitz": {"policy": policy}},
        )
    assert {"mean_squared_error", "lipschitz/upper_max"} <= set(result.metrics)


def test_a_blocking_policy_lets_the_other_evaluators_finish(store: str, tmp_path: Path) -> None:
    name = fresh_name()
    log_linear(name)
    policy = str(write_policy(tmp_path, BLOCKING_POLICY))
    with mlflow.start_run():
        result = mlflow.models.evaluate(
            f"models:/{name}/1",
            data=rows(),
            targets=rows()[:, 0],
            model_type="regressor",
            evaluators=["lipschitz", "default"],
            evaluator_config={"default": {"log_explainer": False}, "lipschitz": {"policy": policy}},
        )
    assert result.metrics["lipschitz/checks_failed_critical"] >= 1
    assert "mean_squared_error" in result.metrics
    version = MlflowClient().get_model_version(name, "1")
    assert version.tags[tags.VERDICT] == "blocked"
    assert "`lip` (critical)" in version.description


def test_raise_on_block_raises_after_everything_is_logged(store: str, tmp_path: Path) -> None:
    name = fresh_name()
    log_onnx(name)
    with pytest.raises(MlflowException, match="does not pass"):
        _evaluate(f"models:/{name}/1", str(write_policy(tmp_path, BLOCKING_POLICY)), raise_on_block=True)
    assert MlflowClient().get_model_version(name, "1").tags[tags.VERDICT] == "blocked"


def test_an_audit_that_fails_says_error_on_the_version(policy: str) -> None:
    name = fresh_name()
    log_onnx(name)
    spoiled = rows()
    spoiled[2, 1] = float("nan")
    with mlflow.start_run() as run, pytest.raises(InvalidData):
        mlflow.models.evaluate(
            f"models:/{name}/1",
            spoiled,
            model_type="lipschitz",
            evaluators="lipschitz",
            evaluator_config={"policy": policy},
        )
    version = MlflowClient().get_model_version(name, "1")
    assert (version.tags[tags.VERDICT], version.tags[tags.RUN_ID]) == ("error", run.info.run_id)
    assert not MlflowClient().get_run(run.info.run_id).data.metrics


def test_a_policy_that_cannot_be_read_says_error_on_the_version(store: str, tmp_path: Path) -> None:
    name = fresh_name()
    log_onnx(name)
    with pytest.raises(PolicyError):
        _evaluate(f"models:/{name}/1", str(write_policy(tmp_path, "kind: Nonsense\n")))
    assert MlflowClient().get_model_version(name, "1").tags[tags.VERDICT] == "error"


def test_a_bare_function_is_told_what_is_missing(policy: str) -> None:
    with pytest.raises(UsageError, match="model_uri in evaluator_config"):
        _evaluate(lambda data: data[:, 0], policy)


def test_a_bare_function_with_a_uri_is_audited(policy: str) -> None:
    name = fresh_name()
    log_onnx(name)
    result = _evaluate(lambda data: data[:, 0], policy, model_uri=f"models:/{name}/1")
    assert result.metrics["lipschitz/certified_fraction"] == 1.0


def test_a_pickled_model_needs_trust_though_mlflow_loaded_it(policy: str) -> None:
    from sklearn.linear_model import LinearRegression

    with mlflow.start_run():
        info = mlflow.sklearn.log_model(
            LinearRegression().fit(rows(), rows()[:, 0]),
            name="model",
            registered_model_name=(name := fresh_name()),
            serialization_format="cloudpickle",
            pip_requirements=["scikit-learn"],
        )
    with pytest.raises(UntrustedModel, match="trust_pickle"):
        _evaluate(info.model_uri, policy)
    assert MlflowClient().get_model_version(name, "1").tags[tags.VERDICT] == "error"
    assert _evaluate(info.model_uri, policy, trust_pickle=True).metrics["lipschitz/certified_fraction"] == 1.0


def test_artifacts_stay_where_they_were_asked_for_and_nowhere_else(policy: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    uri = log_onnx().model_uri
    _evaluate(uri, policy, out=str(tmp_path / "kept"))
    assert (tmp_path / "kept" / "report.html").is_file()
    _evaluate(uri, policy)
    assert not list((tmp_path / "scratch").glob("mlflow-lipschitz-audit-*"))


def test_a_wrong_config_is_said_before_anything_is_audited(policy: str) -> None:
    with pytest.raises(UsageError, match="unknown key 'polices'"):
        _evaluate(log_onnx().model_uri, policy, polices=3)
