"""Lowering of scalar curves, and of operators that do nothing at inference."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx

from mlflow_lipschitz.engine.ir.ops import Elementwise
from mlflow_lipschitz.frontends.fusions import exponential_behind
from mlflow_lipschitz.frontends.lowering_context import Call, Variable

FLOAT32_MAX = float(np.finfo(np.float32).max)
JUMP_REMEDY = "a jump has no Lipschitz constant: replace it by a continuous function"


def _curve(name: str) -> Callable[[Call], Variable]:
    return lambda call: call.curve(name, call.variable())


def lower_leaky_relu(call: Call) -> Variable:
    return call.curve("leaky_relu", call.variable(), call.real("alpha", 0.01))


def lower_prelu(call: Call) -> Variable:
    """One slope for all: one curve. Otherwise y + a (x − y) with y = relu(x): one kink, any slopes."""
    x, slope = call.variable(), call.input(1)
    if slope is None:
        call.refuse("the slope is missing")
    if call.broadcast(x.shape, slope.shape) != x.shape:
        call.refuse(f"slopes of shape {slope.shape} do not fit a tensor of shape {x.shape}")
    if isinstance(slope, np.ndarray) and np.unique(slope).size == 1:
        return call.curve("leaky_relu", x, float(slope.flat[0]))
    positive = call.curve("relu", x)
    negative = call.subtract(x, positive)
    if isinstance(slope, Variable):
        return call.add(positive, call.multiply(slope, negative))
    return call.add(positive, call.scale_shift(negative, slope, None))


def lower_elu(call: Call) -> Variable:
    return call.curve("elu", call.variable(), call.real("alpha", 1.0), 1.0)


def lower_selu(call: Call) -> Variable:
    alpha, gamma = call.real("alpha", 1.67326319217681884765625), call.real("gamma", 1.05070102214813232421875)
    return call.curve("elu", call.variable(), alpha, gamma)


def lower_celu(call: Call) -> Variable:
    alpha = call.real("alpha", 1.0)
    if alpha <= 0:
        call.refuse(f"alpha is {alpha}", "use a positive alpha")
    return call.curve("celu", call.variable(), alpha)


def lower_gelu(call: Call) -> Variable:
    kind = call.attribute("approximate", "none")
    if kind not in ("none", "tanh"):
        call.refuse(f"its approximation {kind!r} is not known")
    return call.curve("gelu" if kind == "none" else "gelu_tanh", call.variable())


def lower_swish(call: Call) -> Variable:
    """x · sigmoid(αx) = silu(αx) / α."""
    x, alpha = call.variable(), call.real("alpha", 1.0)
    if alpha == 0:
        return call.scale_shift(x, np.array(0.5), None)
    if alpha == 1:
        return call.curve("silu", x)
    return call.scale_shift(call.curve("silu", call.scale_shift(x, np.array(alpha), None)), np.array(1 / alpha), None)


def lower_log(call: Call) -> Variable:
    """log(x); of 1 + exp(y) it is the softplus of y, of the sigmoid of y minus the softplus of -y."""
    x = call.variable()
    if call.as_served:
        return call.curve("log", x)
    exponent = exponential_behind(call.builder, x.index)
    if exponent is not None:
        return call.joined(call.curve("softplus", Variable(exponent, call.builder.shape(exponent))))
    producer = call.builder.node(x.index)
    if isinstance(producer.op, Elementwise) and producer.op.curve == "sigmoid":
        minus = call.scale_shift(Variable(producer.inputs[0], x.shape), np.array(-1.0), None)
        return call.scale_shift(call.joined(call.curve("softplus", minus)), np.array(-1.0), None)
    return call.curve("log", x)


def lower_hard_sigmoid(call: Call) -> Variable:
    scale, shift = np.array(call.real("alpha", 0.2)), np.array(call.real("beta", 0.5))
    return call.curve("clip", call.scale_shift(call.variable(), scale, shift), 0.0, 1.0)


def lower_clip(call: Call) -> Variable:
    low, high = _bound(call, 1, "min", -math.inf), _bound(call, 2, "max", math.inf)
    return clip(call, call.variable(), low, high)


def clip(call: Call, x: Variable, low: float, high: float) -> Variable:
    """x between two bounds, either of which may be infinite; the upper one wins, as in ONNX."""
    below, above = math.isfinite(low), math.isfinite(high)
    if above and low >= high:
        return call.scale_shift(x, np.array(0.0), np.array(high))
    if below and above:
        return call.curve("clip", x, low, high)
    if below:
        return _shifted(call, call.curve("relu", _shifted(call, x, -low)), low)
    if above:
        rest = call.curve("relu", call.scale_shift(x, np.array(-1.0), np.array(high)))
        return call.scale_shift(rest, np.array(-1.0), np.array(high))
    return x


def _shifted(call: Call, x: Variable, shift: float) -> Variable:
    return x if shift == 0 else call.scale_shift(x, None, np.array(shift))


def _bound(call: Call, position: int, name: str, default: float) -> float:
    """A bound given as an input or, before opset 11, as an attribute; infinite where none is meant."""
    if call.input(position) is not None:
        value = float(call.constant(position, f"its {name}").reshape(()))
    else:
        value = float(call.attribute(name, default))
    if math.isnan(value):
        call.refuse(f"its {name} is NaN")
    return math.copysign(math.inf, value) if abs(value) >= FLOAT32_MAX else value


def lower_thresholded_relu(call: Call) -> Variable:
    if call.real("alpha", 1.0) != 0:
        call.refuse("it jumps at its threshold", JUMP_REMEDY)
    return call.curve("relu", call.variable())


def lower_shrink(call: Call) -> Variable:
    """Soft shrinkage, relu(x − λ) − relu(−x − λ); with another bias it would jump."""
    x, threshold, bias = call.variable(), call.real("lambd", 0.5), call.real("bias", 0.0)
    if threshold < 0 or bias != threshold:
        call.refuse(f"with lambd {threshold} and bias {bias} it jumps", JUMP_REMEDY)
    above = call.curve("relu", _shifted(call, x, -threshold))
    below = call.curve("relu", call.scale_shift(x, np.array(-1.0), np.array(-threshold)))
    return call.subtract(above, below)


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
    if not isinstance(value, Variable) and not np.array_equal(value, value.astype(call.floats)):
        call.refuse("it rounds a constant", "export the model with its constants folded")
    if isinstance(value, Variable) and isinstance(like := call.input(1), np.ndarray) and like.dtype.kind != "f":
        call.refuse(
            f"it casts a value that depends on the input to {like.dtype}", "keep the model in float32 or float64"
        )
    return value if isinstance(value, Variable) else value.astype(call.floats)


CURVES = {
    "Relu": _curve("relu"),
    "LeakyRelu": lower_leaky_relu,
    "PRelu": lower_prelu,
    "ThresholdedRelu": lower_thresholded_relu,
    "Shrink": lower_shrink,
    "Elu": lower_elu,
    "Selu": lower_selu,
    "Celu": lower_celu,
    "Gelu": lower_gelu,
    "Swish": lower_swish,
    "Mish": _curve("mish"),
    "Softplus": _curve("softplus"),
    "Softsign": _curve("softsign"),
    "HardSigmoid": lower_hard_sigmoid,
    "HardSwish": _curve("hard_swish"),
    "Clip": lower_clip,
    "Tanh": _curve("tanh"),
    "Sigmoid": _curve("sigmoid"),
    "Exp": _curve("exp"),
    "Log": lower_log,
    "Sqrt": _curve("sqrt"),
    "Abs": _curve("abs"),
    "Sin": _curve("sin"),
    "Cos": _curve("cos"),
    "Erf": _curve("erf"),
    "Atan": _curve("atan"),
}

ROWS = {
    **CURVES,
    "Identity": lambda call: call.variable(),
    "Dropout": lower_dropout,
    "Cast": lower_cast,
    "CastLike": lower_cast_like,
}
