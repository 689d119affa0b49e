"""Lowering of matrix products and BatchNormalization."""

from __future__ import annotations

import math

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Conv, Linear, ScaleShift
from mlflow_lipschitz.frontends.lowering_context import Call, Variable


def lower_matmul(call: Call) -> Variable:
    a, b = call.input(0), call.input(1)
    if isinstance(a, Variable) and isinstance(b, Variable):
        call.refuse("both factors depend on the model's input", "products of two computed matrices are not supported")
    if isinstance(a, Variable):
        return _times_constant(call, a, call.constant(1, "the right factor"))
    return _constant_times(call, call.constant(0, "the left factor"), call.variable(1))


def _matrix(call: Call, constant: np.ndarray) -> np.ndarray:
    if constant.ndim > 2 and math.prod(constant.shape[:-2]) != 1:
        call.refuse(f"the constant factor holds a stack of matrices, shape {constant.shape}")
    return constant.reshape(constant.shape[-2:]) if constant.ndim > 2 else constant


def _times_constant(call: Call, x: Variable, constant: np.ndarray) -> Variable:
    x = _with_leading_axes(call, x, constant)
    matrix = _matrix(call, constant)
    if matrix.ndim == 1:
        return call.reshape(call.emit(Linear(matrix[None, :]), x), x.shape[:-1])
    return call.emit(Linear(matrix.T), x)


def _constant_times(call: Call, constant: np.ndarray, x: Variable) -> Variable:
    x = _with_leading_axes(call, x, constant)
    matrix = _matrix(call, constant)
    rank = len(x.shape)
    if rank == 1:
        y = call.emit(Linear(np.atleast_2d(matrix)), x)
        return call.reshape(y, ()) if matrix.ndim == 1 else y
    swap = (*range(rank - 2), rank - 1, rank - 2)
    y = call.emit(Linear(np.atleast_2d(matrix)), call.transpose(x, swap))
    return call.reshape(y, y.shape[:-1]) if matrix.ndim == 1 else call.transpose(y, swap)


def _with_leading_axes(call: Call, x: Variable, constant: np.ndarray) -> Variable:
    """x as NumPy's rules for a product of stacks see it: with leading axes of length 1 where the other factor has more."""
    missing = constant.ndim - len(x.shape)
    if missing <= 0:
        return x
    if len(x.shape) < 2:
        call.refuse(f"a vector times a stack of matrices, shape {constant.shape}")
    return call.reshape(x, (1,) * missing + x.shape)


def lower_gemm(call: Call) -> Variable:
    x = call.input(0)
    if not isinstance(x, Variable):
        call.refuse("its first factor is a constant", "write it as MatMul and Add")
    weight = call.constant(1, "the second factor")
    if len(x.shape) != 2 or weight.ndim != 2:
        call.refuse(f"its factors have shapes {x.shape} and {weight.shape}; two axes each are expected")
    x = call.transpose(x, (1, 0)) if call.attribute("transA", 0) else x
    matrix = weight if call.attribute("transB", 0) else weight.T
    alpha, beta = call.real("alpha", 1.0), call.real("beta", 1.0)
    matrix = matrix if alpha == 1.0 else alpha * matrix
    addend = call.input(2)
    if addend is None or beta == 0.0:
        return call.emit(Linear(matrix), x)
    if isinstance(addend, Variable):
        call.refuse("its addend depends on the model's input", "write it as MatMul and Add")
    shift = np.asarray(beta * addend)
    full = (x.shape[0], matrix.shape[0])
    if call.broadcast(shift.shape, full) != full:
        call.refuse(f"its addend of shape {shift.shape} does not fit a product of shape {full}")
    if math.prod(shift.shape[:-1]) == 1:
        return call.emit(Linear(matrix, np.broadcast_to(shift.reshape(shift.shape[-1:]), full[1:])), x)
    return call.emit(ScaleShift(None, shift), call.emit(Linear(matrix), x))


def lower_batch_normalization(call: Call) -> Variable:
    """Inference: `gamma * (x - mean) / sqrt(variance + epsilon) + beta` per channel, constants folded in float64."""
    if call.attribute("training_mode", 0) or len([name for name in call.node.output if name]) > 1:
        call.refuse("it is in training mode", "put the model in evaluation mode (model.eval()) before exporting it")
    x = call.variable()
    names = ("gamma", "beta", "the running mean", "the running variance")
    gamma, beta, mean, variance = (call.constant(i, name) for i, name in enumerate(names, start=1))
    denominator = variance + call.real("epsilon", 1e-5)
    if len(x.shape) < 2 or np.any(denominator <= 0):
        call.refuse("its running variance plus epsilon is not positive, or it has no channel axis")
    scale = gamma / np.sqrt(denominator)
    shift = beta - mean * scale
    folded = _into_producer(call, x, scale, shift) if call.read_only_here() else None
    if folded is not None:
        return folded
    per_channel = (-1, *(1,) * (len(x.shape) - 2))
    return call.emit(ScaleShift(scale.reshape(per_channel), shift.reshape(per_channel)), x)


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


ROWS = {
    "MatMul": lower_matmul,
    "Gemm": lower_gemm,
    "BatchNormalization": lower_batch_normalization,
}
