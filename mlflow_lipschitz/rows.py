"""The rows an audit looks at: read, checked cell by cell, sampled. A bad cell is named and refused, never repaired."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlflow_lipschitz.errors import InvalidData

if TYPE_CHECKING:
    from mlflow_lipschitz.policy import AuditPolicy

Data = str | Path | pd.DataFrame | np.ndarray


@dataclass(frozen=True)
class AuditedRows:
    """Rows in the order and units the model was trained with.

    Attributes:
        points: (P, *input_shape), float64, finite.
        feature_names: one name per input entry, in the order of the flattened input.
        point_ids: (P,) strings: the index labels of the rows in the user's data.
        scale: (*input_shape), standard deviation of each feature over ALL rows read, before sampling (input units).
        labels: (P,) values of the column named by `stratify`, or None.
    """

    points: np.ndarray
    feature_names: tuple[str, ...]
    point_ids: np.ndarray
    scale: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.points)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.points.shape[1:])

    def take(self, positions: np.ndarray) -> AuditedRows:
        """The rows at `positions`; `scale` stays that of the whole data."""
        labels = None if self.labels is None else self.labels[positions]
        return replace(self, points=self.points[positions], point_ids=self.point_ids[positions], labels=labels)

    def as_input(self, signature: Any) -> pd.DataFrame | np.ndarray:
        """What `predict` of the served model takes: a frame for a column signature, an array otherwise."""
        if _column_names(signature) is None:
            return self.points
        return pd.DataFrame(self.points, columns=list(self.feature_names))


def load_rows(data: Data, signature: Any, policy: AuditPolicy | None = None) -> AuditedRows:
    """Read and check the rows, then draw the policy's sample from them.

    Args:
        data: a path (.csv, .parquet, .json, or .npz with `points` and optionally `labels`), a DataFrame, or an array
            (P, *input_shape).
        signature: the model's MLflow signature, or None; column names in it choose and order the columns.
        policy: names the label column, the domain and the sample; None takes every row.
    Raises:
        InvalidData: no rows, missing or surplus columns, a cell that is no finite number, a row outside the domain.
    """
    table, labels = _read(data)
    stratify = policy.inputs.points.stratify if policy else None
    if isinstance(table, pd.DataFrame):
        rows = _from_frame(table, labels, signature, stratify)
    else:
        rows = _from_array(table, labels, signature)
    if stratify and rows.labels is None:
        raise InvalidData(f"the policy stratifies by column {stratify!r}, which the data does not have")
    if policy is None:
        return rows
    check_domain(rows, policy.inputs.domain or {})
    return sample(rows, policy.inputs.points.sample, policy.inputs.points.seed)


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


def sample(rows: AuditedRows, size: int | None, seed: int) -> AuditedRows:
    """At most `size` rows without replacement, in the data's order; each label in proportion, at least one of each."""
    if size is None or size >= len(rows):
        return rows
    generator = np.random.default_rng(seed)
    if rows.labels is None:
        return rows.take(np.sort(generator.permutation(len(rows))[:size]))
    groups = [np.flatnonzero(rows.labels == label) for label in sorted(set(rows.labels.tolist()), key=str)]
    quotas = _quotas([len(group) for group in groups], size)
    chosen = [generator.permutation(group)[:quota] for group, quota in zip(groups, quotas, strict=True)]
    return rows.take(np.sort(np.concatenate(chosen)))


def _quotas(counts: list[int], size: int) -> list[int]:
    """Largest remainders: quotas that add up to `size`, proportional to `counts`, none zero while `size` allows it."""
    floor = 1 if size >= len(counts) else 0
    spare = size - floor * len(counts)
    shares = [spare * (count - floor) / max(1, sum(counts) - floor * len(counts)) for count in counts]
    quotas = [floor + math.floor(share) for share in shares]
    by_remainder = sorted(range(len(counts)), key=lambda i: (math.floor(shares[i]) - shares[i], i))
    for i in by_remainder[: size - sum(quotas)]:
        quotas[i] += 1
    return quotas


