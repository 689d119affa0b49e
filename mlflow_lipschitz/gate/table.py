"""The bounds table: one row per audited point, and nothing in it that could be mistaken for a proof.

Unknown is `+inf` for an upper bound, `0` for a radius, `-inf` for a margin; a NaN, a missing column, a duplicated row
or a bound that contradicts itself is an `AuditError` at construction. `status` speaks of the whole row:

- certified: everything the checks read is known, and `lipschitz_upper` is finite. The checks say if it is enough.
- violated: a point of the row's region was found at which a property asked for is false.
- undecided: something the checks read is not known. The bounds are valid, only not enough.
- error: the computation on this row failed. Such a row claims nothing: all its bounds are unknown.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from mlflow_lipschitz.errors import AuditError
from mlflow_lipschitz.gate import table_io
from mlflow_lipschitz.gate.figures import INF, column_figure

STATUSES = ("certified", "violated", "undecided", "error")

# Allowed range of each numeric column, both ends included. float64's largest number means: +inf is not allowed.
_FINITE = float(np.finfo(np.float64).max)
_RANGES: Mapping[str, tuple[float, float]] = {
    "lipschitz_upper": (0.0, INF),
    "lipschitz_lower": (0.0, _FINITE),
    "gap": (0.0, INF),
    "radius": (0.0, _FINITE),
    "margin": (-INF, INF),
    "seconds": (0.0, _FINITE),
}
_FEATURE_RANGES: Mapping[str, tuple[float, float]] = {
    "monotone": (-1.0, 1.0),
    "sensitivity_upper": (0.0, INF),
    "sensitivity_lower": (0.0, _FINITE),
}
# Counterexamples, where the engine looked for them: the distance at which a decision was seen to change (+inf: never),
# and the smallest and largest derivative met in the region (+inf, -inf: not looked for). `served_error`, where radii are about the
# served program: how far its outputs may be from the exact ones within the radius.
_OPTIONAL_RANGES: Mapping[str, tuple[float, float]] = {"radius_upper": (0.0, INF), "served_error": (0.0, INF)}
_OPTIONAL_FEATURE_RANGES: Mapping[str, tuple[float, float]] = {
    "slope_min": (-_FINITE, INF),
    "slope_max": (-INF, _FINITE),
}
_TEXT = ("point_id", "status", "method", "radius_arithmetic")
_OPTIONAL_TEXT = ("radius_arithmetic",)  # whose decisions radii are about; `real` where it is not said

BASE_COLUMNS = (
    "point_id",
    "status",
    "lipschitz_upper",
    "lipschitz_lower",
    "gap",
    "radius",
    "margin",
    "seconds",
    "method",
)

# Lower bounds are values of the model computed in float64, upper bounds hold over the reals: the two may cross by
# rounding, by no more than this. A larger crossing means that a bound is wrong, and with it everything.
RELATIVE_SLACK, ABSOLUTE_SLACK = 1e-9, 1e-12


@dataclass(frozen=True, eq=False)
class BoundsTable:
    """Checked columns, read-only. Made by `from_columns` or `read`.

    Attributes:
        feature_names: the features with `monotone:`, `sensitivity_upper:` and `sensitivity_lower:` columns.
        columns: name to array of shape (points,): float64, int8 for `monotone:…`, text for point_id, status, method.
    """

    feature_names: tuple[str, ...]
    columns: Mapping[str, np.ndarray]

    @classmethod
    def from_columns(cls, feature_names: Sequence[str], columns: Mapping[str, Any]) -> BoundsTable:
        """Check and copy `columns`.

        Besides the contract's columns, `radius_upper`, `slope_min:<feature>` and `slope_max:<feature>` may be given:
        what a search for counterexamples met. They can only turn "undecided" into "violated". `radius_arithmetic` and
        `served_error` say that radii are about the served program.

        Args:
            feature_names: unique names, one triple of columns each.
            columns: name to sequence of length (points,). Point ids are text or whole numbers.

        Raises:
            AuditError: naming the column, and the row where one is to blame.
        """
        names = tuple(feature_names)
        ranges = _ranges(names)
        _check_names(names, ranges, columns)
        checked: dict[str, np.ndarray] = {}
        for name in ordered_columns(names, columns):
            values = _texts(name, columns[name]) if name in _TEXT else _numbers(name, columns[name], ranges[name])
            values.flags.writeable = False
            checked[name] = values
        lengths = {name: len(values) for name, values in checked.items()}
        if len(set(lengths.values())) != 1:
            raise AuditError(f"bounds table: columns differ in length: {lengths}")
        _check_rows(names, checked)
        return cls(names, MappingProxyType(checked))

    def __len__(self) -> int:
        return len(self.columns["point_id"])

    @property
    def frame(self) -> pd.DataFrame:
        """A pandas copy, columns in the contract's order."""
        return pd.DataFrame({name: values.copy() for name, values in self.columns.items()})

    def to_parquet(self, path: str | Path) -> None:
        """Write all columns, exactly."""
        table_io.write_parquet(self.columns, Path(path))

    def to_json(self, path: str | Path) -> None:
        """Write `{"columns": […], "data": [[…], …]}` as strict JSON; infinity is the text "Infinity". Exact."""
        table_io.write_json(self.columns, Path(path))

    @classmethod
    def read(cls, path: str | Path) -> BoundsTable:
        """Read what `to_parquet` or `to_json` wrote, with all checks of `from_columns`.

        Raises:
            AuditError: the file cannot be read, or what it holds is no bounds table.
        """
        columns = table_io.read_columns(Path(path))
        names = [name.removeprefix("monotone:") for name in columns if name.startswith("monotone:")]
        return cls.from_columns(names, columns)

    def bounds_digest(self) -> str:
        """SHA-256 of every column but `seconds`, bit for bit: two audits that found the same have the same digest."""
        digest = hashlib.sha256()
        for name, values in self.columns.items():
            if name != "seconds":
                held = repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
                digest.update(f"{name} {values.dtype} {len(held)} ".encode() + held)
        return digest.hexdigest()

    def proved_monotone(self, feature: str, direction: str) -> np.ndarray:
        """(points,) bool: where the output is proved to move in `direction` only. A constant moves in both."""
        wanted = 1 if direction == "increasing" else -1
        return (self.columns[f"monotone:{feature}"] == wanted) | (self.columns[f"sensitivity_upper:{feature}"] == 0)

    def metrics(self) -> dict[str, float]:
        """Run metrics by the contract's names, finite only: an infinite one is left out and `…_unbounded` is 1.

        `seconds_total` is the sum over rows. The radius metrics are absent where no margin was ever computed;
        `checks_failed_critical` comes from the verdict.
        """
        values = self.columns
        figures = {
            "certified_fraction": column_figure("certified_fraction", values["status"]),
            "undecided_count": float(np.sum(values["status"] == "undecided")),
            "seconds_total": column_figure("sum", values["seconds"]),
            "upper_max": column_figure("max", values["lipschitz_upper"]),
            "upper_mean": column_figure("mean", values["lipschitz_upper"]),
            "lower_max": column_figure("max", values["lipschitz_lower"]),
            "gap_median": column_figure("median", values["gap"]),
        }
        if np.any(values["margin"] > -INF):
            figures |= {f"radius_{name}": column_figure(name, values["radius"]) for name in ("median", "p05")}
        for feature, key in zip(self.feature_names, _metric_keys(self.feature_names), strict=True):
            ways = (np.sum(self.proved_monotone(feature, way)) for way in ("increasing", "decreasing"))
            figures[f"monotone_fraction/{key}"] = float(max(ways) / len(self)) if len(self) else 0.0
        bounded = {f"lipschitz/{name}": value for name, value in figures.items() if np.isfinite(value)}
        return bounded | {
            f"lipschitz/{name}_unbounded": 1.0 for name, value in figures.items() if not np.isfinite(value)
        }


