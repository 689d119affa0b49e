"""What `no_regression` checks compare with: the bounds attested for the baseline, never numbers somebody wrote on a run."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow_lipschitz.errors import RegistryError, UntrustedModel, UsageError
from mlflow_lipschitz.policy import AuditPolicy
from mlflow_lipschitz.policy_models import NoRegression
from mlflow_lipschitz.registry.pull import fetch
from mlflow_lipschitz.registry.store import client_for
from mlflow_lipschitz.registry.vouching import NotVouched, vouching_audit


@dataclass(frozen=True)
class Baseline:
    """The attested bounds of the baseline by metric name; without any, `problem` says why and what to do."""

    bounds: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""


def baseline_of(policy: AuditPolicy, tracking_uri: str | None = None) -> Baseline:
    """The baseline that `policy` names, when it has a check that needs one.

    A baseline counts only if a passed, valid audit of exactly its present files is on record. Everything else leaves
    the checks without an answer, and the gate closed; it is not raised, for the other bounds are still worth having.
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
            vouched = vouching_audit(reference, path, client_for(tracking_uri), Path(scratch) / "lipschitz-evidence")
    except (RegistryError, UntrustedModel, UsageError) as error:
        return Baseline(problem=f"the baseline {uri} cannot be read: {_one_line(error)} {_FIRST}")
    except NotVouched as error:
        return Baseline(
            problem=f"no audit vouches for the baseline {uri} ({_one_line(error)}). Audit it first: "
            f"mlflow-lipschitz audit {place} --policy POLICY.yaml --data ROWS"
        )
    return Baseline(bounds=_finite(vouched.attestation.predicate.get("bounds")))


_FIRST = "Audit and promote a first version under a policy without no_regression checks, or name another baseline."


def _finite(bounds: Any) -> dict[str, float]:
    found = bounds if isinstance(bounds, Mapping) else {}
    return {key: float(v) for key, v in found.items() if type(v) in (int, float) and math.isfinite(v)}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
