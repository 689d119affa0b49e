"""A program that serves a graph: every node in a format's own arithmetic, every sum in a random order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

CURVES: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu, "abs": torch.abs, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "erf": torch.erf, "atan": torch.atan,
    "softsign": F.softsign, "softplus": F.softplus, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt,
    "reciprocal": torch.reciprocal, "square": torch.square, "sin": torch.sin, "cos": torch.cos, "silu": F.silu,
    "gelu": F.gelu, "mish": F.mish, "hard_swish": F.hardswish,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "leaky_relu": F.leaky_relu, "clip": torch.clamp, "celu": F.celu,
    "elu": lambda z, alpha, gamma: gamma * F.elu(z, alpha),
    "power": lambda z, coefficient, exponent: coefficient * torch.pow(z, exponent),
}  # fmt: skip


def serve(graph: Graph, x: np.ndarray, rng: np.random.Generator, format: str = "float32") -> np.ndarray:
    """(outputs,) of the input rounded to the format; float64, exactly the numbers of the format."""
    kind = FORMATS[format]
    values: list[Tensor] = []
    for node in graph.nodes:
        inputs = [values[i] for i in node.inputs]
        values.append(torch.as_tensor(x).to(kind) if isinstance(node.op, ops.Input) else _apply(node.op, inputs, rng))
        assert values[-1].dtype == kind
    return values[graph.output].to(torch.float64).reshape(-1).numpy()


def _apply(op: Any, xs: list[Tensor], rng: np.random.Generator) -> Tensor:
    x = xs[0]
    match op:
        case ops.Linear():
            return _products(x[..., None, :] * _like(x, op.weight), op.bias, rng)
        case ops.Conv() | ops.Adjoint():
            return _by_matrix(op, x, rng)
        case ops.ScaleShift():
            y = x if op.scale is None else x * _like(x, op.scale)
            return y if op.shift is None else y + _like(x, op.shift)
        case ops.Add():
            return x + xs[1]
        case ops.Multiply():
            return x * xs[1]
        case ops.MatMul():
            return _products(x[..., :, None, :] * xs[1].mT[..., None, :, :], None, rng)
        case ops.Maximum():
            return torch.maximum(x, xs[1])
        case ops.LogSoftmax():
            kept = torch.ones_like(x) if op.kept is None else _like(x, op.kept).expand(x.shape)
            return torch.log_softmax(torch.where(kept > 0, x, -torch.inf), -1).nan_to_num(neginf=0.0)
        case ops.Normalized():
            return xs[2]
        case ops.Elementwise():
            return CURVES[op.curve](x, *op.parameters)
        case ops.Reshape():
            return x.reshape(op.shape)
        case ops.Transpose():
            return x.permute(op.axes)
        case ops.Expand():
            return x.expand(op.shape)
        case ops.Sum():
            moved = x.permute(*(a for a in range(x.dim()) if a not in op.axes), *op.axes)
            flat = moved.reshape(*(n for a, n in enumerate(x.shape) if a not in op.axes), -1)
            return _products(flat, None, rng).reshape([1 if a in op.axes else n for a, n in enumerate(x.shape)])
        case ops.Select():
            return x.index_select(op.axis, torch.tensor(op.indices))
        case ops.Concat():
            return torch.cat(xs, op.axis)
        case ops.Pad():
            return F.pad(x, [p for pair in reversed(op.padding) for p in pair], value=op.value)
    raise TypeError(f"nothing serves {type(op).__name__}")


def _products(terms: Tensor, bias: np.ndarray | None, rng: np.random.Generator) -> Tensor:
    """The terms of the last axis and the bias added up, two of them at a time, whichever."""
    parts = list(terms.unbind(-1)) + ([] if bias is None else [_like(terms, bias).expand(terms.shape[:-1])])
    while len(parts) > 1:
        first, second = sorted(rng.choice(len(parts), 2, replace=False))
        parts.append(parts.pop(second) + parts.pop(first))
    return parts[0]


def _by_matrix(op: Any, x: Tensor, rng: np.random.Generator) -> Tensor:
    """A convolution, or the transpose of one, by the matrix that it is."""
    inner: ops.Conv = op.inner if isinstance(op, ops.Adjoint) else op
    source = op.shape if isinstance(op, ops.Adjoint) else tuple(x.shape)
    matrix = _matrix(inner, source)
    if isinstance(op, ops.Adjoint):
        return _products(x.reshape(-1) * _like(x, matrix.T), None, rng).reshape(op.shape)
    shape = op.output_shape(source)
    bias = None
    if op.bias is not None:
        bias = np.broadcast_to(op.bias.reshape(-1, *(1,) * op.spatial_axes), shape).reshape(-1)
    return _products(x.reshape(-1) * _like(x, matrix), bias, rng).reshape(shape)


def _matrix(op: ops.Conv, source: tuple[int, ...]) -> np.ndarray:
    """(outputs, inputs) of the linear part; every entry is a weight or 0."""
    size, lead = int(np.prod(source)), source[: -1 - op.spatial_axes]
    units = torch.eye(size, dtype=torch.float64).reshape(-1, *source[len(lead) :])
    padded = F.pad(units, [p for pair in reversed(op.padding) for p in pair])
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[op.spatial_axes]
    weight = torch.tensor(op.weight)
    columns = convolve(padded, weight, None, op.stride, 0, op.dilation, op.groups)  # type: ignore[operator]
    return columns.reshape(size, -1).T.numpy()


def _like(x: Tensor, constant: np.ndarray) -> Tensor:
    return torch.tensor(constant, dtype=torch.float64).to(x.dtype)
