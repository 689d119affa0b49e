"""GitHub workflow commands: each failed check becomes an annotation on its line of the policy file."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def _told(content: ReportContent, check: CheckOutcome) -> str:
    advice = content.advice.get(check.id, "")
    return f"{check.message}\nNext: {advice}" if advice else check.message


def _message(text: str) -> str:
    # Line breaks have an escape of their own here, which GitHub shows as line breaks; nothing else has.
    text = "\n".join(one_line(line) for line in text.splitlines())
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
