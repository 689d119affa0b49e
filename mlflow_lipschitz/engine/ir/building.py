"""Values that take several nodes: appended to a graph as a whole, so that nobody wires them up by hand."""

from __future__ import annotations

import numpy as np

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import GraphBuilder


def negative(builder: GraphBuilder, x: int, *, name: str = "") -> int:
    """−x, without rounding."""
    return builder.add(ops.ScaleShift(scale=ops.frozen_array(np.array(-1.0))), x, name=name)


def difference(builder: GraphBuilder, a: int, b: int, *, name: str = "") -> int:
    """a − b of two values of one shape."""
    return builder.add(ops.Add(), a, negative(builder, b, name=name), name=name)


def maximum(builder: GraphBuilder, a: int, b: int, *, name: str = "") -> int:
    """max(a, b) of two values of one shape. Raises ValueError when the shapes differ."""
    excess = builder.add(ops.Elementwise("relu"), difference(builder, a, b, name=name), name=name)
    return builder.add(ops.Maximum(), a, b, excess, name=name)


def minimum(builder: GraphBuilder, a: int, b: int, *, name: str = "") -> int:
    """min(a, b) of two values of one shape. Raises ValueError when the shapes differ."""
    larger = maximum(builder, negative(builder, a, name=name), negative(builder, b, name=name), name=name)
    return negative(builder, larger, name=name)


def maximum_over(builder: GraphBuilder, x: int, axis: int, *, name: str = "") -> int:
    """The largest entry along `axis`, which is kept with length 1: a tournament, so that depth grows with log₂ of the length.

    Raises:
        ValueError: there is no such axis, or it has no entries.
    """
    shape = builder.shape(x)
    if not 0 <= axis < len(shape) or shape[axis] == 0:
        raise ValueError(f"maximum over axis {axis} of a value of shape {shape}")
    while (length := builder.shape(x)[axis]) > 1:
        half = length // 2
        left = builder.add(ops.Select(axis, tuple(range(half))), x, name=name)
        right = builder.add(ops.Select(axis, tuple(range(half, 2 * half))), x, name=name)
        winners = maximum(builder, left, right, name=name)
        if length % 2:
            last = builder.add(ops.Select(axis, (length - 1,)), x, name=name)
            winners = builder.add(ops.Concat(axis), winners, last, name=name)
        x = winners
    return x


def minimum_over(builder: GraphBuilder, x: int, axis: int, *, name: str = "") -> int:
    """The smallest entry along `axis`, as `maximum_over`."""
    return negative(builder, maximum_over(builder, negative(builder, x, name=name), axis, name=name), name=name)


def log_softmax(builder: GraphBuilder, x: int, *, kept: np.ndarray | None = None, name: str = "") -> int:
    """x − log Σ exp(x) along the last axis; the softmax is its exponential.

    Args:
        x: scores that have little in common: the exponentials of their rows are summed as they are.
        kept: broadcasts to x; 1 for entries that are summed, 0 for those left out (of which the result says nothing).

    Raises:
        ValueError: x has no axes, `kept` does not fit, or leaves out a whole row.
    """
    shape = builder.shape(x)
    powers = builder.add(ops.Elementwise("exp"), x, name=name)
    if kept is not None and not kept.all():
        kept = ops.frozen_array(kept)
        powers = builder.add(ops.ScaleShift(scale=kept), powers, name=name)
    else:
        kept = None
    total = builder.add(ops.Sum((len(shape) - 1,)), powers, name=name)
    logarithm = builder.add(ops.Expand(shape), builder.add(ops.Elementwise("log"), total, name=name), name=name)
    composed = difference(builder, x, logarithm, name=name)
    return builder.add(ops.LogSoftmax(kept), x, composed, name=name)


def normalized(
    builder: GraphBuilder, x: int, axes: tuple[int, ...], *, factor: float, epsilon: float, name: str = ""
) -> tuple[int, int]:
    """x · r, and r = (factor · Σ x² + epsilon)^(−1/2) of length 1 along `axes`, over which the sum goes.

    A root mean square has the factor 1 / (number of entries summed), a Euclidean norm 1.

    Raises:
        ValueError: there are no such axes, the factor is not positive, or epsilon is negative.
    """
    shape = builder.shape(x)
    squares = builder.add(ops.Sum(axes), builder.add(ops.Elementwise("square"), x, name=name), name=name)
    scale, shift = (ops.frozen_array(np.array(value)) for value in (factor, epsilon))
    size = builder.add(ops.ScaleShift(scale, shift), squares, name=name)
    r = builder.add(ops.Elementwise("power", (1.0, -0.5)), size, name=name)
    spread = builder.add(ops.Expand(shape), r, name=name)
    product = builder.add(ops.Multiply(), x, spread, name=name)
    return builder.add(ops.Normalized(axes, float(factor), float(epsilon)), x, spread, product, name=name), r
