"""Each policy check computed from the table in plain NumPy: the answer the verdict is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_lipschitz.gate.declarations import Observed
from mlflow_lipschitz.gate.figures import INF, REGRESSIONS, column_figure, is_within, regression_limit
from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.policy_models import (
    CertifiedFractionAtLeast,
    Check,
    LipschitzAtMost,
    Monotone,
    NoRegression,
    PointsAtLeast,
    RadiusAtLeast,
    SensitivityAtMost,
    TimeAtMost,
)


@dataclass(frozen=True)
class Finding:
    """The direct answer to one check.

    Attributes:
        passed: the property holds, proved.
        disproved: it is false, by values met in the region or by plain counting; never together with `passed`.
        observed, threshold: the figure and what it is compared with, in the check's own units.
        message: one sentence with the worst row, the observed value and the threshold.
        worst_point_id: the row that decides or is closest to deciding; empty where the check is not about rows.
        unexpected: number of rows that fail; None for checks not made row by row.
        error: why there is no answer; empty if there is one.
    """

    passed: bool
    disproved: bool
    observed: float | None
    threshold: float | None
    message: str
    worst_point_id: str = ""
    unexpected: int | None = None
    error: str = ""


def find(check: Check, table: BoundsTable, observed: Observed) -> Finding:
    """Compute one check on a table that has rows."""
    feature = getattr(check, "feature", None)
    if feature is not None and feature not in table.feature_names:
        return _no_answer(f"the table has no columns for feature {feature!r}")
    return _FIND[type(check)](check, table, observed)


def _no_answer(reason: str) -> Finding:
    return Finding(False, False, None, None, reason, error=reason)


@dataclass(frozen=True)
class _Rows:
    """A row check: where it is proved and disproved, the figure per row, and how bad each row is (largest is worst)."""

    proved: np.ndarray
    disproved: np.ndarray
    figure: np.ndarray
    badness: np.ndarray


def _by_rows(table: BoundsTable, rows: _Rows, mostly: float, threshold: float, phrase: str) -> Finding:
    """Count and word a row check. `phrase` says what is wanted of a row's figure, as "at most 5"."""
    count, proved = len(table), int(np.sum(rows.proved))
    contradicted = int(np.sum(rows.disproved & ~rows.proved))
    # Failing rows first, disproved ones before open ones; among equals the worst figure.
    rank = np.lexsort((rows.badness, rows.disproved, ~rows.proved))[-1]
    worst, value = str(table.columns["point_id"][rank]), float(rows.figure[rank])
    share = "" if mostly == 1 else f" (at least {mostly:g} of the rows wanted)"
    message = f"{proved} of {count} rows proved{share}; worst is row {worst}: {value:g}, wanted {phrase}"
    if contradicted:
        message += f"; {contradicted} row(s) disproved by a value met in the region"
    passed = proved / count >= mostly
    disproved = not passed and (count - contradicted) / count < mostly
    return Finding(passed, disproved, value, threshold, message, worst, count - proved)


def _lipschitz(check: LipschitzAtMost, table: BoundsTable, _: Observed) -> Finding:
    upper, lower = table.columns["lipschitz_upper"], table.columns["lipschitz_lower"]
    rows = _Rows(upper <= check.max, lower > check.max, upper, upper)
    return _by_rows(table, rows, check.mostly, check.max, f"at most {check.max:g}")


def _radius(check: RadiusAtLeast, table: BoundsTable, _: Observed) -> Finding:
    radius = table.columns["radius"]
    seen = table.columns.get("radius_upper", np.full(len(table), INF))
    rows = _Rows(radius >= check.min, seen < check.min, radius, -radius)
    served = "radius_arithmetic" in table.columns
    return _by_rows(table, rows, check.mostly, check.min, f"at least {check.min:g}{' as served' * served}")


def _sensitivity(check: SensitivityAtMost, table: BoundsTable, _: Observed) -> Finding:
    upper = table.columns[f"sensitivity_upper:{check.feature}"]
    lower = table.columns[f"sensitivity_lower:{check.feature}"]
    rows = _Rows(upper <= check.max, lower > check.max, upper, upper)
    return _by_rows(table, rows, check.mostly, check.max, f"at most {check.max:g}")


