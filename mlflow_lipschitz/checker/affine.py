"""What every affine operator does to values and, transposed, to linear forms: a chain of gathers, matrices and scales.

An operator that moves entries is read off from what it does to their numbers, so its meaning is NumPy's own; a convolution gathers
the windows of its kernel and multiplies matrices; a sum is the transpose of an expansion, and an `Adjoint` runs a chain backwards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mlflow_lipschitz.checker.arithmetic import Arithmetic, Range, known
from mlflow_lipschitz.engine.ir import ops

Part = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Gather:
    """out[i] = in[source[i]], 0 where the source is −1. Forward and, with `turned`, transposed."""

    source: np.ndarray
    size: int
    turned: bool = False

    def __call__(self, x: np.ndarray, part: Part) -> np.ndarray:
        return self._spread(x) if self.turned else self._collect(x)

    def turn(self) -> Gather:
        return Gather(self.source, self.size, not self.turned)

    @property
    def terms(self) -> int:
        """How many entries one entry of the result adds up."""
        used = self.source[self.source >= 0]
        return int(np.bincount(used).max(initial=0)) if self.turned and used.size else 1

    def _collect(self, x: np.ndarray) -> np.ndarray:
        taken = x[:, np.maximum(self.source, 0)] if self.size else np.zeros((len(x), self.source.size))
        return np.where(self.source >= 0, taken, 0 * taken[:, :1]) if (self.source < 0).any() else taken

    @cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places of the output by their source, the sources that are used, and where each one's places begin."""
        places = np.flatnonzero(self.source >= 0)
        order = places[np.argsort(self.source[places], kind="stable")]
        return order, *np.unique(self.source[order], return_index=True)

    def _spread(self, y: np.ndarray) -> np.ndarray:
        order, goal, first = self._order
        if goal.size == order.size:
            result = Arithmetic(y.dtype == object).zeros((len(y), self.size))
            result[:, goal] = y[:, order]
            return result
        # Sums along the first axis are several times faster.
        columns = Arithmetic(y.dtype == object).zeros((self.size, len(y)))
        columns[goal] = np.add.reduceat(np.ascontiguousarray(y.T)[order], first, axis=0)
        return columns.T


@dataclass(frozen=True, eq=False)
class Matrices:
    """Row vectors (group, place, k) times matrices (group, m, k), transposed or not."""

    weight: np.ndarray
    places: int

    def __call__(self, x: np.ndarray, part: Part) -> np.ndarray:
        groups, _, k = self.weight.shape
        weight = _as_in(x, part(self.weight)).swapaxes(1, 2)
        if groups == 1:
            return (x.reshape(-1, k) @ weight[0]).reshape(len(x), -1)
        return (x.reshape(len(x), groups, self.places, k) @ weight).reshape(len(x), -1)

    def turn(self) -> Matrices:
        return Matrices(self.weight.swapaxes(1, 2), self.places)

    @property
    def terms(self) -> int:
        return self.weight.shape[2]


@dataclass(frozen=True, eq=False)
class Scale:
    factor: np.ndarray

    def __call__(self, x: np.ndarray, part: Part) -> np.ndarray:
        return x * _as_in(x, part(self.factor))

    def turn(self) -> Scale:
        return self

    @property
    def terms(self) -> int:
        return 0 if bool(np.isin(self.factor, (-1.0, 0.0, 1.0)).all()) else 1


Stage = Gather | Matrices | Scale


