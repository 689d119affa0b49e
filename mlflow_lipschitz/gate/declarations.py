"""Every policy check as plain data: which expectation, with which arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_lipschitz.gate.figures import REGRESSIONS
from mlflow_lipschitz.policy import AuditPolicy
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
class Declaration:
    """One check for great_expectations: `type` is the expectation's permanent name, `kwargs` its arguments."""

    check_id: str
    type: str
    severity: str
    line: int
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Observed:
    """What the table cannot know, None if absent.

    Attributes:
        baseline: the bounds attested for the baseline.
        seconds_total: measured duration of the audit.
        no_baseline: why there is no baseline, and what to do about it.
    """

    baseline: Mapping[str, float] | None = None
    seconds_total: float | None = None
    no_baseline: str = ""

    def baseline_value(self, check: NoRegression) -> float | None:
        """The baseline's value of the check's metric; None where it is missing, negative, infinite or NaN."""
        value = (self.baseline or {}).get(REGRESSIONS[check.metric].metric)
        return float(value) if value is not None and math.isfinite(value) and value >= 0 else None

    @property
    def usable_seconds(self) -> bool:
        """Whether the duration is absent (the rows' sum stands in) or a finite number >= 0."""
        return self.seconds_total is None or (math.isfinite(self.seconds_total) and self.seconds_total >= 0)


def declare(policy: AuditPolicy, observed: Observed) -> tuple[Declaration, ...]:
    """One declaration per check, without those that lack what they compare with; `judge` errors what is unanswered."""
    found = []
    for check in policy.checks:
        kind, kwargs = _DECLARE[type(check)](check, observed)
        if kwargs is not None:
            found.append(Declaration(check.id, kind, check.severity, check.line, kwargs))
    return tuple(found)


Declared = tuple[str, Mapping[str, Any] | None]


def _lipschitz(check: LipschitzAtMost, _: Observed) -> Declared:
    kwargs = {"column": "lipschitz_upper", "max_value": check.max, "mostly": check.mostly}
    return "expect_certified_lipschitz_to_be_at_most", kwargs


def _radius(check: RadiusAtLeast, _: Observed) -> Declared:
    kwargs = {"column": "radius", "min_value": check.min, "mostly": check.mostly}
    return "expect_certified_radius_to_be_at_least", kwargs


def _monotone(check: Monotone, _: Observed) -> Declared:
    columns = {"column_A": f"monotone:{check.feature}", "column_B": f"sensitivity_upper:{check.feature}"}
    kwargs = {**columns, "direction": check.direction, "mostly": check.mostly, "ignore_row_if": "neither"}
    return "expect_feature_to_be_monotone", kwargs


def _sensitivity(check: SensitivityAtMost, _: Observed) -> Declared:
    kwargs = {"column": f"sensitivity_upper:{check.feature}", "max_value": check.max, "mostly": check.mostly}
    return "expect_certified_sensitivity_to_be_at_most", kwargs


def _no_regression(check: NoRegression, observed: Observed) -> Declared:
    kind, what, value = "expect_no_regression_against", REGRESSIONS[check.metric], observed.baseline_value(check)
    if value is None:
        return kind, None
    figure = {"column": what.column, "figure": what.figure, "metric": check.metric}
    return kind, {**figure, "baseline": value, "rel_tol": check.rel_tol}


def _points(check: PointsAtLeast, _: Observed) -> Declared:
    return "expect_table_row_count_to_be_between", {"min_value": check.min}


def _fraction(check: CertifiedFractionAtLeast, _: Observed) -> Declared:
    kwargs = {"column": "status", "figure": "certified_fraction", "min_value": check.min}
    return "expect_certified_fraction_to_be_at_least", kwargs


def _time(check: TimeAtMost, observed: Observed) -> Declared:
    kind = "expect_audit_time_to_be_at_most"
    if not observed.usable_seconds:
        return kind, None
    kwargs = {"column": "seconds", "figure": "sum", "max_value": check.max, "seconds_total": observed.seconds_total}
    return kind, kwargs


_DECLARE: Mapping[type[Check], Callable[[Any, Observed], Declared]] = {
    LipschitzAtMost: _lipschitz,
    RadiusAtLeast: _radius,
    Monotone: _monotone,
    SensitivityAtMost: _sensitivity,
    NoRegression: _no_regression,
    PointsAtLeast: _points,
    CertifiedFractionAtLeast: _fraction,
    TimeAtMost: _time,
}
