"""The inputs of an ONNX model as columns of a table: which of them are numbers, and which are looked up and do not move."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pandas as pd

from mlflow_lipschitz.errors import InvalidData, UnsupportedOperator
from mlflow_lipschitz.row_categories import Category

# Model property with the columns of a table that the inputs take, as JSON: names of all columns, positions per input. Written
# by our own export only: a file that brings one along could call its inputs by each other's names.
COLUMNS_KEY = "mlflow_lipschitz.columns"
REAL = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)
Table = pd.DataFrame | np.ndarray


@dataclass(frozen=True)
class InputColumns:
    """One variable input of a model.

    Attributes:
        shape: sample shape, without the batch; None for an axis of free length.
        batch: fixed length of the batch, None when it is free.
        positions: of its columns in a table of rows.
        unread: those of them that nothing reads, and that may hold anything.
    """

    name: str
    element_type: int
    shape: tuple[int | None, ...]
    batch: int | None
    positions: tuple[int, ...] = ()
    unread: tuple[int, ...] = ()

    @property
    def real(self) -> bool:
        return self.element_type in REAL

    @property
    def dtype(self) -> np.dtype:
        if self.element_type == onnx.TensorProto.STRING:
            return np.dtype(object)
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.element_type))


@dataclass(frozen=True)
class ModelColumns:
    """All variable inputs of a model, and the names of the columns of a table of rows they take together."""

    inputs: tuple[InputColumns, ...]
    names: tuple[str, ...]
    by_name: bool = True  # False where the model itself knows no names: then columns go by their position

    @property
    def plain(self) -> bool:
        """Whether the model takes one tensor of real numbers: nothing to divide."""
        return len(self.inputs) == 1 and self.inputs[0].real

    @property
    def batch(self) -> int | None:
        """The fixed length of the batch, None when it is free."""
        return self.inputs[0].batch

    @property
    def categories(self) -> tuple[Category, ...]:
        """The columns that are looked up, of a model that takes them one by one."""
        if len(self.inputs) == 1:
            return ()
        found = [(i.positions[0], i) for i in self.inputs if not i.real]
        return tuple(
            Category(position, "text" if i.element_type == onnx.TensorProto.STRING else "whole")
            for position, i in sorted(found)
        )

    def labels(self, name: str) -> list[str]:
        """Names of the columns of one input; the input's own name where it takes a tensor and no columns."""
        (found,) = [i for i in self.inputs if i.name == name]
        return [self.names[p] for p in found.positions] or [name]

    def feeds(self, table: Table, row_names: Sequence[str]) -> dict[str, np.ndarray]:
        """Rows of a table (or of the one array that the model takes) by input, each in the input's type.

        Raises:
            InvalidData: a frame has other columns than the model, an array too few or too many; or a cell is no number of the
                type that an input takes. Names the column, or the row.
        """
        if len(self.inputs) == 1 and not self.inputs[0].positions:
            return {self.inputs[0].name: _typed(np.asarray(table), self.inputs[0], row_names)}
        frame = self.ordered(table)
        return {i.name: _typed(_cells(frame, i), i, row_names) for i in self.inputs}

    def ordered(self, table: Table) -> pd.DataFrame:
        """The rows with the columns in the model's order: those of a frame go by their names.

        Raises:
            InvalidData: names the columns that are missing or that the model does not know.
        """
        return in_order(table if self.by_name else np.asarray(table, dtype=object), self.names)

    def as_served(self, table: Table) -> Table:
        """The rows as the whole model is asked: a frame as it is; one tensor in the input's type."""
        if len(self.inputs) > 1 or self.inputs[0].positions:
            return table if isinstance(table, pd.DataFrame) else pd.DataFrame(table, columns=list(self.names))
        return np.asarray(table).astype(self.inputs[0].dtype)


def in_order(table: Table, names: Sequence[str]) -> pd.DataFrame:
    """The rows of a table with the columns `names` in this order: of a frame by its own names, of an array as they come.

    Raises:
        InvalidData: names the columns that are missing or unknown.
    """
    if not isinstance(table, pd.DataFrame):
        frame = pd.DataFrame(table)
        if frame.shape[1] != len(names):
            raise InvalidData(
                f"the rows have {frame.shape[1]} columns, and the model takes {len(names)}: {', '.join(names)}"
            )
        return frame
    given = [str(name) for name in table.columns]
    missing, unknown = [n for n in names if n not in given], [n for n in given if n not in names]
    if missing or unknown or len(given) != len(names):
        lacks = [f"without {', '.join(map(repr, missing))}"] if missing else []
        brings = [f"with the unknown {', '.join(map(repr, unknown))}"] if unknown else []
        said = " and ".join(lacks + brings) or "with a column twice"
        raise InvalidData(f"the rows are {said}: the model takes the columns {', '.join(names)}")
    return table.iloc[:, [given.index(name) for name in names]]


