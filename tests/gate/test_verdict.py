"""The verdict: what each check decides on, and that nothing unproved ever passes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_lipschitz.errors import AuditError, PolicyError
from mlflow_lipschitz.gate.answers import Answer
from mlflow_lipschitz.gate.declarations import Observed
from mlflow_lipschitz.gate.direct import find
from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.gate.verdict import CheckOutcome, Verdict, _ask, _cross_checked, judge
from mlflow_lipschitz.policy import load_policy
from tests.gate.tables import FEATURES, INF, any_columns, good_columns, table
from tests.test_policy import SMALL

HEAD = """\
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {name: demo, version: 1}
model: {output: 0, baseline: "models:/demo@champion"}
perturbation: {norm: linf, radius: 0.1}
"""
ALL = """\
checks:
  - {id: lip, type: lipschitz_at_most, max: 5, mostly: 0.75}
  - {id: radius, type: radius_at_least, min: 0.1, severity: warning}
  - {id: up, type: monotone, feature: income, direction: increasing, mostly: 0.5}
  - {id: slope, type: sensitivity_at_most, feature: age, max: 2, severity: info}
  - {id: worse, type: no_regression, metric: lipschitz_upper, rel_tol: 0.05}
  - {id: enough, type: points_at_least, min: 2}
  - {id: coverage, type: certified_fraction_at_least, min: 0.5}
  - {id: time, type: time_at_most, max: 60, severity: info}
