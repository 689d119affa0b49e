"""May the model pass? Decided here from our own computation; great_expectations can only turn the answer into an error.

Fail closed: a check without exactly one answer, an evaluation that raised, two answers that differ, a table that has
not exactly the expected rows: each makes the check `error`, an errored check is critical whatever its severity, and a
verdict with an errored check is `error`, which never passes. `blocked` means that all was answered and a check failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mlflow_lipschitz.errors import PolicyError, PolicyIssue
from mlflow_lipschitz.gate.answers import Answer
from mlflow_lipschitz.gate.declarations import Observed, declare
from mlflow_lipschitz.gate.direct import Finding, find
from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.gate.table_io import strict_json
from mlflow_lipschitz.policy import AuditPolicy
from mlflow_lipschitz.policy_models import SEVERITIES, CertifiedFractionAtLeast, Check, PointsAtLeast, Severity

CheckStatus = Literal["certified", "violated", "undecided", "error"]


@dataclass(frozen=True)
class CheckOutcome:
    """What became of one policy check.

    Attributes:
        id, type, severity, line: from the policy; line 0 for a check this package added.
        status: certified (proved), violated (a counterexample or plain counting shows it false), undecided (neither;
            the bounds are too loose) or error (no answer).
        passed: true for certified only.
        observed, threshold: the deciding figure and its limit, None where there is none; may be infinite.
        message: one line for people: worst row, observed value, threshold, policy line.
        worst_point_id: the row to look at; empty if the check is not about rows.
        blocking: this outcome alone keeps the model from passing: an error, or a failure of a severity that the policy's
            `gate.fail_on` counts. Reports call a check failed by this and nothing else.
        failing_rows: how many rows are not proved; None for checks that are not made row by row.
    """

    id: str
    type: str
    severity: str
    status: CheckStatus
    passed: bool
    observed: float | None
    threshold: float | None
    message: str
    line: int
    worst_point_id: str
    blocking: bool
    failing_rows: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for strict JSON; infinity as the text "Infinity"."""
        return dict(strict_json(asdict(self)))


@dataclass(frozen=True)
class Verdict:
    """The gate's answer: passed, blocked (a check of blocking severity failed) or error (a check has no answer).

    `suite_json` and `validation_json` are great_expectations' documents as strict JSON, for the record.
    """

    status: Literal["passed", "blocked", "error"]
    checks: tuple[CheckOutcome, ...]
    suite_json: dict[str, Any]
    validation_json: dict[str, Any]

    @property
    def failed(self) -> tuple[CheckOutcome, ...]:
        """Checks that did not pass, of any severity."""
        return tuple(check for check in self.checks if not check.passed)

    def metrics(self) -> dict[str, float]:
        """The contract's `lipschitz/checks_failed_critical`: checks that keep the model from passing."""
        return {"lipschitz/checks_failed_critical": float(sum(check.blocking for check in self.checks))}


def judge(
    table: BoundsTable,
    policy: AuditPolicy,
    *,
    expected_points: int,
    baseline: Mapping[str, float] | None = None,
    seconds_total: float | None = None,
    no_baseline: str = "",
) -> Verdict:
    """Judge a bounds table by a policy.

    Args:
        table: the bounds.
        policy: as `load_policy` returned it.
        expected_points: how many rows were to be audited; the table must have exactly that many, and at least one.
        baseline: the bounds attested for the baseline (`lipschitz/upper_max`, …), for no_regression checks.
        seconds_total: measured duration of the audit; without it the rows' seconds are summed.
        no_baseline: why there is no baseline, for people.

    Raises:
        PolicyError: the policy did not come from `load_policy`: an id is used twice or a guard is missing.
    """
    from mlflow_lipschitz.gate import expectations  # seconds to import, so only when a verdict is asked for

    _check_policy(policy)
    observed = Observed(baseline, seconds_total, no_baseline)
    suite = expectations.build_suite(policy.metadata.name, declare(policy, observed))
    problem = _row_problem(len(table), expected_points)
    if problem:
        findings = [Finding(False, False, None, None, problem, error=problem) for _ in policy.checks]
        validation: dict[str, Any] = {"success": False, "results": [], "error": problem}
    else:
        answers, validation = _ask(expectations.evaluate, suite, table)
        findings = [_cross_checked(check, find(check, table, observed), answers) for check in policy.checks]
    suite_json = expectations.suite_to_json(suite)
    outcomes = tuple(
        _outcome(check, finding, policy.gate.fail_on) for check, finding in zip(policy.checks, findings, strict=True)
    )
    return Verdict(_status(outcomes), outcomes, suite_json, validation)