def ordered_columns(feature_names: Sequence[str], present: Mapping[str, Any]) -> tuple[str, ...]:
    """The contract's column order: base columns, then feature by feature, then what is optional and present."""
    required = [*BASE_COLUMNS, *(f"{kind}:{name}" for name in feature_names for kind in _FEATURE_RANGES)]
    optional = [*_OPTIONAL_TEXT, *_OPTIONAL_RANGES]
    optional += [f"{kind}:{name}" for name in feature_names for kind in _OPTIONAL_FEATURE_RANGES]
    return (*required, *(name for name in optional if name in present))


def _ranges(names: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    per_feature = {**_FEATURE_RANGES, **_OPTIONAL_FEATURE_RANGES}
    features = {f"{kind}:{name}": ends for name in names for kind, ends in per_feature.items()}
    return {**_RANGES, **_OPTIONAL_RANGES, **features}


def _check_names(names: tuple[str, ...], ranges: Mapping[str, tuple[float, float]], columns: Mapping[str, Any]) -> None:
    if len(set(names)) != len(names) or not all(names):
        raise AuditError(f"bounds table: feature names must be unique and not empty: {names}")
    missing = [name for name in ordered_columns(names, columns) if name not in columns]
    unknown = [name for name in columns if name not in ranges and name not in _TEXT]
    if missing or unknown:
        raise AuditError(f"bounds table: missing columns {missing}, unknown columns {unknown}")


def _texts(name: str, values: Any) -> np.ndarray:
    items = list(values)
    for row, item in enumerate(items):
        whole = isinstance(item, int | np.integer) and not isinstance(item, bool) and name == "point_id"
        if not (whole or (isinstance(item, str) and item)):
            raise AuditError(f"bounds table: row {row}, column {name}: {item!r} is no usable text")
    return np.array([str(item) for item in items], dtype=object)


def _numbers(name: str, values: Any, ends: tuple[float, float]) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim == 1 and array.size == 0:
        array = array.astype(np.float64)
    if np.ma.isMaskedArray(values) or array.ndim != 1 or array.dtype.kind not in "iuf":
        raise AuditError(
            f"bounds table: column {name} must hold plain numbers, one per row, not {array.dtype}{array.shape}"
        )
    numbers = array.astype(np.float64)
    inside = (numbers >= ends[0]) & (numbers <= ends[1])  # false for NaN
    if name.startswith("monotone:"):
        inside &= np.isin(numbers, (-1.0, 0.0, 1.0))
    if not inside.all():
        row = int(np.argmin(inside))
        raise AuditError(f"bounds table: row {row}, column {name}: {numbers[row]} is not allowed")
    return numbers.astype(np.int8) if name.startswith("monotone:") else numbers


def _check_rows(names: tuple[str, ...], columns: Mapping[str, np.ndarray]) -> None:
    """What must hold between the columns of a row."""
    ids, status, upper = columns["point_id"], columns["status"], columns["lipschitz_upper"]
    _, first = np.unique(ids.astype(str), return_index=True)
    repeated = np.ones(len(ids), dtype=bool)
    repeated[first] = False
    failed = status == "error"
    unknown = (upper == INF) & (columns["radius"] == 0)
    for name in names:
        unknown &= (columns[f"monotone:{name}"] == 0) & (columns[f"sensitivity_upper:{name}"] == INF)
    _refuse(columns, repeated, "point_id appears twice")
    _refuse(columns, ~np.isin(status.astype(str), STATUSES), f"status must be one of {STATUSES}")
    _refuse(columns, (status == "certified") & ~np.isfinite(upper), "status certified without a finite lipschitz_upper")
    _refuse(columns, failed & ~unknown, "status error, yet some bound is claimed")
    _refuse(
        columns, _above(columns["lipschitz_lower"], upper), "lipschitz_lower exceeds lipschitz_upper: a bound is wrong"
    )
    if "radius_upper" in columns:
        crossed = _above(columns["radius"], columns["radius_upper"])
        _refuse(columns, crossed, "radius exceeds radius_upper: a bound is wrong")
    for name in names:
        low, high, sign = (columns[f"{kind}:{name}"] for kind in ("sensitivity_lower", "sensitivity_upper", "monotone"))
        _refuse(
            columns, _above(low, high), f"sensitivity_lower:{name} exceeds sensitivity_upper:{name}: a bound is wrong"
        )
        falls = columns.get(f"slope_min:{name}", np.zeros(len(ids))) < -RELATIVE_SLACK
        rises = columns.get(f"slope_max:{name}", np.zeros(len(ids))) > RELATIVE_SLACK
        _refuse(
            columns, ((sign == 1) & falls) | ((sign == -1) & rises), f"monotone:{name} is contradicted by a slope met"
        )


def _above(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    return np.asarray(lower > upper * (1 + RELATIVE_SLACK) + ABSOLUTE_SLACK)


def _refuse(columns: Mapping[str, np.ndarray], bad: np.ndarray, reason: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise AuditError(f"bounds table: row {row} (point {columns['point_id'][row]}): {reason}")


def _metric_keys(names: Sequence[str]) -> list[str]:
    """Feature names as MLflow accepts them in metric names, still unique."""
    keys: list[str] = []
    for name in names:
        key = base = re.sub(r"[^\w\- .]", "_", name).strip(". ") or "_"
        count = 2
        while key in keys:
            key, count = f"{base}_{count}", count + 1
        keys.append(key)
    return keys
