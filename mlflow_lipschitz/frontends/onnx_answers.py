"""An ONNX file as it is served: run by onnxruntime in the file's own precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from mlflow_lipschitz.errors import UsageError
from mlflow_lipschitz.frontends.preparation import model_input

_LEVELS = (
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,  # how a file is served unless somebody says otherwise
    onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,  # its operators as they stand
)


class OnnxAnswers:
    """onnxruntime on the CPU, one thread, with its own optimizations and without: they round differently.

    Raises:
        UsageError: the model has several outputs. UnsupportedOperator: it has several inputs, or one without a fixed shape.
    """

    def __init__(self, path: Path, model: onnx.ModelProto) -> None:
        if len(model.graph.output) != 1:
            names = ", ".join(value.name for value in model.graph.output)
            raise UsageError(f"the model has {len(model.graph.output)} outputs ({names}); a property is about one")
        self._input, self._output = model_input(model), model.graph.output[0].name
        self._sessions = [_session(path, level) for level in _LEVELS]

    @property
    def kind(self) -> type:
        """The type of its inputs."""
        return self._input.floats

    def __call__(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Args:
            points: (points, *input shape).

        Returns:
            the points in the model's own type, and (2, points, outputs) answers in it.
        """
        served: np.ndarray = points.astype(self.kind)
        batch = self._input.batch or len(served)
        answers = [[self._outputs(session, rows) for rows in _batches(served, batch)] for session in self._sessions]
        return served, np.stack([np.concatenate(parts)[: len(served)] for parts in answers])

    def _outputs(self, session: onnxruntime.InferenceSession, rows: np.ndarray) -> np.ndarray:
        (outputs,) = session.run([self._output], {self._input.name: rows})
        return np.asarray(outputs).reshape(len(rows), -1)


def _session(path: Path, level: onnxruntime.GraphOptimizationLevel) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _batches(rows: np.ndarray, length: int) -> list[np.ndarray]:
    """Rows in batches of exactly `length`; the last one repeats its last row."""
    starts = range(0, len(rows), length)
    return [rows[np.minimum(np.arange(start, start + length), len(rows) - 1)] for start in starts]
