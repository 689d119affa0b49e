"""The rows an audit looks at: read, checked cell by cell, sampled. A bad cell is named and refused, never repaired.

Columns go to the model's inputs by name: by the names the model was fitted with, else by those of its signature. Only a
model that knows no names at all takes them in the order of the data, and the audit's facts say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlflow_lipschitz.audited_rows import AuditedRows, check_domain, spread
from mlflow_lipschitz.errors import InvalidData
from mlflow_lipschitz.plain_text import one_line
from mlflow_lipschitz.row_categories import Layout, checked_categories
from mlflow_lipschitz.row_files import read_rows
from mlflow_lipschitz.row_sampling import sample

if TYPE_CHECKING:
    from mlflow_lipschitz.policy import AuditPolicy

Data = str | Path | pd.DataFrame | np.ndarray

_NUMBERS_ONLY = Layout()


@dataclass(frozen=True)
class _Columns:
    """What the model says about its columns: `names` in the order of its inputs, `served` in the order MLflow uses."""

    names: list[str] | None
    served: list[str] | None
    order: str
    layout: Layout = _NUMBERS_ONLY


def load_rows(
    data: Data,
    signature: Any,
    policy: AuditPolicy | None = None,
    fitted_names: Sequence[str] = (),
    layout: Layout = _NUMBERS_ONLY,
) -> AuditedRows:
    """Read and check the rows, then draw the policy's sample from them.

    Args:
        data: a path (.csv, .parquet, .json, or .npz with `points` and optionally `labels`), a DataFrame, or an array
            (P, *input_shape).
        signature: the model's MLflow signature, or None; column names in it choose the columns, and order them for a
            model that was fitted without names. The columns of an array are in the signature's order.
        policy: names the label column, the domain and the sample; None takes every row.
        fitted_names: the names the model was fitted with, in the order of its inputs; empty where it has none.
        layout: which columns the model looks up. These are kept in `raw`, and are no part of the points yet: the model's own
            encoders make points of them.
    Raises:
        InvalidData: no rows, missing or surplus columns, a cell that is no finite number, a missing label, a row outside
            the domain, a signature of other columns than the model was fitted with.
    """
    columns = replace(_columns(signature, fitted_names), layout=layout)
    table, labels = _read(data, columns)
    stratify = policy.inputs.points.stratify if policy else None
    if isinstance(table, np.ndarray) and not layout.numbers_only and table.ndim == 2:
        table = _named(table, columns)
    if isinstance(table, pd.DataFrame):
        rows = _from_frame(table, labels, columns, signature, stratify)
    else:
        rows = _from_array(table, labels, columns, signature)
    if stratify and rows.labels is None:
        raise InvalidData(f"the policy stratifies by column {stratify!r}, which the data does not have")
    if policy is None:
        return rows
    check_domain(rows, policy.inputs.domain or {})
    return sample(rows, policy.inputs.points.sample, policy.inputs.points.seed)


def _read(data: Data, columns: _Columns) -> tuple[pd.DataFrame | np.ndarray, np.ndarray | None]:
    if isinstance(data, (pd.DataFrame, np.ndarray)):
        return data, None
    return read_rows(Path(data), columns.layout.text_columns(columns.names or ()))


def _named(array: np.ndarray, columns: _Columns) -> pd.DataFrame:
    """An array of columns of several kinds, in the order in which MLflow hands them over."""
    names = columns.served or columns.names or _entry_names(array.shape[1:])
    if array.shape[1] != len(names):
        raise InvalidData(f"the rows have {array.shape[1]} columns, the model takes {len(names)}")
    return pd.DataFrame(array, columns=list(names))


def _from_frame(
    table: pd.DataFrame, labels: np.ndarray | None, columns: _Columns, signature: Any, stratify: str | None
) -> AuditedRows:
    table = table.rename(columns=str)
    if stratify in table.columns:
        labels = table[stratify].to_numpy()
    wanted = columns.names or [name for name in table.columns if name != stratify]
    _check_width(len(wanted), signature)
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise InvalidData(
            f"missing column(s) {', '.join(map(repr, missing))}; the data has {', '.join(map(repr, table.columns))}"
        )
    repeated = [name for name in wanted if list(table.columns).count(name) > 1]
    if repeated:
        raise InvalidData(f"two columns are named {repeated[0]!r}")
    ids = np.array([one_line(label) for label in table.index])
    if columns.layout.numbers_only:
        points = np.column_stack([_numbers(table[name], ids) for name in wanted]) if len(table) else np.empty((0, 0))
        return _checked(points, wanted, ids, labels, columns)
    return _of_several_kinds(table[wanted], ids, labels, columns)


def _of_several_kinds(
    table: pd.DataFrame, ids: np.ndarray, labels: np.ndarray | None, columns: _Columns
) -> AuditedRows:
    """Rows of which only the numbers are points; what nothing reads stands among them as 0 where it is no number."""
    raw, names, numbers, fixed = table.copy(), [], [], []
    looked_up = {category.position: category for category in columns.layout.categories}
    for position, name in enumerate(table.columns):
        if position in looked_up:
            raw[name] = checked_categories(table[name], looked_up[position], ids)
            continue
        unread = position in columns.layout.unread and not pd.api.types.is_numeric_dtype(table[name])
        values = np.zeros(len(table)) if unread else _numbers(table[name], ids)
        raw[name] = table[name] if unread else values
        names.append(name)
        numbers.append(values)
        fixed.append(unread)
    points = np.stack(numbers, axis=1) if numbers else np.empty((len(table), 0))
    rows = _checked(points, names, ids, labels, columns)
    named = tuple(str(table.columns[position]) for position in sorted(looked_up))
    return replace(rows, raw=raw, fixed=np.array(fixed, dtype=bool), looked_up=named)


def _from_array(array: np.ndarray, labels: np.ndarray | None, columns: _Columns, signature: Any) -> AuditedRows:
    if array.dtype.kind not in "fiub":
        raise InvalidData(f"the rows must be numbers, not {array.dtype}")
    if array.ndim < 2:
        raise InvalidData(f"the rows must have shape (rows, *input), not {array.shape}")
    shape = _tensor_shape(signature)
    if shape is not None and tuple(array.shape[1:]) != shape:
        raise InvalidData(f"the rows have shape {array.shape[1:]}, the model's signature says {shape}")
    given, names = columns.served or columns.names, columns.names
    if given is not None and names is not None:
        if array.shape[1:] != (len(given),):
            raise InvalidData(f"the rows have {array.shape[1:]} columns, the model's signature names {len(given)}")
        array = array[:, [given.index(name) for name in names]]
    names = names or _entry_names(array.shape[1:])
    ids = np.array([str(i) for i in range(len(array))])
    return _checked(array.astype(np.float64), names, ids, labels, columns)


def _checked(
    points: np.ndarray, names: Sequence[str], ids: np.ndarray, labels: np.ndarray | None, columns: _Columns
) -> AuditedRows:
    if len(points) == 0:
        raise InvalidData("the data has no rows: nothing can be certified from an empty table")
    if len(set(ids.tolist())) != len(ids):
        ids = np.array([str(i) for i in range(len(ids))])
    bad = np.argwhere(~np.isfinite(points.reshape(len(points), -1)))
    if bad.size:
        row, column = bad[0]
        value = points.reshape(len(points), -1)[row, column]
        raise InvalidData(
            f"row {ids[row]}, column {names[column]!r}: {value} is not a finite number ({len(bad)} in all)"
        )
    if labels is not None:
        _check_labels(labels, ids)
    served = None if columns.served is None else tuple(columns.served)
    return AuditedRows(points, tuple(names), ids, spread(points), labels, served, columns.order)


def _check_labels(labels: np.ndarray, ids: np.ndarray) -> None:
    """A row without a label belongs to no group, so a stratified sample would silently leave it out."""
    if labels.shape != ids.shape:
        raise InvalidData(f"labels of shape {labels.shape} for {len(ids)} rows")
    missing = np.flatnonzero(pd.isna(labels))
    if missing.size:
        raise InvalidData(f"row {ids[missing[0]]} has no label to stratify by ({missing.size} in all)")


def _numbers(column: pd.Series, ids: np.ndarray) -> np.ndarray:
    """The column as float64. Text is refused even when it looks like a number; a missing cell is NaN, refused later."""
    if pd.api.types.is_complex_dtype(column):
        raise InvalidData(f"column {column.name!r} holds complex numbers; an input of a model is a real one")
    if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)):
        for where, value in zip(ids, column, strict=True):
            if isinstance(value, (str, bytes, complex)) or not np.isscalar(value):
                raise InvalidData(f"row {where}, column {column.name!r}: {value!r} is not a number")
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _columns(signature: Any, fitted_names: Sequence[str]) -> _Columns:
    signed, fitted = _column_names(signature), [str(name) for name in fitted_names]
    if signed and fitted and sorted(signed) != sorted(fitted):
        raise InvalidData(
            f"the model's signature names the columns {', '.join(map(repr, signed))}, and the model was fitted on "
            f"{', '.join(map(repr, fitted))}: log it again with a signature of the columns it was fitted on"
        )
    if fitted:
        return _Columns(fitted, signed or fitted, "by the names the model was fitted with")
    if signed:
        return _Columns(signed, signed, "by the names in the model's signature")
    return _Columns(
        None, None, "as in the data: neither the model nor its signature names columns, so none was checked"
    )


def _column_names(signature: Any) -> list[str] | None:
    inputs = getattr(signature, "inputs", None)
    if inputs is None or inputs.is_tensor_spec() or not inputs.has_input_names():
        return None
    return [str(name) for name in inputs.input_names()]


def _tensor_shape(signature: Any) -> tuple[int, ...] | None:
    """The input shape without the batch axis, or None where the signature leaves it open."""
    inputs = getattr(signature, "inputs", None)
    if inputs is None or not inputs.is_tensor_spec() or len(inputs.inputs) != 1:
        return None
    shape = tuple(inputs.inputs[0].shape[1:])
    return None if any(n < 0 for n in shape) else shape


def _check_width(width: int, signature: Any) -> None:
    shape = _tensor_shape(signature)
    if shape is not None and shape != (width,):
        raise InvalidData(f"the data has {width} feature column(s), the model's signature says shape {shape}")


def _entry_names(shape: tuple[int, ...]) -> list[str]:
    if len(shape) == 1:
        return [f"x{i}" for i in range(shape[0])]
    return [f"x[{','.join(map(str, index))}]" for index in product(*(range(n) for n in shape))]


__all__ = ["AuditedRows", "Data", "check_domain", "load_rows", "sample"]
