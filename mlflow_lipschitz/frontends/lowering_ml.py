"""Lowering of the `ai.onnx.ml` operators that linear scikit-learn models export to in single precision."""

from __future__ import annotations

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Linear, ScaleShift, Select
from mlflow_lipschitz.frontends.lowering_context import Call, Variable

SCORES_REMEDY = "audit the scikit-learn model itself, whose raw scores are taken, or export with raw_scores=True"


def lower_scaler(call: Call) -> Variable:
    """`(x - offset) * scale` per feature."""
    x = call.variable()
    scale = np.asarray(call.attribute("scale", (1.0,)), dtype=np.float64)
    offset = np.asarray(call.attribute("offset", (0.0,)), dtype=np.float64)
    return call.emit(ScaleShift(scale), call.emit(ScaleShift(None, -offset), x))


def _scores(call: Call, rows: int, remedy: str) -> Variable:
    if call.attribute("post_transform", "NONE") != "NONE":
        call.refuse(f"it applies {call.attribute('post_transform')} to its scores", remedy)
    x = call.variable()
    weight = np.asarray(call.attribute("coefficients"), dtype=np.float64).reshape(rows, -1)
    intercepts = call.attribute("intercepts")
    bias = None if not intercepts else np.broadcast_to(np.asarray(intercepts, dtype=np.float64), (rows,))
    return call.emit(Linear(weight, bias), x)


def lower_linear_regressor(call: Call) -> Variable:
    return _scores(call, int(call.attribute("targets", 1)), "export the regressor without a post-transform")


def lower_linear_classifier(call: Call) -> tuple[None, Variable]:
    """The scores; the label, its first output, is a step function and has no value here."""
    labels = call.attribute("classlabels_ints") or call.attribute("classlabels_strings") or []
    intercepts = call.attribute("intercepts") or []
    if len(labels) < 2 or len(intercepts) != len(labels):
        call.refuse(f"{len(intercepts)} scores for {len(labels)} classes", SCORES_REMEDY)
    return None, _scores(call, len(labels), SCORES_REMEDY)


def lower_array_feature_extractor(call: Call) -> Variable:
    x = call.variable()
    indices = call.constant(1, "the indices").reshape(-1)
    return call.emit(Select(len(x.shape) - 1, tuple(int(i) for i in indices)), x)


def lower_imputer(call: Call) -> Variable:
    """Rows with missing values are refused before they come here; on all others this operator does nothing."""
    if not np.isnan(call.attribute("replaced_value_float", 0.0)) or call.attribute("imputed_value_floats") is None:
        call.refuse("it replaces a number, which is a jump", "impute NaN only")
    return call.variable()


ROWS = {
    "Scaler": lower_scaler,
    "LinearRegressor": lower_linear_regressor,
    "LinearClassifier": lower_linear_classifier,
    "ArrayFeatureExtractor": lower_array_feature_extractor,
    "Imputer": lower_imputer,
}
