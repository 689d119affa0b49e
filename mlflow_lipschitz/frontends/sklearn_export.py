"""scikit-learn estimators → ONNX through skl2onnx, in double precision, classifiers cut at their raw scores.

Double precision because scikit-learn computes in it: the weights stay exactly as fitted and onnxruntime agrees with the
served model to about 1e-15. In single precision skl2onnx would round every weight: not the served model any more.

A classifier's label is a step function and its probabilities saturate; what is certified are its logits: one per class,
so that argmax gives the label and softmax the probabilities. With two classes scikit-learn has one score d, and the
logits are [0, d].

Columns that encoders look up are inputs of their own, of text or whole numbers; see `sklearn_columns`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pandas as pd
from onnx import helper, numpy_helper

from mlflow_lipschitz.errors import FidelityError, UnsupportedOperator
from mlflow_lipschitz.frontends.classification import CLASSES_KEY, probabilities_from
from mlflow_lipschitz.frontends.discrete_columns import COLUMNS_KEY
from mlflow_lipschitz.frontends.node_order import needed_nodes
from mlflow_lipschitz.frontends.referee import onnxruntime_session
from mlflow_lipschitz.frontends.sklearn_columns import NUMBERS, FittedColumns, fitted_columns
from mlflow_lipschitz.frontends.sklearn_copy import exportable
from mlflow_lipschitz.frontends.sklearn_far_rows import answered_far_away, close_far_away
from mlflow_lipschitz.frontends.sklearn_refusals import refuse_jumps

OPSETS = {"": 18, "ai.onnx.ml": 3}
_LINKS = ("Softmax", "Sigmoid")
_AFTER_LINKS = ("Identity", "Cast", "Normalizer", "Concat", "Sub", "Reshape")

Table = pd.DataFrame | np.ndarray
Close = Callable[[np.ndarray, np.ndarray, float], bool]


def sklearn_to_onnx(estimator: Any, example: Any = None) -> onnx.ModelProto:
    """ONNX model of a fitted estimator or pipeline.

    Args:
        estimator: regressor, classifier, or pipeline ending in one.
        example: (rows, features) rows on which the exported model is checked; random rows when None. A frame is taken by the
            names the estimator was fitted with, an array is in the order of the fit.

    Raises:
        UsageError: not fitted, or a frame without one of its columns.
        UnsupportedOperator: skl2onnx cannot convert it, a part of it jumps, or it is a classifier without one label per row.
        FidelityError: the exported model answers otherwise than the estimator, on the example or far outside of it.
    """
    refuse_jumps(estimator)
    columns = fitted_columns(estimator)
    rows = columns.table(example)
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        model = _checked(estimator, _converted(estimator, columns, {}), columns, rows)
    elif np.ndim(classes) != 1 or len(classes) < 2 or np.ndim(estimator.predict(rows)) != 1:
        raise _unsupported(estimator, "it does not predict one label per row", "audit one label at a time")
    else:
        model = _cut_at_logits(estimator, _with_raw_scores(estimator, columns), columns, rows)
    if columns.categories:
        named = columns.names is not None
        about = {"names": columns.labels, "inputs": columns.inputs, "unread": columns.unread, "by_name": named}
        model.metadata_props.add(key=COLUMNS_KEY, value=json.dumps(about))
    return model


def _checked(estimator: Any, model: onnx.ModelProto, columns: FittedColumns, rows: Table) -> onnx.ModelProto:
    """A regressor's model if it predicts what the estimator predicts: converters have been seen to miss an option."""
    predicted = _run(estimator, model, columns.feeds(rows))
    expected = _predicted(estimator, rows)
    if not np.allclose(np.reshape(predicted, np.shape(expected)), expected, rtol=1e-7, atol=1e-9, equal_nan=True):
        raise FidelityError(f"skl2onnx exports a {type(estimator).__name__} that does not predict what it predicts")
    for far, answers in answered_far_away(columns, rows, lambda table: _predicted(estimator, table)):
        if not close_far_away(_run(estimator, model, columns.feeds(far)), answers):
            raise _other_far_away(estimator)
    return model


def _predicted(estimator: Any, rows: Table) -> np.ndarray:
    return np.asarray(estimator.predict(rows) if hasattr(estimator, "predict") else _dense(estimator.transform(rows)))


def _other_far_away(estimator: Any) -> FidelityError:
    return FidelityError(
        f"skl2onnx exports a {type(estimator).__name__} that answers rows far outside the example otherwise than the "
        "estimator: it drops an option of it, such as clipping. Leave the option out, or clip the columns before the model"
    )


def _dense(answers: Any) -> Any:
    return answers.toarray() if hasattr(answers, "toarray") else answers


