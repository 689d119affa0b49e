"""`audit.sarif`: the failed checks as SARIF 2.1.0, pointing at the lines of the policy file."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mlflow_lipschitz.plain_text import one_line
from mlflow_lipschitz.report.content import ReportContent

if TYPE_CHECKING:
    from mlflow_lipschitz.gate.verdict import CheckOutcome

_LEVELS = {"critical": "error", "warning": "warning", "info": "note"}


_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif_json(content: ReportContent) -> str:
    """A SARIF log with one result per check that is not proved; one that blocks is an error whatever its severity."""
    kinds = sorted({check.type for check in content.failing})
    driver = {"name": "mlflow-lipschitz", "rules": [_rule(content, kind) for kind in kinds]}
    run = {
        "tool": {"driver": driver},
        # The audit ran to its end; that a model is blocked is a result, not a failure of the tool.
        "invocations": [{"executionSuccessful": True}],
        "results": [_result(content, check, kinds) for check in content.failing],
        "properties": {"model": one_line(content.model), "policy": one_line(content.policy)},
    }
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=1, allow_nan=False) + "\n"


def _rule(content: ReportContent, kind: str) -> dict[str, Any]:
    paragraphs = [one_line(text) for text in content.explanations.get(kind, kind).split("\n\n")]
    return {
        "id": kind,
        "shortDescription": {"text": paragraphs[0][:1000]},
        "help": {"text": "\n\n".join(paragraphs)[:5000]},
    }


def _result(content: ReportContent, check: CheckOutcome, kinds: list[str]) -> dict[str, Any]:
    # A location is a URI: spaces, percent signs and backslashes of a path have to be spelled for one.
    uri = quote(content.policy_file.replace("\\", "/"), safe="/:._-~", errors="backslashreplace")
    location: dict[str, Any] = {"artifactLocation": {"uri": uri}}
    if check.line:
        location["region"] = {"startLine": check.line}
    advice = content.advice.get(check.id, "")
    text = f"{check.id}: {check.message}" + (f" Next: {advice}" if advice else "")
    return {
        "ruleId": check.type,
        "ruleIndex": kinds.index(check.type),
        "level": "error" if check.blocking else _LEVELS[check.severity],
        "message": {"text": one_line(text)},
        "locations": [{"physicalLocation": location}],
        # The same check of the same policy is one alert, however its numbers change.
        "partialFingerprints": {
            "check/v1": hashlib.sha256(f"{check.type} {check.id}".encode(errors="replace")).hexdigest()
        },
    }
