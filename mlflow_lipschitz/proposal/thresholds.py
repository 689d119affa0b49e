"""From measured bounds to checks, each with the figures that its threshold was read from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlflow_lipschitz.errors import AuditError
from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.plain_text import one_line
from mlflow_lipschitz.policy_models import Monotone
from mlflow_lipschitz.policy_yaml import yaml_scalar
from mlflow_lipschitz.proposal.measuring import Measurement

ROOM = 1.1
"""A tenth of room above what was measured: training again with another seed moves bounds by some percent."""

_MOST_SENSITIVITIES = 3
_LEAST_SECONDS = 60


@dataclass(frozen=True)
class Basis:
    """Whose bounds thresholds are read from: `whose` names the version for people, `table` holds its rows."""

    whose: str
    table: BoundsTable

    @property
    def certified(self) -> float:
        """Fraction of the rows whose Lipschitz bound is finite."""
        return float(np.mean(np.isfinite(self.table.columns["lipschitz_upper"])))


def steadiness(basis: Basis) -> str:
    """The Lipschitz limit: the largest bound and a tenth.

    Raises:
        AuditError: no row has a finite bound.
    """
    uppers = basis.table.columns["lipschitz_upper"]
    finite = uppers[np.isfinite(uppers)]
    if not finite.size:
        raise AuditError(
            f"no row of {basis.whose} has a finite bound even at the smallest radius tried, so there is nothing to propose a"
            " threshold from. See `mlflow-lipschitz support MODEL_URI` for the operators that are bounded by relaxations"
        )
    largest, met = float(finite.max()), float(basis.table.columns["lipschitz_lower"].max())
    quantiles = " ".join(f"{name} {_quantile(finite, q):.3g}," for name, q in (("median", 0.5), ("95 %", 0.95)))
    comment = f"{basis.whose}: {quantiles} largest {largest:.3g}; a slope of {met:.3g} was met. Largest and a tenth."
    mostly, note = "", ""
    if finite.size < len(uppers):
        mostly = f", mostly: {_down(basis.certified * 0.95)}"
        note = f" Only {finite.size} of {len(uppers)} rows have a finite bound."
    return _check(comment + note, f"id: steadiness, type: lipschitz_at_most, max: {up(largest * ROOM)}{mostly}")


def radius(basis: Basis) -> str:
    """The decision radius that nearly all rows keep, and a tenth less; a comment where none was certified."""
    radii = basis.table.columns["radius"]
    positive = float(np.mean(radii > 0))
    if positive == 0:
        return "  # No decision radius was certified, so none is asked for: type: radius_at_least would block.\n"
    mostly = _down(positive * 0.95)
    kept = _quantile(radii, max(0.0, 1 - mostly))
    comment = (
        f"{basis.whose}: {positive:.0%} of the decisions have a radius; {mostly:.0%} keep {kept:.3g} or more, the median is"
        f" {_quantile(radii, 0.5):.3g}. A tenth less."
    )
    return _check(comment, f"id: radius, type: radius_at_least, min: {down(kept / ROOM)}, mostly: {mostly}")


def sensitivities(basis: Basis, units: Mapping[str, float]) -> str:
    """Limits on the derivatives that matter most.

    Args:
        units: feature -> what it typically moves by, in raw units: features are compared by derivative times this.
    """
    largest = {name: float(basis.table.columns[f"sensitivity_upper:{name}"].max()) for name in units}
    known = {name: value for name, value in largest.items() if math.isfinite(value) and value > 0}
    strongest = sorted(known, key=lambda name: -known[name] * units[name])[:_MOST_SENSITIVITIES]
    lines = []
    for number, name in enumerate(strongest, 1):
        comment = f"{basis.whose}: at most {known[name]:.3g} per unit of {one_line(name)} on every row. A tenth more."
        values = f"id: sensitivity-{number}, type: sensitivity_at_most, feature: {yaml_scalar(name)}"
        lines.append(_check(comment, f"{values}, max: {up(known[name] * ROOM)}"))
    return "".join(lines)


def directions(basis: Basis, features: Sequence[str], decided: Sequence[Monotone], whence: str) -> str:
    """Monotone checks that somebody decided on stand; what was merely measured is offered as a comment.

    Args:
        decided: monotone checks of the champion's policy.
        whence: which policy that is.
    """
    lines = [_check(f"as in {whence}", _monotone(c.id, c.feature, c.direction, c.mostly)) for c in decided]
    offered = []
    for number, name in enumerate(features, 1):
        for direction in ("increasing", "decreasing"):
            proved = basis.table.proved_monotone(name, direction)
            if name not in {c.feature for c in decided} and proved.all() and _answers_to(basis.table, name):
                values = _monotone(f"direction-{number}", name, direction)
                offered.append(f"  # - {{{values}}}  # proved on all {len(proved)} rows\n")
    if offered:
        lines.append(
            "  # Found, not asked for. Take the # away where the model has to behave so, whatever it is trained on:\n"
        )
    return "".join([*lines, *offered])


def bookkeeping(measurement: Measurement, basis: Basis) -> str:
    """Enough rows, all of them certified, in reasonable time."""
    count, fraction = len(measurement.table), min(basis.certified, Basis("", measurement.table).certified)
    least = 1.0 if fraction == 1 else _down(fraction * 0.95)
    allowed = max(_LEAST_SECONDS, math.ceil(measurement.seconds * 10))
    return (
        _check(f"as many rows as were measured: {count}", f"id: enough, type: points_at_least, min: {count}")
        + _check(
            f"{fraction:.0%} of them were certified", f"id: coverage, type: certified_fraction_at_least, min: {least}"
        )
        + _check(
            f"measuring took {measurement.seconds:.1f} s here",
            f"id: time, type: time_at_most, max: {allowed}, severity: info",
        )
    )


def up(value: float) -> str:
    """Two significant digits, not below `value`."""
    return _rounded(value, math.ceil)


def down(value: float) -> str:
    """Two significant digits, not above `value`."""
    return _rounded(value, math.floor)


def _rounded(value: float, towards: Callable[[float], int]) -> str:
    if value == 0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{float(f'{towards(value / unit) * unit:.2g}'):g}"


def _down(fraction: float) -> float:
    """Two decimals, not above, and not 0: a fraction that a policy may ask for."""
    return max(0.01, math.floor(fraction * 100) / 100)


def _quantile(values: np.ndarray, q: float) -> float:
    """A value that occurs: nothing is interpolated."""
    return float(np.quantile(values, q, method="lower" if q < 0.5 else "higher"))


def _answers_to(table: BoundsTable, feature: str) -> bool:
    return bool(table.columns[f"sensitivity_upper:{feature}"].max() > 0)


def _monotone(check_id: str, feature: str, direction: str, mostly: float = 1.0) -> str:
    part = "" if mostly == 1 else f", mostly: {mostly:g}"
    return f"id: {check_id}, type: monotone, feature: {yaml_scalar(feature)}, direction: {direction}{part}"


def _check(comment: str, values: str) -> str:
    return f"  # {one_line(comment)}\n  - {{{values}}}\n"
