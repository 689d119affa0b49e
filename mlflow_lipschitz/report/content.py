"""What every report is made from: one frozen value, so that all formats tell the same story."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mlflow_lipschitz.report.insight import Insight

if TYPE_CHECKING:
    from mlflow_lipschitz.certificates.schema import Counterexample
    from mlflow_lipschitz.gate.verdict import CheckOutcome, Verdict
    from mlflow_lipschitz.policy_models import Check

HEADLINES = {
    "passed": "Passed: every check that decides is proved.",
    "blocked": "Blocked: at least one check that decides is not proved.",
    "error": "Error: the audit could not decide, so nothing is passed.",
}

NOT_MEANT = (
    "A bound holds for the audited rows and the perturbations described here, and for nothing else. It is evidence for"
    " a property of the model; it says nothing about accuracy, fairness, or fitness for a purpose."
)


UNSIGNED = "UNSIGNED: it does not prove who wrote it, and opens nothing where signatures are demanded"


@dataclass(frozen=True)
class ReportContent:
    """
    Attributes:
        model: the audited model's URI.
        policy: the policy's reference, `name@version sha256:…`.
        frame: the bounds table, one row per audited point.
        derivatives: feature -> certified (lower, upper) bounds of the output's derivative in it, each (P,).
        facts: name -> text; norm, radius, domain, method, arithmetic claim, versions: what repeating the audit needs.
        explanations: check type -> what the number means and does not mean.
        policy_file: how annotations name the policy's file.
        attested: who signed the attestation beside the report, or that nobody did.
        asked: check id -> the check as the policy states it.
        advice: check id -> what to do next, of every check that did not pass.
        insight: the figures that are not in the bounds table.
        unit: what one unit of perturbation is, in words.
        norm: norm of the perturbation: linf, l2 or l1.
    """

    model: str
    policy: str
    verdict: Verdict
    frame: pd.DataFrame
    counterexamples: tuple[Counterexample, ...] = ()
    derivatives: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    explanations: Mapping[str, str] = field(default_factory=dict)
    policy_file: str = "policy.yaml"
    attested: str = UNSIGNED
    asked: Mapping[str, Check] = field(default_factory=dict)
    advice: Mapping[str, str] = field(default_factory=dict)
    insight: Insight = field(default_factory=Insight)
    unit: str = "unit of perturbation"
    norm: str = "linf"

    @property
    def headline(self) -> str:
        return HEADLINES[self.verdict.status]

    @property
    def failing(self) -> list[CheckOutcome]:
        """Checks that did not pass, in the order in which to read them: those that block, then by severity."""
        rank = {"critical": 0, "warning": 1, "info": 2}
        return sorted(self.verdict.failed, key=lambda check: (not check.blocking, rank[check.severity]))

    @property
    def decision(self) -> str:
        """What the verdict means for this model, in one sentence."""
        blocking = sum(check.blocking for check in self.verdict.checks)
        total, rows = len(self.verdict.checks), f"{len(self.frame):,} audited rows"
        if self.verdict.status == "passed":
            noted = len(self.verdict.failed)
            notes = f" {noted} that do not decide failed; see below." if noted else ""
            return f"The model may be promoted under this policy: nothing blocks it on {rows}.{notes}"
        if self.verdict.status == "blocked":
            return f"The model may not be promoted: {blocking} of {total} checks block it, on {rows}."
        broken = sum(check.status == "error" for check in self.verdict.checks)
        return (
            f"The model may not be promoted: {broken} of {total} checks have no answer. What is unknown never passes."
        )

    def leading_examples(self, count: int) -> list[Counterexample]:
        """Up to `count` counterexamples, the worst of each check before the second of any."""
        ranks: dict[str, int] = {}
        ranked = []
        for position, example in enumerate(self.counterexamples):
            ranks[example.check_id] = ranks.get(example.check_id, 0) + 1
            ranked.append((ranks[example.check_id], position, example))
        return [example for _, _, example in sorted(ranked, key=lambda entry: entry[:2])[:count]]

    @property
    def status_counts(self) -> dict[str, int]:
        """Number of rows per status, in a fixed order, statuses without rows left out."""
        counts = self.frame["status"].value_counts()
        return {s: int(counts[s]) for s in ("certified", "violated", "undecided", "error") if s in counts}


def number(value: object) -> str:
    """A figure for people: four significant digits, ∞ spelled out, text unchanged, nothing for None."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if value != value:
        return "not a number"
    if value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "-∞"
    return f"{value:.4g}"


def verdict_word(outcome: CheckOutcome) -> str:
    """One word per check for tables and lines: ok, FAIL (blocks), warn, info or ERROR."""
    if outcome.status == "error":
        return "ERROR"
    if outcome.passed:
        return "ok"
    return "FAIL" if outcome.blocking else {"critical": "FAIL", "warning": "warn", "info": "info"}[outcome.severity]
