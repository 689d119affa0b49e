"""Curves and normalizations that exporters write out, found again in the graph: one curve is far tighter than a product.

Older operator sets have no GELU, SiLU, Mish, hard-swish, softplus or LayerNormalization. What is found is what was written, as
functions of the reals, with the model's own constants: x (1 + erf(c x)) is a GELU for every c, of another argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mlflow_lipschitz.engine.ir.graph import GraphBuilder, Node
from mlflow_lipschitz.engine.ir.ops import Elementwise, Reshape, ScaleShift, Sum
from mlflow_lipschitz.frontends.values import Shape

SQRT2 = math.sqrt(2)
LARGEST_RATE = 1e4  # beyond it and its reciprocal, dividing by a rate would enlarge the curve's own rounding errors


@dataclass(frozen=True)
class Line:
    """scale · (a node) + shift, with one number each for all entries."""

    index: int
    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True)
class Fused:
    """outer · curve(inner · x)."""

    x: int
    inner: float
    curve: str
    outer: float
    parameters: tuple[float, ...] = ()


@dataclass(frozen=True)
class FusedNormalization:
    """x · (factor · Σ x² + epsilon) ** (−1/2), the sum over `axes`."""

    x: int
    axes: tuple[int, ...]
    factor: float
    epsilon: float


def fused_product(builder: GraphBuilder, a: int, b: int) -> Fused | None:
    """The product of two nodes of one shape as a curve of one of them."""
    return _gated(builder, a, b) or _gated(builder, b, a)


def exponential_behind(builder: GraphBuilder, x: int) -> int | None:
    """The node y where x is 1 + exp(y), so that log(x) is softplus(y) and 1 / x is sigmoid(−y)."""
    line = _line(builder, x)
    node = builder.node(line.index)
    return node.inputs[0] if line.scale == line.shift == 1 and _is_curve(node, "exp") else None


def fused_normalization(builder: GraphBuilder, x: int, factor: int) -> FusedNormalization | None:
    """x times a node that broadcasts to it, where that is the reciprocal root of x's own mean square."""
    node = builder.node(_uncopied(builder, factor))
    if not (_is_curve(node, "power") and node.op.parameters == (1.0, -0.5)):  # type: ignore[attr-defined]
        return None
    size = _line(builder, node.inputs[0], copies=True)
    total = builder.node(size.index)
    if not isinstance(total.op, Sum) or size.scale <= 0 or size.shift < 0:
        return None
    square = builder.node(total.inputs[0])
    same_axes = _broadcasts(builder.shape(factor), total.shape)
    if not _is_curve(square, "square") or square.inputs[0] != x or not same_axes:
        return None
    return FusedNormalization(x, total.op.axes, size.scale, size.shift)


def is_mean_of(builder: GraphBuilder, mean: int, x: int) -> bool:
    """Whether a node is a mean, or some multiple of a sum, of entries of x: x minus that is how normalizations begin."""
    total = builder.node(_line(builder, mean, copies=True).index)
    return isinstance(total.op, Sum) and total.inputs[0] == x


def _broadcasts(shape: Shape, kept: Shape) -> bool:
    """Whether a factor of this shape has its entries where the sum, its axes kept, has them."""
    return (1,) * (len(kept) - len(shape)) + shape == kept


def _uncopied(builder: GraphBuilder, index: int) -> int:
    """The node that was reshaped to or from axes of length 1."""
    while _adds_or_drops_ones(builder, node := builder.node(index)):
        (index,) = node.inputs
    return index


def _adds_or_drops_ones(builder: GraphBuilder, node: Node) -> bool:
    return isinstance(node.op, Reshape) and _long(node.shape) == _long(builder.shape(node.inputs[0]))


def _long(shape: Shape) -> Shape:
    return tuple(length for length in shape if length != 1)


