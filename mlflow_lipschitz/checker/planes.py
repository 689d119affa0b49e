"""Operators that are not affine: their ranges over boxes, and planes around them.

The slopes of a plane are free; they may come from a certificate, from a rule of thumb, or from anywhere. What makes a plane right
is its offset, and that is always worked out here: over the corners of a box for a product, over the pieces of a curve (curves.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_lipschitz.checker import curves
from mlflow_lipschitz.checker.arithmetic import Arithmetic, Range, dot, floats_down, floats_up, known
from mlflow_lipschitz.engine.ir import ops

Slopes = tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]  # above, below; one array per operand

# Ops whose value is a signed sum of inputs: (input, sign).
SUMS: dict[type[ops.Op], tuple[tuple[int, float], ...]] = {
    ops.Maximum: ((1, 1.0), (2, 1.0)),
    ops.Remainder: ((2, 1.0), (0, -1.0)),
    ops.LogSoftmax: ((1, 1.0),),
    ops.Normalized: ((2, 1.0),),
}


@dataclass(frozen=True, eq=False)
class Planes:
    """Σ below · x + below_offset ≤ y ≤ Σ above · x + above_offset over the inputs `operands`; all (batch, *shape)."""

    operands: tuple[int, ...]
    above: tuple[np.ndarray, ...]
    above_offset: np.ndarray
    below: tuple[np.ndarray, ...]
    below_offset: np.ndarray

    def select(self, index: np.ndarray) -> Planes:
        sides = [tuple(s[index] for s in side) for side in (self.above, self.below)]
        return Planes(self.operands, sides[0], self.above_offset[index], sides[1], self.below_offset[index])

    def size(self, inputs: list[Range]) -> np.ndarray:
        """The absolute terms of either plane, added up."""
        total = np.maximum(np.abs(self.above_offset), np.abs(self.below_offset))
        for position, a, b in zip(self.operands, self.above, self.below, strict=True):
            total = total + np.maximum(np.abs(a), np.abs(b)) * magnitude(inputs[position])
        return total

    def pass_on(self, c: np.ndarray) -> tuple[list[tuple[int, np.ndarray]], np.ndarray]:
        """coeffs · y (batch, rows, *shape) is at most the sum of what is returned: coefficients per input, and a constant."""
        positive = np.maximum(c, 0)
        negative = c - positive
        constant = dot(positive, self.above_offset) + dot(negative, self.below_offset)
        passed = []
        for position, a, b in zip(self.operands, self.above, self.below, strict=True):
            last = position == self.operands[-1] and len(a) <= len(c)
            onward = np.multiply(positive, a[:, None], out=positive if last else None)
            onward += np.multiply(negative, b[:, None], out=negative if last else None)
            passed.append((position, onward))
        return passed, constant


@dataclass(frozen=True, eq=False)
class Bilinear:
    """|AB − A R − L B + M| ≤ error around the centers L and R of two matrices' ranges (M = L R as computed)."""

    left: np.ndarray
    right: np.ndarray
    middle: np.ndarray
    error: np.ndarray

    operands = (0, 1)

    @staticmethod
    def around(a: Range, b: Range, rounding: Arithmetic) -> Bilinear:
        left, right = a[0] / 2 + a[1] / 2, b[0] / 2 + b[1] / 2
        reach = [np.maximum(x[1] - m, m - x[0]) * (1 + rounding.gamma(1)) for x, m in ((a, left), (b, right))]
        size = np.abs(left) @ np.abs(right)
        gamma = rounding.gamma(left.shape[-1] + 4)
        error = (reach[0] @ reach[1]) * (1 + gamma) + gamma * size + rounding.underflow
        return Bilinear(left, right, left @ right, error * (1 + rounding.gamma(4)))

    def select(self, index: np.ndarray) -> Bilinear:
        return Bilinear(self.left[index], self.right[index], self.middle[index], self.error[index])

    def size(self, inputs: list[Range]) -> np.ndarray:
        a, b = (magnitude(x) for x in inputs)
        return a @ np.abs(self.right) + np.abs(self.left) @ b + np.abs(self.middle) + self.error

    def pass_on(self, c: np.ndarray) -> tuple[list[tuple[int, np.ndarray]], np.ndarray]:
        passed = [(0, c @ self.right[:, None].swapaxes(-1, -2)), (1, self.left[:, None].swapaxes(-1, -2) @ c)]
        return passed, dot(np.abs(c), self.error) - dot(c, self.middle)


