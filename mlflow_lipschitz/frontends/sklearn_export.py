"""scikit-learn estimators → ONNX through skl2onnx, in double precision, classifiers cut at their raw scores.

Double precision because scikit-learn computes in it: the weights stay exactly as fitted and onnxruntime agrees with the
served model to about 1e-15. In single precision skl2onnx would round every weight: not the served model any more.

A classifier's label is a step function and its probabilities saturate; what is certified are its logits: one per class,
so that argmax gives the label and softmax the probabilities. With two classes scikit-learn has one score d, and the
logits are [0, d].
"""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mlflow_lipschitz.errors import FidelityError, UnsupportedOperator, UsageError
from mlflow_lipschitz.frontends.classification import CLASSES_KEY, probabilities_from
from mlflow_lipschitz.frontends.node_order import needed_nodes
from mlflow_lipschitz.frontends.referee import onnxruntime_session

OPSETS = {"": 18, "ai.onnx.ml": 3}
_LINKS = ("Softmax", "Sigmoid")
_AFTER_LINKS = ("Identity", "Cast", "Normalizer", "Concat", "Sub", "Reshape")


def sklearn_to_onnx(estimator: Any, example: Any = None) -> onnx.ModelProto:
    """ONNX model of a fitted estimator or pipeline over numeric columns.

    Args:
        estimator: regressor, classifier, or pipeline ending in one.
        example: (rows, features) rows on which a classifier's logits are checked; random rows when None. A frame is
            taken by the names the estimator was fitted with, an array is in the order of the fit.

    Raises:
        UsageError: not fitted, or a frame without one of its columns.
        UnsupportedOperator: skl2onnx cannot convert it, or it is not a classifier with one label per row.
        FidelityError: no cut of the exported classifier gives its scores.
    """
    features = getattr(estimator, "n_features_in_", None)
    if features is None:
        raise UsageError(f"{type(estimator).__name__} is not fitted: it has no n_features_in_")
    classes = getattr(estimator, "classes_", None)
    rows = np.random.default_rng(0).normal(size=(32, features)) if example is None else _in_order(estimator, example)
    if classes is None:
        return _checked(estimator, _converted(estimator, {}), rows)
    if np.ndim(classes) != 1 or len(classes) < 2 or np.ndim(estimator.predict(_as_fitted(estimator, rows))) != 1:
        raise _unsupported(estimator, "it does not predict one label per row", "audit one label at a time")
    return _cut_at_logits(estimator, _with_raw_scores(estimator), rows)


def _with_positions(estimator: Any) -> Any:
    """A copy whose column transformers know their columns by position: the exported model takes one array."""
    copied = copy.deepcopy(estimator)
    for part in (copied, *(step for _, step in getattr(copied, "steps", ()))):
        if hasattr(part, "transformers_") and hasattr(part, "feature_names_in_"):
            position = {name: index for index, name in enumerate(part.feature_names_in_)}
            part.transformers_ = [(name, step, _positions(own, position)) for name, step, own in part.transformers_]
    return copied


def _in_order(estimator: Any, example: Any) -> np.ndarray:
    """The example as an array, its columns in the order of the fit: the exported model takes them by position."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is not None and hasattr(example, "columns"):
        missing = [name for name in names if name not in example.columns]
        if missing:
            raise UsageError(f"the example has no column {missing[0]!r}, which the estimator was fitted with")
        example = example[list(names)]
    return np.asarray(example, dtype=float)


def _as_fitted(estimator: Any, rows: np.ndarray) -> Any:
    """Rows that are in the order of the fit, with the column names the estimator was fitted with, if it was."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is None:
        return rows
    import pandas as pd

    return pd.DataFrame(rows, columns=names)


def _positions(columns: Any, position: dict[str, int]) -> Any:
    if isinstance(columns, str):
        return position[columns]
    if isinstance(columns, (list, tuple, np.ndarray)) and all(isinstance(column, str) for column in columns):
        return [position[column] for column in columns]
    return columns


def _checked(estimator: Any, model: onnx.ModelProto, rows: np.ndarray) -> onnx.ModelProto:
    """A regressor's model if it predicts what the estimator predicts: converters have been seen to miss an option."""
    predicted, own = _run(estimator, model, rows), _as_fitted(estimator, rows)
    expected = np.asarray(estimator.predict(own) if hasattr(estimator, "predict") else estimator.transform(own))
    if not np.allclose(np.reshape(predicted, np.shape(expected)), expected, rtol=1e-7, atol=1e-9, equal_nan=True):
        raise FidelityError(f"skl2onnx exports a {type(estimator).__name__} that does not predict what it predicts")
    return model


