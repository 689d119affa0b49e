"""What a graph means, in exact arithmetic: an evaluator that shares no code with the engine's rules.

Values and Jacobians come from dual numbers over `Fraction` (piecewise linear curves: exact) or 400-bit `mpmath` numbers (smooth
curves: exact far beyond float64). At a kink, `side` chooses the one-sided derivative; both belong to the Clarke set.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, Node
from tests.exact_curves import CURVES, KINKED, is_rational

mpmath.mp.prec = 400


# Of a larger argument a transcendental function is not computed: reducing it would take as many bits as its exponent says.
_LARGEST = mpmath.mpf(2) ** 1100


class BeyondTheOracle(OverflowError):
    """A number too large for this evaluator; nothing is said of the engine."""


@dataclass
class Toward:
    """Decides every kink by where its argument goes along a direction: the derivative is then one that occurs next to the point.

    Sides chosen kink by kink need not go together; those along one direction do, so that even bounds that use how values
    depend on each other must hold for them. What has no value (a logarithm below zero) is NaN, and so is all that needs it.

    Attributes:
        direction: one whole number per entry of the input, in general position.
        ties: how many kinks were met so far.
    """

    direction: np.ndarray
    ties: int = 0

    def side(self, left: Any, right: Any, gradient: np.ndarray) -> int:
        """1 for the right derivative, 0 for the left one."""
        if left == right:
            return 1
        self.ties += 1
        return int(gradient @ self.direction >= 0)


Side = int | Toward


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
    curves = [n.op for n in graph.nodes if isinstance(n.op, ops.Elementwise)]
    return not all(is_rational(op.curve, op.parameters) for op in curves)


def number(graph: Graph) -> Callable[[Any], Any]:
    """The exact number type this graph needs."""
    return mpmath.mpf if is_smooth(graph) else lambda v: Fraction(float(v))


def value_and_jacobian(graph: Graph, x: np.ndarray, side: Side = 1) -> tuple[np.ndarray, np.ndarray]:
    """Exact (outputs,) values and (outputs, inputs) Jacobian at one point of the graph's input shape.

    Raises:
        BeyondTheOracle: a number is too large. ZeroDivisionError: there is no value, and `side` is a number.
    """
    exact = number(graph)
    zero, one = exact(0), exact(1)
    unit = [[one if i == j else zero for j in range(x.size)] for i in range(x.size)]
    outputs = _outputs(graph, x, [np.array(row, dtype=object) for row in unit], side)
    return np.array([d.value for d in outputs], dtype=object), np.stack([d.gradient for d in outputs])


def values_at(graph: Graph, x: np.ndarray) -> np.ndarray:
    """Exact (outputs,) values; NaN where there is none. Raises BeyondTheOracle as `value_and_jacobian`."""
    nothing = np.empty(0, dtype=object)
    return np.array([d.value for d in _outputs(graph, x, [nothing] * x.size, Toward(nothing))], dtype=object)


def _outputs(graph: Graph, x: np.ndarray, gradients: Sequence[np.ndarray], side: Side) -> np.ndarray:
    exact = number(graph)
    entries = np.empty(x.size, dtype=object)
    for i, (v, gradient) in enumerate(zip(x.reshape(-1), gradients, strict=True)):
        entries[i] = Dual(exact(float(v)), gradient)
    values: list[np.ndarray] = []
    for node in graph.nodes:
        if isinstance(node.op, ops.Input):
            values.append(entries.reshape(x.shape))
        else:
            held = np.empty(node.shape, dtype=object)  # NumPy gives a bare entry, not an array, where no axes are left
            try:
                held[...] = _apply(node, [values[i] for i in node.inputs], exact, side)
            except BeyondTheOracle:
                raise
            except OverflowError as error:  # a fraction that no float64 holds meets a value that is no number
                raise BeyondTheOracle(str(error)) from error
            values.append(held)
    return values[graph.output].reshape(-1)


def _apply(node: Node, xs: list[np.ndarray], exact: Callable[[Any], Any], side: Side) -> np.ndarray:
    op: Any = node.op
    x = xs[0]
    lift = np.vectorize(lambda v: exact(float(v)), otypes=[object])
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
            return np.vectorize(lambda a, b: _larger(a, b, side), otypes=[object])(xs[0], xs[1])
        case ops.LogSoftmax():
            return _log_softmax(x, np.ones(x.shape) if op.kept is None else np.broadcast_to(op.kept, x.shape))
        case ops.Normalized():
            factor, epsilon = exact(op.factor), exact(op.epsilon)
            size = np.vectorize(lambda d: _inverse_root(d, factor, epsilon, side), otypes=[object])
            return x * size((x * x).sum(axis=op.axes, keepdims=True))
        case ops.Rounding():
            nearest = np.vectorize(lambda d, step: Dual(_rounded(d.value / step) * step, d.gradient * 0))
            return nearest(x, np.broadcast_to(lift(op.step), x.shape))
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


def _through(d: Dual, value: Any, slope: Any) -> Dual:
    return Dual(value, d.gradient * slope)


def _inverse_root(d: Dual, factor: Any, epsilon: Any, side: Side) -> Dual:
    size = factor * d.value + epsilon
    if size == 0 and isinstance(side, Toward):
        return _nothing(d)
    return _through(d, 1 / mpmath.sqrt(size), -factor / (2 * size * mpmath.sqrt(size)))


def _log_softmax(x: np.ndarray, kept: np.ndarray) -> np.ndarray:
    powers = np.vectorize(lambda d: _through(d, _power_of_e(d.value), _power_of_e(d.value)), otypes=[object])(x)
    out = np.empty(x.shape, dtype=object)
    for place in np.ndindex(x.shape[:-1]):
        total = sum(powers[place][kept[place] > 0][1:], powers[place][kept[place] > 0][0])
        logarithm = _through(total, mpmath.log(total.value), 1 / total.value)
        out[place] = [d + logarithm * -1 for d in x[place]]
    return out


def _power_of_e(z: Any) -> Any:
    if abs(z) > _LARGEST:
        raise BeyondTheOracle(f"the exponential of a number of {mpmath.mag(z)} bits")
    return mpmath.exp(z)


def _rounded(number: Any) -> Any:
    if number != number:
        return number
    return Fraction(round(number)) if isinstance(number, Fraction) else mpmath.nint(number)


def _larger(a: Dual, b: Dual, side: Side) -> Dual:
    if a.value != b.value:
        # Of a NaN, the maximum is one.
        return a if a.value > b.value or a.value != a.value else b
    if isinstance(side, int):
        return a if side else b
    tied = bool((a.gradient != b.gradient).any())
    return a if side.side(0, int(tied), a.gradient - b.gradient) else b


def _curve(op: ops.Elementwise, d: Dual, exact: Callable[[Any], Any], side: Side) -> Dual:
    if exact is mpmath.mpf and abs(d.value) > _LARGEST:
        raise BeyondTheOracle(f"{op.curve} of a number of {mpmath.mag(d.value)} bits")
    meaning = CURVES[op.curve]
    if isinstance(side, int):
        value, slope = meaning(d.value, exact, side, *op.parameters)
        return Dual(value, d.gradient * slope)
    if d.value != d.value:
        return d
    try:
        value, right = meaning(d.value, exact, 1, *op.parameters)
        left = meaning(d.value, exact, 0, *op.parameters)[1] if op.curve in KINKED else right
    except ZeroDivisionError:
        return _nothing(d)
    if isinstance(value, mpmath.mpc) or not (isinstance(value, Fraction) or mpmath.isfinite(value)):
        return _nothing(d)
    return Dual(value, d.gradient * (right if side.side(left, right, d.gradient) else left))


def _nothing(d: Dual) -> Dual:
    return Dual(math.nan, np.full(d.gradient.shape, math.nan, dtype=object))