def without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model from outside, without a note of our own about its columns."""
    if all(entry.key != COLUMNS_KEY for entry in model.metadata_props):
        return model
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    kept = [entry for entry in model.metadata_props if entry.key != COLUMNS_KEY]
    del plain.metadata_props[:]
    plain.metadata_props.extend(kept)
    return plain


def model_columns(model: onnx.ModelProto) -> ModelColumns:
    """The variable inputs of `model`; of several, each must be one column unless the model says which columns it takes.

    Raises:
        UnsupportedOperator: several inputs that are not all columns.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in constants]
    noted = next((json.loads(entry.value) for entry in model.metadata_props if entry.key == COLUMNS_KEY), None)
    if noted is not None:
        inputs = tuple(_input(value, tuple(noted["inputs"][value.name]), tuple(noted["unread"])) for value in values)
        return ModelColumns(inputs, tuple(noted["names"]), bool(noted.get("by_name", True)))
    if len(values) == 1:
        return ModelColumns((_input(values[0], ()),), ())
    inputs = tuple(_input(value, (position,)) for position, value in enumerate(values))
    for found in inputs:
        if found.shape not in ((), (1,)):
            raise UnsupportedOperator(
                "Input",
                found.name,
                reason=f"the model has {len(inputs)} inputs, and this one takes samples of shape {found.shape}",
                remedy="several inputs are supported where each is one column, (rows, 1); export it so, or one tensor",
            )
    return ModelColumns(inputs, tuple(found.name for found in inputs))


def _input(value: onnx.ValueInfoProto, positions: tuple[int, ...], unread: tuple[int, ...] = ()) -> InputColumns:
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
    batch = dims[0] if dims else None
    return InputColumns(value.name, tensor.elem_type, tuple(dims[1:]), batch, positions, unread)


def _cells(frame: pd.DataFrame, source: InputColumns) -> np.ndarray:
    columns = [
        np.zeros(len(frame)) if p in source.unread else frame.iloc[:, p].to_numpy(object) for p in source.positions
    ]
    cells = np.stack(columns, axis=1)
    return cells if len(source.shape) else cells[:, 0]


def _typed(cells: np.ndarray, source: InputColumns, row_names: Sequence[str]) -> np.ndarray:
    if source.dtype == object:
        return cells.astype(object)
    if source.real:
        try:
            return cells.astype(np.float64).astype(source.dtype)
        except (TypeError, ValueError) as error:
            raise _no_number(cells, source, row_names, _is_real) from error
    if cells.dtype.kind in "iub":
        typed = cells.astype(source.dtype)
        whole = typed.astype(object) == cells.astype(object)
    else:  # one by one: a float64 in between would round large codes
        whole = np.vectorize(lambda cell: _is_whole(cell, source.dtype), otypes=[bool])(cells)
        typed = np.where(whole, cells, 0).astype(object)
        typed = np.array([int(cell) for cell in typed.reshape(-1)], dtype=source.dtype).reshape(cells.shape)
    if not whole.all():
        raise _no_number(cells, source, row_names, lambda cell: _is_whole(cell, source.dtype))
    return typed


def _is_whole(cell: Any, kind: np.dtype) -> bool:
    """Whether a cell is a whole number that a type holds, and that no float64 on the way can have rounded."""
    if isinstance(cell, (bool, np.bool_)):
        return True
    if kind == np.bool_:
        return _is_real(cell) and cell in (0, 1)
    limits = np.iinfo(kind)
    if isinstance(cell, (int, np.integer)):
        return bool(limits.min <= int(cell) <= limits.max)
    if not isinstance(cell, (float, np.floating)) or not float(cell).is_integer() or abs(float(cell)) > 2.0**53:
        return False
    return bool(limits.min <= int(cell) <= limits.max)


def _is_real(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def _no_number(
    cells: np.ndarray, source: InputColumns, row_names: Sequence[str], takes: Callable[[Any], bool]
) -> InvalidData:
    place = next(place for place in np.ndindex(cells.shape) if not takes(cells[place]))
    cell = cells[place].item() if isinstance(cells[place], np.generic) else cells[place]
    return InvalidData(f"row {row_names[place[0]]}: {cell!r} is no {source.dtype}, which input {source.name!r} takes")


def stretched(feeds: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """The same rows, repeated to be `rows` of them."""
    return {name: values[np.resize(np.arange(len(values)), rows)] for name, values in feeds.items()}
