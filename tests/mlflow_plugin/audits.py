"""Small real audits for the tests of the plugin."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mlflow_lipschitz.audit import AuditResult, audit_rows
from mlflow_lipschitz.policy import load_policy
from mlflow_lipschitz.registry.pull import pull
from mlflow_lipschitz.rows import load_rows
from tests.registry.evidence import POLICY
from tests.registry.stores import rows

COLUMNS = ["age", "bmi", "bp"]
BLOCKING_POLICY = POLICY.replace("max: 500.0", "max: 0.001")


def frame(count: int = 8) -> pd.DataFrame:
    return pd.DataFrame(rows(count), columns=COLUMNS)


def write_policy(folder: Path, text: str = POLICY) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text)
    return path


def audited(model_uri: str, folder: Path, policy_text: str = POLICY) -> AuditResult:
    """The real pipeline up to, and without, logging."""
    folder.mkdir(parents=True, exist_ok=True)
    policy = load_policy(policy_text)
    pulled = pull(model_uri)
    return audit_rows(pulled, load_rows(rows(), pulled.signature, policy), policy, folder)
