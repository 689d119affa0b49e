"""What a served model answers, made comparable with the graph's outputs: raw numbers, labels or probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from mlflow_lipschitz.errors import FidelityError
from mlflow_lipschitz.frontends.classification import classes_of, probabilities_from


@dataclass(frozen=True)
class Comparison:
    """`differences` (rows,) are those that count; they may be `slack` times the tolerance."""

    what: str
    differences: np.ndarray
    slack: float = 1.0


def compare_served(own: np.ndarray, answers: Any, model: onnx.ModelProto, tolerance: float) -> Comparison:
    """The graph's outputs (rows, outputs) against what the served model answered.

    A model whose classes are known answers labels, probabilities or scores; any other answers its raw outputs or the
    position of the largest. Which one it was is decided by the form of the answer, never by what happens to fit.

    Raises:
        FidelityError: the answer has none of these forms.
    """
    answer = _as_array(answers, model)
    if len(answer) != len(own):
        raise FidelityError(f"the served model gave {len(answer)} answers for {len(own)} rows")
    answer = answer.reshape(len(answer), -1)
    classes = classes_of(model)
    if classes is not None:
        return _classifier(own, answer, classes)
    if answer.dtype.kind in "fiub" and answer.shape == own.shape:
        return Comparison("graph against served outputs", _largest(own - answer.astype(np.float64)))
    if answer.shape[1] == 1 and answer.dtype.kind in "iu" and own.shape[1] > 1:
        return _labels(own, answer[:, 0], list(range(own.shape[1])))
    raise FidelityError(
        f"nothing can be compared: the served model answers {answer.shape[1]} value(s) of type {answer.dtype} per row, the "
        f"graph has {own.shape[1]} output(s)"
    )


def _classifier(own: np.ndarray, answer: np.ndarray, classes: list[Any]) -> Comparison:
    if answer.shape[1] == 1 and set(answer[:, 0].tolist()) <= set(classes):
        return _labels(own, answer[:, 0], classes)
    if answer.dtype.kind == "f" and answer.shape == own.shape:
        probable = np.all((answer >= 0) & (answer <= 1)) and np.allclose(answer.sum(axis=1), 1.0, atol=1e-6)
        if not probable:
            return Comparison("graph against served scores", _largest(own - answer))
        # Which link function it is cannot be seen from the answer; a wrong graph fits neither.
        names = ("softmax of the graph", "normalized sigmoid of the graph")
        pairs = zip(names, probabilities_from(own), strict=True)
        fits = [Comparison(f"{name} against served probabilities", _largest(p - answer)) for name, p in pairs]
        return min(fits, key=lambda fit: float(np.nan_to_num(fit.differences, nan=np.inf).max()))
    if answer.dtype.kind == "f" and answer.shape[1] == 1 and len(classes) == 2:
        return Comparison("graph against served scores", np.abs(own[:, 1] - own[:, 0] - answer[:, 0]))
    raise FidelityError(
        f"nothing can be compared: the served model answers {answer.shape[1]} value(s) per row, among them "
        f"{answer[0, 0]!r}; the classes are {classes[:5]}"
    )


def _labels(own: np.ndarray, labels: np.ndarray, classes: list[Any]) -> Comparison:
    """How far the served label's logit is below the largest one: 0 where argmax agrees, and a tie is no mismatch."""
    position = {label: index for index, label in enumerate(classes)}
    chosen = np.array([position.get(label, -1) for label in labels.tolist()])
    shortfall = own.max(axis=1) - own[np.arange(len(own)), chosen]
    # Two outputs are compared here, each of which may be off by the tolerance.
    return Comparison("argmax of the graph against served labels", np.where(chosen < 0, np.nan, shortfall), slack=2.0)


def _largest(differences: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(differences).max(axis=1))


def _as_array(answers: Any, model: onnx.ModelProto) -> np.ndarray:
    if isinstance(answers, dict):
        first = model.graph.output[0].name
        if first not in answers and len(answers) != 1:
            raise FidelityError(f"the served model answers {sorted(answers)}, and none of these is {first!r}")
        answers = answers[first] if first in answers else next(iter(answers.values()))
    if hasattr(answers, "detach"):
        answers = answers.detach().cpu()
    array = np.asarray(answers)
    if array.dtype.kind == "O":
        array = np.array(array.tolist())  # a data frame of mixed columns, or a list of rows, as plain values
    if array.ndim == 0:
        raise FidelityError(f"the served model answers one value, {array!r}, for all rows")
    return array
