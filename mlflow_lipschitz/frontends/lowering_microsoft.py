"""Lowering of the quantized operators that onnxruntime adds to ONNX: each is a float operator between two quantizations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from mlflow_lipschitz.frontends.lowering_arithmetic import lower_add, lower_mul
from mlflow_lipschitz.frontends.lowering_context import Call, Value, Variable
from mlflow_lipschitz.frontends.lowering_elementwise import lower_leaky_relu
from mlflow_lipschitz.frontends.lowering_products import lower_gemm
from mlflow_lipschitz.frontends.lowering_quantized import lower_dequantize, lower_quantize
from mlflow_lipschitz.frontends.lowering_shape import lower_concat
from mlflow_lipschitz.frontends.lowering_spatial import lower_average_pool, lower_global_average_pool
from mlflow_lipschitz.frontends.quantization import Quantized, dequantized, quantized

Row = Callable[[Call], Any]


def _of(row: Row, arity: int) -> Row:
    """The row on `arity` dequantized inputs, quantized again by the scale and zero point behind them."""

    def lower(call: Call) -> Quantized:
        if call.attribute("channels_last", 0):
            call.refuse("its channels come last", "quantize the model with channels first")
        real = row(with_inputs(call, *(dequantized(call, 3 * i, 1) for i in range(arity))))
        return quantized(call, real, 3 * arity, 1)

    return lower


def with_inputs(call: Call, *inputs: Value | None) -> Call:
    """The call with other inputs, which no name of the model stands for."""
    node = onnx.NodeProto()
    node.CopyFrom(call.node)
    del node.input[:]
    node.input.extend([""] * len(inputs))
    return replace(call, node=node, inputs=inputs)


def _lower_average_pool(call: Call) -> Variable:
    if call.attribute("ceil_mode", 0) and call.attribute("count_include_pad", 0):
        call.refuse(
            "onnxruntime divides its last windows by another count than the standard's",
            "pool with ceil_mode or with count_include_pad, not with both",
        )
    return lower_average_pool(call)


def lower_qgemm(call: Call) -> Variable:
    """`Gemm` of dequantized matrices; its bias has the product of both scales, and without a scale its output is real."""
    a, b = dequantized(call, 0, 1), dequantized(call, 3, 0 if call.attribute("transB", 0) else 1)
    bias = None
    if call.input(6) is not None:
        step = call.constant(1, "the scale of a") * call.constant(4, "the scale of b")
        bias = np.asarray(call.constant(6, "the bias") * step.reshape(-1) * call.real("alpha", 1.0))
    real = lower_gemm(with_inputs(call, a, b, bias))
    assert isinstance(real, Variable)
    return real if call.input(7) is None else quantized(call, real, 7, 1)


def lower_qlinear_concat(call: Call) -> Quantized:
    parts = [dequantized(call, position, 1) for position in range(2, len(call.inputs), 3)]
    return quantized(call, lower_concat(with_inputs(call, *parts)), 0, 1)


ROWS = {
    "QuantizeLinear": lower_quantize,
    "DequantizeLinear": lower_dequantize,
    "QGemm": lower_qgemm,
    "QLinearAdd": _of(lower_add, 2),
    "QLinearMul": _of(lower_mul, 2),
    "QLinearAveragePool": _of(_lower_average_pool, 1),
    "QLinearGlobalAveragePool": _of(lower_global_average_pool, 1),
    "QLinearConcat": lower_qlinear_concat,
    "QLinearLeakyRelu": _of(lower_leaky_relu, 1),
    "QLinearSigmoid": _of(lambda call: call.curve("sigmoid", call.variable()), 1),
}