@dataclass(frozen=True, eq=False)
class Chain:
    """y = stages(x) + bias; `bias` has the output's shape or is None."""

    stages: tuple[Stage, ...]
    bias: np.ndarray | None
    shape: tuple[int, ...]  # of the output
    input_shape: tuple[int, ...]

    def linear(self, x: np.ndarray, part: Part = lambda w: w) -> np.ndarray:
        """The linear part, of (*lead, *input shape), with a part of every weight in its place."""
        return self._run(self.stages, x, self.input_shape, self.shape, part)

    def transposed(self, y: np.ndarray) -> np.ndarray:
        """The transpose of the linear part, of (*lead, *output shape)."""
        backwards = tuple(stage.turn() for stage in reversed(self.stages))
        return self._run(backwards, y, self.shape, self.input_shape, lambda w: w)

    @property
    def terms(self) -> int:
        """Products summed into one entry, forward; 0 where entries are only moved or negated."""
        rounding = [s.terms for s in self.stages if s.terms > (1 if isinstance(s, Gather) else 0)]
        return sum(rounding) + (self.bias is not None)

    @property
    def transposed_terms(self) -> int:
        return sum(stage.turn().terms for stage in self.stages)

    @property
    def weights(self) -> list[np.ndarray]:
        """The sizes of all numbers that values are multiplied by."""
        return [
            np.abs(s.weight if isinstance(s, Matrices) else s.factor) for s in self.stages if not isinstance(s, Gather)
        ]

    def _run(
        self, stages: tuple[Stage, ...], x: np.ndarray, before: tuple[int, ...], after: tuple[int, ...], part: Part
    ) -> np.ndarray:
        lead = x.shape[: x.ndim - len(before)]
        flat = x.reshape(math.prod(lead), math.prod(before))
        for stage in stages:
            flat = stage(flat, part)
        return flat.reshape(*lead, *after)


def affine_range(chain: Chain, x: Range, rounding: Arithmetic) -> Range:
    """W⁺l + W⁻u and W⁺u + W⁻l, rounded outward: a sign that the weights imply survives rounding."""
    bias = 0 if chain.bias is None else rounding.array(chain.bias)
    ends = []
    for (near, far), side in ((x, -1), ((x[1], x[0]), 1)):
        value = _split(chain, near, far) + bias
        if chain.terms:
            size = _split(chain, np.abs(near), -np.abs(far)) + np.abs(bias)
            value = value + side * (rounding.gamma(chain.terms) * size + _lost(chain, x, rounding))
        ends.append(value)
    return known(ends[0], ends[1])


def _split(chain: Chain, near: np.ndarray, far: np.ndarray) -> np.ndarray:
    """W⁺ near + W⁻ far."""
    if not chain.weights:
        return chain.linear(near)
    return chain.linear(near, lambda w: np.maximum(w, 0)) + chain.linear(far, lambda w: np.minimum(w, 0))


def affine_size(chain: Chain, x: Range) -> np.ndarray:
    """|W||x| + |b|: the absolute terms behind each entry."""
    size = chain.linear(np.maximum(np.abs(x[0]), np.abs(x[1])), np.abs)
    return size if chain.bias is None else size + _as_in(size, np.abs(chain.bias))


def _lost(chain: Chain, x: Range, rounding: Arithmetic) -> float | int:
    """What products that underflow may lose; 0 where none can, so that exact zeros stay zeros."""
    if rounding.exact or not chain.weights:
        return 0
    smallest = 1.0
    for group in (chain.weights, [np.abs(end) for end in x]):
        smallest *= min((float(w[w > 0].min()) for w in group if (w > 0).any()), default=1.0)
    return rounding.underflow if smallest < 2.0**-900 else 0.0


