"""Lowering of normalizations: constants fold where statistics are constant, compositions of core operators where they are not.

What is normalized by its own statistics is `(x − mean) · (variance + ε)^(−1/2)`: one square, one sum, one power, one product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Conv, Linear, Normalized, ScaleShift
from mlflow_lipschitz.frontends.lowering_context import Call, Value, Variable

# Up to here one matrix that subtracts the mean is cheaper than a sum that is spread out again, and bounds it in one step.
LARGEST_CENTERING = 256

TRAINING_REMEDY = "put the model in evaluation mode (model.eval()) before exporting it"


def lower_batch_normalization(call: Call) -> Variable:
    """Inference: `gamma * (x - mean) / sqrt(variance + epsilon) + beta` per channel, constants folded in float64."""
    # Opset 7 and 8 could also normalize each position by itself; since opset 14 training is said, before it is outputs.
    if not call.attribute("spatial", 1):
        call.refuse(
            "it normalizes every position by its own statistics", "export the model again with opset 9 or later"
        )
    if call.attribute("training_mode", 0) or len([name for name in call.node.output if name]) > 1:
        call.refuse("it is in training mode", TRAINING_REMEDY)
    x = call.variable()
    names = ("gamma", "beta", "the running mean", "the running variance")
    gamma, beta, mean, variance = (call.constant(i, name) for i, name in enumerate(names, start=1))
    denominator = variance + call.real("epsilon", 1e-5)
    if len(x.shape) < 2 or np.any(denominator <= 0):
        call.refuse("its running variance plus epsilon is not positive, or it has no channel axis")
    scale = gamma / np.sqrt(denominator)
    if call.as_served:
        centered_x = call.emit(ScaleShift(None, _per_channel(-mean, x)), x)
        return call.emit(ScaleShift(_per_channel(scale, x), _per_channel(beta, x)), centered_x)
    shift = beta - mean * scale
    folded = _into_producer(call, x, scale, shift) if call.read_only_here() else None
    if folded is not None:
        return call.joined(folded)
    return call.joined(call.emit(ScaleShift(_per_channel(scale, x), _per_channel(shift, x)), x))


def _into_producer(call: Call, x: Variable, scale: np.ndarray, shift: np.ndarray) -> Variable | None:
    """The Conv or Linear that makes x, with the channel-wise scale and shift folded into its weights; None if other."""
    producer = call.builder.node(x.index)
    sources = [Variable(i, call.builder.shape(i)) for i in producer.inputs]
    op = producer.op
    if not isinstance(op, (Conv, Linear)) or (isinstance(op, Linear) and len(x.shape) != 2):
        return None
    weight = op.weight * scale.reshape(-1, *(1,) * (op.weight.ndim - 1))
    bias = shift if op.bias is None else op.bias * scale + shift
    if isinstance(op, Linear):
        return call.emit(Linear(weight, bias), *sources)
    return call.emit(Conv(weight, bias, op.stride, op.padding, op.dilation, op.groups), *sources)


def _per_channel(constant: np.ndarray, x: Variable) -> np.ndarray:
    """A constant with one entry per channel, axis 1 of x, as it broadcasts to x."""
    return constant.reshape(-1, *(1,) * (len(x.shape) - 2))


def mean(call: Call, x: Variable, axes: Sequence[int]) -> Variable:
    """Mean over `axes`, which are kept with length 1."""
    count = math.prod(x.shape[a] for a in axes)
    return call.scale_shift(call.sum(x, axes), np.array(1.0 / count), None)


def centered(call: Call, x: Variable, axes: Sequence[int]) -> Variable:
    """x minus its mean over `axes`."""
    length = math.prod(x.shape[a] for a in axes)
    last = tuple(range(len(x.shape) - len(axes), len(x.shape)))
    if tuple(axes) != last or length > LARGEST_CENTERING:
        return call.subtract(x, mean(call, x, axes))
    rows = call.reshape(x, (*x.shape[: last[0]], length))
    return call.reshape(call.emit(Linear(np.eye(length) - 1.0 / length), rows), x.shape)


def over_its_size(
    call: Call, x: Variable, axes: Sequence[int], factor: float, epsilon: float
) -> tuple[Variable, Variable]:
    """x · r and r = (factor · Σ x² over `axes` + ε)^(−1/2), of length 1 along `axes`."""
    squares = call.sum(call.curve("square", x), axes)
    r = call.curve("power", call.scale_shift(squares, np.array(factor), np.array(epsilon)), 1.0, -0.5)
    spread = call.expand(r, x.shape)
    return call.emit(Normalized(tuple(axes), factor, epsilon), x, spread, call.multiply(x, spread)), r


def by_root_mean_square(call: Call, x: Variable, axes: Sequence[int], epsilon: float) -> tuple[Variable, Variable]:
    """x · r and r = (mean of x² over `axes` + ε)^(−1/2), of length 1 along `axes`."""
    return over_its_size(call, x, axes, 1.0 / math.prod(x.shape[a] for a in axes), epsilon)


def by_own_statistics(call: Call, x: Variable, axes: Sequence[int], epsilon: float) -> tuple[Variable, Variable]:
    """(x − mean) · r and r = (variance + ε)^(−1/2) over `axes`, r of length 1 along them."""
    if call.as_served:
        return _by_either_variance(call, x, axes, epsilon)
    y, r = by_root_mean_square(call, centered(call, x, axes), axes, epsilon)
    return call.joined(y), call.joined(r)


def _by_either_variance(call: Call, x: Variable, axes: Sequence[int], epsilon: float) -> tuple[Variable, Variable]:
    """The same, its variance being the larger of E (x − E x)² and E x² − (E x)², which are one number.

    Runtimes compute the one or the other. The larger of two values is as far off as the worse of them, so that what is said of its
    rounding holds for both.
    """
    middle = mean(call, x, axes)
    difference = call.subtract(x, middle)
    in_two_passes = mean(call, call.curve("square", difference), axes)
    in_one_pass = call.subtract(mean(call, call.curve("square", x), axes), call.curve("square", middle))
    size = call.scale_shift(call.maximum(in_one_pass, in_two_passes), None, np.array(epsilon))
    r = call.curve("power", size, 1.0, -0.5)
    return call.multiply(difference, call.expand(r, x.shape)), r


def _scaled(call: Call, x: Variable, scale: Value | None, shift: Value | None) -> Variable:
    """scale · x + shift, where either may be absent, constant or variable. Refuses what would grow x."""
    for value in (scale, shift):
        if value is not None and call.broadcast(value.shape, x.shape) != x.shape:
            call.refuse(f"its scale or bias of shape {value.shape} does not fit a tensor of shape {x.shape}")
    if isinstance(scale, Variable) or isinstance(shift, Variable):
        product = call.multiply(x, scale) if isinstance(scale, Variable) else _scaled(call, x, scale, None)
        return call.add(product, shift) if isinstance(shift, Variable) else _scaled(call, product, None, shift)
    return x if scale is None and shift is None else call.emit(ScaleShift(scale, shift), x)


def _inner_axes(call: Call, x: Variable) -> tuple[int, ...]:
    """The axes from `axis` on, over which layers are normalized."""
    return tuple(range(call.axis(call.attribute("axis", -1), len(x.shape)), len(x.shape)))


def lower_layer_normalization(call: Call) -> tuple[Variable | None, ...]:
    x = call.variable()
    axes = _inner_axes(call, x)
    y, deviation = by_own_statistics(call, x, axes, call.real("epsilon", 1e-5))
    wanted = [*call.node.output, "", ""]
    return _scaled(call, y, call.input(1), call.input(2)), mean(call, x, axes) if wanted[1] else None, deviation


def lower_rms_normalization(call: Call) -> Variable:
    x = call.variable()
    y, _ = by_root_mean_square(call, x, _inner_axes(call, x), call.real("epsilon", 1e-5))
    return _scaled(call, y, call.input(1), None)


def lower_instance_normalization(call: Call) -> Variable:
    x = call.variable()
    axes = tuple(range(2, len(x.shape)))
    if not axes:
        call.refuse(f"a tensor of shape {x.shape} has no axes to normalize over")
    y, _ = by_own_statistics(call, x, axes, call.real("epsilon", 1e-5))
    scale, shift = call.constant(1, "the scale"), call.constant(2, "the bias")
    return _scaled(call, y, _per_channel(scale, x), _per_channel(shift, x))


def lower_group_normalization(call: Call) -> Variable:
    """Scale and bias are one per channel since opset 21, and one per group of channels before."""
    x = call.variable()
    groups = int(call.attribute("num_groups", 0))
    if len(x.shape) < 2 or groups < 1 or x.shape[1] % groups:
        call.refuse(f"a tensor of shape {x.shape} has no {groups} groups of channels")
    grouped = call.reshape(x, (x.shape[0], groups, math.prod(x.shape[1:]) // groups))
    y, _ = by_own_statistics(call, grouped, (2,), call.real("epsilon", 1e-5))
    scale, shift = call.constant(1, "the scale"), call.constant(2, "the bias")
    entries = x.shape[1] if call.opset >= 21 else groups
    if scale.shape != (entries,) or shift.shape != (entries,):
        call.refuse(f"its scale and bias have shapes {scale.shape} and {shift.shape}; {entries} entries are expected")
    each = x.shape[1] // entries
    scale, shift = (np.repeat(constant, each) for constant in (scale, shift))
    return _scaled(call, call.reshape(y, x.shape), _per_channel(scale, x), _per_channel(shift, x))


def lower_lp_normalization(call: Call) -> Variable:
    """x / ‖x‖ along one axis. Its derivative is unbounded at 0, where ONNX defines the value 0."""
    x = call.variable()
    axis = call.axis(call.attribute("axis", -1), len(x.shape))
    order = call.attribute("p", 2)
    if order == 1:
        return call.multiply(x, call.curve("reciprocal", call.sum(call.curve("abs", x), (axis,))))
    if order != 2:
        call.refuse(f"a norm of order {order}; 1 and 2 exist")
    return over_its_size(call, x, (axis,), 1.0, 0.0)[0]


def lower_mean_variance_normalization(call: Call) -> Variable:
    """(x − mean) / (standard deviation + 1e-9), the 1e-9 in float32 as in the operator's own definition."""
    x = call.variable()
    axes = call.axes(call.attribute("axes", (0, 2, 3)), len(x.shape))
    difference = centered(call, x, axes)
    deviation = call.curve("sqrt", mean(call, call.curve("square", difference), axes))
    shifted = call.scale_shift(deviation, None, np.array(float(np.float32(1e-9))))
    return call.multiply(difference, call.curve("reciprocal", shifted))


