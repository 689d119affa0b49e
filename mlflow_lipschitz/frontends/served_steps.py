"""Which steps of a graph a served program takes as they are, and of which operators nothing is claimed about its rounding.

A graph joins what is one function in real numbers: a BatchNormalization goes into the convolution before it, x · sigmoid(x) becomes
one curve. A served program rounds in between. Where steps are joined, the node says so, and the model is lowered a second time
without joining anything (`Call.as_served`). Operators that runtimes evaluate by formulas of their own are named here.
"""

from __future__ import annotations

import onnx

JOINED = "it joins steps that a served program takes one by one; trace the whole model to have those"

_QUANTIZED = "the served program rounds to integers, by kernels that may saturate on the way"
VARIANCE = "runtimes may take it for a layer normalization, and compute the variance in one pass instead of two"
OWN_FORMULA = "runtimes have formulas of their own for it"
_INTERPOLATED = "runtimes compute the weights of the interpolation in the model's own precision"

_OWN_FORMULAS = (
    "LRN", "MeanVarianceNormalization", "LpNormalization", "LpPool", "GlobalLpPool", "ReduceLogSumExp", "Einsum", "Attention",
    "GRU", "LSTM", "RNN", "SVMClassifier", "SVMRegressor",
)  # fmt: skip
_REASONS: dict[str, str] = {
    **dict.fromkeys(_OWN_FORMULAS, OWN_FORMULA),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul"), _QUANTIZED),
}


def unserved_reason(node: onnx.NodeProto, mode: str) -> str:
    """Why nothing is claimed about the served program's rounding in this operator; empty where something is.

    `mode` is the node's attribute of that name.
    """
    if node.domain == "com.microsoft":
        return _QUANTIZED
    if node.op_type in ("Resize", "Upsample") and mode != "nearest":
        return _INTERPOLATED
    return _REASONS.get(node.op_type, "")