def _gated(builder: GraphBuilder, x: int, gate: int) -> Fused | None:
    """x · gate(x), where the gate is a line of a curve of a line of x."""
    outside = _line(builder, gate)
    node = builder.node(outside.index)
    if not isinstance(node.op, Elementwise):
        return None
    name, parameters = node.op.curve, node.op.parameters
    inside = builder.node(node.inputs[0])
    if name == "tanh" and _is_curve(inside, "softplus"):
        rate = _rate(builder, x, inside.inputs[0])
        return Fused(x, rate[0], "mish", outside.scale / rate[0]) if rate and rate[1] == outside.shift == 0 else None
    if name == "reciprocal" or (name == "power" and parameters == (1.0, -1.0)):
        return _softsign(builder, x, node, outside)
    rate = _rate(builder, x, node.inputs[0])
    return None if rate is None else _of_rate(x, (name, parameters), outside, rate)


def _of_rate(x: int, curve: tuple[str, tuple[float, ...]], outside: Line, rate: tuple[float, float]) -> Fused | None:
    """x · (s · curve(k x + d) + t), where that is one curve."""
    (name, parameters), (k, d) = curve, rate
    s, t = outside.scale, outside.shift
    if name == "sigmoid" and d == t == 0:
        return Fused(x, k, "silu", s / k)
    if name == "erf" and d == 0 and s == t:
        return Fused(x, k * SQRT2, "gelu", 2 * s / (k * SQRT2))
    if name == "clip" and parameters[0] == t == 0 and 2 * d == parameters[1]:
        high = parameters[1]
        return Fused(x, 6 * k / high, "hard_swish", s * high * high / (6 * k))
    if name == "square" and d == t == 0:
        return Fused(x, 1.0, "power", s * k * k, (1.0, 3.0))
    return None


def _softsign(builder: GraphBuilder, x: int, reciprocal: Node, outside: Line) -> Fused | None:
    """x / (q + p |x|) = softsign(p x / q) / p, for p and q above 0."""
    below = _line(builder, reciprocal.inputs[0])
    size = builder.node(below.index)
    if outside.shift != 0 or not _is_curve(size, "abs") or below.scale <= 0 or below.shift <= 0:
        return None
    rate = _rate(builder, x, size.inputs[0])
    if rate is None or rate[1] != 0:
        return None
    p = below.scale * abs(rate[0])
    return Fused(x, p / below.shift, "softsign", outside.scale / p)


def _rate(builder: GraphBuilder, x: int, y: int) -> tuple[float, float] | None:
    """(k, d) where the node y is k x + d, with k neither huge nor tiny."""
    line, other = _line(builder, x), _line(builder, y)
    if x == y:
        return 1.0, 0.0
    if line.index != other.index or line.scale == 0 or other.scale == 0:
        return None
    k = other.scale / line.scale
    return (k, other.shift - k * line.shift) if 1 / LARGEST_RATE <= abs(k) <= LARGEST_RATE else None


def _line(builder: GraphBuilder, index: int, *, copies: bool = False) -> Line:
    """The node as a line of the first one before it that is none; with `copies` also behind axes of length 1 put in or out."""
    line = Line(index)
    while True:
        node = builder.node(line.index)
        if copies and _adds_or_drops_ones(builder, node):
            line = Line(node.inputs[0], line.scale, line.shift)
            continue
        if not isinstance(node.op, ScaleShift):
            return line
        scale, shift = _number(node.op.scale, 1.0), _number(node.op.shift, 0.0)
        if scale is None or shift is None:
            return line
        line = Line(node.inputs[0], line.scale * scale, line.scale * shift + line.shift)


def _number(constant: np.ndarray | None, default: float) -> float | None:
    """The one number that all entries are; None where they differ."""
    if constant is None:
        return default
    return float(constant.flat[0]) if constant.size and np.all(constant == constant.flat[0]) else None


def _is_curve(node: Node, name: str) -> bool:
    return isinstance(node.op, Elementwise) and node.op.curve == name
