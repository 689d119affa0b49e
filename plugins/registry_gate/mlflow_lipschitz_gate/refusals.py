"""What a refusal looks like: HTTP 403, which no MLflow client retries, with every reason and the command that helps."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED


class GateConfigError(Exception):
    """The gate's configuration cannot be used. The server does not start without one."""


def denied(what: str, reasons: Sequence[str], remedy: str) -> MlflowException:
    """The exception to raise: "mlflow-lipschitz-gate refuses <what>", the reasons as a list, then what to run."""
    listed = "\n".join(f"  - {reason}" for reason in reasons)
    return MlflowException(f"mlflow-lipschitz-gate refuses {what}:\n{listed}\n{remedy}", error_code=PERMISSION_DENIED)


def audit_and_promote(uri: str, target: str) -> str:
    """The two commands that open a door.

    Args:
        uri: `models:/NAME/VERSION` of the version to audit.
        target: the option of `promote`, such as `--alias champion`.
    """
    return (
        f"Audit it: mlflow-lipschitz audit {uri} --policy POLICY.yaml --data ROWS --sign-key KEY.pem\n"
        f"then: mlflow-lipschitz promote {uri} {target}"
    )
