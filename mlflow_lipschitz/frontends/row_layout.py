"""What a model says of its columns before it is exported: needed to read the rows it is exported with."""

from __future__ import annotations

from typing import Any

import onnx

from mlflow_lipschitz.frontends.discrete_columns import model_columns, without_notes
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
