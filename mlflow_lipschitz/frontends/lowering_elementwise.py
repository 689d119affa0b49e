"""Lowering of scalar curves, and of operators that do nothing at inference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from mlflow_lipschitz.engine.ir.ops import Elementwise
from mlflow_lipschitz.frontends.lowering_context import Call, Variable


def _curve(name: str) -> Callable[[Call], Variable]:
    return lambda call: call.emit(Elementwise(name), call.variable())


def lower_leaky_relu(call: Call) -> Variable:
    return call.emit(Elementwise("leaky_relu", (call.real("alpha", 0.01),)), call.variable())


def lower_dropout(call: Call) -> Variable:
    training = call.input(2)
    # A Dropout of opset 12 or later is on only when told so; older ones say nothing and are off at inference.
    if isinstance(training, Variable) or (training is not None and bool(np.any(training))):
        call.refuse("it is in training mode", "put the model in evaluation mode (model.eval()) before exporting it")
    if any(name for name in call.node.output[1:] if call.consumers.get(name)):
        call.refuse("the model reads its random mask")
    return call.variable()


def lower_cast(call: Call) -> Variable:
    target = call.attribute("to")
    if target not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        name = onnx.TensorProto.DataType.Name(target)
        call.refuse(f"it casts a value that depends on the input to {name}", "keep the model in float32 or float64")
    return call.variable()


def lower_cast_like(call: Call) -> Variable | np.ndarray:
    """One of the two inputs depends on the model's input, so both are real; a constant must fit either real type."""
    value = call.input(0)
    if value is None:
        call.refuse("its input is missing")
    if not isinstance(value, Variable) and not np.array_equal(value, value.astype(np.float32)):
        call.refuse("it rounds a constant", "export the model with its constants folded")
    # Exact in float32, which is what real models compute in; in a model of doubles, arithmetic on it is refused.
    return value if isinstance(value, Variable) else value.astype(np.float32)


CURVES = {
    "Relu": _curve("relu"),
    "LeakyRelu": lower_leaky_relu,
    "Tanh": _curve("tanh"),
    "Sigmoid": _curve("sigmoid"),
    "Abs": _curve("abs"),
}

ROWS = {
    **CURVES,
    "Identity": lambda call: call.variable(),
    "Dropout": lower_dropout,
    "Cast": lower_cast,
    "CastLike": lower_cast_like,
}
