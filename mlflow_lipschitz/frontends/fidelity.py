"""Is the graph that will be certified the model that is served? Three programs, the same rows, compared number by number.

graph (float64) against onnxruntime (the model's own precision, no optimizations) against the served model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import FidelityError
from mlflow_lipschitz.frontends.classification import classes_of
from mlflow_lipschitz.frontends.preparation import ModelInput, model_input, output_name
from mlflow_lipschitz.frontends.referee import onnxruntime_session
from mlflow_lipschitz.frontends.served_answers import (
    Comparison,
    Tolerance,
    compare_outputs,
    compare_served,
    named_answer,
)

# float32 rounds each operation by at most 2⁻²⁴ ≈ 6e-8 of its result. The errors of a few thousand operations that mostly
# cancel stay below 1e-4 of the largest output; a wrong weight, axis or activation is far above it. For float64: 2⁻⁵³.
RELATIVE_TOLERANCE = {onnx.TensorProto.FLOAT: 1e-4, onnx.TensorProto.DOUBLE: 1e-9}
CHUNK_ENTRIES = 1 << 18  # input entries evaluated at once: bounds memory whatever the number of rows


@dataclass(frozen=True)
class FidelityReport:
    """What was compared, and how far apart it was at worst.

    Attributes:
        max_difference: largest difference of two numbers that should be equal, in units of the output.
        worst_row: position of the row where it occurred.
        rows: number of rows compared.
        compared: what was compared with what, one entry per comparison.
        tolerance: the difference that was allowed in that comparison.
    """

    max_difference: float
    worst_row: int
    rows: int
    compared: tuple[str, ...]
    tolerance: float


def replay(
    graph: Graph,
    model: onnx.ModelProto,
    points: np.ndarray,
    served: Callable[[np.ndarray], Any] | None = None,
    rel_tol: float | None = None,
    output: str | int | None = None,
) -> FidelityReport:
    """Run `points` through the graph, onnxruntime and the served model; raise unless all agree.

    Args:
        graph: what will be certified.
        model: the ONNX model it was lowered from.
        points: (rows, *input shape).
        served: the model as it answers requests, points → answers: raw outputs, or for classifiers labels or
            probabilities; an array, a data frame, or a dict with one of them. None skips this comparison.
        rel_tol: allowed difference relative to the largest output (for probabilities, absolute); by default 1e-4 for
            float32 models and 1e-9 for float64.
        output: the output that was lowered, as given to `lower`.

    Raises:
        FidelityError: two of them differ, or one is not finite, or nothing could be compared; names row and difference.
    """
    source = model_input(model)
    rel_tol = RELATIVE_TOLERANCE[source.element_type] if rel_tol is None else rel_tol
    points = np.asarray(points)
    if len(points) == 0 or points.shape[1:] != graph.input_shape:
        raise FidelityError(
            f"points of shape {points.shape} cannot be replayed on a graph that takes {graph.input_shape}"
        )
    # The model sees the points in its own precision, so the graph must too: rounding a row is not the model's error.
    rounded = points.astype(np.float32 if source.element_type == onnx.TensorProto.FLOAT else np.float64)
    own = np.concatenate([evaluate(graph, chunk).numpy() for chunk in _chunks(rounded)])
    if not np.isfinite(own).all():
        raise FidelityError(f"the graph gives NaN or infinity on row {int((~np.isfinite(own)).any(axis=1).argmax())}")
    tolerance = Tolerance(rel_tol, float(np.abs(own).max(initial=0.0)))
    name = output_name(model, output)
    reference = _run_onnxruntime(model, source, rounded, name)
    comparisons = [compare_outputs("onnxruntime", own, reference, tolerance)]
    if served is not None:
        answers = _answers(served, points, source.batch, name)
        comparisons.append(compare_served(own, answers, classes_of(model), tolerance))
    for comparison in comparisons:
        _require_small(comparison)
    worst = max(comparisons, key=lambda comparison: float(comparison.differences.max()))
    row = int(worst.differences.argmax())
    return FidelityReport(
        max_difference=float(worst.differences[row]),
        worst_row=row,
        rows=len(points),
        compared=tuple(comparison.what for comparison in comparisons),
        tolerance=worst.tolerance,
    )


def _answers(served: Callable[[np.ndarray], Any], points: np.ndarray, length: int | None, output: str) -> np.ndarray:
    """(rows, values) the served model answers, asked in batches that a model exported with a fixed batch can take."""
    parts = []
    try:
        for batch, rows in _batches(points, length):
            answer = named_answer(served(batch), output)
            if len(answer) != len(batch):
                raise FidelityError(f"the served model gave {len(answer)} answers for {len(batch)} rows")
            parts.append(answer[:rows])
    except FidelityError:
        raise
    except Exception as error:  # any model may be served, and whatever it raises, nothing was compared
        raise FidelityError(f"the served model failed on the audited rows: {type(error).__name__}: {error}") from error
    return np.concatenate(parts)


def _require_small(comparison: Comparison) -> None:
    # "not <=" instead of ">": a NaN difference is a mismatch.
    bad = ~(comparison.differences <= comparison.tolerance)
    if bad.any():
        differences = np.where(np.isnan(comparison.differences), np.inf, comparison.differences)
        row = int(differences.argmax())
        raise FidelityError(
            f"{comparison.what}: {int(bad.sum())} of {len(bad)} rows differ; worst is row {row} with a difference of "
            f"{comparison.differences[row]:.6g}, allowed is {comparison.tolerance:.3g}. What would be certified is "
            "not the model that is served"
        )


def _run_onnxruntime(model: onnx.ModelProto, source: ModelInput, points: np.ndarray, output: str) -> np.ndarray:
    """(rows, outputs) of one output of the model, in batches of the length it was exported with."""
    session = onnxruntime_session(model)
    parts = []
    for batch, rows in _batches(points, source.batch):
        outputs = np.asarray(session.run([output], {source.name: batch})[0], dtype=np.float64)
        parts.append(outputs.reshape(len(batch), -1)[:rows])
    return np.concatenate(parts)


def _batches(points: np.ndarray, length: int | None) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of `length` rows (any when None) and how many rows of each count: the last is filled by repeating a row."""
    for chunk in _chunks(points):
        step = length or len(chunk)
        for start in range(0, len(chunk), step):
            rows = chunk[start : start + step]
            yield np.concatenate([rows, np.repeat(rows[-1:], step - len(rows), axis=0)]), len(rows)


def _chunks(points: np.ndarray) -> Iterator[np.ndarray]:
    rows = max(1, CHUNK_ENTRIES // max(1, int(np.prod(points.shape[1:]))))
    for start in range(0, len(points), rows):
        yield points[start : start + rows]
