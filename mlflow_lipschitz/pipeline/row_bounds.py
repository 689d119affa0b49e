"""From measured arrays to the columns of the bounds table, and what the status of a row means.

A row is, in this order,

- error: some number came out as NaN; the row claims nothing.
- violated: a point of its region contradicts a `monotone` check, or has a gradient above a `lipschitz_at_most` limit.
- undecided: the Lipschitz upper bound is infinite, or a derivative that a `monotone` check names may have either sign.
- certified: everything the checks read is known. Whether a known number is small enough is for the checks to say.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlflow_lipschitz.pipeline.measure import Arrays, gap_of
from mlflow_lipschitz.pipeline.question import Question
from mlflow_lipschitz.rows import AuditedRows


def table_columns(rows: AuditedRows, question: Question, arrays: Arrays) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Feature names and columns as `BoundsTable.from_columns` takes them."""
    arrays = {name: np.asarray(values) for name, values in arrays.items()}
    failed = _not_a_number(arrays)
    columns: dict[str, Any] = {
        "point_id": rows.point_ids.tolist(),
        "status": row_status(question, arrays, failed).tolist(),
        "lipschitz_upper": np.where(failed, np.inf, arrays["lipschitz_upper"]),
        "lipschitz_lower": np.where(failed, 0.0, arrays["lipschitz_lower"]),
        "gap": np.where(failed, np.inf, gap_of(arrays)),
        "radius": np.where(failed, 0.0, arrays["radius"]),
        "margin": np.where(failed, -np.inf, arrays["margin"]),
        "seconds": arrays["seconds"],
        "method": arrays["method"].tolist(),
    }
    if "served_error" in arrays:
        columns["served_error"] = np.where(failed, np.inf, arrays["served_error"])
        columns["radius_arithmetic"] = [question.arithmetic] * len(rows)
    for index in question.columns:
        columns |= _feature_columns(rows.feature_names[index], index, question, arrays, failed)
    return tuple(rows.feature_names[i] for i in question.columns), columns


def row_status(question: Question, arrays: Arrays, failed: np.ndarray) -> np.ndarray:
    """(P,) strings, as this module's first lines say. `failed` marks the rows with a NaN."""
    violated = np.zeros(len(failed), dtype=bool)
    undecided = ~np.isfinite(arrays["lipschitz_upper"])
    if question.lipschitz_limits:
        violated |= arrays["lipschitz_lower"] > min(question.lipschitz_limits)
    sign, top = _flat(arrays, "sign"), _flat(arrays, "derivative_upper")
    bottom = _flat(arrays, "derivative_lower")
    for position, asked in enumerate(question.monotone):
        constant = (bottom[:, asked.feature] == 0) & (top[:, asked.feature] == 0)
        violated |= arrays[f"violation_{position}"]
        undecided |= (sign[:, asked.feature] == 0) & ~constant
    return np.select([failed, violated, undecided], ["error", "violated", "undecided"], "certified")


def _feature_columns(
    name: str, index: int, question: Question, arrays: Arrays, failed: np.ndarray
) -> dict[str, np.ndarray]:
    low, high = _flat(arrays, "derivative_lower")[:, index], _flat(arrays, "derivative_upper")[:, index]
    smallest, largest = _flat(arrays, "slope_min")[:, index], _flat(arrays, "slope_max")[:, index]
    for position, asked in enumerate(question.monotone):
        if asked.feature == index:
            found, slope = arrays[f"violation_{position}"], arrays[f"violation_derivative_{position}"]
            smallest = np.where(found, np.minimum(smallest, slope), smallest)
            largest = np.where(found, np.maximum(largest, slope), largest)
    smallest, largest = np.where(failed, np.inf, smallest), np.where(failed, -np.inf, largest)
    met = np.isfinite(smallest) & np.isfinite(largest)
    attained = np.where(met, np.maximum(np.abs(smallest), np.abs(largest)), 0.0)
    return {
        f"monotone:{name}": np.where(failed, 0, _flat(arrays, "sign")[:, index]).astype(np.int8),
        f"sensitivity_upper:{name}": np.where(failed, np.inf, np.maximum(np.abs(low), np.abs(high))),
        f"sensitivity_lower:{name}": attained,
        f"slope_min:{name}": smallest,
        f"slope_max:{name}": largest,
    }


def _not_a_number(arrays: Arrays) -> np.ndarray:
    """(P,) where a bound is NaN. A point or slope of a violation that was not found says nothing and does not count."""
    bad = np.zeros(len(arrays["lipschitz_upper"]), dtype=bool)
    for name, values in arrays.items():
        if values.dtype.kind == "f" and not name.startswith("violation"):
            bad |= np.isnan(values.reshape(len(values), -1)).any(axis=1)
    return bad


def _flat(arrays: Arrays, name: str) -> np.ndarray:
    return arrays[name].reshape(len(arrays[name]), -1)
