"""What a graph means, in exact arithmetic: an evaluator that shares no code with the engine's rules.

Values and Jacobians come from dual numbers over `Fraction` (piecewise linear curves: exact) or 400-bit `mpmath` numbers (smooth
curves: exact far beyond float64). At a kink, `side` chooses the one-sided derivative; both belong to the Clarke set.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, Node

mpmath.mp.prec = 400

SMOOTH = ("tanh", "sigmoid", "dtanh", "dsigmoid")


@dataclass(frozen=True, eq=False)
class Dual:
    """A number and its gradient by the input's entries."""

    value: Any
    gradient: np.ndarray

    def __add__(self, other: Any) -> Dual:
        if isinstance(other, Dual):
            return Dual(self.value + other.value, self.gradient + other.gradient)
        return Dual(self.value + other, self.gradient)

    def __mul__(self, other: Any) -> Dual:
        if isinstance(other, Dual):
            return Dual(self.value * other.value, self.gradient * other.value + other.gradient * self.value)
        return Dual(self.value * other, self.gradient * other)

    __radd__, __rmul__ = __add__, __mul__


def is_smooth(graph: Graph) -> bool:
    return any(isinstance(n.op, ops.Elementwise) and n.op.curve in SMOOTH for n in graph.nodes)


def number(graph: Graph) -> Callable[[Any], Any]:
    """The exact number type this graph needs."""
    return mpmath.mpf if is_smooth(graph) else lambda v: Fraction(float(v))


def value_and_jacobian(graph: Graph, x: np.ndarray, side: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Exact (outputs,) values and (outputs, inputs) Jacobian at one point of the graph's input shape."""
    exact = number(graph)
    size = x.size
    zero, one = exact(0), exact(1)
    entries = np.empty(size, dtype=object)
    for i, v in enumerate(x.reshape(-1)):
        gradient = np.array([one if i == j else zero for j in range(size)], dtype=object)
        entries[i] = Dual(exact(float(v)), gradient)
    values: list[np.ndarray] = []
    for node in graph.nodes:
        if isinstance(node.op, ops.Input):
            values.append(entries.reshape(x.shape))
        else:
            held = np.empty(node.shape, dtype=object)  # NumPy gives a bare entry, not an array, where no axes are left
            held[...] = _apply(node, [values[i] for i in node.inputs], exact, side)
            values.append(held)
    outputs = values[graph.output].reshape(-1)
    return np.array([d.value for d in outputs], dtype=object), np.stack([d.gradient for d in outputs])


def _apply(node: Node, xs: list[np.ndarray], exact: Callable[[Any], Any], side: int) -> np.ndarray:
    op: Any = node.op
    x = xs[0]
    lift = np.vectorize(lambda v: exact(float(v)), otypes=[object])
    match op:
        case ops.Linear():
            y = x @ lift(op.weight).T
            return y if op.bias is None else y + lift(op.bias)
        case ops.Conv():
            return _convolve(op, x, lift, exact)
        case ops.ScaleShift():
            y = x if op.scale is None else x * lift(op.scale)
            return y if op.shift is None else y + lift(op.shift)
        case ops.Add():
            return xs[0] + xs[1]
        case ops.Multiply():
            return xs[0] * xs[1]
        case ops.Elementwise():
            curve = np.vectorize(lambda d: _curve(op, d, exact, side), otypes=[object])
            return curve(x)
        case ops.Reshape():
            return x.reshape(op.shape)
        case ops.Transpose():
            return x.transpose(op.axes)
        case ops.Expand():
            return np.broadcast_to(x, op.shape)
        case ops.Sum():
            return x.sum(axis=op.axes, keepdims=True)
        case ops.Select():
            return np.take(x, op.indices, axis=op.axis)
        case ops.Concat():
            return np.concatenate(xs, axis=op.axis)
        case ops.Pad():
            return _padded(x, op.padding, exact(float(op.value)))
    raise TypeError(f"no exact meaning for {type(op).__name__}")


def _padded(x: np.ndarray, padding: Any, value: Any) -> np.ndarray:
    size = x.reshape(-1)[0].gradient.shape
    out = np.empty([n + a + b for n, (a, b) in zip(x.shape, padding, strict=True)], dtype=object)
    out.reshape(-1)[:] = [Dual(value, np.full(size, value * 0, dtype=object)) for _ in range(out.size)]
    out[tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, padding, strict=True))] = x
    return out


def _convolve(op: ops.Conv, x: np.ndarray, lift: Any, exact: Callable[[Any], Any]) -> np.ndarray:
    padded = _padded(x, ((0, 0), *op.padding), exact(0))
    weight = lift(op.weight)
    kernel = op.weight.shape[2:]
    out_shape = op.output_shape(x.shape)
    per_group_in, per_group_out = op.weight.shape[1], op.weight.shape[0] // op.groups
    out = np.empty(out_shape, dtype=object)
    for place in itertools.product(*(range(n) for n in out_shape)):
        o, *at = place
        group = o // per_group_out
        total: Any = exact(0) if op.bias is None else exact(float(op.bias[o]))
        for c, *k in itertools.product(range(per_group_in), *(range(n) for n in kernel)):
            where = tuple(i * s + j * d for i, s, j, d in zip(at, op.stride, k, op.dilation, strict=True))
            total = padded[(group * per_group_in + c, *where)] * weight[(o, c, *k)] + total
        out[place] = total
    return out


def _curve(op: ops.Elementwise, d: Dual, exact: Callable[[Any], Any], side: int) -> Dual:
    z = d.value
    value, slope = CURVES[op.curve](z, exact, side, *op.parameters)
    return Dual(value, d.gradient * slope)


def _kink(left: Any, right: Any) -> Callable[..., tuple[Any, Any]]:
    def curve(z: Any, exact: Callable[[Any], Any], side: int, *parameters: float) -> tuple[Any, Any]:
        low = exact(left if left is not None else parameters[0])
        slope = exact(right) if z > 0 or (z == 0 and side) else low
        return z * slope, slope

    return curve


def _sigmoid(z: Any, *_: Any) -> tuple[Any, Any]:
    # 1 − σ(z) would cancel even at 400 bits.
    return 1 / (1 + mpmath.exp(-z)), mpmath.exp(-z) / (1 + mpmath.exp(-z)) ** 2


CURVES: dict[str, Callable[..., tuple[Any, Any]]] = {
    "relu": _kink(0, 1),
    "leaky_relu": _kink(None, 1),
    "abs": _kink(-1, 1),
    "tanh": lambda z, *_: (mpmath.tanh(z), mpmath.sech(z) ** 2),
    "sigmoid": _sigmoid,
    "dtanh": lambda z, *_: (mpmath.sech(z) ** 2, -2 * mpmath.tanh(z) * mpmath.sech(z) ** 2),
    "dsigmoid": lambda z, *_: (_sigmoid(z)[1], -_sigmoid(z)[1] * mpmath.tanh(z / 2)),
    "square": lambda z, *_: (z * z, 2 * z),
    "step": lambda z, exact, side, left, right: (exact(right if z > 0 or (z == 0 and side) else left), exact(0)),
}
