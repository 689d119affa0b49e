"""Writing an audit into MLflow: files and metrics on the run, a verdict people can read on the model version.

The verdict is written last. An upload that breaks off leaves no version that looks passed.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from mlflow.entities import Dataset, DatasetInput, LoggedModelInput, Metric, RunTag
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.registry import tags
from mlflow_lipschitz.registry.store import client_for, store_errors
from mlflow_lipschitz.report.summary import code_span, short_markdown

if TYPE_CHECKING:
    from mlflow_lipschitz.audit import AuditResult
    from mlflow_lipschitz.registry.pull import PulledModel
    from mlflow_lipschitz.registry.store import ModelReference

ARTIFACTS = (
    *(
        "report.html",
        "summary.md",
        "points.parquet",
        "points.json",
        "certificates.npz",
        "certificates.json",
        "graph.npz",
    ),
    *("suite.json", "validation.json", "policy.yaml", "attestation.json", "junit.xml", "audit.sarif"),
)
SECTION_START = "<!-- mlflow-lipschitz:start -->"
SECTION_END = "<!-- mlflow-lipschitz:end -->"

_SECTION = re.compile(re.escape(SECTION_START) + r".*?" + re.escape(SECTION_END), re.DOTALL)
_DESCRIPTION_LIMIT = 5000
_NAME_LIMIT = 240
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowsDataset:
    """Name and digest under which MLflow knows the audited rows."""

    name: str
    digest: str


def log_audit(
    result: AuditResult,
    *,
    run_id: str,
    tracking_uri: str | None = None,
    dataset: RowsDataset | None = None,
    metrics: bool = True,
) -> None:
    """Write `result` into the run `run_id` and onto the model version it is about.

    Args:
        dataset: the rows as the run already knows them; by default they are recorded as its input here.
        metrics: False where MLflow itself logs the metrics afterwards: doing both would show every value twice.
    Raises:
        RegistryError: the store refused or disappeared; the version is then not marked as passed.
    """
    client = client_for(tracking_uri)
    with store_errors(f"log the audit to run {run_id}", "Was the run deleted during the audit?"):
        for name in ARTIFACTS:
            if (result.directory / name).is_file():
                client.log_artifact(run_id, str(result.directory / name), tags.ARTIFACT_FOLDER)
        rows = dataset or _log_rows(result, run_id, client)
        if metrics:
            _log_metrics(result, run_id, rows, client)
        client.log_batch(run_id, tags=[RunTag(k, v) for k, v in _tags(result, run_id).items()])
    mark_version(result.model, _tags(result, run_id), _section(result, run_id), client)


def log_failure(model: PulledModel | ModelReference, run_id: str, *, tracking_uri: str | None = None) -> None:
    """Record that an audit was begun and not finished: the verdict `error` on the run and on the version."""
    client = client_for(tracking_uri)
    verdict = {tags.VERDICT: "error", tags.RUN_ID: run_id}
    with store_errors(f"mark run {run_id}"):
        client.log_batch(run_id, tags=[RunTag(tags.VERDICT, "error")])
    text = f"**Lipschitz audit: error.** It could not be completed, so nothing is passed. Run `{run_id}`."
    mark_version(model, verdict, text, client)


def mark_version(
    model: PulledModel | ModelReference, values: Mapping[str, str], section: str, client: MlflowClient
) -> None:
    """Set tags and our section of the description on the model version; nothing when the model is not registered."""
    if model.name is None or model.version is None:
        return
    with store_errors(f"mark {model.name} version {model.version}", "Check that you may change this model version."):
        version = client.get_model_version(model.name, model.version)
        text = with_section(version.description or "", section)
        if len(text) <= _DESCRIPTION_LIMIT:
            client.update_model_version(model.name, model.version, text)
        else:
            _log.warning("the description of %s version %s is too long to add a summary", model.name, model.version)
        for key, value in values.items():
            if key != tags.VERDICT:
                client.set_model_version_tag(model.name, model.version, key, value)
        client.set_model_version_tag(model.name, model.version, tags.VERDICT, values[tags.VERDICT])


def with_section(description: str, section: str) -> str:
    """`description` with our delimited section replaced, or appended; every other character stays."""
    ours = f"{SECTION_START}\n{section}\n{SECTION_END}"
    if _SECTION.search(description):
        return _SECTION.sub(lambda _: ours, description, count=1)
    return f"{description}\n\n{ours}" if description else ours


def loggable(metrics: Mapping[str, float]) -> dict[str, float]:
    """Finite values under names MLflow accepts; `<name>_unbounded` = 1 in place of a value that is not finite.

    MLflow would store infinity as 1.8e308, which then passes for a number.
    """
    named = {_name(name): float(value) for name, value in metrics.items()}
    flags = {f"{name}_unbounded": 1.0 for name, value in named.items() if not math.isfinite(value)}
    return {name: value for name, value in named.items() if math.isfinite(value)} | flags


def _name(name: str) -> str:
    if len(name) <= _NAME_LIMIT:
        return name
    return f"{name[: _NAME_LIMIT - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _log_rows(result: AuditResult, run_id: str, client: MlflowClient) -> RowsDataset:
    """Record the rows as the run's input. The digest covers every row: MLflow's own covers the first and last five."""
    points = np.ascontiguousarray(result.rows.points)
    digest = hashlib.sha256(repr(points.shape).encode() + points.tobytes()).hexdigest()[:16]
    rows = RowsDataset("audited rows", digest)
    entry = Dataset(name=rows.name, digest=rows.digest, source_type="local", source="{}")
    model_id = result.model.model_id
    client.log_inputs(run_id, [DatasetInput(entry)], models=[LoggedModelInput(model_id)] if model_id else None)
    return rows


def _log_metrics(result: AuditResult, run_id: str, rows: RowsDataset, client: MlflowClient) -> None:
    """Log each metric once, linked to the logged model, which is where MLflow's model page looks for it."""
    now = int(time.time() * 1000)
    metrics = [
        Metric(
            key,
            value,
            now,
            0,
            model_id=result.model.model_id,
            dataset_name=rows.name,
            dataset_digest=rows.digest,
            run_id=run_id,
        )
        for key, value in loggable(result.metrics).items()
    ]
    for start in range(0, len(metrics), 500):
        client.log_batch(run_id, metrics=metrics[start : start + 500])


def _tags(result: AuditResult, run_id: str) -> dict[str, str]:
    return {
        tags.VERDICT: result.verdict.status,
        tags.RUN_ID: run_id,
        tags.POLICY: result.policy.reference,
        tags.ATTESTATION: f"{result.attestation.digest} ({result.attestation.signature})",
    }


def _section(result: AuditResult, run_id: str) -> str:
    """Short Markdown for the version's page. Names in it are user data, so they go into code spans."""
    lines = [
        *short_markdown(result.content),
        "",
        f"Policy {code_span(result.policy.reference)}. Run {code_span(run_id)}, artifacts under `{tags.ARTIFACT_FOLDER}/`;"
        " read `report.html` there first.",
        f"Attestation {code_span(result.attestation.digest)}: {result.attestation.signature}.",
    ]
    return "\n".join(lines)
