"""What a graph means, in exact arithmetic: an evaluator that shares no code with the engine's rules.

Values and Jacobians come from dual numbers over fractions (piecewise linear curves: exact) or 400-bit `mpmath` numbers (smooth
curves: exact far beyond float64). At a kink, `side` chooses the one-sided derivative; all of them belong to the Clarke set.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import mpmath
import numpy as np

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, Node
from tests.exact_curves import is_rational
from tests.exact_duals import BeyondTheOracle as BeyondTheOracle
from tests.exact_duals import Dual, Side, Toward, curve, inverse_root, larger, logarithm, power_of_e, rational, rounded


def is_smooth(graph: Graph) -> bool:
    curves = [n.op for n in graph.nodes if isinstance(n.op, ops.Elementwise)]
    return not all(is_rational(op.curve, op.parameters) for op in curves)


def number(graph: Graph) -> Callable[[Any], Any]:
    """The exact number type this graph needs."""
    return mpmath.mpf if is_smooth(graph) else rational


def one_sided(graph: Graph, x: np.ndarray) -> Iterator[np.ndarray]:
    """The Jacobians on either side of the kinks at a point: one where there is none, as both would be the same."""
    left = Side(False)
    yield value_and_jacobian(graph, x, left)[1]
    if left.met:
        yield value_and_jacobian(graph, x, Side(True))[1]


def values_at(graph: Graph, x: np.ndarray) -> np.ndarray:
    """Exact (outputs,) values at one point; NaN where there is none.

    Raises:
        BeyondTheOracle: a number is too large.
    """
    nothing = np.empty(0, dtype=object)
    outputs = _nodes(graph, x, [nothing] * x.size, Toward(nothing))[graph.output].reshape(-1)
    return np.array([d.value for d in outputs], dtype=object)


def node_values(graph: Graph, x: np.ndarray) -> list[np.ndarray]:
    """Exact values of every node at one point, flat. Raises as `value_and_jacobian` does with a side that is a boolean."""
    nodes = _nodes(graph, x, np.empty((x.size, 0), dtype=object), True)
    return [np.array([d.value for d in node.reshape(-1)], dtype=object) for node in nodes]


def value_and_jacobian(graph: Graph, x: np.ndarray, side: Any = True) -> tuple[np.ndarray, np.ndarray]:
    """Exact (outputs,) values and (outputs, inputs) Jacobian at one point of the graph's input shape.

    Args:
        side: of every kink: a boolean (True: the right one), a `Side` or a `Toward`.

    Raises:
        BeyondTheOracle: a number is too large. ZeroDivisionError: there is no value, and `side` is no `Toward`.
    """
    exact = number(graph)
    unit = np.full((x.size, x.size), exact(0), dtype=object)
    np.fill_diagonal(unit, exact(1))
    outputs = _nodes(graph, x, unit, side)[graph.output].reshape(-1)
    return np.array([d.value for d in outputs], dtype=object), np.stack([d.gradient for d in outputs])


def _nodes(graph: Graph, x: np.ndarray, gradients: Iterable[np.ndarray], side: Any) -> list[np.ndarray]:
    exact = number(graph)
    entries = np.empty(x.size, dtype=object)
    entries[:] = [Dual(exact(float(v)), gradient) for v, gradient in zip(x.reshape(-1), gradients, strict=True)]
    values: list[np.ndarray] = []
    for node in graph.nodes:
        if isinstance(node.op, ops.Input):
            values.append(entries.reshape(x.shape))
        else:
            held = np.empty(node.shape, dtype=object)  # NumPy gives a bare entry, not an array, where no axes are left
            with np.errstate(all="ignore"):  # what has no value meets what has one
                held[...] = _apply(node, [values[i] for i in node.inputs], exact, side)
            values.append(held)
    return values


@functools.lru_cache(maxsize=512)
def _lifted(entries: bytes, exact: Callable[[Any], Any]) -> np.ndarray:
    values = np.frombuffer(entries)
    held = np.empty(values.size, dtype=object)
    held[:] = [exact(float(v)) for v in values]
    return held


def _apply(node: Node, xs: list[np.ndarray], exact: Callable[[Any], Any], side: Any) -> np.ndarray:
    op: Any = node.op
    x = xs[0]

    def lift(constant: Any) -> np.ndarray:
        held = np.asarray(constant, dtype=np.float64)
        return _lifted(held.tobytes(), exact).reshape(held.shape)

    match op:
        case ops.Linear():
            y = x @ lift(op.weight).T
            return y if op.bias is None else y + lift(op.bias)
        case ops.Conv():
            return _convolve(op, x, lift, exact)
        case ops.Adjoint(inner=ops.Conv()):
            return _convolve_transposed(op.inner, op.shape, x, lift, exact)
        case ops.ScaleShift():
            y = x if op.scale is None else x * lift(op.scale)
            return y if op.shift is None else y + lift(op.shift)
        case ops.Add():
            return xs[0] + xs[1]
        case ops.Multiply():
            return xs[0] * xs[1]
        case ops.MatMul():
            return xs[0] @ xs[1]
        case ops.Maximum():
            return np.vectorize(lambda a, b: larger(a, b, side), otypes=[object])(xs[0], xs[1])
        case ops.LogSoftmax():
            return _log_softmax(x, np.ones(x.shape) if op.kept is None else np.broadcast_to(op.kept, x.shape))
        case ops.Normalized():
            factor, epsilon = exact(op.factor), exact(op.epsilon)
            size = np.vectorize(lambda d: inverse_root(d, factor, epsilon, side), otypes=[object])
            return x * size((x * x).sum(axis=op.axes, keepdims=True))
        case ops.Rounding():
            return np.vectorize(rounded, otypes=[object])(x, np.broadcast_to(lift(op.step), x.shape))
        case ops.Elementwise():
            return np.vectorize(lambda d: curve(op, d, exact, side), otypes=[object])(x)
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


def _constant(value: Any, like: np.ndarray) -> Dual:
    return Dual(value, np.full(like.reshape(-1)[0].gradient.shape, value * 0, dtype=object))


def _padded(x: np.ndarray, padding: Any, value: Any) -> np.ndarray:
    out = np.empty([n + a + b for n, (a, b) in zip(x.shape, padding, strict=True)], dtype=object)
    out.reshape(-1)[:] = [_constant(value, x) for _ in range(out.size)]
    out[tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, padding, strict=True))] = x
    return out


def _kernel_steps(op: ops.Conv, sizes: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], Any]]:
    """Every product of a convolution of values (channels, *sizes): (input place, output place, index of the weight).

    Input places count from the first entry of the padding.
    """
    starts = [
        range(0, n + a + b - d * (k - 1), s)
        for n, (a, b), d, k, s in zip(sizes, op.padding, op.dilation, op.weight.shape[2:], op.stride, strict=True)
    ]
    for o, c, *k in np.ndindex(op.weight.shape):
        channel = o // (op.weight.shape[0] // op.groups) * op.weight.shape[1] + c
        for corner in itertools.product(*(enumerate(r) for r in starts)):
            source = (channel, *(start + j * d for (_, start), j, d in zip(corner, k, op.dilation, strict=True)))
            yield source, (o, *(at for at, _ in corner)), (o, c, *k)


def _convolve(op: ops.Conv, x: np.ndarray, lift: Any, exact: Callable[[Any], Any]) -> np.ndarray:
    axes = op.weight.ndim - 1
    lead, sample = x.shape[:-axes], x.shape[-axes:]
    weight, steps = lift(op.weight), list(_kernel_steps(op, sample[1:]))
    rows = []
    for row in x.reshape(-1, *sample):
        padded = _padded(row, ((0, 0), *op.padding), exact(0))
        out = np.empty([1 + max(place) for place in zip(*(to for _, to, _ in steps), strict=True)], dtype=object)
        for place in np.ndindex(out.shape):
            out[place] = _constant(exact(0 if op.bias is None else float(op.bias[place[0]])), x)
        for source, to, index in steps:
            out[to] = out[to] + padded[source] * weight[index]
        rows.append(out)
    return np.stack(rows).reshape(*lead, *rows[0].shape)


def _convolve_transposed(
    op: ops.Conv, shape: tuple[int, ...], y: np.ndarray, lift: Any, exact: Callable[[Any], Any]
) -> np.ndarray:
    axes = op.weight.ndim - 1
    weight, steps = lift(op.weight), list(_kernel_steps(op, shape[1 - axes :]))
    rows = []
    for row in y.reshape(-1, *y.shape[-axes:]):
        inside = np.empty(shape[-axes:], dtype=object)
        inside.reshape(-1)[:] = [_constant(exact(0), y) for _ in range(inside.size)]
        padded = _padded(inside, ((0, 0), *op.padding), exact(0))
        for source, to, index in steps:
            padded[source] = padded[source] + row[to] * weight[index]
        rows.append(padded[(..., *(slice(a, n + a) for n, (a, _) in zip(shape[1 - axes :], op.padding, strict=True)))])
    return np.stack(rows).reshape(shape)


def _log_softmax(x: np.ndarray, kept: np.ndarray) -> np.ndarray:
    powers = np.vectorize(power_of_e, otypes=[object])(x)
    out = np.empty(x.shape, dtype=object)
    for place in np.ndindex(x.shape[:-1]):
        total = sum(powers[place][kept[place] > 0][1:], powers[place][kept[place] > 0][0])
        away = logarithm(total)
        out[place] = [d + away * -1 for d in x[place]]
    return out