def _monotone(check: Monotone, table: BoundsTable, _: Observed) -> Finding:
    """`observed` is the fraction of rows proved. A derivative of the wrong sign that was met disproves a row."""
    name, count = check.feature, len(table)
    sign, met = table.columns[f"monotone:{name}"], table.columns[f"sensitivity_lower:{name}"]
    if check.direction == "increasing":
        wrong = ((sign == -1) & (met > 0)) | (table.columns.get(f"slope_min:{name}", np.zeros(count)) < 0)
    else:
        wrong = ((sign == 1) & (met > 0)) | (table.columns.get(f"slope_max:{name}", np.zeros(count)) > 0)
    proved = table.proved_monotone(name, check.direction)
    rows = _Rows(proved, wrong, sign, met)
    finding = _by_rows(table, rows, check.mostly, check.mostly, "")
    left = count - int(np.sum(proved))
    wanted = "all wanted" if check.mostly == 1 else f"at least {check.mostly:g} of them wanted"
    message = f"{name} proved {check.direction} on {count - left} of {count} rows ({wanted})"
    if left:
        kind = "wrong direction met" if rows.disproved[_row(table, finding)] else "direction not proved"
        message += f"; row {finding.worst_point_id}: {kind}"
    return Finding(
        finding.passed, finding.disproved, (count - left) / count, check.mostly, message, finding.worst_point_id, left
    )


def _row(table: BoundsTable, finding: Finding) -> int:
    return int(np.argmax(table.columns["point_id"] == finding.worst_point_id))


def _no_regression(check: NoRegression, table: BoundsTable, observed: Observed) -> Finding:
    what, baseline = REGRESSIONS[check.metric], observed.baseline_value(check)
    if baseline is None:
        missing = f"the baseline has no finite {what.metric}, so nothing can be compared"
        return _no_answer(observed.no_baseline or missing)
    value = column_figure(what.figure, table.columns[what.column])
    limit = regression_limit(check.metric, baseline, check.rel_tol)
    passed = is_within(check.metric, value, limit)
    # The best value a proof could still reach: attained lower bounds for a Lipschitz figure, all rows that are not
    # violated for coverage.
    best = {"lipschitz_upper": table.columns["lipschitz_lower"], "radius": None}.get(what.column)
    if what.column == "status":
        best = np.where(table.columns["status"] == "violated", "violated", "certified")
    disproved = not passed and best is not None and not is_within(check.metric, column_figure(what.figure, best), limit)
    sense = "at least" if what.larger_is_better else "at most"
    message = f"{check.metric} {value:g}, baseline {baseline:g}, wanted {sense} {limit:g}"
    return Finding(passed, disproved, value, limit, message)


def _points(check: PointsAtLeast, table: BoundsTable, _: Observed) -> Finding:
    passed = len(table) >= check.min
    message = f"{len(table)} rows audited, wanted at least {check.min}"
    return Finding(passed, not passed, float(len(table)), float(check.min), message)


def _fraction(check: CertifiedFractionAtLeast, table: BoundsTable, _: Observed) -> Finding:
    status = table.columns["status"]
    failed = np.flatnonzero(status == "error")
    if len(failed):
        worst = table.columns["point_id"][failed[0]]
        return _no_answer(f"{len(failed)} row(s) could not be computed, the first is row {worst}")
    fraction = column_figure("certified_fraction", status)
    passed = fraction >= check.min
    disproved = not passed and float(np.mean(status != "violated")) < check.min
    certified = int(np.sum(status == "certified"))
    message = f"{certified} of {len(table)} rows certified: {fraction:g}, wanted at least {check.min:g}"
    worst = table.columns["point_id"][int(np.argmax(status != "certified"))] if fraction < 1 else ""
    return Finding(passed, disproved, fraction, check.min, message, str(worst))


def _time(check: TimeAtMost, table: BoundsTable, observed: Observed) -> Finding:
    if not observed.usable_seconds:
        return _no_answer(f"the duration of the audit is {observed.seconds_total}")
    seconds = observed.seconds_total
    value = column_figure("sum", table.columns["seconds"]) if seconds is None else seconds
    passed = value <= check.max
    return Finding(passed, not passed, value, check.max, f"audit took {value:.3g} s, wanted at most {check.max:g} s")


_FIND: Mapping[type[Check], Callable[[Any, BoundsTable, Observed], Finding]] = {
    LipschitzAtMost: _lipschitz,
    RadiusAtLeast: _radius,
    Monotone: _monotone,
    SensitivityAtMost: _sensitivity,
    NoRegression: _no_regression,
    PointsAtLeast: _points,
    CertifiedFractionAtLeast: _fraction,
    TimeAtMost: _time,
}
