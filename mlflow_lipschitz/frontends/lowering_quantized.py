"""Lowering of quantized operators: weights are dequantized exactly, what is rounded between layers becomes a bounded doubt."""

from __future__ import annotations

import numpy as np

from mlflow_lipschitz.frontends.lowering_context import Call, Variable
from mlflow_lipschitz.frontends.lowering_spatial import convolution
from mlflow_lipschitz.frontends.matrix_products import matrix_product
from mlflow_lipschitz.frontends.quantization import Quantized, dequantized, quantized


def lower_quantize(call: Call) -> Quantized:
    if call.attribute("block_size", 0):
        call.refuse("it quantizes in blocks", "quantize activations with one scale, or one per channel")
    return quantized(call, call.variable(), 1, int(call.attribute("axis", 1)))


def lower_dequantize(call: Call) -> Variable:
    value = dequantized(call, 0, int(call.attribute("axis", 1)))
    assert isinstance(value, Variable)  # constants are folded
    return value


def lower_qlinear_conv(call: Call) -> Quantized:
    x, weight = dequantized(call, 0, 1), dequantized(call, 3, 0)
    if not isinstance(x, Variable) or isinstance(weight, Variable):
        call.refuse("its weight depends on the model's input, and only constants are supported there")
    bias = None
    if call.input(8) is not None:
        step = call.constant(1, "the scale of the input") * call.constant(4, "the scale of the weight")
        bias = np.asarray(call.constant(8, "the bias") * step.reshape(-1))
    return quantized(call, convolution(call, x, weight, bias), 6, 1)


def lower_qlinear_matmul(call: Call) -> Quantized:
    product = matrix_product(call, dequantized(call, 0, -2), dequantized(call, 3, -1))
    assert isinstance(product, Variable)  # one of the factors depends on the input
    return quantized(call, product, 6, -1)


ROWS = {
    "QuantizeLinear": lower_quantize,
    "DequantizeLinear": lower_dequantize,
    "QLinearConv": lower_qlinear_conv,
    "QLinearMatMul": lower_qlinear_matmul,
}