"""
POLICY = load_policy(HEAD + ALL)
BASELINE = {"lipschitz/upper_max": 3.0}


def only(check: str, **settings_: Any) -> Any:
    """A policy with one check, and guards that ask for as little as can be asked."""
    guards = (
        "  - {id: c, type: certified_fraction_at_least, min: 0.01}\n" if "certified_fraction_at" not in check else ""
    )
    gate = f"gate: {{fail_on: {settings_['fail_on']}}}\n" if settings_ else ""
    return load_policy(HEAD + f"checks:\n  - {{id: x, {check}}}\n" + guards + gate)


def outcome(bounds: BoundsTable, check: str, **context: Any) -> CheckOutcome:
    return judge(bounds, only(check), expected_points=len(bounds), **context).checks[0]


def test_a_good_table_passes_every_check() -> None:
    verdict = judge(table(), POLICY, expected_points=4, baseline=BASELINE)
    assert verdict.status == "passed" and verdict.failed == ()
    assert {check.status for check in verdict.checks} == {"certified"}
    assert verdict.metrics() == {"lipschitz/checks_failed_critical": 0.0}
    assert [check.line for check in verdict.checks] == list(range(7, 15))


CERTIFIED, VIOLATED, UNDECIDED, ERROR = "certified", "violated", "undecided", "error"
UNKNOWN = {"status": ["undecided"] * 4, "lipschitz_upper": [2.0, INF, 3.0, 4.0]}

# check, changed columns, status, observed, threshold, worst row, words of the message
CASES: list[tuple[str, dict[str, Any], str, float | None, float | None, str, str]] = [
    ("type: lipschitz_at_most, max: 2.3", {}, CERTIFIED, 2.3, 2.3, "p3", "4 of 4 rows proved"),
    ("type: lipschitz_at_most, max: 2.2", {}, UNDECIDED, 2.3, 2.2, "p3", "worst is row p3: 2.3, wanted at most 2.2"),
    ("type: lipschitz_at_most, max: 1.7", {}, VIOLATED, 2.3, 1.7, "p3", "1 row(s) disproved"),
    ("type: lipschitz_at_most, max: 2.2, mostly: 0.75", {}, CERTIFIED, 2.3, 2.2, "p3", "at least 0.75 of the rows"),
    ("type: lipschitz_at_most, max: 1.7, mostly: 0.75", {}, UNDECIDED, 2.3, 1.7, "p3", "0 of 4 rows proved"),
    ("type: lipschitz_at_most, max: 9", UNKNOWN, UNDECIDED, INF, 9, "p1", "worst is row p1: inf"),
    ("type: radius_at_least, min: 0.2", {}, CERTIFIED, 0.2, 0.2, "p0", "4 of 4 rows proved"),
    ("type: radius_at_least, min: 0.25", {}, UNDECIDED, 0.2, 0.25, "p0", "wanted at least 0.25"),
    ("type: radius_at_least, min: 0.25", {"radius_upper": [0.24] + [INF] * 3}, VIOLATED, 0.2, 0.25, "p0", "disproved"),
    ("type: radius_at_least, min: 0.25", {"radius_upper": [0.26] + [INF] * 3}, UNDECIDED, 0.2, 0.25, "p0", "p0: 0.2"),
    ("type: monotone, feature: age, direction: increasing", {}, CERTIFIED, 1, 1, "p3", "increasing on 4 of 4 rows"),
    ("type: monotone, feature: age, direction: decreasing", {}, VIOLATED, 0, 1, "p3", "wrong direction met"),
    ("type: monotone, feature: age, direction: increasing", {"monotone__age": [1, 0, 1, 1]}, UNDECIDED, 0.75, 1, "p1",
     "row p1: direction not proved"),
    ("type: monotone, feature: age, direction: increasing",
     {"monotone__age": [1, 0, 1, 1], "slope_min__age": [0.0, -0.5, 0.0, 0.0]}, VIOLATED, 0.75, 1, "p1",
     "row p1: wrong direction met"),
    ("type: monotone, feature: age, direction: decreasing",
     {"monotone__age": [0, -1, -1, -1], "slope_max__age": [0.5, 0.0, 0.0, 0.0]}, VIOLATED, 0.75, 1, "p0", "p0: wrong"),
    ("type: monotone, feature: age, direction: increasing, mostly: 0.75", {"monotone__age": [1, -1, 1, 1]}, CERTIFIED,
     0.75, 0.75, "p1", "3 of 4 rows (at least 0.75 of them wanted)"),
    ("type: monotone, feature: age, direction: decreasing",
     {"sensitivity_upper__age": [0.0] * 4, "sensitivity_lower__age": [0.0] * 4}, CERTIFIED, 1, 1, "p3", "4 of 4"),
    ("type: sensitivity_at_most, feature: age, max: 0.5", {}, CERTIFIED, 0.5, 0.5, "p3", "4 of 4 rows proved"),
    ("type: sensitivity_at_most, feature: age, max: 0.4", {}, UNDECIDED, 0.5, 0.4, "p3", "wanted at most 0.4"),
    ("type: sensitivity_at_most, feature: age, max: 0.2", {}, VIOLATED, 0.5, 0.2, "p3", "4 row(s) disproved"),
    ("type: points_at_least, min: 4", {}, CERTIFIED, 4, 4, "", "4 rows audited, wanted at least 4"),
    ("type: points_at_least, min: 5", {}, VIOLATED, 4, 5, "", "4 rows audited, wanted at least 5"),
    ("type: certified_fraction_at_least, min: 1.0", {}, CERTIFIED, 1, 1, "", "4 of 4 rows certified"),
    ("type: certified_fraction_at_least, min: 0.8", {"status": ["certified", "undecided", "certified", "certified"]},
     UNDECIDED, 0.75, 0.8, "p1", "3 of 4 rows certified: 0.75, wanted at least 0.8"),
    ("type: certified_fraction_at_least, min: 0.8", {"status": ["certified", "violated", "certified", "certified"]},
     VIOLATED, 0.75, 0.8, "p1", "wanted at least 0.8"),
    ("type: time_at_most, max: 1", {}, CERTIFIED, 1, 1, "", "audit took 1 s, wanted at most 1 s"),
    ("type: time_at_most, max: 0.9", {}, VIOLATED, 1, 0.9, "", "audit took 1 s, wanted at most 0.9 s"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "columns", "status", "observed", "threshold", "worst", "words"), CASES)
def test_each_check_type_decides_on_its_figure(
    check: str, columns: Mapping[str, Any], status: str, observed: float, threshold: float, worst: str, words: str
) -> None:
    found = outcome(table(**columns), check)
    assert found.status == status and found.passed == (status == CERTIFIED)
    assert (found.observed, found.threshold, found.worst_point_id) == (observed, threshold, worst)
    assert words in found.message and found.message.endswith("(policy line 7)")


REGRESSIONS = [
    ("lipschitz_upper", "upper_max", 2.2, 0.05, CERTIFIED),
    ("lipschitz_upper", "upper_max", 2.0, 0.05, UNDECIDED),
    ("lipschitz_upper", "upper_max", 1.5, 0.05, VIOLATED),
    ("lipschitz_upper_mean", "upper_mean", 2.15, 0.0, CERTIFIED),
    ("lipschitz_upper_mean", "upper_mean", 1.0, 0.5, VIOLATED),
    ("radius_median", "radius_median", 0.35, 0.0, CERTIFIED),
    ("radius_median", "radius_median", 0.4, 0.05, UNDECIDED),
    ("radius_p05", "radius_p05", 0.2, 0.0, CERTIFIED),
    ("certified_fraction", "certified_fraction", 1.0, 0.0, CERTIFIED),
]


@pytest.mark.parametrize(("metric", "key", "baseline", "tolerance", "status"), REGRESSIONS)
def test_no_regression_compares_with_the_baselines_run_metric(
    metric: str, key: str, baseline: float, tolerance: float, status: str
) -> None:
    check = f"type: no_regression, metric: {metric}, rel_tol: {tolerance}"
    context = {
        f"lipschitz/{key}": baseline * (1 + 1e-12 if "mean" in metric else 1 - 1e-12 if "median" in metric else 1)
    }
    assert outcome(table(), check, baseline=context).status == status


def test_coverage_may_not_regress() -> None:
    check = "type: no_regression, metric: certified_fraction, rel_tol: 0.1"
    for status, expected in [("undecided", UNDECIDED), ("violated", VIOLATED)]:
        bounds = table(status=["certified", status, "certified", "certified"])
        assert outcome(bounds, check, baseline={"lipschitz/certified_fraction": 1.0}).status == expected


@pytest.mark.parametrize("baseline", [None, {}, {"lipschitz/upper_max": float("nan")}, {"lipschitz/upper_max": INF},
                                      {"lipschitz/upper_max": -1.0}, {"lipschitz/upper_mean": 3.0}])  # fmt: skip
def test_without_a_usable_baseline_nothing_passes(baseline: dict[str, float] | None) -> None:
    verdict = judge(table(), POLICY, expected_points=4, baseline=baseline)
    assert verdict.status == "error"
    assert [(c.id, c.status) for c in verdict.failed] == [("worse", "error")]
    assert "no finite lipschitz/upper_max" in verdict.failed[0].message
    told = judge(table(), POLICY, expected_points=4, baseline=baseline, no_baseline="audit the champion first")
    assert told.failed[0].message.startswith("audit the champion first")


@pytest.mark.parametrize("seconds", [float("nan"), INF, -1.0])
def test_an_impossible_duration_is_an_error(seconds: float) -> None:
    verdict = judge(table(), POLICY, expected_points=4, baseline=BASELINE, seconds_total=seconds)
    assert verdict.status == "error" and [c.id for c in verdict.failed] == ["time"]


def test_a_measured_duration_replaces_the_sum_of_the_rows() -> None:
    verdict = judge(table(), POLICY, expected_points=4, baseline=BASELINE, seconds_total=61.0)
    assert verdict.status == "passed" and verdict.failed[0].id == "time" and verdict.failed[0].observed == 61.0


@pytest.mark.parametrize("expected", [-1, 0, 3, 5, 400])
def test_missing_and_extra_rows_are_errors(expected: int) -> None:
    verdict = judge(table(), POLICY, expected_points=expected, baseline=BASELINE)
    assert verdict.status == "error" and {c.status for c in verdict.checks} == {"error"}
    assert f"4 rows, {expected} were to be audited" in verdict.checks[0].message


def test_a_row_that_could_not_be_computed_is_an_error_whatever_the_tolerance() -> None:
    columns = good_columns()
    columns["status"][1], columns["lipschitz_upper"][1], columns["radius"][1] = "error", INF, 0.0
    for feature in FEATURES:
        columns[f"monotone:{feature}"][1], columns[f"sensitivity_upper:{feature}"][1] = 0, INF
    verdict = judge(
        BoundsTable.from_columns(FEATURES, columns), only("type: points_at_least, min: 1"), expected_points=4
    )
    assert verdict.status == "error"
    assert "1 row(s) could not be computed, the first is row p1" in verdict.failed[0].message


@pytest.mark.parametrize(("severity", "fail_on", "status"), [
    ("critical", "critical", "blocked"), ("warning", "critical", "passed"), ("info", "critical", "passed"),
    ("critical", "warning", "blocked"), ("warning", "warning", "blocked"), ("info", "warning", "passed"),
])  # fmt: skip
def test_severity_and_fail_on(severity: str, fail_on: str, status: str) -> None:
    policy = only(f"type: lipschitz_at_most, max: 1, severity: {severity}", fail_on=fail_on)
    verdict = judge(table(), policy, expected_points=4)
    assert verdict.status == status and [c.id for c in verdict.failed] == ["x"]
    assert verdict.metrics()["lipschitz/checks_failed_critical"] == (status == "blocked")
    assert [c.id for c in verdict.checks if c.blocking] == (["x"] if status == "blocked" else [])


def test_a_failed_check_beside_an_errored_one_is_still_an_error() -> None:
    verdict = judge(table(lipschitz_upper=[9.0] * 4), POLICY, expected_points=4)
    assert verdict.status == "error" and {c.id: c.status for c in verdict.failed}["lip"] == "undecided"


def test_guards_added_by_the_package_say_so() -> None:
    verdict = judge(table(status=["undecided"] * 4), load_policy(SMALL), expected_points=4)
    assert verdict.status == "blocked"
    assert verdict.failed[0].message.endswith("(added by mlflow-lipschitz)") and verdict.failed[0].line == 0


def test_a_policy_without_guards_is_refused() -> None:
    bare = POLICY.model_copy(update={"checks": POLICY.checks[:1]})
    with pytest.raises(PolicyError, match="guards are missing"):
        judge(table(), bare, expected_points=4)
    doubled = POLICY.model_copy(update={"checks": (*POLICY.checks, POLICY.checks[0])})
    with pytest.raises(PolicyError, match="duplicate id"):
        judge(table(), doubled, expected_points=4, baseline=BASELINE)


# great_expectations as the second opinion

LIP = POLICY.checks[0]
FOUND = find(LIP, table(), Observed())


@pytest.mark.parametrize(("answers", "words"), [
    ([], "gave 0 answers"),
    ([Answer("lip", True, "", 0)] * 2, "gave 2 answers"),
    ([Answer("other", True, "", 0)], "gave 0 answers"),
    ([Answer("lip", False, "boom", None)], "could not evaluate this check: boom"),
    ([Answer("lip", True, "boom", 0)], "could not evaluate this check: boom"),
    ([Answer("lip", False, "", 0)], "disagrees"),
    ([Answer("lip", True, "", 1)], "disagrees"),
    ([Answer("lip", True, "", None)], "disagrees"),
])  # fmt: skip
def test_only_one_agreeing_answer_leaves_ours_standing(answers: list[Answer], words: str) -> None:
    assert FOUND.passed
    assert _cross_checked(LIP, FOUND, [Answer("lip", True, "", 0)]) is FOUND
    found = _cross_checked(LIP, FOUND, answers)
    assert not found.passed and words in found.error


def test_a_failure_is_not_excused_by_an_agreeing_pass() -> None:
    failed = find(LIP, table(lipschitz_upper=[9.0] * 4), Observed())
    assert _cross_checked(LIP, failed, [Answer("lip", True, "", 0)]).error


def test_an_evaluation_that_raises_answers_nothing() -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    answers, validation = _ask(broken, None, table())
    assert answers == () and validation == {"success": False, "results": [], "error": "RuntimeError: out of memory"}


# properties: an oracle in plain Python, row by row


def oracle(columns: Mapping[str, Any]) -> str:
    """The status `POLICY` must lead to, written without NumPy and without any code of the gate."""
    n = len(columns["point_id"])
    if "error" in list(columns["status"]):
        return "error"
    critical = [
        sum(u <= 5 for u in columns["lipschitz_upper"]) >= 0.75 * n,
        sum(
            s == 1 or h == 0
            for s, h in zip(columns["monotone:income"], columns["sensitivity_upper:income"], strict=True)
        )
        >= 0.5 * n,
        max(columns["lipschitz_upper"]) <= 3.0 * 1.05,
        n >= 2,
        sum(s == "certified" for s in columns["status"]) >= 0.5 * n,
    ]
    return "passed" if all(critical) else "blocked"


@settings(max_examples=60, deadline=None)
@given(columns=any_columns())
def test_the_verdict_is_the_oracles(columns: dict[str, Any]) -> None:
    bounds = BoundsTable.from_columns(FEATURES, columns)
    verdict = judge(bounds, POLICY, expected_points=len(bounds), baseline=BASELINE)
    assert verdict.status == oracle(columns)
    for check in verdict.checks:
        assert check.passed == (check.status == "certified")
        json.dumps(check.to_dict(), allow_nan=False)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), name=st.sampled_from([n for n in good_columns() if n not in ("point_id", "status", "method")]))
def test_no_verdict_on_a_table_with_nan(data: st.DataObject, name: str) -> None:
    columns = data.draw(any_columns())
    values = np.array(columns[name], dtype=float)
    values[data.draw(st.integers(0, len(values) - 1))] = np.nan
    with pytest.raises(AuditError):
        BoundsTable.from_columns(FEATURES, columns | {name: values})


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 6), change=st.sampled_from(["drop", "repeat", "rename"]), data=st.data())
def test_no_pass_with_missing_extra_or_repeated_rows(rows: int, change: str, data: st.DataObject) -> None:
    columns, row = good_columns(rows), data.draw(st.integers(0, rows - 1))
    for values in columns.values():
        if change == "drop":
            values.pop(row)
        else:
            values.append(values[row])
    if change == "rename":
        columns["point_id"][-1] = "new"
    try:
        verdict: Verdict | None = judge(
            BoundsTable.from_columns(FEATURES, columns), POLICY, expected_points=rows, baseline=BASELINE
        )
    except AuditError:
        verdict = None
    assert (verdict is None) == (change == "repeat")
    assert verdict is None or verdict.status == "error"
