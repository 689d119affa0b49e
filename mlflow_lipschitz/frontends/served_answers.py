"""What a served model answers, made comparable with the graph's outputs: raw numbers, labels or probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_lipschitz.errors import FidelityError
from mlflow_lipschitz.frontends.classification import probabilities_from


@dataclass(frozen=True)
class Tolerance:
    """Differences of outputs may be `relative` times the largest output, those of probabilities `relative` itself."""

    relative: float
    largest_output: float

    @property
    def of_outputs(self) -> float:
        return self.relative * (self.largest_output or 1.0)


@dataclass(frozen=True)
class Comparison:
    """What was compared, the difference per row, (rows,), and how large each may be."""

    what: str
    differences: np.ndarray
    tolerance: float


def named_answer(answers: Any, output: str) -> np.ndarray:
    """The answer for one output as an array: from an array, tensor, data frame or list, or a dict of such."""
    if isinstance(answers, dict):
        if output not in answers and len(answers) != 1:
            raise FidelityError(f"the served model answers {sorted(answers)}, and none of these is {output!r}")
        answers = answers[output] if output in answers else next(iter(answers.values()))
    if hasattr(answers, "detach"):
        answers = answers.detach().cpu()
    array = np.asarray(answers)
    if array.dtype.kind == "O":
        array = np.array(array.tolist())  # a data frame of mixed columns, or a list of rows, as plain values
    if array.ndim == 0:
        raise FidelityError(f"the served model gives one answer, {array!r}, for all rows")
    return array.reshape(len(array), -1)


def compare_outputs(name: str, own: np.ndarray, other: np.ndarray, tolerance: Tolerance) -> Comparison:
    """The graph's outputs (rows, outputs) against another program's."""
    if own.shape != other.shape:
        raise FidelityError(f"{name} gives {other.shape[1]} outputs per row, the graph {own.shape[1]}")
    return Comparison(f"graph against {name}", _largest(own - other), tolerance.of_outputs)


def compare_served(own: np.ndarray, answer: np.ndarray, classes: list[Any] | None, tolerance: Tolerance) -> Comparison:
    """The graph's outputs (rows, outputs) against what the served model answered, (rows, values).

    A model whose classes are known answers labels, probabilities or scores; any other answers its raw outputs or the
    position of the largest. Which one it was is decided by the form of the answer, never by what happens to fit.

    Raises:
        FidelityError: the answer has none of these forms.
    """
    if classes is not None:
        return _compare_classifier(own, answer, classes, tolerance)
    if answer.dtype.kind in "fiub" and answer.shape == own.shape:
        return compare_outputs("served outputs", own, answer.astype(np.float64), tolerance)
    if answer.shape[1] == 1 and answer.dtype.kind in "iu" and own.shape[1] > 1:
        return _compare_labels(own, answer[:, 0], list(range(own.shape[1])), tolerance)
    raise FidelityError(
        f"nothing can be compared: the served model answers {answer.shape[1]} value(s) of type {answer.dtype} per row, "
        f"the graph has {own.shape[1]} output(s)"
    )


def _compare_classifier(own: np.ndarray, answer: np.ndarray, classes: list[Any], tolerance: Tolerance) -> Comparison:
    if answer.shape[1] == 1 and set(answer[:, 0].tolist()) <= set(classes):
        return _compare_labels(own, answer[:, 0], classes, tolerance)
    if answer.dtype.kind == "f" and answer.shape == own.shape:
        if np.all((answer >= 0) & (answer <= 1)) and np.allclose(answer.sum(axis=1), 1.0, atol=1e-6):
            return _compare_probabilities(own, answer, tolerance)
        return compare_outputs("served scores", own, answer, tolerance)
    if answer.dtype.kind == "f" and answer.shape[1] == 1 and len(classes) == 2:
        return compare_outputs("served scores", own[:, 1:] - own[:, :1], answer, tolerance)
    raise FidelityError(
        f"nothing can be compared: the served model answers {answer.shape[1]} value(s) per row, among them "
        f"{answer[0, 0]!r}; the classes are {classes[:5]}"
    )


def _compare_probabilities(own: np.ndarray, answer: np.ndarray, tolerance: Tolerance) -> Comparison:
    """The link function cannot be seen from the answer; a wrong graph fits neither softmax nor sigmoids."""
    names = ("softmax of the graph", "normalized sigmoid of the graph")
    fits = [
        Comparison(f"{name} against served probabilities", _largest(p - answer), tolerance.relative)
        for name, p in zip(names, probabilities_from(own), strict=True)
    ]
    return min(fits, key=lambda fit: float(np.nan_to_num(fit.differences, nan=np.inf).max()))


def _compare_labels(own: np.ndarray, labels: np.ndarray, classes: list[Any], tolerance: Tolerance) -> Comparison:
    """How far the served label's logit is below the largest one: 0 where argmax agrees, and a tie is no mismatch."""
    position = {label: index for index, label in enumerate(classes)}
    chosen = np.array([position.get(label, -1) for label in labels.tolist()])
    shortfall = own.max(axis=1) - own[np.arange(len(own)), chosen]
    differences = np.where(chosen < 0, np.nan, shortfall)
    # Two outputs meet here, each of which may be off by the tolerance.
    return Comparison("argmax of the graph against served labels", differences, 2 * tolerance.of_outputs)


def _largest(differences: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(differences).max(axis=1))
