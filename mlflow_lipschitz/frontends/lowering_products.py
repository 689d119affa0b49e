"""Lowering of matrix products whose factors are constants, stacks of constants, or variables: MatMul and Gemm."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Linear, ScaleShift
from mlflow_lipschitz.frontends.einsum import lower_einsum
from mlflow_lipschitz.frontends.lowering_context import Call, Value, Variable
from mlflow_lipschitz.frontends.matrix_products import contract, matrix_product, swapped


def _factors(call: Call) -> tuple[Value, Value]:
    a, b = call.input(0), call.input(1)
    if a is None or b is None:
        call.refuse("it needs two factors")
    return a, b


def lower_matmul(call: Call) -> Value:
    return matrix_product(call, *_factors(call))


def lower_gemm(call: Call) -> Value:
    """α · A′B′ + β · C, where A′ and B′ may be transposed and C broadcasts to the product."""
    a, b = _factors(call)
    if len(a.shape) != 2 or len(b.shape) != 2:
        call.refuse(f"its factors have shapes {a.shape} and {b.shape}; two axes each are expected")
    left = swapped(call, a) if call.attribute("transA", 0) else a
    right = b if call.attribute("transB", 0) else swapped(call, b)
    alpha, beta = call.real("alpha", 1.0), call.real("beta", 1.0)
    addend = call.input(2) if beta != 0.0 else None
    full = (left.shape[0], right.shape[0])
    if addend is not None and call.broadcast(addend.shape, full) != full:
        call.refuse(f"its addend of shape {addend.shape} does not fit a product of shape {full}")
    plain = alpha == beta == 1.0
    if isinstance(left, Variable) and not isinstance(right, Variable) and (plain or not call.as_served):
        weight = right if alpha == 1.0 else alpha * right
        result = _affine(call, left, weight, addend, beta)
        return call.joined(result) if isinstance(result, Variable) and not plain else result
    product = contract(call, left, right)
    return _plus(call, _times(call, product, alpha), None if addend is None else _times(call, addend, beta))


def _affine(call: Call, x: Variable, weight: np.ndarray, addend: Value | None, beta: float) -> Value:
    """One Linear where the addend is the same for every row."""
    if addend is None or isinstance(addend, Variable) or math.prod(addend.shape[:-1]) != 1:
        return _plus(call, call.emit(Linear(weight), x), None if addend is None else _times(call, addend, beta))
    bias = np.broadcast_to((beta * addend).reshape(addend.shape[-1:]), (weight.shape[0],))
    return call.emit(Linear(weight, bias), x)


def _times(call: Call, x: Value, factor: float) -> Value:
    if factor == 1.0:
        return x
    return call.scale_shift(x, np.array(factor), None) if isinstance(x, Variable) else factor * x


def _plus(call: Call, a: Value, b: Value | None) -> Value:
    if b is None:
        return a
    if isinstance(a, Variable) and isinstance(b, Variable):
        return call.add(a, b)
    if isinstance(a, Variable):
        return call.emit(ScaleShift(None, np.asarray(b)), a)
    assert isinstance(b, Variable)  # a node without variables is folded and never comes here
    return call.scale_shift(b, None, a)


ROWS: dict[str, Callable[[Call], Value]] = {"MatMul": lower_matmul, "Gemm": lower_gemm, "Einsum": lower_einsum}
