"""Lowering of arithmetic: sums, differences, products and quotients, of constants and of variables, and reductions."""

from __future__ import annotations

import math

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Add, Multiply, ScaleShift, Sum
from mlflow_lipschitz.frontends.lowering_context import BATCH_REMEDY, Call, Value, Variable


def _operands(call: Call) -> tuple[Value, Value]:
    """Both inputs, constants as every sample sees them, variables broadcast to one shape."""
    a, b = call.input(0), call.input(1)
    if a is None or b is None:
        call.refuse("it needs two inputs")
    if isinstance(a, Variable) and isinstance(b, Variable):
        if len(a.shape) != len(b.shape):
            call.refuse(f"samples {a.shape} and {b.shape} would align the batch with another axis", BATCH_REMEDY)
        full = call.broadcast(a.shape, b.shape)
        return call.expand(a, full), call.expand(b, full)
    if isinstance(a, Variable):
        return a, call.per_sample(np.asarray(b), len(a.shape) + 1)
    assert isinstance(b, Variable)  # a node without variables never comes here: it is folded
    return call.per_sample(a, len(b.shape) + 1), b


def lower_add(call: Call) -> Variable:
    a, b = _operands(call)
    if isinstance(a, Variable) and isinstance(b, Variable):
        return call.emit(Add(), a, b)
    if isinstance(a, Variable):
        return call.scale_shift(a, None, np.asarray(b))
    return call.scale_shift(call.variable(1), None, a)


def lower_sub(call: Call) -> Variable:
    a, b = _operands(call)
    if isinstance(a, Variable) and isinstance(b, Variable):
        return call.emit(Add(), a, call.emit(ScaleShift(np.array(-1.0)), b))
    if isinstance(a, Variable):
        return call.scale_shift(a, None, -np.asarray(b))
    return call.scale_shift(call.variable(1), np.array(-1.0), a)


def lower_mul(call: Call) -> Variable:
    a, b = _operands(call)
    if isinstance(a, Variable) and isinstance(b, Variable):
        return call.emit(Multiply(), a, b)
    if isinstance(a, Variable):
        return call.scale_shift(a, np.asarray(b), None)
    return call.scale_shift(call.variable(1), a, None)


def lower_div(call: Call) -> Variable:
    _, b = _operands(call)
    if isinstance(b, Variable):
        call.refuse("it divides by a value that depends on the model's input", "divide by constants only")
    if np.any(b == 0):
        call.refuse("it divides by zero")
    return call.scale_shift(call.variable(), np.asarray(1.0 / b), None)


def lower_neg(call: Call) -> Variable:
    return call.emit(ScaleShift(np.array(-1.0)), call.variable())


def _reduced_axes(call: Call, rank: int) -> tuple[int, ...]:
    axes = call.integers(1, "axes")
    if not axes and call.attribute("noop_with_empty_axes", 0):
        return ()
    if not axes:
        call.refuse("it reduces over all axes, the batch axis too", BATCH_REMEDY)
    reduced = sorted({call.sample_axis(axis, rank) for axis in axes})
    if len(reduced) < len(axes):
        call.refuse(f"its axes {axes} name one axis twice")
    return tuple(reduced)


def lower_reduce_sum(call: Call) -> Variable:
    x = call.variable()
    axes = _reduced_axes(call, len(x.shape) + 1)
    if not axes:
        return x
    y = call.emit(Sum(axes), x)
    if call.attribute("keepdims", 1):
        return y
    return call.reshape(y, tuple(n for i, n in enumerate(x.shape) if i not in axes))


def lower_reduce_mean(call: Call) -> Variable:
    x = call.variable()
    count = math.prod(x.shape[a] for a in _reduced_axes(call, len(x.shape) + 1))
    y = lower_reduce_sum(call)
    return y if count == 1 else call.emit(ScaleShift(np.array(1.0 / count)), y)


ROWS = {
    "Add": lower_add,
    "Sub": lower_sub,
    "Mul": lower_mul,
    "Div": lower_div,
    "Neg": lower_neg,
    "ReduceSum": lower_reduce_sum,
    "ReduceMean": lower_reduce_mean,
}
