"""Affine ops: exact forward, exact backward; one rule for all of them, built from the maps of affine_maps.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mlflow_lipschitz.engine.domains.axes import entries
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.linear_form import LinearForm
from mlflow_lipschitz.engine.domains.rounding import error_bound, underflow_guard
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import GraphBuilder, Node, Shape
from mlflow_lipschitz.engine.ir.ops import Op
from mlflow_lipschitz.engine.rules.affine_maps import affine_map, constant_part
from mlflow_lipschitz.engine.rules.forward import through_affine, through_concat, through_sum
from mlflow_lipschitz.engine.rules.weights import Weights


class AffineOp:
    """What every affine op has in common: no relaxation, nothing imprecise."""

    def operands(self, op: Op, arity: int) -> tuple[int, ...]:
        return tuple(range(arity))

    def imprecise(self, op: Op, position: int, *inputs: Interval) -> None:
        return None

    def family(self, op: Op, *inputs: Interval) -> None:
        return None

    def relaxation(self, op: Op, *inputs: Interval) -> None:
        return None

    def is_smooth(self, op: Op) -> bool:
        return False


class AffineRule(AffineOp):
    """One input: y = W x + b in any of its disguises (convolution, reshape, sum, the transpose of another, ...)."""

    def evaluate(self, op: Any, weights: Weights, *inputs: Tensor) -> Tensor:
        (x,), shape = inputs, _shape(inputs[0])
        return _plus(affine_map(op).apply(op, weights.full, x, shape), _constant(op, weights, shape, x.device))

    def interval(self, op: Any, weights: Weights, *inputs: Interval) -> Interval:
        """W⁺l + W⁻u + b and W⁺u + W⁻l + b: kept in this form, a sign that the weights imply survives rounding."""
        (x,), shape = inputs, _shape(inputs[0].lower)
        terms = affine_map(op).terms(op, shape)
        constant = _constant(op, weights, shape, x.lower.device)
        (low, high), (low_size, high_size) = self._split_apply(op, weights, x, with_sizes=terms > 0)
        if terms == 0:
            return Interval.enclosing(_plus(low, constant), _plus(high, constant))
        bias_size = None if constant is None else constant.abs()
        guard = 0.0 if weights.smallest is None else _guard(weights.smallest, x, low)
        low_error = error_bound(_plus(low_size, bias_size), terms) + guard
        high_error = error_bound(_plus(high_size, bias_size), terms) + guard
        return Interval.enclosing(_plus(low, constant) - low_error, _plus(high, constant) + high_error)

    def forward(
        self, op: Op, weights: Weights, inputs: Sequence[Interval], forms: Sequence[LinearForm], reach: Tensor
    ) -> LinearForm:
        constant = _constant(op, weights, _shape(inputs[0].lower), reach.device)
        return through_affine(op, weights, constant, forms[0], reach)

    def rounding_terms(self, op: Any, shapes: tuple[Shape, ...]) -> int:
        return affine_map(op).transpose_terms(op, shapes[0])

    def magnitude(self, op: Any, weights: Weights, *inputs: Interval) -> Tensor:
        (x,), shape = inputs, _shape(inputs[0].lower)
        reach = Interval(-x.magnitude, x.magnitude)
        (_, high), _ = self._split_apply(op, weights, reach, with_sizes=False)
        constant = _constant(op, weights, shape, x.lower.device)
        # Rounded sums of nonnegative numbers: relative error far below the slack that γ already carries.
        return entries(_plus(high, None if constant is None else constant.abs()), 2).amax(-1) * (1 + 1e-6)

    def backward(self, op: Any, weights: Weights, coeffs: Tensor, shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return (affine_map(op).transpose(op, weights.full, coeffs, shapes[0]),)

    def offset(self, op: Any, weights: Weights, coeffs: Tensor, shapes: tuple[Shape, ...]) -> Tensor | None:
        constant = _constant(op, weights, shapes[0], coeffs.device)
        if constant is None:
            return None
        return entries(coeffs, 3) @ torch.broadcast_to(constant, coeffs.shape[3:]).flatten()

    def vjp(self, builder: GraphBuilder, node: Node, cotangent: int) -> tuple[tuple[int, int], ...]:
        (source,) = node.inputs
        if isinstance(node.op, ops.Adjoint):
            return ((source, builder.add(_linear_part(node.op.inner), cotangent)),)
        return ((source, builder.add(ops.Adjoint(node.op, builder.shape(source)), cotangent, name=node.name)),)

    def _split_apply(
        self, op: Any, weights: Weights, x: Interval, *, with_sizes: bool
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Low and high ends of W x, and (if asked) the sums of absolute values behind each."""
        apply, shape = affine_map(op).apply, _shape(x.lower)
        ends = [x.lower, x.upper, *((x.lower.abs(), x.upper.abs()) if with_sizes else ())]
        if weights.full is None:
            parts = [apply(op, None, end, shape) for end in ends]
            sizes = (parts[2], parts[3]) if with_sizes else (parts[0], parts[1])
            return (parts[0], parts[1]), sizes
        stacked = torch.stack(ends)
        positive = apply(op, weights.positive, stacked, shape)
        negative = apply(op, weights.negative, stacked, shape)
        values = (positive[0] + negative[1], positive[1] + negative[0])
        if not with_sizes:
            return values, values
        return values, (positive[2] - negative[3], positive[3] - negative[2])


