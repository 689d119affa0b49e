"""`summary.md`: the audit on one screen, for job summaries and model descriptions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mlflow_lipschitz.plain_text import one_line
from mlflow_lipschitz.report.content import NOT_MEANT, ReportContent, number, verdict_word

if TYPE_CHECKING:
    from mlflow_lipschitz.gate.verdict import CheckOutcome

SIZE_LIMIT = 60_000
"""Bytes; GitHub shows up to 1 MiB per job summary, but nobody reads more than this."""

_SHOWN_EXAMPLES = 5
_SHOWN_CHECKS = 8


def summary_markdown(content: ReportContent) -> str:
    """The summary as Markdown, at most SIZE_LIMIT bytes. Names from the user are escaped."""
    lines = [
        f"## {content.verdict.status.upper()}: `{_code(content.model)}`",
        "",
        f"{content.headline} {content.decision}",
        "",
    ]
    lines += ["| check | severity | result | observed | threshold | |", "|---|---|---|---|---|---|"]
    for outcome in [*content.failing, *(check for check in content.verdict.checks if check.passed)]:
        cells = (
            outcome.id,
            outcome.severity,
            verdict_word(outcome),
            number(outcome.observed),
            number(outcome.threshold),
            outcome.message,
        )
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    lines += [""] + [f"- Next for {_cell(c.id)}: {_cell(content.advice[c.id])}" for c in _advised(content)]
    rows = ", ".join(f"{count} {status}" for status, count in content.status_counts.items())
    lines += ["", f"Rows: {rows} of {len(content.frame)}."]
    lines += [f"- {_cell(example.check_id)}: {_cell(example)}" for example in content.leading_examples(_SHOWN_EXAMPLES)]
    if len(content.counterexamples) > _SHOWN_EXAMPLES:
        lines.append(f"- … and {len(content.counterexamples) - _SHOWN_EXAMPLES} more counterexamples in report.html")
    if "arithmetic" in content.facts:
        lines += ["", f"Arithmetic: {_cell(content.facts['arithmetic'])}."]
    lines += [
        "",
        f"Policy: `{_code(content.policy)}`",
        "",
        f"Attestation: {_cell(content.attested)}",
        "",
        NOT_MEANT,
        "",
    ]
    text = "\n".join(lines)
    if len(text.encode()) <= SIZE_LIMIT:
        return text
    return text.encode()[: SIZE_LIMIT - 40].decode(errors="ignore") + "\n\n(cut; see report.html)\n"


def failure_markdown(model: str, reason: str) -> str:
    """The summary of an audit that could not be completed."""
    why = " ".join(_cell(line) for line in reason.splitlines())[: SIZE_LIMIT // 4]
    return f"## ERROR: `{_code(model)}`\n\nThe audit could not be completed, so nothing is passed.\n\n{why}\n"


def short_markdown(content: ReportContent) -> list[str]:
    """The same story in a few lines, for the description of a model version: the verdict, and what to do about it."""
    passed = sum(check.passed for check in content.verdict.checks)
    lines = [
        f"**Lipschitz audit: {content.verdict.status}.** {passed} of {len(content.verdict.checks)} checks passed on"
        f" {len(content.frame)} rows. {content.decision}"
    ]
    for check in content.failing[:_SHOWN_CHECKS]:
        advice = content.advice.get(check.id, "")
        lines.append(f"- {code_span(check.id)} ({check.severity}): {check.status}. {_cell(advice)}".rstrip())
    more = len(content.failing) - _SHOWN_CHECKS
    return [*lines, *[f"- and {more} more"] * (more > 0)]


def code_span(text: object) -> str:
    """Text as a Markdown code span that it cannot leave, at most 160 characters."""
    return "`" + one_line(re.sub(r"[`\s<>]+", " ", str(text)))[:160].strip() + "`"


def _advised(content: ReportContent) -> list[CheckOutcome]:
    return [check for check in content.failing if check.blocking and content.advice.get(check.id)][:_SHOWN_CHECKS]


def _cell(text: object) -> str:
    """Text that cannot leave its table cell nor become markup: GitHub and MLflow both render HTML inside Markdown."""
    escaped = (
        one_line(" ".join(str(text).split()))
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace("\\", "\\\\")
    )
    for mark in "|[]`*_":
        escaped = escaped.replace(mark, f"\\{mark}")
    return escaped


def _code(text: str) -> str:
    return one_line(" ".join(re.sub("[`<>]", " ", text).split()))