def _run(estimator: Any, model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    try:
        session = onnxruntime_session(model)
        read = {source.name for source in session.get_inputs()}
        return np.asarray(session.run(None, {name: rows for name, rows in feeds.items() if name in read})[0])
    except Exception as error:  # onnxruntime's exceptions have no base class of their own
        reason = f"onnxruntime cannot run it in double precision: {error}"
        raise _unsupported(
            estimator, reason, "use linear models, kernel machines or multi-layer perceptrons"
        ) from error


def _with_raw_scores(estimator: Any, columns: FittedColumns) -> onnx.ModelProto:
    # Each classifier takes some of these options; a link function that stays is removed by the cut.
    for wishes in ({"raw_scores": True, "zipmap": False}, {"raw_scores": True}, {"zipmap": False}):
        try:
            return _converted(estimator, columns, wishes)
        except NameError:  # what skl2onnx raises for an option that this classifier does not have
            continue
    return _converted(estimator, columns, {})


def _converted(estimator: Any, columns: FittedColumns, wishes: dict[str, bool]) -> onnx.ModelProto:
    """skl2onnx's model; `wishes` are options of the last step. Raises NameError when the last step has no such option."""
    from skl2onnx import convert_sklearn  # costs a second, and only scikit-learn models need it

    from mlflow_lipschitz.frontends.sklearn_converters import CONVERTERS, SHAPES

    copied = exportable(estimator, columns)
    final = copied.steps[-1][1] if hasattr(copied, "steps") else copied
    try:
        return convert_sklearn(
            copied,
            initial_types=_input_types(columns),
            options={id(final): wishes} if wishes else {},
            target_opset=OPSETS,
            custom_conversion_functions=CONVERTERS,
            custom_shape_calculators=SHAPES,
        )
    except (NameError, UnsupportedOperator):
        raise
    except Exception as error:  # converters of any package may be registered; whatever fails, we stop
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = f"skl2onnx cannot convert it: {reason}"
        raise _unsupported(estimator, reason, "use estimators that skl2onnx supports in double precision") from error


def _input_types(columns: FittedColumns) -> list[tuple[str, Any]]:
    from skl2onnx.common.data_types import DoubleTensorType, Int64TensorType, StringTensorType

    kinds = {"text": StringTensorType, "whole": Int64TensorType}
    types = [(NUMBERS, DoubleTensorType([None, len(columns.numbers)]))] if columns.numbers else []
    return types + [(f"category_{c.position}", kinds[c.kind]([None, 1])) for c in columns.categories]


def _cut_at_logits(estimator: Any, model: onnx.ModelProto, columns: FittedColumns, rows: Table) -> onnx.ModelProto:
    """The exported classifier up to its scores, as one logit per class; checked against the estimator on `rows`."""
    classes = [label.item() if isinstance(label, np.generic) else label for label in estimator.classes_]
    scores, feeds = _scores_name(model), columns.feeds(rows)
    width = _run(estimator, _with_output(model, scores, None), feeds).shape[-1]
    candidates: list[np.ndarray | None] = [None] if width == len(classes) else []
    if len(classes) == 2 and width in (1, 2):
        positive = np.zeros((width, 2))
        positive[-1, 1] = 1.0
        candidates.insert(0, positive)
    for matrix in candidates:
        cut = _with_output(model, scores, matrix)
        if _agrees(_own_answers(estimator, rows), _run(estimator, cut, feeds), _close):
            _require_far_agreement(estimator, cut, columns, rows)
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


def _own_answers(estimator: Any, table: Table) -> dict[str, np.ndarray]:
    """The estimator's scores and probabilities; its labels, as positions, where it has neither."""
    asked = [name for name in ("decision_function", "predict_proba") if hasattr(estimator, name)]
    if asked:
        return {name: np.asarray(getattr(estimator, name)(table)) for name in asked}
    return {"predict": np.searchsorted(estimator.classes_, estimator.predict(table))}


def _close(own: np.ndarray, expected: np.ndarray, absolute: float) -> bool:
    return np.allclose(own, expected, rtol=1e-9, atol=absolute)


def _agrees(answers: dict[str, np.ndarray], logits: np.ndarray, close: Close) -> bool:
    """Whether logits give all answers of the estimator."""
    compared = []
    for name, expected in answers.items():
        if name == "decision_function":
            own = logits[:, 1] - logits[:, 0] if expected.ndim == 1 else logits
            compared.append(own.shape == expected.shape and close(own, expected, 1e-9))
        elif name == "predict_proba":
            compared.append(any(close(p, expected, 1e-12) for p in probabilities_from(logits)))
        else:
            compared.append(np.array_equal(logits.argmax(axis=1), expected))
    return all(compared)


def _require_far_agreement(estimator: Any, cut: onnx.ModelProto, columns: FittedColumns, rows: Table) -> None:
    for far, answers in answered_far_away(columns, rows, lambda table: _own_answers(estimator, table)):
        if not _agrees(answers, _run(estimator, cut, columns.feeds(far)), close_far_away):
            raise _other_far_away(estimator)


def _unsupported(estimator: Any, reason: str, remedy: str) -> UnsupportedOperator:
    return UnsupportedOperator(type(estimator).__name__, "estimator", reason=reason, remedy=remedy)