def _run(estimator: Any, model: onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
    try:
        return np.asarray(onnxruntime_session(model).run(None, {"input": rows})[0])
    except Exception as error:  # onnxruntime's exceptions have no base class of their own
        reason = f"onnxruntime cannot run it in double precision: {error}"
        raise _unsupported(estimator, reason, "use linear models or multi-layer perceptrons") from error


def _with_raw_scores(estimator: Any) -> onnx.ModelProto:
    # Each classifier takes some of these options; a link function that stays is removed by the cut.
    for wishes in ({"raw_scores": True, "zipmap": False}, {"raw_scores": True}, {"zipmap": False}):
        try:
            return _converted(estimator, wishes)
        except NameError:  # what skl2onnx raises for an option that this classifier does not have
            continue
    return _converted(estimator, {})


def _converted(estimator: Any, wishes: dict[str, bool]) -> onnx.ModelProto:
    """skl2onnx's model; `wishes` are options of the last step. Raises NameError when the last step has no such option."""
    from skl2onnx import convert_sklearn  # costs a second, and only scikit-learn models need it
    from skl2onnx.common.data_types import DoubleTensorType

    copied = _with_positions(estimator)
    final = copied.steps[-1][1] if hasattr(copied, "steps") else copied
    types = [("input", DoubleTensorType([None, estimator.n_features_in_]))]
    options = {id(final): wishes} if wishes else {}
    try:
        model = convert_sklearn(copied, initial_types=types, options=options, target_opset=OPSETS)
    except NameError:
        raise
    except Exception as error:  # converters of any package may be registered; whatever fails, we stop
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = f"skl2onnx cannot convert it: {reason}"
        raise _unsupported(estimator, reason, "use numeric columns and estimators that skl2onnx supports") from error
    return _without_imputers(model)


def _without_imputers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rows with missing values are refused before any model sees them, and onnxruntime has no Imputer for doubles."""
    for node in model.graph.node:
        missing = [a.f for a in node.attribute if a.name == "replaced_value_float"]
        if node.op_type == "Imputer" and missing and np.isnan(missing[0]):
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
    return model


def _cut_at_logits(estimator: Any, model: onnx.ModelProto, rows: np.ndarray) -> onnx.ModelProto:
    """The exported classifier up to its scores, as one logit per class; checked against the estimator on `rows`."""
    classes = [label.item() if isinstance(label, np.generic) else label for label in estimator.classes_]
    scores = _scores_name(model)
    width = _run(estimator, _with_output(model, scores, None), rows).shape[-1]
    candidates: list[np.ndarray | None] = [None] if width == len(classes) else []
    if len(classes) == 2 and width in (1, 2):
        positive = np.zeros((width, 2))
        positive[-1, 1] = 1.0
        candidates.insert(0, positive)
    for matrix in candidates:
        cut = _with_output(model, scores, matrix)
        if _agrees(estimator, _run(estimator, cut, rows), rows):
            helper.set_model_props(cut, {CLASSES_KEY: json.dumps(classes)})
            return cut
    raise FidelityError(
        f"no logits of {type(estimator).__name__} could be found that give its scores on {len(rows)} rows"
    )


def _scores_name(model: onnx.ModelProto) -> str:
    """Name of the tensor before the last Softmax or Sigmoid; the scores output itself when there is none."""
    producers = {name: node for node in model.graph.node for name in node.output}
    scores = model.graph.output[-1].name
    pending = [scores]
    while pending:
        node = producers.get(pending.pop())
        if node is not None and node.op_type in _LINKS:
            return str(node.input[0])
        if node is not None and node.op_type in _AFTER_LINKS:
            pending.extend(node.input)
    return scores


def _with_output(model: onnx.ModelProto, name: str, matrix: np.ndarray | None) -> onnx.ModelProto:
    """The part of the model that makes `name`, times `matrix`, as its only output `logit`."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    graph = cut.graph
    if matrix is None:
        graph.node.append(helper.make_node("Identity", [name], ["logit"], name="logits"))
    else:
        graph.initializer.append(numpy_helper.from_array(matrix, "score_to_logits"))
        graph.node.append(helper.make_node("MatMul", [name, "score_to_logits"], ["logit"], name="logits"))
    nodes = needed_nodes(graph, "logit")
    used = {part for node in nodes for part in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    graph.output.append(helper.make_tensor_value_info("logit", onnx.TensorProto.DOUBLE, [None, None]))
    return cut


def _agrees(estimator: Any, logits: np.ndarray, rows: np.ndarray) -> bool:
    """Whether logits give the estimator's own scores and probabilities (or labels, where it has neither)."""
    compared, frame = [], _as_fitted(estimator, rows)
    if hasattr(estimator, "decision_function"):
        scores = np.asarray(estimator.decision_function(frame))
        own = logits[:, 1] - logits[:, 0] if scores.ndim == 1 else logits
        compared.append(own.shape == scores.shape and np.allclose(own, scores, rtol=1e-9, atol=1e-9))
    if hasattr(estimator, "predict_proba"):
        expected = np.asarray(estimator.predict_proba(frame))
        compared.append(any(np.allclose(p, expected, rtol=1e-9, atol=1e-12) for p in probabilities_from(logits)))
    if not compared:
        compared.append(np.array_equal(np.asarray(estimator.classes_)[logits.argmax(axis=1)], estimator.predict(frame)))
    return bool(all(compared))


def _unsupported(estimator: Any, reason: str, remedy: str) -> UnsupportedOperator:
    return UnsupportedOperator(type(estimator).__name__, "estimator", reason=reason, remedy=remedy)
