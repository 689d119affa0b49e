"""The rows of an audit as values: points in the units the model was trained with, and how MLflow hands them to the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from mlflow_lipschitz.errors import InvalidData

_CONSTANT = 1e-9
"""A column whose standard deviation is below this part of its largest entry differs from a constant by rounding only."""


@dataclass(frozen=True)
class AuditedRows:
    """Rows in the order and units the model was trained with.

    Attributes:
        points: (P, *input_shape), float64, finite.
        feature_names: one name per input entry, in the order of the flattened input.
        point_ids: (P,) strings: the index labels of the rows in the user's data, on one line each.
        scale: (*input_shape), standard deviation of each feature over ALL rows read, before sampling (input units); 0 for
            a column that is constant up to rounding.
        labels: (P,) values of the column named by `stratify`, or None.
        served_columns: names in the order in which MLflow hands the columns to the model; None: an array is handed over.
        order: where the order of the columns comes from, for people.
        raw: of a model that looks some of its columns up, the rows as it takes them, all columns in its order; of one that
            looks up tokens, the tokens. None: the model takes the points themselves.
        fixed: (*input_shape), True for entries that never move: encodings, and what nothing reads. None: there are none.
        looked_up: names of the columns, or inputs, that are looked up: they do not move, and the policy has to say so.
    """

    points: np.ndarray
    feature_names: tuple[str, ...]
    point_ids: np.ndarray
    scale: np.ndarray
    labels: np.ndarray | None = None
    served_columns: tuple[str, ...] | None = None
    order: str = ""
    raw: pd.DataFrame | np.ndarray | None = None
    fixed: np.ndarray | None = None
    looked_up: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.points)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.points.shape[1:])

    def take(self, positions: np.ndarray) -> AuditedRows:
        """The rows at `positions`; `scale` stays that of the whole data."""
        labels = None if self.labels is None else self.labels[positions]
        raw = self.raw.iloc[positions] if isinstance(self.raw, pd.DataFrame) else self.raw
        raw = raw[positions] if isinstance(raw, np.ndarray) else raw
        return replace(self, points=self.points[positions], point_ids=self.point_ids[positions], labels=labels, raw=raw)

    @property
    def fixed_names(self) -> tuple[str, ...]:
        """Names of the entries that never move."""
        fixed = np.zeros(len(self.feature_names), bool) if self.fixed is None else self.fixed.reshape(-1)
        return tuple(name for name, is_fixed in zip(self.feature_names, fixed, strict=True) if is_fixed)

    @property
    def served_rows(self) -> pd.DataFrame | np.ndarray | None:
        """The rows as MLflow hands them to a model that looks columns up; None where it is handed the points."""
        if isinstance(self.raw, pd.DataFrame) and self.served_columns is not None:
            return self.raw[list(self.served_columns)]
        return self.raw

    def served_input(self, points: np.ndarray) -> pd.DataFrame | np.ndarray:
        """`points` (n, *input_shape) as MLflow hands them to the model: by name wherever names are known."""
        if self.served_columns is None:
            return points
        return pd.DataFrame(points, columns=list(self.feature_names))[list(self.served_columns)]


def spread(points: np.ndarray) -> np.ndarray:
    """(*input_shape), standard deviation of each entry; 0 for one that is constant up to rounding."""
    # The mean of equal numbers is rounded, so the standard deviation of a constant column need not come out as 0.
    with np.errstate(over="ignore"):  # an infinite unit is refused when the region is built
        deviation, largest = points.std(axis=0), np.abs(points).max(axis=0)
    return np.where((np.ptp(points, axis=0) == 0) | (deviation <= _CONSTANT * largest), 0.0, deviation)


def check_domain(rows: AuditedRows, domain: Mapping[str, Any]) -> None:
    """Raises InvalidData naming the first row outside `domain` (feature name -> (lower, upper), in input units)."""
    flat = rows.points.reshape(len(rows), -1)
    for name, (lower, upper) in domain.items():
        if name not in rows.feature_names:
            continue  # reported by `policy.bind`, together with every other unknown name
        column = flat[:, rows.feature_names.index(name)]
        outside = np.flatnonzero((column < lower) | (column > upper))
        if outside.size:
            where = rows.point_ids[outside[0]]
            raise InvalidData(
                f"row {where}, column {name!r}: {column[outside[0]]:g} is outside the domain [{lower:g}, {upper:g}]"
                f" ({outside.size} row(s) in all)"
            )
