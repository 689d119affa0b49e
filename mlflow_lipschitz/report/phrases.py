"""Policy checks and their figures in words that need no manual."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

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
from mlflow_lipschitz.report.content import ReportContent, number

if TYPE_CHECKING:
    from mlflow_lipschitz.gate.verdict import CheckOutcome

_FRACTIONS = ("monotone", "certified_fraction_at_least")

_WORDS: Mapping[type[Check], Callable[[Any], str]] = {
    LipschitzAtMost: lambda c: f"The output changes by at most {number(c.max)} per unit of perturbation",
    RadiusAtLeast: lambda c: f"The decision does not change within a distance of {number(c.min)}",
    Monotone: lambda c: f"The output never {_against(c.direction)} while {c.feature} grows",
    SensitivityAtMost: lambda c: f"The output changes by at most {number(c.max)} per unit of {c.feature}",
    NoRegression: lambda c: f"{c.metric} is at most {c.rel_tol:.0%} worse than the baseline's",
    PointsAtLeast: lambda c: f"At least {c.min:,} rows are audited",
    CertifiedFractionAtLeast: lambda c: f"{_share(c.min)} end as certified",
    TimeAtMost: lambda c: f"The audit takes at most {number(c.max)} s",
}


def _against(direction: str) -> str:
    return "falls" if direction == "increasing" else "rises"


def _share(fraction: float) -> str:
    return "All rows" if fraction == 1.0 else f"At least {100 * fraction:.4g} % of the rows"


def demand(content: ReportContent, check: CheckOutcome) -> str:
    """What the check asks for, as a sentence without its full stop."""
    asked = content.asked.get(check.id)
    if asked is None:
        return check.type
    mostly = getattr(asked, "mostly", 1.0)
    share = "" if mostly == 1.0 else f", for {_share(mostly).lower()}"
    return _WORDS[type(asked)](asked) + share


def figure(check: CheckOutcome, value: float | None) -> str:
    """A check's observed value or threshold: fractions of rows as percentages."""
    if value is not None and check.type in _FRACTIONS:
        # Rounded down: 99.99 % must not read as all.
        return f"{int(value * 1000) / 10:g} % of rows"
    return number(value)


def observed(content: ReportContent, check: CheckOutcome) -> str:
    """The observed figure with its limit, and how many rows are not proved."""
    told = [f"{figure(check, check.observed)}, limit {figure(check, check.threshold)}"]
    if check.failing_rows is not None:
        told.append(f"{check.failing_rows:,} of {len(content.frame):,} rows not proved")
    if check.worst_point_id:
        told.append(f"look at row {check.worst_point_id}")
    return "; ".join(told)


NORMS = {
    "linf": "every feature by up to the radius, all at once",
    "l2": "the Euclidean length of all changes up to the radius",
    "l1": "the sum of all changes up to the radius",
}

STATES = {
    "certified": "proved",
    "violated": "contradicted",
    "undecided": "neither proved nor contradicted",
    "error": "no answer",
}
