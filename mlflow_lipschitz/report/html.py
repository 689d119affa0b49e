"""`report.html`: one file without a link or a script, made for MLflow's narrow artifact viewer and for print.

The templates escape everything that is put into them; here every text is put on one line first, without characters that are not
shown as themselves. Feature names, model names and messages are the user's data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mlflow_lipschitz.plain_text import one_line
from mlflow_lipschitz.report.content import NOT_MEANT, ReportContent, number, verdict_word
from mlflow_lipschitz.report.evidence import CAVEAT, evidence_table
from mlflow_lipschitz.report.layout import Section, Table
from mlflow_lipschitz.report.phrases import NORMS, STATES, demand, figure, observed
from mlflow_lipschitz.report.reproduce import commands
from mlflow_lipschitz.report.sections import sections

_FEW = 6
_MOST = 50
_SIGNS = {"passed": "✓", "blocked": "✗", "error": "!"}


@dataclass(frozen=True)
class Card:
    """A check that did not pass, with everything needed to act on it."""

    word: str
    id: str
    severity: str
    state: str
    facts: tuple[tuple[str, str], ...]


def report_html(content: ReportContent) -> str:
    """The whole report as one HTML document."""
    return _environment().get_template("report.html.j2").render(_values(content))


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("mlflow_lipschitz.report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: Any) -> Any:
    """What a template puts out: our own markup as it is, everything else as one harmless line, which Jinja then escapes."""
    return value if isinstance(value, Markup) else one_line(number(value))


def _values(content: ReportContent) -> dict[str, Any]:
    examples = [(example.check_id, str(example)) for example in content.leading_examples(_MOST)]
    return {
        "status": content.verdict.status,
        "sign": _SIGNS[content.verdict.status],
        "headline": content.headline,
        "decision": content.decision,
        "model": content.model,
        "policy": content.policy,
        "attested": content.attested,
        "tiles": tiles(content),
        "claim": claim(content),
        "cards": [card(content, check) for check in content.failing],
        "proved": proved(content),
        "examples": examples[:_FEW],
        "more_examples": examples[_FEW:],
        "example_count": len(content.counterexamples),
        "example_point": example_point(content),
        "sections": sections(content),
        "method": Section("What was proved, and how", tables=[Table("", ("", ""), list(content.facts.items()))]),
        "commands": commands(content),
        "evidence": evidence_table(content),
        "caveat": CAVEAT,
        "meanings": meanings(content),
        "not_meant": NOT_MEANT,
    }


def tiles(content: ReportContent) -> list[tuple[str, str]]:
    """The few figures that a reader looks for first: (what, value)."""
    frame = content.frame
    found = [(word, f"{count:,}") for word, count in content.status_counts.items()]
    found = [("rows audited", f"{len(frame):,}"), *((f"rows {word}", count) for word, count in found)]
    largest = float(frame["lipschitz_upper"].max()) if len(frame) else float("inf")
    found.append(("largest certified change per unit", number(largest)))
    if any(check.type == "radius_at_least" for check in content.verdict.checks) and len(frame):
        found.append(("median certified radius", number(float(frame["radius"].median()))))
    return found


def claim(content: ReportContent) -> str:
    """What the bounds are about, in two sentences."""
    facts = content.facts
    moves = f" {facts['perturbation']}, {NORMS[content.norm]};" if "perturbation" in facts else ""
    fixed = facts.get("does not move", "–")
    stays = f" not moving: {fixed};" if fixed != "–" else ""
    return (
        f"Every bound holds for every input within the perturbation around each audited row, not only for samples:{moves}{stays}"
        f" one unit of perturbation is {content.unit}."
    )


def card(content: ReportContent, check: Any) -> Card:
    """Limit, observed value, rows, and what to do, of one check."""
    facts = [
        ("wanted", demand(content, check)),
        ("observed", observed(content, check)),
        ("found", check.message),
        ("next", content.advice.get(check.id, "")),
    ]
    shown = tuple((name, text) for name, text in facts if text)
    return Card(verdict_word(check), check.id, check.severity, STATES[check.status], shown)


def proved(content: ReportContent) -> list[tuple[str, str, str, str, str]]:
    """Checks that passed: id, what is proved, observed, limit, message."""
    return [
        (c.id, demand(content, c), figure(c, c.observed), figure(c, c.threshold), c.message)
        for c in content.verdict.checks
        if c.passed
    ]


def example_point(content: ReportContent) -> Table | None:
    """All features at the first counterexample, where they fit on a page."""
    examples = content.leading_examples(1)
    if not examples or len(examples[0].point) > _MOST:
        return None
    point = examples[0].point
    return Table(
        "All features at the first of them", ("feature", "value"), list(point.items()), closed=len(point) > _FEW
    )


def meanings(content: ReportContent) -> list[tuple[str, list[str]]]:
    """What each kind of check in this report means: (kind, paragraphs)."""
    kinds = dict.fromkeys(check.type for check in content.verdict.checks)
    return [(kind, content.explanations[kind].split("\n\n")) for kind in kinds if kind in content.explanations]
