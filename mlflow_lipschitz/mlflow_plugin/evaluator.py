"""The evaluator behind `mlflow.evaluate(..., evaluators="lipschitz")`.

MLflow imports this module for every `evaluate` call of every user who has the package installed, and an error here
would break all of them: so nothing but MLflow's base class is imported before an audit is really asked for.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlflow.models.evaluation.base import ModelEvaluator

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow.models import EvaluationResult

    from mlflow_lipschitz.audit import AuditResult
    from mlflow_lipschitz.mlflow_plugin.config import EvaluatorConfig
    from mlflow_lipschitz.mlflow_plugin.logging import RowsDataset


class LipschitzEvaluator(ModelEvaluator):
    """Audits the model on the evaluated rows against the policy named in `evaluator_config`.

    A policy that blocks does not raise, so evaluators beside this one still run: the metrics, the artifacts and the tag
    `lipschitz.verdict` say it (`raise_on_block` raises). An audit that cannot be completed does raise, after marking
    the version with the verdict `error`. An evaluation changes no alias: `gate.on_pass.alias` is for audits by the command
    line and by `mlflow_lipschitz.audit`.
    """

    @classmethod
    def can_evaluate(cls, *, model_type: str | None, evaluator_config: Mapping[str, Any] | None, **_: Any) -> bool:
        """Only when asked: by a policy in the config, or by `model_type="lipschitz"`.

        With `evaluators=None` MLflow asks every installed plugin, and an evaluator that says yes to everybody's
        regressor is a nuisance.
        """
        return "policy" in (evaluator_config or {}) or model_type == "lipschitz"

    def evaluate(
        self,
        *,
        model_type: str | None,
        dataset: Any,
        run_id: str,
        evaluator_config: Mapping[str, Any] | None,
        model: Any = None,
        **known: Any,
    ) -> EvaluationResult:
        """Audit and log; returns the finite metrics and the readable artifacts.

        Raises:
            LipschitzError: the audit could not be completed; see the subclasses in `mlflow_lipschitz.errors`.
            MlflowException: the policy does not pass and the config says `raise_on_block`.
        """
        from mlflow_lipschitz.mlflow_plugin.config import parse_config
        from mlflow_lipschitz.mlflow_plugin.logging import log_audit, loggable
        from mlflow_lipschitz.mlflow_plugin.results import evaluation_result
        from mlflow_lipschitz.pipeline.journal import discard
        from mlflow_lipschitz.pipeline.workplace import workplace

        config = parse_config(evaluator_config or {})
        uri = _uri(config, model)
        with _marked_on_failure(uri, run_id), workplace(config.out) as directory:
            result = _audit(config, uri, dataset, directory)
            # MLflow logs the returned metrics itself when, and only when, it knows the model's id.
            log_audit(result, run_id=run_id, dataset=_known_rows(run_id), metrics=known.get("model_id") is None)
            discard(directory)
            answer = evaluation_result(result, loggable(result.metrics), run_id)
        if config.out is None:  # everything is in the run now; after a failure the folder stays
            shutil.rmtree(result.directory, ignore_errors=True)
        _raise_if_blocked(result, config)
        return answer


def _uri(config: EvaluatorConfig, model: Any) -> str:
    from mlflow_lipschitz.errors import UsageError

    uri = config.model_uri or _uri_of(model)
    if uri is None:
        raise UsageError(
            "the lipschitz evaluator audits a logged model, and this one does not say where it is logged. Pass a URI "
            "(models:/NAME/VERSION) as the model, or as model_uri in evaluator_config."
        )
    return uri


def _uri_of(model: Any) -> str | None:
    metadata = getattr(model, "metadata", None)
    if metadata is None:
        return None
    if getattr(metadata, "model_id", None):
        return f"models:/{metadata.model_id}"
    if metadata.run_id and metadata.artifact_path:
        return f"runs:/{metadata.run_id}/{metadata.artifact_path}"
    return None


def _audit(config: EvaluatorConfig, uri: str, dataset: Any, directory: Path) -> AuditResult:
    from mlflow_lipschitz.audit import AuditOptions, audit_rows
    from mlflow_lipschitz.mlflow_plugin.results import rows_of
    from mlflow_lipschitz.pipeline.intake import rows_for
    from mlflow_lipschitz.policy import load_policy
    from mlflow_lipschitz.registry.pull import pull
    from mlflow_lipschitz.report.progress import progress

    policy = load_policy(config.policy)
    pulled = pull(uri, trust_pickle=config.trust_pickle)
    rows = rows_for(pulled, rows_of(dataset, policy), policy)
    options = AuditOptions(
        device=config.device, chunk_size=config.chunk_size, trust_pickle=config.trust_pickle, resume=config.resume
    )
    with progress("certifying") as report:
        return audit_rows(pulled, rows, policy, directory, options=options, progress=report)


def _known_rows(run_id: str) -> RowsDataset | None:
    """The dataset that MLflow recorded for this evaluation, so that our metrics are shown beside the others'."""
    from mlflow_lipschitz.mlflow_plugin.logging import RowsDataset
    from mlflow_lipschitz.registry.store import client_for, store_errors

    with store_errors(f"read run {run_id}"):
        inputs = client_for().get_run(run_id).inputs
    recorded = inputs.dataset_inputs if inputs else []
    return RowsDataset(recorded[-1].dataset.name, recorded[-1].dataset.digest) if recorded else None


@contextmanager
def _marked_on_failure(uri: str, run_id: str) -> Iterator[None]:
    from contextlib import suppress

    from mlflow_lipschitz.errors import RegistryError
    from mlflow_lipschitz.mlflow_plugin.logging import log_failure
    from mlflow_lipschitz.registry.store import resolve

    # Resolved before anything can fail: an alias may move while the audit runs.
    model = resolve(uri)
    finished = False
    try:
        yield
        finished = True
    finally:
        if not finished:
            # The failure itself is the one to report, not that it could not be written down as well.
            with suppress(RegistryError):
                log_failure(model, run_id)


def _raise_if_blocked(result: AuditResult, config: EvaluatorConfig) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    if config.raise_on_block and result.verdict.status != "passed":
        failed = ", ".join(outcome.id for outcome in result.verdict.checks if outcome.blocking)
        raise MlflowException(
            f"the policy {result.policy.reference} does not pass ({result.verdict.status}): {failed}",
            error_code=INVALID_PARAMETER_VALUE,
        )