def _check_policy(policy: AuditPolicy) -> None:
    repeated = [name for name, count in Counter(check.id for check in policy.checks).items() if count > 1]
    guards = {type(check) for check in policy.checks if check.severity == "critical"}
    issues = [PolicyIssue(0, name, "duplicate id") for name in repeated]
    if not {PointsAtLeast, CertifiedFractionAtLeast} <= guards:
        issues.append(PolicyIssue(0, "checks", "the guards are missing: load the policy with load_policy"))
    if issues:
        raise PolicyError(issues, policy.metadata.name)


def _row_problem(rows: int, expected: int) -> str:
    if rows == 0:
        return "the bounds table is empty: nothing was audited"
    return "" if rows == expected else f"the bounds table has {rows} rows, {expected} were to be audited"


def _ask(evaluate: Any, suite: Any, table: BoundsTable) -> tuple[Sequence[Answer], dict[str, Any]]:
    try:
        return evaluate(suite, table.frame)
    except Exception as error:  # noqa: BLE001 - whatever great_expectations raises, the answer is that there is none
        reason = f"{type(error).__name__}: {error}"
        return (), {"success": False, "results": [], "error": reason}


def _cross_checked(check: Check, finding: Finding, answers: Sequence[Answer]) -> Finding:
    """`finding`, or an error where great_expectations gave not exactly one answer, raised, or answered otherwise."""
    if finding.error:
        return finding
    mine = [answer for answer in answers if answer.check_id == check.id]
    if len(mine) != 1:
        reason = f"great_expectations gave {len(mine)} answers to this check"
    elif mine[0].error:
        reason = f"great_expectations could not evaluate this check: {mine[0].error}"
    elif (mine[0].success, mine[0].unexpected) != (finding.passed, finding.unexpected):
        theirs, ours = (mine[0].success, mine[0].unexpected), (finding.passed, finding.unexpected)
        reason = f"great_expectations disagrees: (passed, failing rows) is {theirs} there and {ours} here"
    else:
        return finding
    return Finding(False, False, None, None, reason, error=reason)


def _outcome(check: Any, finding: Finding, fail_on: Severity) -> CheckOutcome:
    counts = SEVERITIES.index(check.severity) >= SEVERITIES.index(fail_on)
    status: CheckStatus = "undecided"
    if finding.error:
        status = "error"
    elif finding.passed:
        status = "certified"
    elif finding.disproved:
        status = "violated"
    place = f"policy line {check.line}" if check.line else "added by mlflow-lipschitz"
    return CheckOutcome(
        id=check.id,
        type=check.type,
        severity=check.severity,
        status=status,
        passed=status == "certified",
        observed=finding.observed,
        threshold=finding.threshold,
        message=f"{finding.message} ({place})",
        line=check.line,
        worst_point_id=finding.worst_point_id,
        blocking=status == "error" or (status != "certified" and counts),
        failing_rows=finding.unexpected,
    )


def _status(outcomes: Sequence[CheckOutcome]) -> Literal["passed", "blocked", "error"]:
    if not outcomes or any(outcome.status == "error" for outcome in outcomes):
        return "error"
    return "blocked" if any(outcome.blocking for outcome in outcomes) else "passed"
