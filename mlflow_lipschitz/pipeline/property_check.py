"""A VNN-LIB property of an ONNX file, from the two files to an answer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto

from mlflow_lipschitz.certify.counterexamples import Counterexample
from mlflow_lipschitz.certify.properties import PropertyAnswer, ServedModel, certify_property
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.errors import FidelityError, UsageError
from mlflow_lipschitz.frontends.fidelity import PRECISION
from mlflow_lipschitz.frontends.lowering import lower
from mlflow_lipschitz.frontends.onnx_answers import OnnxAnswers
from mlflow_lipschitz.frontends.to_onnx import to_onnx
from mlflow_lipschitz.pipeline.time_limit import OutOfTime, time_limit
from mlflow_lipschitz.vnnlib import UnsafeSet, read_property
from mlflow_lipschitz.vnnlib.numbers import floats_above, floats_below

_MARGIN = 0.97  # of the time: a search that ends by itself can say how far it came
_REPLAYED = (32, 96)  # points in the boxes and around them at which graph and onnxruntime are compared
_ROUNDINGS = 16  # of float32 or float64, that may come together
_AROUND = 0.5  # of the largest input: over a small box a function varies by little more than its rounding
_NEXT = "give it more time (--timeout) or a GPU (--device cuda), or ask about smaller boxes"


@dataclass(frozen=True)
class PropertyOptions:
    """timeout: seconds for everything; device: auto, cpu or cuda; chunk_size: linear forms in flight, bounds the memory."""

    timeout: float = 60.0
    device: str = "auto"
    chunk_size: int | None = None


@dataclass(frozen=True)
class PropertyReport:
    """The answer, what it means in words, and how long it took."""

    answer: PropertyAnswer
    message: str
    seconds: float

    @property
    def status(self) -> str:
        return self.answer.status

    @property
    def counterexample(self) -> Counterexample | None:
        return self.answer.counterexample


def check_property(model: Path, property_file: Path, options: PropertyOptions | None = None) -> PropertyReport:
    """Whether the unsafe set of the property is empty for the model.

    Raises:
        UsageError: a file cannot be read, or is no .onnx file. PropertyError: the property is not understood.
        InvalidRegion: it has another number of inputs or outputs than the model.
        UnsupportedOperator: the model cannot be bounded. FidelityError: the graph that was certified is not the file's.
    """
    options, began = options or PropertyOptions(), time.monotonic()
    try:
        with time_limit(options.timeout):
            answer = _answer(model, property_file, options, began)
    except OutOfTime:
        answer = PropertyAnswer("undecided", None, 0, f"no answer within {options.timeout:g} seconds")
    return PropertyReport(answer, _message(answer), time.monotonic() - began)


def _answer(model: Path, property_file: Path, options: PropertyOptions, began: float) -> PropertyAnswer:
    if model.suffix != ".onnx":
        raise UsageError(
            f"{model.name} is no .onnx file; a counterexample is checked by onnxruntime on the file itself"
        )
    unsafe, proto = read_property(property_file), to_onnx(model)
    graph, served = lower(proto), OnnxAnswers(model, proto)
    answer = certify_property(
        graph,
        unsafe,
        ServedModel(served.kind, served),
        timeout=_MARGIN * (options.timeout - (time.monotonic() - began)),
        device=options.device,
        chunk_size=options.chunk_size,
    )
    if answer.status == "certified":
        _require_same_function(graph, served, unsafe)
    return answer


def _require_same_function(graph: Graph, served: OnnxAnswers, unsafe: UnsafeSet) -> None:
    """Raise FidelityError unless graph and onnxruntime agree at points of the boxes and around them.

    A property is about values, so what may differ is measured by them: by how far an output varies, and by the rounding of
    the largest output, which others may be small differences of.
    """
    random = np.random.default_rng(0)
    cases = [unsafe.cases[i] for i in random.integers(len(unsafe.cases), size=sum(_REPLAYED))]
    lower = np.stack([floats_below(case.lower) for case in cases])
    upper = np.stack([floats_above(case.upper) for case in cases])
    margin = np.full((len(cases), 1), _AROUND * max(float(np.abs(lower).max()), float(np.abs(upper).max())) or 1.0)
    margin[: _REPLAYED[0]] = 0.0
    points = lower - margin + (upper - lower + 2 * margin) * random.random(lower.shape)
    taken, answers = served(points.reshape(-1, *graph.input_shape))
    own = evaluate(graph, taken.astype(np.float64)).numpy().reshape(len(points), -1)
    precision = PRECISION[TensorProto.FLOAT if served.kind is np.float32 else TensorProto.DOUBLE]
    allowed = precision.relative * np.ptp(own, axis=0) + _ROUNDINGS * precision.unit * np.abs(own).max()
    for answer in answers:
        difference = np.abs(answer.astype(np.float64) - own)
        wrong = ~(difference <= allowed)  # what is no number is wrong
        if wrong.any():
            row, output = np.argwhere(wrong)[0]
            raise FidelityError(
                f"graph and onnxruntime differ by {difference[row, output]:.3g} in output {output}, allowed is "
                f"{allowed[output]:.3g}. What would be certified is not the model that is served"
            )


def _message(answer: PropertyAnswer) -> str:
    if answer.status == "certified":
        return f"no input has an unsafe output; {answer.pieces} boxes were bounded, in real arithmetic"
    if answer.counterexample is None:
        tried = f", {answer.pieces} boxes were bounded" if answer.pieces else ""
        return f"{answer.reason}{tried}; {_NEXT}"
    note = (
        "; where a bound is no number of the model's type, the nearest was taken"
        if answer.counterexample.nearest
        else ""
    )
    return f"onnxruntime gives an unsafe output{note}"
