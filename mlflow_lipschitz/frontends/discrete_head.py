"""Running the head of a divided model: the lookups of every row, or the row and the column that they refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from mlflow_lipschitz.errors import InvalidData
from mlflow_lipschitz.frontends.discrete_columns import ModelColumns, stretched
from mlflow_lipschitz.frontends.referee import onnxruntime_session

Tensors = dict[str, np.ndarray]


class Head:
    """The lookups of a model, ready to run: from its inputs to the tensors that its body reads."""

    def __init__(self, model: onnx.ModelProto, columns: ModelColumns) -> None:
        self.nodes = tuple(model.graph.node)
        self._session = onnxruntime_session(model)
        self._outputs = [value.name for value in model.graph.output]
        self._inputs = {value.name for value in model.graph.input}
        self._columns = columns

    def run(self, feeds: Mapping[str, np.ndarray]) -> Tensors:
        """The head's tensors for rows that it takes all at once; raises whatever onnxruntime raises."""
        read = {name: values for name, values in feeds.items() if name in self._inputs}
        return dict(zip(self._outputs, self._session.run(self._outputs, read), strict=True))

    def looked_up(self, feeds: Mapping[str, np.ndarray], row_names: Sequence[str]) -> Tensors:
        """The head's tensors for any number of rows.

        Raises:
            InvalidData: a lookup refuses a row; names the row and the column.
        """
        rows = len(next(iter(feeds.values())))
        length = self._columns.batch or rows
        chunks = []
        for start in range(0, rows, length):
            taken = {name: values[start : start + length] for name, values in feeds.items()}
            count = min(length, rows - start)
            try:
                found = self.run(stretched(taken, length))
            except Exception as error:  # onnxruntime's exceptions have no base class of their own
                raise self.refused(feeds, row_names, error) from error
            chunks.append({name: values[:count] for name, values in found.items()})
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in self._outputs}

    def refused(self, feeds: Mapping[str, np.ndarray], row_names: Sequence[str], error: Exception) -> InvalidData:
        """Which row it was that made onnxruntime raise `error`, and which of its columns: put into a row that the lookups
        take, it is refused again."""
        length, count = self._columns.batch or 1, len(next(iter(feeds.values())))
        rows = [stretched({name: values[i : i + 1] for name, values in feeds.items()}, length) for i in range(count)]
        taken = [self._takes(row) for row in rows]
        reason = str(error).strip().splitlines()[-1]
        if all(taken):
            return InvalidData(f"the model's lookups refuse the rows together, and take each alone: {reason}")
        row = taken.index(False)
        good = next((rows[i] for i in range(count) if taken[i]), None)
        for source in self._columns.inputs:
            if good and not source.real and not self._takes({**good, source.name: rows[row][source.name]}):
                label, cells = (
                    ", ".join(self._columns.labels(source.name)),
                    feeds[source.name][row].reshape(-1).tolist(),
                )
                shown = repr(cells[0]) if len(cells) == 1 else "it"
                return InvalidData(
                    f"row {row_names[row]}, column {label!r}: the model's lookup refuses {shown} ({reason})"
                )
        return InvalidData(f"row {row_names[row]}: the model's lookups refuse it ({reason})")

    def _takes(self, row: Mapping[str, np.ndarray]) -> bool:
        try:
            self.run(row)
        except Exception:  # noqa: BLE001 - onnxruntime's exceptions have no base class of their own, and any is an answer
            return False
        return True