def chain_of(op: Any, shape: tuple[int, ...]) -> Chain | None:
    """The chain of a one-input affine op on values of a shape; None for any other op."""
    if isinstance(op, ops.Adjoint):
        inner = chain_of(op.inner, op.shape)
        assert inner is not None
        return Chain(tuple(stage.turn() for stage in reversed(inner.stages)), None, op.shape, shape)
    if isinstance(op, ops.Linear):
        places = math.prod(shape[:-1])
        bias = None if op.bias is None else np.broadcast_to(op.bias, op.output_shape(shape))
        return Chain((Matrices(op.weight[None], places),), bias, op.output_shape(shape), shape)
    if isinstance(op, ops.Conv):
        return _convolution(op, shape)
    if isinstance(op, ops.ScaleShift):
        factor = np.broadcast_to(1.0 if op.scale is None else op.scale, shape).ravel()
        scale = () if (factor == 1).all() else (Scale(factor),)
        return Chain(scale, None if op.shift is None else np.broadcast_to(op.shift, shape), shape, shape)
    if isinstance(op, ops.Sum):
        kept = op.output_shape(shape)
        numbers = np.broadcast_to(_numbers(kept), shape)
        return Chain((Gather(numbers.ravel(), math.prod(kept), turned=True),), None, kept, shape)
    moved = _moved(op, _numbers(shape))
    if moved is None:
        return None
    value = getattr(op, "value", 0.0)
    bias = np.where(moved < 0, value, 0.0) if value else None
    source = moved.ravel()
    stages = () if np.array_equal(source, _numbers(shape).ravel()) else (Gather(source, math.prod(shape)),)
    return Chain(stages, bias, moved.shape, shape)


def _moved(op: Any, numbers: np.ndarray) -> np.ndarray | None:
    """What an op that only moves entries does to their numbers; −1 stands for what it adds."""
    if isinstance(op, ops.Reshape):
        return numbers.reshape(op.shape)
    if isinstance(op, ops.Transpose):
        return numbers.transpose(op.axes)
    if isinstance(op, ops.Expand):
        return np.broadcast_to(numbers, op.shape)
    if isinstance(op, ops.Select):
        return numbers.take(op.indices, axis=op.axis)
    return np.pad(numbers, op.padding, constant_values=-1) if isinstance(op, ops.Pad) else None


def _convolution(op: ops.Conv, shape: tuple[int, ...]) -> Chain:
    """Windows (group, *lead, *place, k), times one matrix per group, back to (*lead, channel, *place)."""
    axes, out_shape = op.spatial_axes, op.output_shape(shape)
    lead, groups = shape[: -axes - 1], op.groups
    padding = [(0, 0)] * (len(shape) - axes) + list(op.padding)
    numbers = np.pad(_numbers(shape), padding, constant_values=-1)
    numbers = numbers.reshape(*lead, groups, -1, *numbers.shape[-axes:])
    windows: list[np.ndarray] = []
    for place in itertools.product(*(range(k) for k in op.weight.shape[2:])):
        cut: list[Any] = [
            slice(p * d, p * d + (n - 1) * s + 1, s)
            for p, d, n, s in zip(place, op.dilation, out_shape[-axes:], op.stride, strict=True)
        ]
        windows.append(numbers[(slice(None),) * (numbers.ndim - axes) + tuple(cut)])
    stacked = np.stack(windows, -1)  # (*lead, group, in / groups, *place, kernel)
    rank = len(lead)
    order = (rank, *range(rank), *range(rank + 2, rank + 2 + axes), rank + 1, rank + 2 + axes)
    source = stacked.transpose(order)
    places = math.prod(source.shape[1:-2])
    weight = op.weight.reshape(groups, op.weight.shape[0] // groups, -1)
    grouped = (groups, *source.shape[1:-2], weight.shape[1])
    back = _numbers(grouped).transpose((*range(1, rank + 1), 0, rank + 1 + axes, *range(rank + 1, rank + 1 + axes)))
    bias = None
    if op.bias is not None:
        bias = np.broadcast_to(op.bias.reshape(-1, *(1,) * axes), out_shape)
    size = math.prod(grouped)
    stages = (Gather(source.ravel(), math.prod(shape)), Matrices(weight, places), Gather(back.ravel(), size))
    return Chain(stages, bias, out_shape, shape)


def _as_in(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A fraction times a float64 would be a float64, rounded."""
    return Arithmetic(x.dtype == object).array(weight)


def _numbers(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(shape)).reshape(shape)
