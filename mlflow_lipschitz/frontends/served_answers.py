"""What a served model answers, made comparable with the graph's outputs: raw numbers, labels or probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlflow_lipschitz.errors import FidelityError
from mlflow_lipschitz.frontends.agreement import Agreement, Comparison, decisions, require_same_decision
from mlflow_lipschitz.frontends.classification import probabilities_from


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


def compare_served(own: np.ndarray, answer: np.ndarray, classes: list[Any] | None, agreement: Agreement) -> Comparison:
    """The graph's outputs (rows, outputs) against what the served model answered, (rows, values).

    A model whose classes are known answers labels, probabilities or scores; any other answers its raw outputs or the
    position of the largest. Which one it was is decided by the form of the answer, never by what happens to fit.

    Raises:
        FidelityError: the answer has none of these forms, or differs.
    """
    if classes is not None:
        return _compare_classifier(own, answer, classes, agreement)
    if answer.dtype.kind in "fiub" and answer.shape == own.shape:
        return agreement.compare("graph against served outputs", own, answer.astype(np.float64))
    if answer.shape[1] == 1 and answer.dtype.kind in "iu" and own.shape[1] > 1:
        return _compare_labels(own, answer[:, 0], list(range(own.shape[1])))
    raise FidelityError(
        f"nothing can be compared: the served model answers {answer.shape[1]} value(s) of type {answer.dtype} per row, "
        f"the graph has {own.shape[1]} output(s)"
    )


def _compare_classifier(own: np.ndarray, answer: np.ndarray, classes: list[Any], agreement: Agreement) -> Comparison:
    if answer.shape[1] == 1 and set(answer[:, 0].tolist()) <= set(classes):
        return _compare_labels(own, answer[:, 0], classes)
    if answer.dtype.kind == "f" and answer.shape == own.shape:
        if np.all((answer >= 0) & (answer <= 1)) and np.allclose(answer.sum(axis=1), 1.0, atol=1e-6):
            return _compare_probabilities(own, answer, agreement.precision.relative)
        return agreement.compare("graph against served scores", own, answer)
    if answer.dtype.kind == "f" and answer.shape[1] == 1 and len(classes) == 2:
        scores = own[:, 1:] - own[:, :1]
        return Agreement(scores, agreement.precision, decides=True).compare(
            "graph against served scores", scores, answer
        )
    raise FidelityError(
        f"nothing can be compared: the served model answers {answer.shape[1]} value(s) per row, among them "
        f"{answer[0, 0]!r}; the classes are {classes[:5]}"
    )


def _compare_probabilities(own: np.ndarray, answer: np.ndarray, tolerance: float) -> Comparison:
    """The link function cannot be seen from the answer; a wrong graph fits neither softmax nor sigmoids.

    Probabilities saturate where outputs do not, so they are compared as they are, by an absolute tolerance.
    """
    names = ("softmax of the graph", "normalized sigmoid of the graph")
    fits = [
        Comparison(f"{name} against served probabilities", np.abs(p - answer), np.full(answer.shape, tolerance))
        for name, p in zip(names, probabilities_from(own), strict=True)
    ]
    fit = min(fits, key=lambda fit: float(np.nan_to_num(fit.differences, nan=np.inf).max()))
    fit.require_small()
    top = decisions(own)
    # Saturated probabilities tie where outputs do not: only one that is larger decides otherwise.
    otherwise = answer.max(axis=1) > answer[np.arange(len(answer)), top]
    require_same_decision(fit.what, own, np.where(otherwise, answer.argmax(axis=1), top))
    return fit


def _compare_labels(own: np.ndarray, labels: np.ndarray, classes: list[Any]) -> Comparison:
    what = "argmax of the graph against served labels"
    position = {label: index for index, label in enumerate(classes)}
    require_same_decision(what, own, np.array([position.get(label, -1) for label in labels.tolist()]))
    return Comparison(what, np.zeros((len(own), 1)), np.zeros((len(own), 1)))
