"""`audit.sarif`: the failed checks as SARIF 2.1.0, pointing at the lines of the policy file."""

from __future__ import annotations

import json
from typing import Any

from mlflow_lipschitz.plain_text import one_line
from mlflow_lipschitz.report.content import ReportContent

_LEVELS = {"critical": "error", "warning": "warning", "info": "note"}


def sarif_json(content: ReportContent) -> str:
    """A SARIF log with one result per check that is not proved; one that blocks is an error whatever its severity."""
    failed = [check for check in content.verdict.checks if not check.passed]
    rules = [
        {"id": kind, "shortDescription": {"text": content.explanations.get(kind, kind)[:1000]}}
        for kind in sorted({check.type for check in failed})
    ]
    run = {
        "tool": {"driver": {"name": "mlflow-lipschitz", "rules": rules}},
        "results": [_result(check, content.policy_file) for check in failed],
    }
    return json.dumps({"version": "2.1.0", "runs": [run]}, indent=1, allow_nan=False) + "\n"


def _result(check: Any, policy_file: str) -> dict[str, Any]:
    location: dict[str, Any] = {"artifactLocation": {"uri": policy_file}}
    if check.line:
        location["region"] = {"startLine": check.line}
    return {
        "ruleId": check.type,
        "level": "error" if check.blocking else _LEVELS[check.severity],
        "message": {"text": one_line(f"{check.id}: {check.message}")},
        "locations": [{"physicalLocation": location}],
    }
