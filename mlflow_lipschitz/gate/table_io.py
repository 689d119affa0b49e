"""Bounds-table columns to and from files, bit for bit. What the values mean is checked by `table`, not here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_lipschitz.errors import AuditError

_INFINITIES = {"Infinity": float("inf"), "-Infinity": float("-inf")}


def write_parquet(columns: Mapping[str, np.ndarray], path: Path) -> None:
    """One parquet column per array; text as strings."""
    pq.write_table(pa.table({name: pa.array(values.tolist(), _type(values)) for name, values in columns.items()}), path)


def write_json(columns: Mapping[str, np.ndarray], path: Path) -> None:
    """Strict JSON, the layout MLflow's table viewer reads."""
    rows = [list(row) for row in zip(*(values.tolist() for values in columns.values()), strict=True)]
    path.write_text(
        json.dumps(strict_json({"columns": list(columns), "data": rows}), allow_nan=False), encoding="utf-8"
    )


def read_columns(path: Path) -> dict[str, Any]:
    """Columns of a file written here.

    Raises:
        AuditError: the file is absent, of another kind, or damaged.
    """
    readers = {".parquet": _read_parquet, ".json": _read_json}
    if path.suffix not in readers:
        raise AuditError(f"bounds table {path.name}: the name must end in .parquet or .json")
    try:
        return readers[path.suffix](path)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise AuditError(f"bounds table {path.name} cannot be read: {error}") from error


def strict_json(value: Any) -> Any:
    """`value` with infinities and NaN as text and NumPy scalars as Python's: strict JSON has none of them."""
    if isinstance(value, Mapping):
        return {str(key): strict_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [strict_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return strict_json(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _type(values: np.ndarray) -> pa.DataType:
    return pa.string() if values.dtype == object else pa.from_numpy_dtype(values.dtype)


def _read_parquet(path: Path) -> dict[str, Any]:
    table = pq.ParquetFile(path).read()
    if len(set(table.column_names)) != len(table.column_names):
        raise ValueError("a column name appears twice")
    # A null becomes None and is refused by the table's own checks: to_numpy would turn it into NaN or worse.
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    names, rows = content["columns"], content["data"]
    if len(set(names)) != len(names) or any(len(row) != len(names) for row in rows):
        raise ValueError("columns and rows do not fit together")
    text = ("point_id", "status", "method", "radius_arithmetic")
    return {
        name: [row[i] if name in text else _INFINITIES.get(row[i], row[i]) for row in rows]
        for i, name in enumerate(names)
    }


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not strict JSON")
