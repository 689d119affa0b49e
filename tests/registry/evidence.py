"""An audit's record made by hand: what the pipeline leaves in a store, without running the engine."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import mlflow
from mlflow.tracking import MlflowClient

from mlflow_lipschitz.gate.verdict import CheckOutcome, Verdict
from mlflow_lipschitz.pipeline.baseline import rows_digest
from mlflow_lipschitz.policy import load_policy
from mlflow_lipschitz.registry import tags
from mlflow_lipschitz.registry.attestation import Attestation, Evidence, make_attestation
from mlflow_lipschitz.registry.keys import SigningKey
from mlflow_lipschitz.registry.manifest import sha256_of
from mlflow_lipschitz.registry.pull import PulledModel, pull
from mlflow_lipschitz.rows import AuditedRows, load_rows
from tests.registry.stores import rows

POLICY = """\
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: scorer-policy, version: 3, owner: risk@example.com}
model: {output: 0}
inputs: {points: {sample: 8, seed: 7}}
perturbation: {norm: linf, radius: 0.05, scale: raw}
checks:
  - {id: lip, type: lipschitz_at_most, max: 500.0}
  - {id: enough, type: points_at_least, min: 2}
"""


def audited_rows() -> AuditedRows:
    """The rows that records made by hand are about."""
    return load_rows(rows(), None, load_policy(POLICY))


def outcome(check_id: str = "lip", *, passed: bool = True) -> CheckOutcome:
    status = "certified" if passed else "violated"
    return CheckOutcome(
        check_id, "lipschitz_at_most", "critical", status, passed, 7.5, 500.0, "worst row 3", 8, "3", not passed
    )


def verdict(status: str = "passed") -> Verdict:
    return Verdict(status, (outcome(passed=status == "passed"), outcome("enough")), {}, {})


@dataclass(frozen=True)
class Record:
    run_id: str
    attestation: Attestation


def attest(
    pulled: PulledModel,
    folder: Path,
    *,
    status: str = "passed",
    created: datetime | None = None,
    key: SigningKey | None = None,
) -> Attestation:
    """Write policy.yaml and attestation.json of an audit of `pulled` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.yaml").write_text(POLICY)
    (folder / "summary.md").write_text("summary")
    hashes = {name: sha256_of(folder / name) for name in ("policy.yaml", "summary.md")}
    evidence = Evidence({"lipschitz/upper_max": 7.5}, hashes, "graph", created, rows=rows_digest(audited_rows()))
    attestation = make_attestation(pulled, load_policy(POLICY), verdict(status), evidence, key)
    (folder / "attestation.json").write_text(attestation.to_json())
    return attestation


def record(name: str, folder: Path, *, version: str = "1", **how) -> Record:
    """Audit `models:/name/version` on paper and put the record where the pipeline puts it; `how` as in `attest`."""
    attestation = attest(pull(f"models:/{name}/{version}"), folder, **how)
    client = MlflowClient()
    with mlflow.start_run() as run:
        client.log_artifacts(run.info.run_id, str(folder), "lipschitz")
    client.set_model_version_tag(name, version, tags.RUN_ID, run.info.run_id)
    client.set_model_version_tag(name, version, tags.VERDICT, how.get("status", "passed"))
    return Record(run.info.run_id, attestation)


def replace_attestation(run_id: str, content: bytes, folder: Path) -> None:
    """Put `content` where the run keeps its attestation."""
    (folder / "attestation.json").write_bytes(content)
    MlflowClient().log_artifact(run_id, str(folder / "attestation.json"), "lipschitz")