def _read(data: Data) -> tuple[pd.DataFrame | np.ndarray, np.ndarray | None]:
    if isinstance(data, (pd.DataFrame, np.ndarray)):
        return data, None
    path = Path(data)
    if not path.is_file():
        raise InvalidData(f"no such data file: {path}")
    readers: Mapping[str, Callable[[Path], Any]] = {
        ".csv": pd.read_csv,
        ".parquet": pd.read_parquet,
        ".json": _read_json,
        ".npz": _read_npz,
    }
    if path.suffix not in readers:
        raise InvalidData(f"{path.name}: data must be one of {', '.join(sorted(readers))}")
    try:
        content = readers[path.suffix](path)
    except (ValueError, OSError, KeyError) as error:
        raise InvalidData(f"{path.name} cannot be read: {error}") from error
    return content if isinstance(content, tuple) else (content, None)


def _read_json(path: Path) -> pd.DataFrame:
    return pd.read_json(path, dtype=False)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with np.load(path, allow_pickle=False) as archive:
        if "points" not in archive:
            raise InvalidData(f"{path.name} has no array 'points' (it has: {', '.join(archive.files) or 'nothing'})")
        return archive["points"], archive.get("labels")


def _from_frame(table: pd.DataFrame, labels: np.ndarray | None, signature: Any, stratify: str | None) -> AuditedRows:
    table = table.rename(columns=str)
    if stratify in table.columns:
        labels = table[stratify].to_numpy()
    wanted = _column_names(signature)
    if wanted is None:
        wanted = [name for name in table.columns if name != stratify]
        _check_width(len(wanted), signature)
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise InvalidData(
            f"missing column(s) {', '.join(map(repr, missing))}; the data has {', '.join(map(repr, table.columns))}"
        )
    repeated = [name for name in wanted if list(table.columns).count(name) > 1]
    if repeated:
        raise InvalidData(f"two columns are named {repeated[0]!r}")
    ids = np.array([str(label) for label in table.index])
    points = np.column_stack([_numbers(table[name], ids) for name in wanted]) if len(table) else np.empty((0, 0))
    return _checked(points, tuple(wanted), ids, labels)


def _from_array(array: np.ndarray, labels: np.ndarray | None, signature: Any) -> AuditedRows:
    if array.dtype.kind not in "fiub":
        raise InvalidData(f"the rows must be numbers, not {array.dtype}")
    if array.ndim < 2:
        raise InvalidData(f"the rows must have shape (rows, *input), not {array.shape}")
    shape = _tensor_shape(signature)
    if shape is not None and tuple(array.shape[1:]) != shape:
        raise InvalidData(f"the rows have shape {array.shape[1:]}, the model's signature says {shape}")
    names = _column_names(signature)
    if names is not None and array.shape[1:] != (len(names),):
        raise InvalidData(f"the rows have {array.shape[1:]} columns, the model's signature names {len(names)}")
    names = names or _entry_names(array.shape[1:])
    ids = np.array([str(i) for i in range(len(array))])
    return _checked(array.astype(np.float64), tuple(names), ids, labels)


def _checked(points: np.ndarray, names: tuple[str, ...], ids: np.ndarray, labels: np.ndarray | None) -> AuditedRows:
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
    if labels is not None and len(labels) != len(points):
        raise InvalidData(f"{len(labels)} labels for {len(points)} rows")
    return AuditedRows(points, names, ids, points.std(axis=0), labels)


def _numbers(column: pd.Series, ids: np.ndarray) -> np.ndarray:
    """The column as float64. Text is refused even when it looks like a number; a missing cell is NaN, refused later."""
    if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    for where, value in zip(ids, column, strict=True):
        if isinstance(value, (str, bytes)) or not np.isscalar(value):
            raise InvalidData(f"row {where}, column {column.name!r}: {value!r} is not a number")
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


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
