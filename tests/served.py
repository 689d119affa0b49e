"""Programs that serve a graph: every node in a format's own arithmetic, every sum in a random order.

Numbers of a format are held as float64. A sum or product of two of them that is rounded to float64 first and then to the format is
what the format's own operation gives: float64 has more than twice as many digits (Figueroa, SIGNUM Newsletter 30, 1995).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Manner:
    """What a program may do as it likes.

    Attributes:
        fused: products are not rounded before they are added to a sum.
        wide: sums are kept in float64 and rounded at their end.
        flush: denormal numbers count as zero, constants and what comes in included.
    """

    fused: bool = False
    wide: bool = False
    flush: bool = False

    @staticmethod
    def drawn(rng: np.random.Generator) -> Manner:
        return Manner(*(bool(v) for v in rng.random(3) < 0.5))


def serve(graph: Graph, x: np.ndarray, rng: np.random.Generator, format: str = "float32") -> np.ndarray:
    """(outputs,) of the input rounded to the format; float64, exactly the numbers of the format."""
    return serve_all(graph, x[None], rng, format)[0]


def serve_all(
    graph: Graph,
    points: np.ndarray,
    rng: np.random.Generator,
    format: str = "float32",
    manner: Manner = Manner(),
) -> np.ndarray:
    """(points, outputs) of the inputs (points, *input shape), all by one program: the order of its sums is drawn once."""
    program = _Program(FORMATS[format], rng, manner)
    values: list[Tensor] = []
    for node in graph.nodes:
        inputs = [values[i] for i in node.inputs]
        given = torch.from_numpy(points) if isinstance(node.op, ops.Input) else program.apply(node.op, inputs)
        values.append(program.held(given))
    return values[graph.output].reshape(len(points), -1).numpy()


@dataclass(frozen=True)
class _Program:
    """Values are (points, *shape) float64, numbers of the format."""

    kind: torch.dtype
    rng: np.random.Generator
    manner: Manner

    def held(self, numbers: Tensor) -> Tensor:
        """Rounded to the format."""
        rounded = numbers.to(self.kind)
        if self.manner.flush:
            rounded = torch.where(rounded.abs() < torch.finfo(self.kind).tiny, 0.0, rounded).to(self.kind)
        return rounded.to(torch.float64)

    def apply(self, op: Any, xs: list[Tensor]) -> Tensor:
        x = xs[0]
        match op:
            case ops.Linear():
                return self._sum(x[..., None, :] * self._constant(op.weight), op.bias)
            case ops.Conv() | ops.Adjoint():
                return self._by_matrix(op, x)
            case ops.ScaleShift():
                y = x if op.scale is None else x * self._constant(op.scale)
                if op.shift is None:
                    return y
                return (y if self.manner.fused else self.held(y)) + self._constant(op.shift)
            case ops.Add():
                return x + xs[1]
            case ops.Multiply():
                return x * xs[1]
            case ops.MatMul():
                return self._sum(x[..., :, None, :] * xs[1].mT[..., None, :, :])
            case ops.Maximum():
                return torch.maximum(x, xs[1])
            case ops.LogSoftmax():
                kept = torch.ones(x.shape[1:]) if op.kept is None else self._constant(op.kept)
                scores = torch.where(kept > 0, x, -torch.inf).to(self.kind)
                return torch.log_softmax(scores, -1).nan_to_num(neginf=0.0)
            case ops.Normalized():
                return xs[2]
            case ops.Elementwise():
                return CURVES[op.curve](x.to(self.kind), *op.parameters)
            case ops.Sum():
                return self._summed(x, tuple(a + 1 for a in op.axes))
            case ops.Concat():
                return torch.cat(xs, op.axis + 1)
        return moved(op, x)

    def _constant(self, numbers: np.ndarray) -> Tensor:
        return self.held(torch.tensor(numbers, dtype=torch.float64))

    def _summed(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        flat = x.permute(*(a for a in range(x.dim()) if a not in axes), *axes)
        flat = flat.reshape(*(n for a, n in enumerate(x.shape) if a not in axes), -1)
        return self._sum(flat).reshape([1 if a in axes else n for a, n in enumerate(x.shape)])

    def _sum(self, terms: Tensor, bias: np.ndarray | None = None) -> Tensor:
        """The terms of the last axis and the bias added up, two of them at a time, whichever."""
        if not (self.manner.fused or self.manner.wide):
            terms = self.held(terms)
        parts = list(terms.unbind(-1))
        if bias is not None:
            parts.append(self._constant(bias).expand(terms.shape[:-1]))
        while len(parts) > 1:
            first = parts.pop(int(self.rng.integers(len(parts))))
            place = int(self.rng.integers(len(parts)))
            # A fused operation adds one product to a number that is rounded.
            added = first + (parts[place] if self.manner.wide else self.held(parts[place]))
            parts[place] = added if self.manner.wide else self.held(added)
        return parts[0]

    def _by_matrix(self, op: Any, x: Tensor) -> Tensor:
        """A convolution, or the transpose of one, by the matrix that it is."""
        inner: ops.Conv = op.inner if isinstance(op, ops.Adjoint) else op
        source = op.shape if isinstance(op, ops.Adjoint) else tuple(x.shape[1:])
        matrix, reached = (
            _matrix(inner, source),
            _matrix(replace(inner, weight=np.ones_like(inner.weight)), source) != 0,
        )
        if isinstance(op, ops.Adjoint):
            return self._sum(self._products(x, matrix.T, reached.T)).reshape(-1, *op.shape)
        shape = op.output_shape(source)
        bias = None
        if op.bias is not None:
            bias = np.broadcast_to(op.bias.reshape(-1, *(1,) * op.spatial_axes), shape).reshape(-1)
        return self._sum(self._products(x, matrix, reached), bias).reshape(-1, *shape)

    def _products(self, x: Tensor, matrix: np.ndarray, reached: np.ndarray) -> Tensor:
        """No kernel multiplies what it does not reach, were it infinite."""
        products = x.reshape(len(x), 1, -1) * self._constant(matrix)
        return torch.where(torch.from_numpy(reached), products, 0.0)


def moved(op: Any, x: Tensor) -> Tensor:
    """What only moves entries, of values (points, *shape)."""
    match op:
        case ops.Reshape():
            return x.reshape(-1, *op.shape)
        case ops.Transpose():
            return x.permute(0, *(a + 1 for a in op.axes))
        case ops.Expand():
            aligned = x.reshape(len(x), *(1,) * (len(op.shape) - x.dim() + 1), *x.shape[1:])
            return aligned.expand(len(x), *op.shape)
        case ops.Select():
            return x.index_select(op.axis + 1, torch.tensor(op.indices))
        case ops.Pad():
            return F.pad(x, [p for pair in reversed(op.padding) for p in pair], value=op.value)
    raise TypeError(f"nothing serves {type(op).__name__}")


def _matrix(op: ops.Conv, source: tuple[int, ...]) -> np.ndarray:
    """(outputs, inputs) of the linear part; every entry is a weight or 0."""
    size, lead = math.prod(source), source[: -1 - op.spatial_axes]
    units = torch.eye(size, dtype=torch.float64).reshape(-1, *source[len(lead) :])
    padded = F.pad(units, [p for pair in reversed(op.padding) for p in pair])
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[op.spatial_axes]
    weight = torch.tensor(op.weight)
    columns = convolve(padded, weight, None, op.stride, 0, op.dilation, op.groups)  # type: ignore[operator]
    return columns.reshape(size, -1).T.numpy()
