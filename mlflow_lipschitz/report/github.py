"""What GitHub shows of an audit: annotations on the lines of the policy file, outputs of the step, and why it failed."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlflow_lipschitz.errors import LipschitzError, PolicyError
from mlflow_lipschitz.plain_text import one_line
from mlflow_lipschitz.report.content import ReportContent

if TYPE_CHECKING:
    from mlflow_lipschitz.gate.verdict import CheckOutcome

PER_KIND = 10
"""GitHub drops what exceeds ten annotations of one kind per step."""

_KINDS = {"critical": "error", "warning": "warning", "info": "notice"}


def github_annotations(content: ReportContent) -> list[str]:
    """`::error file=…,line=…,title=…::message` lines, at most PER_KIND of each kind, errors first."""
    found: dict[str, list[str]] = {"error": [], "warning": [], "notice": []}
    for check in content.verdict.checks:
        if check.passed:
            continue
        kind = "error" if check.blocking else _KINDS[check.severity]
        place = f"file={_property(content.policy_file)}" + (f",line={check.line}" if check.line else "")
        found[kind].append(f"::{kind} {place},title={_property(check.id)}::{_message(_told(content, check))}")
    return [line for kind in found.values() for line in kind[:PER_KIND]]


def failure_annotations(error: LipschitzError, policy_file: str) -> list[str]:
    """The same for an audit that could not be completed; mistakes in the policy on their lines."""
    if not isinstance(error, PolicyError):
        return [f"::error title={_property('audit failed')}::{_message(str(error))}"]
    lines = []
    for issue in error.errors[:PER_KIND]:
        place = f"file={_property(policy_file)}" + (f",line={issue.line}" if issue.line else "")
        told = f"{issue.where}: {issue.message}" if issue.where else issue.message
        lines.append(f"::error {place},title={_property('policy error')}::{_message(told)}")
    return lines


def step_outputs(values: Mapping[str, str]) -> str:
    """Text for the file GITHUB_OUTPUT. A value ends at a line that nobody can have foreseen, so none can set another output."""
    end = f"end-{uuid.uuid4().hex}"
    return "".join(f"{name}<<{end}\n{value}\n{end}\n" for name, value in values.items())


def _told(content: ReportContent, check: CheckOutcome) -> str:
    advice = content.advice.get(check.id, "")
    return f"{check.message}\nNext: {advice}" if advice else check.message


def _message(text: str) -> str:
    # Line breaks have an escape of their own here, which GitHub shows as line breaks; nothing else has.
    text = "\n".join(one_line(line) for line in text.splitlines())
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
