"""Products of stacks of matrices, of constants and of variables: what MatMul, Gemm, Einsum and Attention are made of.

Everywhere the second factor comes transposed: `contract` sums over the last axis of both.
"""

from __future__ import annotations

import math

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Conv, Linear, MatMul
from mlflow_lipschitz.frontends.lowering_context import Call, Shape, Value, Variable


def swapped(call: Call, x: Value) -> Value:
    """The last two axes exchanged."""
    if not isinstance(x, Variable):
        return np.swapaxes(x, -1, -2)
    rank = len(x.shape)
    return call.transpose(x, (*range(rank - 2), rank - 1, rank - 2))


def matrix_product(call: Call, a: Value, b: Value) -> Value:
    """`a @ b` by NumPy's rules: stacks broadcast, a vector is a row on the left and a column on the right."""
    if len(a.shape) == 0 or len(b.shape) == 0:
        call.refuse("a factor has no axes")
    rows = reshaped(call, a, (1, *a.shape)) if len(a.shape) == 1 else a
    columns = reshaped(call, b, (1, *b.shape)) if len(b.shape) == 1 else swapped(call, b)
    product = contract(call, rows, columns)
    shape = [*product.shape[:-2]]
    shape += [product.shape[-2]] if len(a.shape) > 1 else []
    shape += [product.shape[-1]] if len(b.shape) > 1 else []
    return reshaped(call, product, tuple(shape))


def reshaped(call: Call, x: Value, shape: Shape) -> Value:
    return call.reshape(x, shape) if isinstance(x, Variable) else np.reshape(x, shape)


def contract(call: Call, a: Value, b: Value) -> Value:
    """Σⱼ a[…, i, j] · b[…, k, j] → (…, i, k); the leading axes broadcast.

    Refuses factors whose last axes differ in length.
    """
    if a.shape[-1] != b.shape[-1]:
        call.refuse(f"it sums over axes of {a.shape[-1]} and {b.shape[-1]} entries")
    if not isinstance(a, Variable) and not isinstance(b, Variable):
        return np.matmul(a, np.swapaxes(b, -1, -2))
    if not isinstance(b, Variable):
        assert isinstance(a, Variable)
        return _with_constants(call, a, b)
    if not isinstance(a, Variable):
        return swapped(call, _with_constants(call, b, a))
    return _of_variables(call, a, b)


def _of_variables(call: Call, a: Variable, b: Variable) -> Variable:
    lead = call.broadcast(a.shape[:-2], b.shape[:-2])
    left, right = (call.expand(x, (*lead, *x.shape[-2:])) for x in (a, b))
    turned = swapped(call, right)
    assert isinstance(turned, Variable)
    return call.emit(MatMul(), left, turned)


def _with_constants(call: Call, x: Variable, stack: np.ndarray) -> Variable:
    """`contract` with constant matrices: one for all is a Linear, several are a grouped convolution of width 1."""
    if math.prod(stack.shape[:-2]) == 1:
        lead = (1,) * max(len(stack.shape) - len(x.shape), 0)
        return call.emit(Linear(stack.reshape(stack.shape[-2:])), call.reshape(x, (*lead, *x.shape)))
    lead = call.broadcast(x.shape[:-2], stack.shape[:-2])
    kept = len(lead) - len(stack.shape[:-2])
    (rows, length), columns = x.shape[-2:], stack.shape[-2]
    matrices = np.broadcast_to(stack, (*lead[kept:], columns, length)).reshape(-1, length, 1)
    groups = math.prod(lead[kept:])
    channels = swapped(call, call.expand(x, (*lead, rows, length)))
    assert isinstance(channels, Variable)
    convolution = Conv(matrices, None, (1,), ((0, 0),), (1,), groups)
    products = call.emit(convolution, call.reshape(channels, (*lead[:kept], groups * length, rows)))
    result = swapped(call, call.reshape(products, (*lead, columns, rows)))
    assert isinstance(result, Variable)
    return result
