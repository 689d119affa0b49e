"""Is the graph that will be certified the model that is served? Three programs, the same rows, compared number by number.

graph (float64) against onnxruntime (the model's own precision, no optimizations) against the served model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch

from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.ir.ops import Rounding
from mlflow_lipschitz.engine.propagation.interpreter import enclose, evaluate
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.rules.weights import weights_of
from mlflow_lipschitz.errors import FidelityError
from mlflow_lipschitz.frontends.agreement import Agreement, Comparison, Precision
from mlflow_lipschitz.frontends.classification import classes_of
from mlflow_lipschitz.frontends.preparation import ModelInput, model_input, output_name
from mlflow_lipschitz.frontends.referee import onnxruntime_session
from mlflow_lipschitz.frontends.served_answers import compare_served, named_answer

# float32 rounds each operation by at most 2⁻²⁴ ≈ 6e-8 of its result. The errors of a few thousand operations that mostly
# cancel stay below 1e-4 of what an output varies by; a wrong weight, axis or activation is far above it. For float64: 2⁻⁵³.
PRECISION = {
    onnx.TensorProto.FLOAT: Precision(1e-4, 2.0**-24),
    onnx.TensorProto.DOUBLE: Precision(1e-9, 2.0**-53),
}
CHUNK_ENTRIES = 1 << 18  # input entries evaluated at once: bounds memory whatever the number of rows


@dataclass(frozen=True)
class FidelityReport:
    """What was compared, and how far apart it was at worst.

    Attributes:
        max_difference: largest difference of two numbers that should be equal, in units of the output.
        worst_row: position of the row where it occurred.
        rows: number of rows compared.
        compared: what was compared with what, one entry per comparison.
        tolerance: the difference that was allowed there.
    """

    max_difference: float
    worst_row: int
    rows: int
    compared: tuple[str, ...]
    tolerance: float


@dataclass(frozen=True)
class ReplayOptions:
    """
    Attributes:
        output: the output that was lowered, as given to `lower`.
        relative: allowed difference relative to what an output varies by; by default 1e-4 for float32 models and 1e-9 for
            float64. For probabilities it is absolute.
        decides: whether the largest output (or the sign of a single one) is what is audited, so that leads and decisions
            are compared too. Classifiers whose classes are known always decide.
        served_rows: what the served model is asked, a row per point: an array or a frame; None: the points themselves.
    """

    output: str | int | None = None
    relative: float | None = None
    decides: bool = False
    served_rows: Any = None


def replay(
    graph: Graph,
    model: onnx.ModelProto,
    points: np.ndarray,
    served: Callable[[np.ndarray], Any] | None = None,
    *,
    extra_points: np.ndarray | None = None,
    options: ReplayOptions | None = None,
) -> FidelityReport:
    """Run `points` through the graph, onnxruntime and the served model; raise unless all agree.

    Args:
        graph: what will be certified.
        model: the ONNX model it was lowered from.
        points: (rows, *input shape).
        served: the model as it answers requests, points → answers: raw outputs, or for classifiers labels or
            probabilities; an array, a data frame, or a dict with one of them. None skips this comparison.
        extra_points: (any, *input shape), other points of the region a bound will hold for; only the graph and
            onnxruntime see them.
        options: what is compared and how closely.

    Raises:
        FidelityError: two of them differ, or one is not finite, or nothing could be compared; names row and difference.
    """
    options = options or ReplayOptions()
    source = model_input(model)
    points, extra = np.asarray(points), np.asarray(points[:0] if extra_points is None else extra_points)
    if len(points) == 0 or not points.shape[1:] == extra.shape[1:] == graph.input_shape:
        raise FidelityError(
            f"points of shape {points.shape} and {extra.shape} cannot be replayed on a graph that takes {graph.input_shape}"
        )
    # The model sees the points in its own precision, so the graph must too: rounding a row is not the model's error.
    rounded = np.concatenate([points, extra]).astype(
        np.float32 if source.element_type == onnx.TensorProto.FLOAT else np.float64
    )
    own = _own_outputs(graph, rounded, len(points))
    name, classes = output_name(model, options.output), classes_of(model)
    decides = options.decides or classes is not None
    agreement = Agreement(own, _precision(source, options), decides=decides, band=_rounding_band(graph, rounded, own))
    reference = _run_onnxruntime(model, source, rounded, name)
    rows = len(points)
    audited = agreement.of_rows(slice(0, rows))
    comparisons = [audited.compare("graph against onnxruntime", own[:rows], reference[:rows])]
    if len(extra):
        what = f"graph against onnxruntime on {len(extra)} more points of the region"
        others = agreement.of_rows(slice(rows, None))
        comparisons.append(others.compare(what, own[rows:], reference[rows:]))
    if served is not None:
        asked = points if options.served_rows is None else options.served_rows
        answers = _answers(served, asked, source.batch, name)
        comparisons.append(compare_served(own[:rows], answers, classes, audited))
    return _report(comparisons, rows)


def _precision(source: ModelInput, options: ReplayOptions) -> Precision:
    precision = PRECISION[source.element_type]
    return precision if options.relative is None else replace(precision, relative=options.relative)


def _own_outputs(graph: Graph, points: np.ndarray, rows: int) -> np.ndarray:
    own = np.concatenate([evaluate(graph, chunk).numpy() for chunk in _chunks(points)])
    bad = np.flatnonzero(~np.isfinite(own).all(axis=1))
    if bad.size:
        place = f"row {bad[0]}" if bad[0] < rows else f"point {bad[0] - rows} of the region"
        raise FidelityError(f"the graph gives NaN or infinity on {place}")
    return own


def _rounding_band(graph: Graph, points: np.ndarray, own: np.ndarray) -> np.ndarray | None:
    """(rows, outputs) how far each can be from the graph's if values that are rounded go the other way; None where none is.

    Raises FidelityError where that cannot be bounded: any answer would do there.
    """
    if not any(isinstance(node.op, Rounding) for node in graph.nodes):
        return None
    weights = weights_of(graph, torch.device("cpu"))
    boxes = (torch.from_numpy(chunk.astype(np.float64)) for chunk in _chunks(points))
    ranges = [enclose(Problem(graph, weights, Box(box, box))) for box in boxes]
    low, high = (np.concatenate([getattr(part, end)[:, 0].numpy() for part in ranges]) for end in ("lower", "upper"))
    band = np.maximum(high - own, own - low)
    bad = np.flatnonzero(~np.isfinite(band).all(axis=1))
    if bad.size:
        raise FidelityError(f"row {bad[0]}: what its rounded activations do to the output cannot be bounded")
    return np.asarray(band)


def _report(comparisons: list[Comparison], rows: int) -> FidelityReport:
    worst = max(comparisons, key=lambda comparison: float(comparison.differences.max()))
    row, number = np.unravel_index(int(worst.differences.argmax()), worst.differences.shape)
    return FidelityReport(
        max_difference=float(worst.differences[row, number]),
        worst_row=int(row),
        rows=rows,
        compared=tuple(comparison.what for comparison in comparisons),
        tolerance=float(worst.allowed[row, number]),
    )


def _answers(served: Callable[[Any], Any], asked: Any, length: int | None, output: str) -> np.ndarray:
    """(rows, values) the served model answers, asked in batches that a model exported with a fixed batch can take."""
    parts = []
    try:
        for batch, rows in _batches(asked, length):
            answer = named_answer(served(batch), output)
            if len(answer) != len(batch):
                raise FidelityError(f"the served model gave {len(answer)} answers for {len(batch)} rows")
            parts.append(answer[:rows])
    except FidelityError:
        raise
    except Exception as error:  # any model may be served, and whatever it raises, nothing was compared
        raise FidelityError(f"the served model failed on the audited rows: {type(error).__name__}: {error}") from error
    return np.concatenate(parts)


def _run_onnxruntime(model: onnx.ModelProto, source: ModelInput, points: np.ndarray, output: str) -> np.ndarray:
    """(rows, outputs) of one output of the model, in batches of the length it was exported with."""
    parts = []
    try:
        session = onnxruntime_session(model)
        for batch, rows in _batches(points, source.batch):
            outputs = np.asarray(session.run([output], {source.name: batch})[0], dtype=np.float64)
            parts.append(outputs.reshape(len(batch), -1)[:rows])
    except Exception as error:  # onnxruntime's exceptions have no base class of their own
        raise FidelityError(f"onnxruntime cannot run the model on the audited rows: {error}") from error
    return np.concatenate(parts)


def _batches(points: Any, length: int | None) -> Iterator[tuple[Any, int]]:
    """Batches of `length` rows (any when None) and how many rows of each count: the last is filled by repeating a row."""
    take = points.iloc if hasattr(points, "iloc") else points
    for start, stop in _spans(points):
        step = length or stop - start
        for first in range(start, stop, step):
            last = min(first + step, stop)
            yield take[np.minimum(np.arange(first, first + step), last - 1)], last - first


def _chunks(points: np.ndarray) -> Iterator[np.ndarray]:
    yield from (points[start:stop] for start, stop in _spans(points))


def _spans(points: Any) -> Iterator[tuple[int, int]]:
    """(start, stop) of rows that are evaluated at once."""
    rows = max(1, CHUNK_ENTRIES // max(1, int(np.prod(points.shape[1:]))))
    yield from ((start, min(start + rows, len(points))) for start in range(0, len(points), rows))