def magnitude(x: Range) -> np.ndarray:
    return np.maximum(np.abs(x[0]), np.abs(x[1]))


def range_of(op: Any, inputs: list[Range], rounding: Arithmetic) -> Range:
    """The range of a nonlinear op whose inputs range independently; rounded outward, infinite where unknown."""
    if isinstance(op, ops.Elementwise):
        low, high = curves.value_range(op.curve, op.parameters, *_outward(inputs[0]))
        return rounding.array(low), rounding.array(high)
    if isinstance(op, ops.Multiply):
        return product_range(inputs[0], inputs[1], rounding)
    if isinstance(op, ops.MatMul):
        (a, b), gamma = inputs, rounding.gamma(inputs[0][0].shape[-1] + 2)
        rows = a[0][..., :, None, :], a[1][..., :, None, :]
        columns = b[0].swapaxes(-1, -2)[..., None, :, :], b[1].swapaxes(-1, -2)[..., None, :, :]
        low, high = product_range(rows, columns, rounding)
        return known(low.sum(-1) - gamma * np.abs(low).sum(-1), high.sum(-1) + gamma * np.abs(high).sum(-1))
    if isinstance(op, ops.Rounding):
        half = rounding.array(np.broadcast_to(np.nextafter(op.step / 2, np.inf), inputs[0][0].shape[1:]))
        return _sum([inputs[0], (-half, half)], rounding)
    signed = [inputs[p] if sign > 0 else (-inputs[p][1], -inputs[p][0]) for p, sign in SUMS[type(op)]]
    composed = signed[0] if len(signed) == 1 else _sum(signed, rounding)
    return _intersected(composed, _range_known(op, inputs, rounding))


def planes_of(op: Any, inputs: list[Range], slopes: Slopes | None, rounding: Arithmetic) -> Planes | Bilinear:
    """Planes around a nonlinear op, of the given slopes or of customary ones."""
    if isinstance(op, ops.Elementwise):
        return _around_curve(op, inputs[0], slopes, rounding)
    if isinstance(op, ops.Multiply):
        return _around_product(op, inputs, slopes, rounding)
    if isinstance(op, ops.MatMul):
        return Bilinear.around(inputs[0], inputs[1], rounding)
    one = rounding.array(np.ones(inputs[0][0].shape))
    if isinstance(op, ops.Rounding):
        half = rounding.array(np.broadcast_to(np.nextafter(op.step / 2, np.inf), one.shape))
        return Planes((0,), (one,), half, (one,), -half)
    same = tuple(int(sign) * one for _, sign in SUMS[type(op)])
    return Planes(tuple(p for p, _ in SUMS[type(op)]), same, 0 * one, same, 0 * one)


def product_range(x: Range, y: Range, rounding: Arithmetic) -> Range:
    """The four corners; a factor that is exactly 0 makes an exact 0 with any finite number."""
    lows, highs = [], []
    for a in x:
        for b in y:
            value = a * b
            sure = rounding.exact | (a == 0) | (b == 0)
            lows.append(value if rounding.exact else np.where(sure, value, np.nextafter(value, -np.inf)))
            highs.append(value if rounding.exact else np.where(sure, value, np.nextafter(value, np.inf)))
    return known(np.minimum.reduce(lows), np.maximum.reduce(highs))


def _around_curve(op: ops.Elementwise, z: Range, slopes: Slopes | None, rounding: Arithmetic) -> Planes:
    low, high = _outward(z)
    given = None if slopes is None else [np.broadcast_to(side[0], low.shape) for side in slopes]
    if given is not None and all(np.isfinite(side).all() for side in given):
        above, below = given
    else:
        above, below = curves.default_slopes(op.curve, op.parameters, low, high)
        if given is not None:
            above, below = (np.where(np.isfinite(s), s, d) for s, d in zip(given, (above, below), strict=True))
    top, bottom = curves.offsets(op.curve, op.parameters, low, high, above, below)
    above, top, below, bottom = (rounding.array(x) for x in (above, top, below, bottom))
    return Planes((0,), (above,), top, (below,), bottom)