def lower_local_response_normalization(call: Call) -> Variable:
    """x · (bias + α/size · sum of x² over neighboring channels)^(−β)."""
    x = call.variable()
    size = int(call.attribute("size", 0))
    if len(x.shape) < 2 or size < 1:
        call.refuse(f"a tensor of shape {x.shape} has no windows of {size} channels")
    channels = np.arange(x.shape[1])
    offsets = channels[None, :] - channels[:, None]
    window = (offsets >= -((size - 1) // 2)) & (offsets <= size // 2)
    last = (0, *range(2, len(x.shape)), 1)
    sums = call.emit(Linear(window * (call.real("alpha", 1e-4) / size)), call.transpose(call.curve("square", x), last))
    back = (0, len(x.shape) - 1, *range(1, len(x.shape) - 1))
    base = call.scale_shift(call.transpose(sums, back), None, np.array(call.real("bias", 1.0)))
    return call.multiply(x, call.curve("power", base, 1.0, -call.real("beta", 0.75)))


ROWS: dict[str, Callable[[Call], Variable | tuple[Variable | None, ...]]] = {
    "BatchNormalization": lower_batch_normalization,
    "LayerNormalization": lower_layer_normalization,
    "RMSNormalization": lower_rms_normalization,
    "InstanceNormalization": lower_instance_normalization,
    "GroupNormalization": lower_group_normalization,
    "LpNormalization": lower_lp_normalization,
    "MeanVarianceNormalization": lower_mean_variance_normalization,
    "LRN": lower_local_response_normalization,
}
