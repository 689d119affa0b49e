"""What `no_regression` checks compare with: the bounds attested for the baseline, never numbers somebody wrote on a run.

Two audits compare only if they asked the same question about the same rows: a bound for a larger perturbation, another output
or easier rows is a number of another kind.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_lipschitz.errors import RegistryError, UntrustedModel, UsageError
from mlflow_lipschitz.policy import AuditPolicy
from mlflow_lipschitz.policy_models import NoRegression
from mlflow_lipschitz.registry.pull import fetch
from mlflow_lipschitz.registry.store import client_for
from mlflow_lipschitz.registry.trust import Trust
from mlflow_lipschitz.registry.vouching import NotVouched, VouchedAudit, vouching_audit
from mlflow_lipschitz.rows import AuditedRows


@dataclass(frozen=True)
class Baseline:
    """The attested bounds of the baseline by metric name; without any, `problem` says why and what to do."""

    bounds: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""


def rows_digest(rows: AuditedRows) -> str:
    """SHA-256 of the audited points, their columns and the scale that perturbations are measured in."""
    digest = hashlib.sha256(repr((rows.feature_names, rows.points.shape)).encode())
    for values in (rows.points, rows.scale):
        digest.update(np.ascontiguousarray(values, dtype=np.float64).tobytes())
    return f"sha256:{digest.hexdigest()}"


def baseline_of(
    policy: AuditPolicy, rows: AuditedRows, tracking_uri: str | None = None, trust: Trust | None = None
) -> Baseline:
    """The baseline that `policy` names, when it has a check that needs one.

    A baseline counts only if a passed, valid audit of exactly its present files is on record, with the same output,
    inputs, perturbation and rows as this one. Everything else leaves the checks without an answer, and the gate closed;
    it is not raised, for the other bounds are still worth having. With trusted keys in `trust`, the attestation also has to be
    signed by one of them.
    """
    uri = policy.model.baseline
    if uri is None or not any(isinstance(check, NoRegression) for check in policy.checks):
        return Baseline()
    try:
        with tempfile.TemporaryDirectory(prefix="mlflow-lipschitz-") as scratch:
            reference, path = fetch(uri, directory=scratch, tracking_uri=tracking_uri)
            if reference.name is None or reference.version is None:
                return Baseline(problem=f"the baseline {uri} is not a registered version; use models:/NAME@ALIAS")
            place = f"models:/{reference.name}/{reference.version}"
            client, evidence = client_for(tracking_uri), Path(scratch) / "lipschitz-evidence"
            vouched = vouching_audit(reference, path, client, evidence, trust or Trust())
    except (RegistryError, UntrustedModel, UsageError) as error:
        return Baseline(problem=f"the baseline {uri} cannot be read: {_one_line(error)} {_FIRST}")
    except NotVouched as error:
        return Baseline(
            problem=f"no audit vouches for the baseline {uri} ({_one_line(error)}). Audit it first: "
            f"mlflow-lipschitz audit {place} --policy POLICY.yaml --data ROWS"
        )
    differences = _differences(vouched, policy, rows)
    if differences:
        return Baseline(
            problem=f"the audit of the baseline {uri} cannot be compared with: it had other {' and '.join(differences)}. "
            f"Audit it again with this policy and these rows: mlflow-lipschitz audit {place} --policy POLICY.yaml --data ROWS"
        )
    return Baseline(bounds=_finite(vouched.attestation.predicate.get("bounds")))


_FIRST = "Audit and promote a first version under a policy without no_regression checks, or name another baseline."


def _differences(vouched: VouchedAudit, policy: AuditPolicy, rows: AuditedRows) -> list[str]:
    """What the baseline's audit asked differently, by the names of the policy file."""
    theirs = vouched.policy
    asked: dict[str, tuple[Any, Any]] = {
        "model.output": (theirs.model.output, policy.model.output),
        "inputs.domain": (dict(theirs.inputs.domain), dict(policy.inputs.domain)),
        "inputs.immutable": (set(theirs.inputs.immutable), set(policy.inputs.immutable)),
        "perturbation": (theirs.perturbation, policy.perturbation),
        "rows": (vouched.attestation.predicate.get("rows"), rows_digest(rows)),
    }
    if any(isinstance(check, NoRegression) and check.metric.startswith("radius") for check in policy.checks):
        asked["engine.arithmetic"] = (theirs.engine.arithmetic, policy.engine.arithmetic)
    return [name for name, (their, our) in asked.items() if their != our]


def _finite(bounds: Any) -> dict[str, float]:
    found = bounds if isinstance(bounds, Mapping) else {}
    return {key: float(v) for key, v in found.items() if type(v) in (int, float) and math.isfinite(v)}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
