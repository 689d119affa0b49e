"""What a stopped audit leaves for people to look at: the table with every row, those not reached marked as not known.

It is no outcome: nothing reads it, an unmeasured row is `undecided` without any bound, and there is no verdict beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_lipschitz.certificates.durable import write_durably
from mlflow_lipschitz.errors import LipschitzError
from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.pipeline.question import Question
from mlflow_lipschitz.pipeline.row_bounds import Arrays, table_columns
from mlflow_lipschitz.rows import AuditedRows

TABLE, NOTE = "points.partial.parquet", "partial.json"
PARTIAL_FILES = (TABLE, NOTE)
NOT_MEASURED = "not measured: the audit was stopped"
SCHEMA = "mlflow-lipschitz/partial/v1"

# What is known of a row that was not reached: nothing. By column, or by the part of its name before the colon.
_UNKNOWN: Mapping[str, Any] = {
    "status": "undecided",
    "lipschitz_upper": np.inf,
    "lipschitz_lower": 0.0,
    "gap": np.inf,
    "radius": 0.0,
    "margin": -np.inf,
    "seconds": 0.0,
    "method": NOT_MEASURED,
    "served_error": np.inf,
    "monotone": 0,
    "sensitivity_upper": np.inf,
    "sensitivity_lower": 0.0,
    "slope_min": np.inf,
    "slope_max": -np.inf,
}


def leave_partial_table(
    directory: Path, rows: AuditedRows, question: Question, done: Mapping[int, Arrays], error: BaseException
) -> None:
    """Write the table and a note on it. `done`: measured arrays by the number of their first row.

    Whatever goes wrong here is not reported: what stopped the audit is.
    """
    with suppress(OSError, LipschitzError):
        table = partial_table(rows, question, done)
        table.to_parquet(directory / TABLE)
        finished = _finished(done)
        note = {
            "schema": SCHEMA,
            "status": "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED",
            "finished": len(finished),
            "points": len(rows),
            "verdict": None,
            "table": TABLE,
            "meaning": "The audit was stopped, so nothing was decided and nothing is passed."
            f" Rows with the method {NOT_MEASURED!r} are not known at all.",
        }
        text = json.dumps(note, indent=1).encode() + b"\n"
        write_durably(directory / NOTE, lambda file: file.write(text))


def partial_table(rows: AuditedRows, question: Question, done: Mapping[int, Arrays]) -> BoundsTable:
    """All rows; those that were not measured are undecided, and nothing is claimed of them."""
    finished = _finished(done)
    names = tuple(rows.feature_names[i] for i in question.columns)
    measured: dict[str, Any] = dict.fromkeys(_required(names), ())
    if len(finished):
        parts = [done[start] for start in sorted(done)]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        names, measured = table_columns(rows.take(finished), question, arrays)
    columns: dict[str, Any] = {"point_id": rows.point_ids.tolist()}
    for name, values in measured.items():
        if name == "radius_arithmetic":
            columns[name] = [question.arithmetic] * len(rows)
        elif name != "point_id":
            column = [_UNKNOWN[name.split(":")[0]]] * len(rows)
            for position, value in zip(finished.tolist(), values, strict=True):
                column[position] = value
            columns[name] = column
    return BoundsTable.from_columns(names, columns)


def how_to_go_on(directory: Path, done: Mapping[int, Arrays], total: int) -> str:
    """The last words of an interrupted audit."""
    return (
        f"{len(_finished(done))} of {total} rows are finished and kept in {directory}; nothing was decided, so nothing is"
        f" passed. Go on with the same command and --out {directory} --resume"
    )


def _finished(done: Mapping[int, Arrays]) -> np.ndarray:
    """Positions of the measured rows, in order."""
    spans = [np.arange(start, start + len(done[start]["lipschitz_upper"])) for start in sorted(done)]
    return np.concatenate(spans) if spans else np.zeros(0, dtype=int)


def _required(names: tuple[str, ...]) -> list[str]:
    per_feature = ("monotone", "sensitivity_upper", "sensitivity_lower", "slope_min", "slope_max")
    base = [name for name in _UNKNOWN if name not in (*per_feature, "served_error")]
    return [*base, *(f"{kind}:{name}" for name in names for kind in per_feature)]
