"""One small network around every operator: the table that the property tests run over.

Weights are multiples of 1/4 and points multiples of 1/8, so that units sit exactly on their kinks as often as not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mlflow_lipschitz.engine.ir import building, ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder

Build = Callable[[np.random.Generator], Graph]


def coarse(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random multiples of 1/4 in [-1, 1], a third of them zero."""
    return ops.frozen_array(rng.integers(-4, 5, shape) * rng.integers(0, 3, shape).clip(max=1) / 4)


def linear(rng: np.random.Generator, inputs: int, outputs: int) -> ops.Linear:
    return ops.Linear(coarse(rng, outputs, inputs), coarse(rng, outputs))


def _around(middle: Callable[[np.random.Generator, GraphBuilder, int], int], shape: tuple[int, ...] = (3,)) -> Build:
    """Input of `shape` → Linear mixing its last axis → the operator → ReLU → flat → Linear to two outputs."""

    def build(rng: np.random.Generator) -> Graph:
        builder = GraphBuilder()
        x = builder.add(ops.Input(shape))
        mixed = builder.add(linear(rng, shape[-1], shape[-1] + 1), x)
        y = builder.add(ops.Elementwise("relu"), middle(rng, builder, mixed))
        size = int(np.prod(builder.shape(y)))
        flat = builder.add(ops.Reshape((size,)), y)
        return builder.build(builder.add(linear(rng, size, 2), flat))

    return build


def _tail(middle: Callable[[np.random.Generator, GraphBuilder, int], int]) -> Build:
    """As `_around`, with the operator as the last one."""

    def build(rng: np.random.Generator) -> Graph:
        builder = GraphBuilder()
        mixed = builder.add(linear(rng, 3, 4), builder.add(ops.Input((3,))))
        return builder.build(middle(rng, builder, mixed))

    return build


def _one(make: Callable[[np.random.Generator, tuple[int, ...]], ops.Op], shape: tuple[int, ...] = (3,)) -> Build:
    return _around(lambda rng, builder, x: builder.add(make(rng, builder.shape(x)), x), shape)


def _curve(name: str, *parameters: float) -> Build:
    return _one(lambda rng, shape: ops.Elementwise(name, parameters))


