"""What is on record for the version that the alias `champion` names: the policy it passed, and its bounds."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlflow_lipschitz.errors import AuditError, UntrustedModel
from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.plain_text import one_line
from mlflow_lipschitz.policy import AuditPolicy
from mlflow_lipschitz.registry.checking import problems_in
from mlflow_lipschitz.registry.pull import fetch
from mlflow_lipschitz.registry.store import client_for, store_errors
from mlflow_lipschitz.registry.trust import ENVIRONMENT, trust_from
from mlflow_lipschitz.registry.vouching import recorded_audit

ALIAS = "champion"
_TABLE = "points.parquet"


@dataclass(frozen=True)
class Champion:
    """The champion, and its audit where one vouches for its files as they are now; else `problem` says why none does."""

    uri: str
    version: str
    policy: AuditPolicy | None = None
    table: BoundsTable | None = None
    problem: str = ""


def champion_of(name: str, tracking_uri: str | None = None) -> Champion | None:
    """The champion of a registered model; None where no version has the alias.

    Raises:
        RegistryError: the store cannot be read.
    """
    client, uri = client_for(tracking_uri), f"models:/{name}@{ALIAS}"
    with store_errors(f"read the aliases of {name}"):
        version = dict(client.get_registered_model(name).aliases).get(ALIAS)
    if version is None:
        return None
    with tempfile.TemporaryDirectory(prefix="mlflow-lipschitz-") as scratch:
        try:
            reference, path = fetch(uri, directory=scratch, tracking_uri=tracking_uri)
            found = recorded_audit(reference, path, client, Path(scratch) / "evidence", trust_from(ENVIRONMENT))
            problems = problems_in(found.findings)
            if problems or found.policy is None or found.folder is None:
                return Champion(
                    uri, str(version), problem=one_line("; ".join(problems) or "the evidence is incomplete")
                )
            return Champion(uri, str(version), found.policy, BoundsTable.read(found.folder / _TABLE))
        except (AuditError, UntrustedModel) as error:
            return Champion(uri, str(version), problem=one_line(error))
