"""Lowering of arithmetic: sums, differences, products, quotients and powers, of constants and of variables.

Constants of minus infinity are attention masks: they do not enter the arithmetic, but are noted on the variable.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mlflow_lipschitz.engine.ir import building
from mlflow_lipschitz.engine.ir.ops import Elementwise
from mlflow_lipschitz.frontends.fusions import exponential_behind, fused_normalization, is_mean_of
from mlflow_lipschitz.frontends.lowering_context import MASK_REMEDY, Call, Value, Variable, node_name
from mlflow_lipschitz.frontends.served_steps import OWN_FORMULA, VARIANCE
from mlflow_lipschitz.frontends.values import split_mask

MINUS = np.array(-1.0)
LEAST_MASK_SCALE = 1e-3  # a mask times at least this is still far below anything that exp does not round to 0
MOST_ABOVE_MASK = 1e20  # what may be added to a mask: less than what is left of it


def _operands(call: Call) -> tuple[Value, Value]:
    a, b = call.input(0), call.input(1)
    if a is None or b is None:
        call.refuse("it needs two inputs")
    return a, b


def lower_add(call: Call) -> Variable:
    return add(call, *_operands(call))


def add(call: Call, a: Value, b: Value) -> Variable:
    """Sum of two values, at least one of them a variable; what is masked in either is masked in the sum."""
    if not isinstance(a, Variable):
        a, b = b, a
    assert isinstance(a, Variable)
    if isinstance(b, Variable):
        bare = replace(a, masked=None), replace(b, masked=None)
        return _masked(call, call.add(*bare), a.masked, b.masked)
    numbers, mask = split_mask(np.asarray(b))
    if mask is not None and not numbers.any():
        return _masked(call, call.expand(a, call.broadcast(a.shape, mask.shape)), mask)
    if a.masked is not None and np.any(np.abs(numbers) > MOST_ABOVE_MASK):
        call.refuse("it lifts scores that are masked", MASK_REMEDY)
    bare_a = a if a.masked is None else replace(a, masked=None)
    return _masked(call, call.scale_shift(bare_a, None, numbers), a.masked, mask)


def _masked(call: Call, x: Variable, *masks: np.ndarray | None) -> Variable:
    for mask in masks:
        x = call.mask(x, mask)
    return x


def lower_sub(call: Call) -> Variable:
    a, b = _operands(call)
    if isinstance(b, Variable):
        if not isinstance(a, Variable):
            return call.scale_shift(b, MINUS, a)
        difference = call.subtract(a, b)
        return call.unserved(difference, VARIANCE) if is_mean_of(call.builder, b.index, a.index) else difference
    return add(call, a, np.asarray(-b))


def lower_mul(call: Call) -> Variable:
    a, b = _operands(call)
    if isinstance(a, Variable) and isinstance(b, Variable):
        return _product(call, a, b)
    return _scaled(call, a, np.asarray(b)) if isinstance(a, Variable) else _scaled(call, call.variable(1), a)


def _product(call: Call, a: Variable, b: Variable) -> Variable:
    """a · b; a normalization that is written out is one, whose value and derivative have ranges of their own."""
    found = fused_normalization(call.builder, a.index, b.index) or fused_normalization(call.builder, b.index, a.index)
    if found is None or a.masked is not None or b.masked is not None or call.as_served:
        return call.multiply(a, b)
    index, _ = building.normalized(
        call.builder, found.x, found.axes, factor=found.factor, epsilon=found.epsilon, name=node_name(call.node)
    )
    return call.joined(Variable(index, call.builder.shape(index)))


def _scaled(call: Call, x: Variable, factor: np.ndarray) -> Variable:
    if x.masked is not None and np.all(np.isfinite(factor)):
        sunk = min(1.0, x.sunk * float(np.min(factor)))
        if sunk < LEAST_MASK_SCALE:
            call.refuse("it scales a mask down to a number that may matter", MASK_REMEDY)
        return call.mask(replace(call.scale_shift(replace(x, masked=None), factor, None), sunk=sunk), x.masked)
    return x if factor.ndim == 0 and factor == 1 else call.scale_shift(x, factor, None)


def lower_div(call: Call) -> Variable:
    a, b = _operands(call)
    if isinstance(b, Variable):
        quotient = reciprocal(call, b)
        if isinstance(a, Variable):
            return _product(call, a, quotient)
        return quotient if a.ndim == 0 and a == 1 else call.scale_shift(quotient, a, None)
    if np.any(b == 0):
        call.refuse("it divides by zero")
    return _scaled(call, call.variable(), np.asarray(1.0 / b))


def reciprocal(call: Call, x: Variable) -> Variable:
    """1 / x; of a root it is x ** (-1/2), of 1 + exp(y) the sigmoid of -y: one curve, which is tighter than several."""
    if call.as_served:
        return call.curve("reciprocal", x)
    exponent = exponential_behind(call.builder, x.index)
    if exponent is not None:
        y = Variable(exponent, call.builder.shape(exponent))
        return call.joined(call.curve("sigmoid", call.scale_shift(y, MINUS, None)))
    producer = call.builder.node(x.index)
    if isinstance(producer.op, Elementwise) and producer.op.curve == "sqrt":
        (source,) = producer.inputs
        return call.joined(call.curve("power", Variable(source, call.builder.shape(source)), 1.0, -0.5))
    return call.curve("reciprocal", x)


def lower_neg(call: Call) -> Variable:
    return call.scale_shift(call.variable(), MINUS, None)


def lower_pow(call: Call) -> Variable:
    """x ** p for a constant p, b ** x for a constant b > 0, and x ** y for x > 0 as exp(y log x)."""
    base, exponent = _operands(call)
    if isinstance(exponent, Variable):
        return _exponential(call, base, exponent)
    x, powers = call.variable(), np.unique(np.asarray(exponent, dtype=np.float64))
    if powers.size != 1:
        call.refuse("its exponents differ from entry to entry", "raise to one constant power at a time")
    x = call.expand(x, call.broadcast(x.shape, np.shape(exponent)))
    return power(call, x, float(powers[0]))


def power(call: Call, x: Variable, exponent: float) -> Variable:
    """x to a constant power, by its own curve where it has one."""
    if exponent == 0.0:
        return call.scale_shift(x, np.array(0.0), np.array(1.0))
    if exponent == 1.0:
        return x
    if exponent == -1.0:
        return reciprocal(call, x)
    named = {2.0: "square", 0.5: "sqrt"}.get(exponent)
    return call.curve(named, x) if named else call.curve("power", x, 1.0, exponent)


def _exponential(call: Call, base: Value, exponent: Variable) -> Variable:
    if isinstance(base, Variable):
        return call.unserved(call.curve("exp", call.multiply(call.curve("log", base), exponent)), OWN_FORMULA)
    if np.any(base <= 0):
        call.refuse("it raises a number that is not positive to a variable power", "raise positive numbers only")
    rate = np.asarray(np.log(base.astype(np.float64)))
    return call.unserved(call.curve("exp", call.scale_shift(exponent, rate, None)), OWN_FORMULA)


def lower_sum(call: Call) -> Variable:
    values = [value for value in call.inputs if value is not None]
    variables = [value for value in values if isinstance(value, Variable)]
    constants = [value for value in values if isinstance(value, np.ndarray)]
    total = variables[0]
    for value in variables[1:]:
        total = add(call, total, value)
    for constant in constants:
        total = add(call, total, constant)
    return total


def lower_mean(call: Call) -> Variable:
    count = len([value for value in call.inputs if value is not None])
    return _scaled(call, lower_sum(call), np.array(1.0 / count))


ROWS = {
    "Add": lower_add,
    "Sub": lower_sub,
    "Mul": lower_mul,
    "Div": lower_div,
    "Neg": lower_neg,
    "Pow": lower_pow,
    "Reciprocal": lambda call: reciprocal(call, call.variable()),
    "Sum": lower_sum,
    "Mean": lower_mean,
}
