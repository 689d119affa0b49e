"""Lowering of the `ai.onnx.ml` operators that linear scikit-learn models and kernel machines export to in single precision."""

from __future__ import annotations

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Linear, ScaleShift, Select
from mlflow_lipschitz.frontends.lowering_arithmetic import power
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


def _kernel_sum(call: Call, weights: np.ndarray) -> Variable:
    """Σᵢ αᵢ k(x, sᵢ) + ρ per row, (rows, 1), for `weights` α. Every number is the float32 that the operator holds."""
    if call.attribute("post_transform", "NONE") != "NONE":
        call.refuse(f"it applies {call.attribute('post_transform')} to its values", SCORES_REMEDY)
    x, count = call.variable(), len(weights)
    supports = np.asarray(call.attribute("support_vectors"), dtype=np.float64).reshape(count, -1)
    rho = np.asarray(call.attribute("rho", (0.0,)), dtype=np.float64)
    gamma, offset, degree = (float(n) for n in call.attribute("kernel_params", (0.0, 0.0, 0.0)))
    kernel = call.attribute("kernel_type", "LINEAR")
    if kernel == "LINEAR":
        return call.emit(Linear((weights @ supports)[None], rho), x)
    if kernel == "RBF":
        apart = call.expand(call.reshape(x, (*x.shape[:-1], 1, x.shape[-1])), (*x.shape[:-1], *supports.shape))
        squares = call.curve("square", call.scale_shift(apart, None, -supports))
        distance = call.sum(squares, [len(squares.shape) - 1], keepdims=False)
        kernels = call.curve("exp", call.scale_shift(distance, np.array(-gamma), None))
    elif kernel in ("POLY", "SIGMOID"):
        inner = call.emit(Linear(gamma * supports, np.full(count, offset)), x)
        kernels = call.curve("tanh", inner) if kernel == "SIGMOID" else power(call, inner, degree)
    else:
        call.refuse(f"its kernel is {kernel}", "use a linear, RBF, polynomial or sigmoid kernel")
    return call.emit(Linear(weights[None], rho), kernels)


def lower_svm_regressor(call: Call) -> Variable:
    weights = np.asarray(call.attribute("coefficients"), dtype=np.float64)
    if call.attribute("one_class", 0):
        call.refuse("it answers on which side of a boundary a row is, which is a jump", SCORES_REMEDY)
    if call.attribute("n_supports", 0) != len(weights):
        call.refuse("it has no support vectors", "export a linear machine as LinearRegressor")
    return _kernel_sum(call, weights)


def lower_svm_classifier(call: Call) -> tuple[None, Variable]:
    """The scores (−f, f) of two classes, as onnxruntime gives them; the label, its first output, is a step function."""
    labels = call.attribute("classlabels_ints") or call.attribute("classlabels_strings") or []
    if len(labels) != 2:
        call.refuse(f"its {len(labels)} classes vote in pairs, and a vote is a jump", "fit OneVsRestClassifier(SVC(…))")
    if call.attribute("prob_a"):
        call.refuse(
            "its probabilities and its labels come from two different functions", "fit it with probability=False"
        )
    weights, members = np.asarray(call.attribute("coefficients"), dtype=np.float64), call.attribute("vectors_per_class")
    if not members or sum(members) != len(weights):
        call.refuse("it has no support vectors", "export a linear machine as LinearClassifier")
    score = _kernel_sum(call, weights)
    return None, call.emit(Linear(np.array([[-1.0], [1.0]])), score)


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
    "SVMRegressor": lower_svm_regressor,
    "SVMClassifier": lower_svm_classifier,
    "ArrayFeatureExtractor": lower_array_feature_extractor,
    "Imputer": lower_imputer,
}
