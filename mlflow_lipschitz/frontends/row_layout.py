"""What a model says of its columns before it is exported: needed to read the rows it is exported with."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pandas as pd

from mlflow_lipschitz.errors import InvalidData
from mlflow_lipschitz.frontends.discrete_columns import Table, in_order, model_columns, without_notes
from mlflow_lipschitz.row_categories import Layout


def row_layout(model: Any) -> Layout:
    """Which columns of a table of rows the model looks up, and which nothing reads.

    Args:
        model: what `to_onnx` takes. Of torch modules and programs nothing is known: they take one tensor.

    Raises:
        UnsupportedOperator: a column that is used in two ways, or inputs that are no columns.
        UsageError: an estimator that is not fitted.
    """
    if isinstance(model, onnx.ModelProto):
        columns = model_columns(without_notes(model))
        return Layout(columns.names, columns.categories) if len(columns.inputs) > 1 else Layout()
    if any(part.__module__.partition(".")[0] == "sklearn" for part in type(model).__mro__):
        from mlflow_lipschitz.frontends.sklearn_columns import fitted_columns
        from mlflow_lipschitz.frontends.sklearn_refusals import refuse_jumps

        refuse_jumps(model)
        found = fitted_columns(model)
        return Layout(found.names or (), found.categories, found.unread)
    return Layout()


def real_points(table: Table, layout: Layout) -> np.ndarray:
    """Rows of a model that computes with all its columns as points, float64: frames by name, 0 for what nothing reads.

    Args:
        table: (rows, *sample shape), or a frame.
        layout: of the model; without names a frame is taken in its own order.

    Raises:
        InvalidData: a frame with other columns than the model's, or a cell that is no number; names the column or the row.
    """
    if layout.names and isinstance(table, pd.DataFrame):
        table = in_order(table, layout.names)
    if layout.unread:
        frame = pd.DataFrame(table)
        table = pd.DataFrame({i: 0.0 if i in layout.unread else frame.iloc[:, i] for i in range(frame.shape[1])})
    try:
        return np.asarray(table, dtype=np.float64)
    except (TypeError, ValueError):
        pass
    cells = np.asarray(table, dtype=object)
    for place in np.ndindex(cells.shape):
        try:
            float(cells[place])
        except (TypeError, ValueError) as error:
            name = f" {layout.names[place[-1]]!r}" if layout.names else f" {place[-1]}"
            raise InvalidData(f"row {place[0]}, column{name}: {cells[place]!r} is not a number") from error
    raise InvalidData("the rows are no table of numbers: all of them need the same shape")