class AddRule(AffineOp):
    """Sum of two values."""

    def evaluate(self, op: Op, weights: Weights, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]

    def interval(self, op: Op, weights: Weights, *inputs: Interval) -> Interval:
        low, high = inputs[0].lower + inputs[1].lower, inputs[0].upper + inputs[1].upper
        # One rounding, relative to the result; a sum that is exactly zero is exact (Sterbenz).
        return Interval.enclosing(low - error_bound(low.abs(), 1), high + error_bound(high.abs(), 1))

    def forward(
        self, op: Op, weights: Weights, inputs: Sequence[Interval], forms: Sequence[LinearForm], reach: Tensor
    ) -> LinearForm:
        return through_sum(forms, reach)

    def rounding_terms(self, op: Op, shapes: tuple[Shape, ...]) -> int:
        return 1

    def magnitude(self, op: Op, weights: Weights, *inputs: Interval) -> Tensor:
        return entries(inputs[0].magnitude + inputs[1].magnitude, 2).amax(-1) * (1 + 1e-6)

    def backward(self, op: Op, weights: Weights, coeffs: Tensor, shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return coeffs, coeffs

    def offset(self, op: Op, weights: Weights, coeffs: Tensor, shapes: tuple[Shape, ...]) -> None:
        return None

    def vjp(self, builder: GraphBuilder, node: Node, cotangent: int) -> tuple[tuple[int, int], ...]:
        return (node.inputs[0], cotangent), (node.inputs[1], cotangent)


class ConcatRule(AffineOp):
    """Values side by side."""

    def evaluate(self, op: Any, weights: Weights, *inputs: Tensor) -> Tensor:
        lead = max(x.shape[1] for x in inputs)
        return torch.cat([x.expand(x.shape[0], lead, *x.shape[2:]) for x in inputs], 2 + op.axis)

    def interval(self, op: Any, weights: Weights, *inputs: Interval) -> Interval:
        lower = self.evaluate(op, weights, *(x.lower for x in inputs))
        return Interval(lower, self.evaluate(op, weights, *(x.upper for x in inputs)))

    def forward(
        self, op: Any, weights: Weights, inputs: Sequence[Interval], forms: Sequence[LinearForm], reach: Tensor
    ) -> LinearForm:
        return through_concat(forms, op.axis, reach.shape[1])

    def rounding_terms(self, op: Op, shapes: tuple[Shape, ...]) -> int:
        return 0

    def magnitude(self, op: Op, weights: Weights, *inputs: Interval) -> Tensor:
        return entries(self.interval(op, weights, *inputs).magnitude, 2).amax(-1)

    def backward(self, op: Any, weights: Weights, coeffs: Tensor, shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        return tuple(coeffs.split([shape[op.axis] for shape in shapes], 3 + op.axis))

    def offset(self, op: Op, weights: Weights, coeffs: Tensor, shapes: tuple[Shape, ...]) -> None:
        return None

    def vjp(self, builder: GraphBuilder, node: Node, cotangent: int) -> tuple[tuple[int, int], ...]:
        assert isinstance(node.op, ops.Concat)
        pairs, start = [], 0
        for source in node.inputs:
            stop = start + builder.shape(source)[node.op.axis]
            piece = builder.add(ops.Select(node.op.axis, tuple(range(start, stop))), cotangent)
            pairs.append((source, piece))
            start = stop
        return tuple(pairs)


def _linear_part(op: Any) -> Op:
    if isinstance(op, ops.Linear | ops.Conv):
        return replace(op, bias=None)
    if isinstance(op, ops.ScaleShift):
        return replace(op, shift=None)
    return replace(op, value=0.0) if isinstance(op, ops.Pad) else op


def _constant(op: Any, weights: Weights, shape: Shape, device: torch.device) -> Tensor | None:
    """The constant part of the op, broadcastable to its output; an adjoint has none."""
    if isinstance(op, ops.Adjoint):
        return None
    if isinstance(op, ops.Pad) and op.value != 0:
        inside = torch.zeros(shape, dtype=torch.float64, device=device)
        return F.pad(inside, [p for pair in reversed(op.padding) for p in pair], value=op.value)
    return constant_part(op, weights.bias, shape)


def _shape(x: Tensor) -> Shape:
    return tuple(x.shape[2:])


def _plus(value: Tensor, constant: Tensor | None) -> Tensor:
    return value if constant is None else value + constant


def _guard(smallest: Tensor, x: Interval, like: Tensor) -> Tensor:
    guard = underflow_guard(smallest, x.lower, x.upper)
    return guard.reshape(*guard.shape[:2], *(1,) * (like.dim() - 2))
