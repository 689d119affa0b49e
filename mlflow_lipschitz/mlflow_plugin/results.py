"""Between MLflow's evaluation types and ours: the rows that come in, the result that goes out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mlflow.models import EvaluationResult
from mlflow.models.evaluation.artifacts import JsonEvaluationArtifact, TextEvaluationArtifact
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.registry import tags
from mlflow_lipschitz.registry.store import store_errors

if TYPE_CHECKING:
    from mlflow_lipschitz.audit import AuditResult
    from mlflow_lipschitz.policy import AuditPolicy

_TEXTS = ("report.html", "summary.md")
_DOCUMENTS = ("suite.json", "validation.json", "attestation.json")


def rows_of(dataset: Any, policy: AuditPolicy) -> pd.DataFrame | np.ndarray:
    """The evaluated features (P, …), with the targets as a column where the policy stratifies by them."""
    features = dataset.features_data
    label = policy.inputs.points.stratify
    if label and isinstance(features, pd.DataFrame) and dataset.has_targets and label == dataset.targets_name:
        return features.assign(**{label: dataset.labels_data})
    return features


def evaluation_result(result: AuditResult, metrics: Mapping[str, float], run_id: str) -> EvaluationResult:
    """What `mlflow.evaluate` returns: metrics, and the artifacts people read, by `lipschitz/<file>`."""
    with store_errors(f"read run {run_id}"):
        root = MlflowClient().get_run(run_id).info.artifact_uri
    artifacts: dict[str, Any] = {}
    for name in (*_TEXTS, *_DOCUMENTS):
        path, key = result.directory / name, f"{tags.ARTIFACT_FOLDER}/{name}"
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            if name in _DOCUMENTS:
                artifacts[key] = JsonEvaluationArtifact(uri=f"{root}/{key}", content=json.loads(text))
            else:
                artifacts[key] = TextEvaluationArtifact(uri=f"{root}/{key}", content=text)
    return EvaluationResult(metrics=dict(metrics), artifacts=artifacts, run_id=run_id)
