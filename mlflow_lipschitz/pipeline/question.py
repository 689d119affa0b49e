"""What a policy asks about each row, in the numbers the engine takes: region, objective, units.

The unit of perturbation is one input unit (`scale: raw`), one standard deviation (`scale: standardized`), or the given
radii together (a radius per feature). Lipschitz bounds and certified radii are in that unit; derivatives are in raw
units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from mlflow_lipschitz.certify.budget import Budget
from mlflow_lipschitz.certify.deployed import REAL
from mlflow_lipschitz.engine.domains.region import Box, LpBall
from mlflow_lipschitz.errors import InvalidData, PolicyError, PolicyIssue

if TYPE_CHECKING:
    from mlflow_lipschitz.policy import AuditPolicy
    from mlflow_lipschitz.rows import AuditedRows

MAX_FEATURE_COLUMNS = 64
"""Up to this many features each get columns in the bounds table; wider models only those a check names."""

NO_LIMIT_S = 1e9
"""Seconds a row that stand for no limit of time, where a search is limited by its parts."""

_LARGER_RADIUS = 4.0


@dataclass(frozen=True)
class MonotoneQuestion:
    """One `monotone` check: `feature` is the index into the flattened input."""

    check_id: str
    feature: int
    direction: Literal["increasing", "decreasing"]


@dataclass(frozen=True)
class Question:
    """
    Attributes:
        output: index of the judged output, or "margin" (top class against the rest).
        norm: "linf", "l2" or "l1", the norm of the perturbation.
        unit: (*input_shape), one unit of perturbation in raw units; 0 where a feature does not move.
        size: how many units the perturbation may be.
        domain: (lower, upper), each (*input_shape), infinite where the policy gives no domain.
        columns: indices of the features with columns of their own in the bounds table.
        monotone: the monotonicity checks.
        lipschitz_limits: every `max` of the Lipschitz checks; above the smallest a row is violated.
        budget: what a row's Lipschitz bound may cost beyond one pass; None where no check judges it, or the policy gives no time.
        sign_budget: likewise for the signs that monotone checks ask for.
        max_radius: how far, in units, a certified radius is looked for; None when no decision is judged. The decision is the
            largest output, or the sign of a single one.
        arithmetic: whose decisions: `real` or `deployed-float32`, see certify/deployed.py.
    """

    output: int | Literal["margin"]
    norm: Literal["linf", "l2", "l1"]
    unit: np.ndarray
    size: float
    domain: tuple[np.ndarray, np.ndarray]
    columns: tuple[int, ...]
    monotone: tuple[MonotoneQuestion, ...]
    lipschitz_limits: tuple[float, ...]
    max_radius: float | None
    budget: Budget | None = None
    sign_budget: Budget | None = None
    arithmetic: str = REAL

    @property
    def radius(self) -> np.ndarray:
        """(*input_shape), how far each feature may move, raw units; a product that had to be rounded is rounded up."""
        product = self.size * self.unit
        exact = (self.unit == 0) | (self.unit == 1) | (self.size == 1)
        return np.asarray(np.where(exact, product, np.nextafter(product, np.inf)))

    def region(self, points: np.ndarray) -> Box | LpBall:
        """The perturbed inputs around `points` (P, *input_shape)."""
        if self.norm == "linf":
            return Box.around(points, self.radius, domain=self.domain)
        return LpBall(points, self.radius, norm={"l2": 2, "l1": 1}[self.norm], domain=self.domain)


def question_of(policy: AuditPolicy, rows: AuditedRows, output_names: Sequence[str]) -> Question:
    """Translate a policy that was bound to these names.

    Raises:
        PolicyError: a check that this kind of output cannot have.
        InvalidData: a column that is constant up to rounding, whose standard deviation would be the unit.
    """
    names = rows.feature_names
    output = policy.resolve_output(output_names)
    _refuse_mismatch(policy, output, len(output_names))
    unit, size = _unit(policy, rows)
    lower, upper = (np.full(len(names), bound) for bound in (-np.inf, np.inf))
    for name, ends in policy.inputs.domain.items():
        lower[names.index(name)], upper[names.index(name)] = ends
    named = {c.feature for c in policy.checks if c.type in ("monotone", "sensitivity_at_most")}
    fixed = set(rows.fixed_names)
    wide = len(names) - len(fixed) > MAX_FEATURE_COLUMNS
    radii = [c.min for c in policy.checks if c.type == "radius_at_least"]
    return Question(
        output=output,
        norm=policy.perturbation.norm,
        unit=unit.reshape(rows.input_shape),
        size=size,
        domain=(lower.reshape(rows.input_shape), upper.reshape(rows.input_shape)),
        columns=tuple(i for i, name in enumerate(names) if name in named or not (wide or name in fixed)),
        monotone=tuple(
            MonotoneQuestion(c.id, names.index(c.feature), c.direction) for c in policy.checks if c.type == "monotone"
        ),
        lipschitz_limits=tuple(sorted(c.max for c in policy.checks if c.type == "lipschitz_at_most")),
        max_radius=max([size, *radii]) * _LARGER_RADIUS if output == "margin" or radii else None,
        budget=_budget(policy),
        sign_budget=_sign_budget(policy),
        arithmetic=policy.engine.arithmetic,
    )


def _budget(policy: AuditPolicy) -> Budget | None:
    """Work on a bound ends where the one limit is decided; a comparison with the baseline asks for the number itself."""
    limits = [c.max for c in policy.checks if c.type == "lipschitz_at_most"]
    compared = any(c.type == "no_regression" and c.metric.startswith("lipschitz") for c in policy.checks)
    work = _work(policy)
    if work is None or not (limits or compared):
        return None
    limit = limits[0] if len(limits) == 1 and not compared else None
    return replace(work, target_gap=policy.engine.target_gap, threshold=limit)


def _sign_budget(policy: AuditPolicy) -> Budget | None:
    return _work(policy) if any(c.type == "monotone" for c in policy.checks) else None


def _work(policy: AuditPolicy) -> Budget | None:
    """What one search may cost a row; None: there is none."""
    seconds, parts = policy.engine.budget_per_point_s, policy.engine.parts_per_point
    if seconds is None and parts is None:
        return None
    return Budget(NO_LIMIT_S if seconds is None else seconds, parts_per_point=parts)


def _unit(policy: AuditPolicy, rows: AuditedRows) -> tuple[np.ndarray, float]:
    fixed = {*policy.immutable_features(rows.feature_names), *rows.fixed_names}
    moves = np.array([name not in fixed for name in rows.feature_names])
    radius = policy.perturbation.radius
    if not isinstance(radius, (int, float)):
        return np.array([radius.get(name, 0.0) for name in rows.feature_names]) * moves, 1.0
    if policy.perturbation.scale == "raw":
        return moves.astype(np.float64), float(radius)
    spread = rows.scale.reshape(-1)
    constant = [name for name, s, m in zip(rows.feature_names, spread, moves, strict=True) if m and s == 0.0]
    if constant:
        raise InvalidData(
            f"column {constant[0]!r} is constant in the data, or varies by less than a billionth of its size, so it has"
            " no standard deviation to measure a perturbation in: list it under inputs.immutable, or give radii per feature"
        )
    return spread * moves, float(radius)


def _refuse_mismatch(policy: AuditPolicy, output: int | str, count: int) -> None:
    """Refuse checks that have no meaning for this output: a margin has no single derivative, a value no decision."""
    refused: dict[str, str] = {}
    if output == "margin":
        refused = dict.fromkeys(
            ("monotone", "sensitivity_at_most"), "needs one output: give model.output an index or name"
        )
    elif count > 1:
        refused = {"radius_at_least": "needs a decision: set model.output to margin"}
    issues = [
        PolicyIssue(c.line, f"checks[{c.id}]", f"{c.type} {refused[c.type]}")
        for c in policy.checks
        if c.type in refused
    ]
    if output == "margin" and count == 1:
        issues.append(
            PolicyIssue(0, "model.output", "a margin needs two outputs or more; of a single logit the sign decides: 0")
        )
    if issues:
        raise PolicyError(issues, policy.metadata.name)
