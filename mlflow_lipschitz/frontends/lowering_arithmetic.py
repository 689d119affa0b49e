"""Lowering of arithmetic: sums, differences, products and quotients, of constants and of variables, and reductions."""

from __future__ import annotations

import math

import numpy as np

from mlflow_lipschitz.frontends.lowering_context import Call, Value, Variable

MINUS = np.array(-1.0)


def _operands(call: Call) -> tuple[Value, Value]:
    a, b = call.input(0), call.input(1)
    if a is None or b is None:
        call.refuse("it needs two inputs")
    return a, b


def lower_add(call: Call) -> Variable:
    a, b = _operands(call)
    if isinstance(a, Variable) and isinstance(b, Variable):
        return call.add(a, b)
    if isinstance(a, Variable):
        return call.scale_shift(a, None, np.asarray(b))
    return call.scale_shift(call.variable(1), None, a)


def lower_sub(call: Call) -> Variable:
    a, b = _operands(call)
    if isinstance(a, Variable) and isinstance(b, Variable):
        return call.subtract(a, b)
    if isinstance(a, Variable):
        return call.scale_shift(a, None, -np.asarray(b))
    return call.scale_shift(call.variable(1), MINUS, a)


def lower_mul(call: Call) -> Variable:
    a, b = _operands(call)
    if isinstance(a, Variable) and isinstance(b, Variable):
        return call.multiply(a, b)
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
    return call.scale_shift(call.variable(), MINUS, None)


def reduced_axes(call: Call, rank: int) -> tuple[int, ...]:
    """The axes that a Reduce operator of any opset sums over; none where it is told to do nothing."""
    axes = call.integers(1, "axes")
    if axes:
        return call.axes(axes, rank)
    return () if call.attribute("noop_with_empty_axes", 0) else tuple(range(rank))


def lower_reduce_sum(call: Call) -> Variable:
    x = call.variable()
    return call.sum(x, reduced_axes(call, len(x.shape)), keepdims=bool(call.attribute("keepdims", 1)))


def lower_reduce_mean(call: Call) -> Variable:
    x = call.variable()
    count = math.prod(x.shape[a] for a in reduced_axes(call, len(x.shape)))
    y = lower_reduce_sum(call)
    return y if count == 1 else call.scale_shift(y, np.array(1.0 / count), None)


ROWS = {
    "Add": lower_add,
    "Sub": lower_sub,
    "Mul": lower_mul,
    "Div": lower_div,
    "Neg": lower_neg,
    "ReduceSum": lower_reduce_sum,
    "ReduceMean": lower_reduce_mean,
}
