"""Bounds tables for the tests of this folder: one good one, changed column by column."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from mlflow_lipschitz.gate.table import BoundsTable

FEATURES = ("age", "income")
INF = float("inf")


def good_columns(rows: int = 4) -> dict[str, Any]:
    """Columns that every check of `policies.POLICY` passes."""
    columns: dict[str, Any] = {
        "point_id": [f"p{i}" for i in range(rows)],
        "status": ["certified"] * rows,
        "lipschitz_upper": [2.0 + i / 10 for i in range(rows)],
        "lipschitz_lower": [1.5 + i / 10 for i in range(rows)],
        "gap": [0.5] * rows,
        "radius": [0.2 + i / 10 for i in range(rows)],
        "margin": [1.0] * rows,
        "seconds": [0.25] * rows,
        "method": ["branch and bound"] * rows,
    }
    for feature in FEATURES:
        columns[f"monotone:{feature}"] = [1] * rows
        columns[f"sensitivity_upper:{feature}"] = [0.5] * rows
        columns[f"sensitivity_lower:{feature}"] = [0.25] * rows
    return columns


def table(rows: int = 4, **changes: Any) -> BoundsTable:
    """The good table with whole columns replaced; `__` in a name stands for `:`."""
    return BoundsTable.from_columns(
        FEATURES, good_columns(rows) | {k.replace("__", ":"): v for k, v in changes.items()}
    )


positive = st.floats(0, 10, allow_nan=False).map(lambda x: round(x, 2))


@st.composite
def any_columns(draw: st.DrawFn, min_rows: int = 1) -> dict[str, Any]:
    """Columns of any table the constructor accepts, thresholds of the test policy being hit exactly now and then."""
    rows = draw(st.integers(min_rows, 6))
    columns = good_columns(rows)
    for row in range(rows):
        status = draw(st.sampled_from(["certified", "certified", "certified", "violated", "undecided", "error"]))
        columns["status"][row] = status
        upper = draw(positive) if status == "certified" else draw(positive | st.just(INF))
        columns["lipschitz_upper"][row] = INF if status == "error" else upper
        columns["lipschitz_lower"][row] = min(draw(positive), upper)
        columns["gap"][row] = draw(positive | st.just(INF))
        columns["radius"][row] = 0.0 if status == "error" else draw(positive)
        columns["margin"][row] = draw(st.floats(-5, 5) | st.just(-INF))
        for feature in FEATURES:
            high = INF if status == "error" else draw(positive | st.just(INF))
            columns[f"sensitivity_upper:{feature}"][row] = high
            columns[f"sensitivity_lower:{feature}"][row] = min(draw(positive), high)
            sign = 0 if status == "error" else draw(st.sampled_from([1, 1, 0, -1]))
            columns[f"monotone:{feature}"][row] = sign
    return {name: np.asarray(values, dtype=_dtype(name)) for name, values in columns.items()}


def _dtype(name: str) -> Any:
    return object if name in ("point_id", "status", "method") else float