def _above_zero(name: str, *parameters: float) -> Build:
    """The curve at x² + 1/4."""

    def middle(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
        squares = builder.add(ops.Elementwise("square"), x)
        shifted = builder.add(ops.ScaleShift(shift=ops.frozen_array(0.25)), squares)
        return builder.add(ops.Elementwise(name, parameters), shifted)

    return _around(middle)


def _residual(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    size = builder.shape(x)[-1]
    inner = builder.add(linear(rng, size, size), builder.add(ops.Elementwise("relu"), x))
    return builder.add(ops.Add(), x, inner)


def _two_heads(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    # Two affine ways to the output: in the Jacobian, nodes that depend on the objective alone meet in an Add.
    size = builder.shape(x)[-1]
    hidden = builder.add(ops.Elementwise("relu"), x)
    heads = [builder.add(linear(rng, size, 2), hidden) for _ in range(2)]
    return builder.add(ops.Add(), *heads)


def _concat(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    return builder.add(ops.Concat(0), builder.add(ops.Elementwise("relu"), x), x)


def _scalar(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    # A squeezed output has no axes left.
    one = builder.add(linear(rng, builder.shape(x)[-1], 1), x)
    bare = builder.add(ops.Elementwise("relu"), builder.add(ops.Reshape(()), one))
    other = builder.add(ops.Reshape(()), builder.add(ops.Elementwise("tanh"), one))
    return builder.add(ops.Reshape((1,)), builder.add(ops.Multiply(), bare, builder.add(ops.Add(), other, bare)))


def _multiply(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    size = builder.shape(x)[-1]
    return builder.add(ops.Multiply(), x, builder.add(linear(rng, size, size), x))


def _kinked_multiply(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    size = builder.shape(x)[-1]
    return builder.add(ops.Multiply(linear_in=(1,)), x, builder.add(linear(rng, size, size), x))


def _maximum(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    size = builder.shape(x)[-1]
    return building.maximum(builder, x, builder.add(linear(rng, size, size), x))


def _minimum(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    size = builder.shape(x)[-1]
    return building.minimum(builder, builder.add(linear(rng, size, size), x), x)


def _ties(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    # Two ways to the same number: every entry is a tie, at every point.
    twice = builder.add(ops.ScaleShift(scale=ops.frozen_array(2.0)), x)
    return building.maximum(builder, twice, builder.add(ops.Add(), x, x))


def _windows(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    # Max pooling: overlapping windows, an entry repeated where the second one would reach beyond the end.
    windows = builder.add(ops.Select(0, (0, 1, 2, 2, 3, 3)), x)
    return building.maximum_over(builder, builder.add(ops.Reshape((2, 3)), windows), 1)


def _maximum_of_five(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    return building.maximum_over(builder, builder.add(linear(rng, builder.shape(x)[-1], 5), x), 0)


def _minimum_over_rows(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    return building.minimum_over(builder, x, 0)


def _pair(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    """A second value of x's shape."""
    size = builder.shape(x)[-1]
    return builder.add(linear(rng, size, size), x)


def _matrix_product(builder: GraphBuilder, a: int, b: int) -> int:
    """(i, k) and (j, k) to (i, j)."""
    (i, k), j = builder.shape(a), builder.shape(b)[0]
    left = builder.add(ops.Expand((i, j, k)), builder.add(ops.Reshape((i, 1, k)), a))
    right = builder.add(ops.Expand((i, j, k)), builder.add(ops.Reshape((1, j, k)), b))
    return builder.add(ops.Reshape((i, j)), builder.add(ops.Sum((2,)), builder.add(ops.Multiply(), left, right)))


def _softmax(builder: GraphBuilder, x: int, kept: np.ndarray | None = None) -> int:
    power = builder.add(ops.Elementwise("exp"), building.log_softmax(builder, x, kept=kept))
    return power if kept is None else builder.add(ops.ScaleShift(scale=ops.frozen_array(kept)), power)


def _causal_softmax(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    kept = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    return _softmax(builder, builder.add(ops.Linear(coarse(rng, 3, 2)), x), kept)


def _softmax_of_differences(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    # 1 / Σⱼ exp(xⱼ − xᵢ)
    (size,) = builder.shape(x)
    rows = builder.add(ops.Expand((size, size)), builder.add(ops.Reshape((1, size)), x))
    columns = builder.add(ops.Expand((size, size)), builder.add(ops.Reshape((size, 1)), x))
    powers = builder.add(ops.Elementwise("exp"), building.difference(builder, rows, columns))
    return builder.add(ops.Elementwise("reciprocal"), builder.add(ops.Sum((1,)), powers))


def _layer_norm(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    size = builder.shape(x)[-1]
    centered = builder.add(ops.Linear(np.eye(size) - 1 / size), x)
    axis = len(builder.shape(x)) - 1
    return building.normalized(builder, centered, (axis,), factor=1 / size, epsilon=2.0**-10)[0]


def _unit_length(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    # Both axes at once, and nothing that keeps the denominator from zero.
    return building.normalized(builder, x, (0, 1), factor=1.0, epsilon=0.0)[0]


def _quotient(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    positive = builder.add(ops.ScaleShift(shift=ops.frozen_array(0.5)), builder.add(ops.Elementwise("square"), x))
    inverse = builder.add(ops.Elementwise("reciprocal"), positive)
    return builder.add(ops.Multiply(), _pair(rng, builder, x), inverse)


def _attention(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    weights = _softmax(builder, _matrix_product(builder, x, _pair(rng, builder, x)))
    values = builder.add(ops.Transpose((1, 0)), _pair(rng, builder, x))
    return _matrix_product(builder, weights, values)


def _conv1d(rng: np.random.Generator, shape: tuple[int, ...]) -> ops.Conv:
    return ops.Conv(coarse(rng, 2, 2, 2), coarse(rng, 2), (2,), ((1, 0),), (1,))


def _conv2d(rng: np.random.Generator, shape: tuple[int, ...]) -> ops.Conv:
    return ops.Conv(coarse(rng, 4, 1, 2, 2), coarse(rng, 4), (1, 2), ((1, 0), (0, 1)), (2, 1), groups=2)


def _conv3d(rng: np.random.Generator, shape: tuple[int, ...]) -> ops.Conv:
    return ops.Conv(
        coarse(rng, 2, 1, 2, 1, 2), coarse(rng, 2), (1, 2, 1), ((1, 0), (0, 1), (0, 0)), (1, 1, 2), groups=2
    )


def _transposed_conv(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    # The last of the 4 rows lies beyond the strided kernel's reach: what ONNX calls output padding.
    inner = ops.Conv(coarse(rng, 2, 1, 2, 2), None, (2, 1), ((1, 0), (0, 1)), (1, 2), groups=2)
    y = builder.add(ops.Adjoint(inner, (1, 2, 4, 4)), x)
    return builder.add(ops.ScaleShift(shift=coarse(rng, 2, 1, 1)), y)


def _transposed_conv1d(rng: np.random.Generator, builder: GraphBuilder, x: int) -> int:
    inner = ops.Conv(coarse(rng, 2, 2, 2), None, (3,), ((0, 0),), (1,))
    return builder.add(ops.Adjoint(inner, (1, 2, 10)), x)


def _constant(rng: np.random.Generator) -> Graph:
    builder = GraphBuilder()
    x = builder.add(ops.Input((3,)))
    zero = builder.add(ops.Linear(ops.frozen_array(np.zeros((2, 3))), coarse(rng, 2)), x)
    return builder.build(zero)


def _affine(rng: np.random.Generator) -> Graph:
    builder = GraphBuilder()
    x = builder.add(ops.Input((3,)))
    return builder.build(builder.add(linear(rng, 3, 2), builder.add(linear(rng, 3, 3), x)))


CASES: dict[str, Build] = {
    "linear": _one(lambda rng, shape: linear(rng, shape[-1], 3)),
    "linear on a matrix": _one(lambda rng, shape: linear(rng, shape[-1], 2), (2, 2)),
    "affine alone": _affine,
    "constant": _constant,
    "conv1d": _one(_conv1d, (2, 3)),
    "conv2d": _one(_conv2d, (2, 3, 2)),
    "conv1d with leading axes": _one(_conv1d, (1, 2, 2, 2)),
    "conv2d of a whole tensor": _one(_conv2d, (1, 2, 3, 2)),
    "conv3d": _one(_conv3d, (1, 2, 2, 2, 2)),
    "transposed conv1d": _around(_transposed_conv1d, (1, 2, 2)),
    "transposed conv2d": _around(_transposed_conv, (1, 2, 2, 2)),
    "scale_shift": _one(lambda rng, shape: ops.ScaleShift(coarse(rng, *shape), coarse(rng, *shape))),
    "scale": _one(lambda rng, shape: ops.ScaleShift(scale=coarse(rng, 1))),
    "add (residual)": _around(_residual),
    "add (two heads)": _tail(_two_heads),
    "multiply": _around(_multiply),
    "multiply, one operand followed": _around(_kinked_multiply),
    "matrix product of two variables": _around(
        lambda rng, builder, x: _matrix_product(builder, x, _pair(rng, builder, x)), (2, 2)
    ),
    "matmul": _around(
        lambda rng, builder, x: builder.add(
            ops.MatMul(), x, builder.add(ops.Transpose((1, 0)), _pair(rng, builder, x))
        ),
        (2, 2),
    ),
    "division": _around(_quotient),
    "softmax": _around(lambda rng, builder, x: _softmax(builder, x)),
    "softmax of rows": _around(lambda rng, builder, x: _softmax(builder, x), (2, 2)),
    "softmax, entries left out": _around(_causal_softmax, (3, 1)),
    "softmax of differences": _around(_softmax_of_differences),
    "log softmax": _around(lambda rng, builder, x: building.log_softmax(builder, x)),
    "layer norm": _around(_layer_norm, (2, 2)),
    "unit length": _around(_unit_length, (2, 2)),
    "attention": _around(_attention, (2, 2)),
    "maximum": _around(_maximum),
    "maximum of ties": _around(_ties),
    "maximum over windows": _around(_windows),
    "maximum over 5": _around(_maximum_of_five),
    "minimum": _around(_minimum),
    "minimum over an axis": _around(_minimum_over_rows, (3, 2)),
    "reshape": _one(lambda rng, shape: ops.Reshape((4, 1))),
    "value without axes": _around(_scalar),
    "transpose": _one(lambda rng, shape: ops.Transpose((1, 0)), (2, 2)),
    "expand": _one(lambda rng, shape: ops.Expand((2, *shape))),
    "sum": _one(lambda rng, shape: ops.Sum((0,)), (2, 2)),
    "select": _one(lambda rng, shape: ops.Select(0, (2, 0, 2))),
    "pad": _one(lambda rng, shape: ops.Pad(((1, 2),), value=-0.25)),
    "concat": _around(_concat),
    "relu": _curve("relu"),
    "leaky_relu": _curve("leaky_relu", 0.01),  # not a float32: a slope rounded on the way would show
    "leaky_relu, negative slope": _curve("leaky_relu", -0.5),
    "leaky_relu, steep": _curve("leaky_relu", 1.75),
    "abs": _curve("abs"),
    "clip": _curve("clip", -0.25, 0.75),
    "hard_swish": _curve("hard_swish"),
    "elu": _curve("elu", 1.0, 1.0),
    "elu, kinked": _curve("elu", 0.3, 1.0507010),
    "celu": _curve("celu", 0.75),
    **{name: _curve(name) for name in ("tanh", "sigmoid", "erf", "atan", "softsign", "softplus", "exp", "sin", "cos")},
    **{name: _curve(name) for name in ("silu", "gelu", "gelu_tanh", "mish", "square")},
    "power": _curve("power", 0.5, 3.0),
    **{name: _above_zero(name) for name in ("log", "sqrt", "reciprocal")},
    "power, negative": _above_zero("power", 1.0, -0.5),
    "power, fractional": _above_zero("power", 2.0, 1.3),
}

# Values are bounded; there is no derivative.
JUMPS: dict[str, Build] = {
    "rounding": _one(lambda rng, shape: ops.Rounding(ops.frozen_array(0.25))),
    "rounding per entry": _one(lambda rng, shape: ops.Rounding(ops.frozen_array([0.25, 0.5, 1.0, 0.1]))),
    "rounding of a curve": _around(
        lambda rng, builder, x: builder.add(
            ops.Rounding(ops.frozen_array(0.3)), builder.add(ops.Elementwise("tanh"), x)
        )
    ),
}
DIFFERENTIABLE = dict(CASES)
CASES.update(JUMPS)

RADII = (0.0, 2.0**-20, 0.125, 1.0, 8.0)


def draw(name: str, seed: int, count: int = 2) -> tuple[Graph, np.ndarray]:
    """The case's network for a seed, and points on the grid where kinks are."""
    rng = np.random.default_rng(seed)
    graph = CASES[name](rng)
    return graph, rng.integers(-12, 13, (count, *graph.input_shape)) / 8


def points_of(rng: np.random.Generator, lower: np.ndarray, upper: np.ndarray, count: int) -> np.ndarray:
    """(count, *shape): corners, interior points, and points on the grid of kinks, all inside."""
    t = rng.random((count, *lower.shape))
    t[0::3] = t[0::3].round()
    points = lower + (upper - lower) * t
    points[1::3] = np.round(points[1::3] * 8) / 8
    return np.clip(points, lower, upper)
