"""How answers look: text for people, JSON for programs, workflow commands for GitHub."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlflow_lipschitz.plain_text import one_line, safe_lines
from mlflow_lipschitz.report.content import ReportContent, verdict_word

if TYPE_CHECKING:
    from mlflow_lipschitz.audit import AuditResult
    from mlflow_lipschitz.errors import LipschitzError
    from mlflow_lipschitz.frontends.support import NodeSupport

_LOG_WIDTH = 160
_COLORS = {"ok": "green", "FAIL": "red", "ERROR": "red", "warn": "yellow", "info": "yellow"}


def show_audit(result: AuditResult, style: str, policy_file: str) -> None:
    """Print the verdict in `style` (text, json, github)."""
    if style == "json":
        click.echo(audit_json(result))
        return
    for line in check_lines(result.content, result.directory / "report.html"):
        click.echo(line)
    if result.promotion:
        click.echo(safe_lines(result.promotion))
    if style == "github":
        _github(result, policy_file)


def check_lines(content: ReportContent, report: Path | None = None) -> list[str]:
    """One line per check, then where it breaks and where to read on, then the verdict. No text from outside can break or hide a
    line.
    """
    checks = content.verdict.checks
    width = max((len(one_line(check.id)) for check in checks), default=0)
    lines = []
    for check in checks:
        word = verdict_word(check)
        lines.append(
            f"{click.style(f'{word:<5}', fg=_COLORS[word])} {one_line(check.id):<{width}}  {one_line(check.message)}"
        )
    seen: set[str] = set()
    for example in content.counterexamples:
        if example.check_id not in seen:
            seen.add(example.check_id)
            lines.append(f"      {one_line(f'{example.check_id}: {example}')}")
    lines.append(f"attestation: {one_line(content.attested)}")
    if report is not None:
        lines.append(f"report: {one_line(report)}")
    color = "green" if content.verdict.status == "passed" else "red"
    lines.append(click.style(f"{content.verdict.status}: {one_line(content.model)}", fg=color, bold=True))
    return lines


def audit_json(result: AuditResult) -> str:
    """Strict JSON: infinities are the strings Infinity and -Infinity."""
    document = {
        "verdict": result.verdict.status,
        "model": result.content.model,
        "policy": result.content.policy,
        "decision": result.content.decision,
        "checks": [
            {**check.to_dict(), "next": result.content.advice.get(check.id, "")} for check in result.verdict.checks
        ],
        "counterexamples": [str(example) for example in result.content.counterexamples],
        "metrics": {name: _strict(value) for name, value in result.metrics.items()},
        "artifacts": str(result.directory),
        "report": str(result.directory / "report.html"),
        "run_id": result.run_id,
        "attestation": {"digest": result.attestation.digest, "signature": result.attestation.signature},
        "alias": result.promotion.alias if result.promotion else None,
    }
    return json.dumps(document, indent=2, allow_nan=False)


def show_support(nodes: Sequence[NodeSupport]) -> None:
    """The per-node table of `support`."""
    table = Table("node", "operator", "bounded", "note", "origin")
    for column, word in enumerate(table.columns):
        # What decides stays whole on any screen; names and places may run over several lines.
        word.no_wrap = column in (1, 2)
        word.overflow = "fold"
    colors = {"exact": "green", "relaxed": "yellow", "unsupported": "red"}
    for node in nodes:
        verdict = Text(node.verdict, style=colors[node.verdict])
        # Folders of the author's machine tell nobody anything; the file and the line do.
        origin = re.sub(r"(?<![\w)])(?:[A-Za-z]:)?[/\\](?:[^\s'/\\]+[/\\])+", "", node.origin) or "–"
        cells = (Text(one_line(cell)) for cell in (node.node, node.op_type, node.note, origin))
        name, operator, note, place = cells
        table.add_row(name, operator, verdict, note, place)
    console = Console()
    # A log has no width of its own: take one at which the columns can be read.
    (console if console.is_terminal else Console(width=_LOG_WIDTH)).print(table)
    missing = sum(node.verdict == "unsupported" for node in nodes)
    click.echo(f"{len(nodes)} nodes, {missing} unsupported")


def show_failure(error: LipschitzError, model: str, policy_file: str) -> None:
    """What GitHub shows of an audit that could not be completed."""
    from mlflow_lipschitz.report.github import failure_annotations
    from mlflow_lipschitz.report.summary import failure_markdown

    for line in failure_annotations(error, policy_file):
        click.echo(line)
    _append("GITHUB_STEP_SUMMARY", failure_markdown(model, str(error)))


def _github(result: AuditResult, policy_file: str) -> None:
    from mlflow_lipschitz.report.github import github_annotations, step_outputs
    from mlflow_lipschitz.report.summary import summary_markdown

    content = replace(result.content, policy_file=policy_file)
    for line in github_annotations(content):
        click.echo(line)
    _append("GITHUB_STEP_SUMMARY", summary_markdown(content))
    values = {
        "verdict": result.verdict.status,
        "run-id": result.run_id or "",
        "directory": str(result.directory),
        "attestation": result.attestation.digest,
    }
    _append("GITHUB_OUTPUT", step_outputs(values))


def _append(variable: str, text: str) -> None:
    """Add to the file that the runner names, where there is a runner."""
    path = os.environ.get(variable)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value.item() if hasattr(value, "item") else value