def _around_product(op: ops.Multiply, inputs: list[Range], slopes: Slopes | None, rounding: Arithmetic) -> Planes:
    """Any plane whose offset covers the four corners: a product less a plane is largest at one of them."""
    x, y = inputs
    mirrored = (-x[1], -x[0])
    followed = op.linear_in if slopes is None else (0, 1)[-len(slopes[0]) :]
    if followed not in ((0, 1), (1,)) or (slopes is not None and len(slopes[0]) != len(slopes[1])):
        raise ValueError(f"no planes around a product that follow {followed}, with slopes for other operands")
    if slopes is None:
        above, (on_x, on_y) = _customary(op, x, y), _customary(op, mirrored, y)
        below = (on_x, -on_y)
    else:
        above, below = (_pair(side, x[0].shape, rounding) for side in slopes)
    top, bottom = _offset(x, y, above, rounding), -_offset(mirrored, y, (below[0], -below[1]), rounding)
    first = 2 - len(followed)
    return Planes(followed, above[first:], top, below[first:], bottom)


def _pair(side: tuple[np.ndarray, ...], shape: tuple[int, ...], rounding: Arithmetic) -> tuple[np.ndarray, np.ndarray]:
    """Slopes on both factors, where one may have been left out, or be no number."""
    given = [rounding.array(np.broadcast_to(np.where(np.isfinite(slope), slope, 0.0), shape)) for slope in side]
    return (given[0], given[1]) if len(given) == 2 else (0 * given[0], given[0])


def _customary(op: ops.Multiply, x: Range, y: Range) -> tuple[np.ndarray, np.ndarray]:
    """Slopes above x·y: the chord over y alone where y may be 0 or x is not followed, else McCormick's (1976) nearer plane."""
    with np.errstate(all="ignore"):
        top = [np.maximum(x[0] * end, x[1] * end) for end in y]
        width = y[1] - y[0]
        chord = (top[1] - top[0]) / np.where(width > 0, width, 1)
    single = np.where(y[0] + y[1] > 0, x[1], x[0])
    chord = np.where((width > 0) & (np.abs(chord) < np.inf), chord, single)
    chord = np.where(x[0] == x[1], x[0], chord)
    if op.linear_in == (1,):
        return 0 * chord, chord
    positive, negative = y[0] > 0, y[1] < 0
    on_x = np.where(positive, y[0], np.where(negative, y[1], 0 * y[0]))
    return on_x, np.where(positive, x[1], np.where(negative, x[0], chord))


def _offset(x: Range, y: Range, slopes: tuple[np.ndarray, ...], rounding: Arithmetic) -> np.ndarray:
    gaps = []
    for a in x:
        for b in y:
            product, on_x, on_y = a * b, slopes[0] * a, slopes[1] * b
            size = np.abs(product) + np.abs(on_x) + np.abs(on_y)
            gaps.append(product - on_x - on_y + rounding.gamma(4) * size + rounding.underflow)
    exact = (x[0] == x[1]) & (slopes[0] == 0) & (slopes[1] == x[0])
    # A maximum of fractions, unlike one of floats, may lose what is no number: 0 · ∞.
    unknown = np.any([np.asarray(gap != gap, dtype=bool) for gap in gaps], axis=0)
    top = np.where(exact, 0 * x[0], np.where(unknown, np.inf, np.maximum.reduce(gaps)))
    return np.where(top != top, np.inf, top)


def _range_known(op: Any, inputs: list[Range], rounding: Arithmetic) -> Range:
    """What is known of the value beyond the sum that computes it."""
    everything = (np.full(inputs[0][0].shape, -np.inf), np.full(inputs[0][0].shape, np.inf))
    if isinstance(op, ops.Maximum):
        return np.maximum(inputs[0][0], inputs[1][0]), np.maximum(inputs[0][1], inputs[1][1])
    if isinstance(op, ops.Remainder):
        ends = inputs[1][1], inputs[1][0]
        low, high = (
            1 - end if rounding.exact else np.where((end == 0) | (end == 1), 1 - end, np.nextafter(1 - end, side))
            for end, side in zip(ends, (-np.inf, np.inf), strict=True)
        )
        return product_range((np.maximum(low, 0), np.minimum(high, 1)), inputs[2], rounding)
    if isinstance(op, ops.LogSoftmax) and op.kept is None:
        return everything[0], rounding.zeros(everything[1].shape)
    return everything


def _sum(parts: list[Range], rounding: Arithmetic) -> Range:
    """One rounding, relative to the result."""
    low, high = parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]
    gamma = rounding.gamma(1)
    return known(low - gamma * np.abs(low), high + gamma * np.abs(high))


def _intersected(a: Range, b: Range) -> Range:
    return np.maximum(a[0], b[0]), np.minimum(a[1], b[1])


def _outward(z: Range) -> Range:
    return floats_down(z[0]), floats_up(z[1])
