"""A value over its own size, x · r with r = (f Σ x² + ε)^(−1/2): its range over a box, and its derivative through the value itself.

As a function of one entry it rises, and is the steeper the smaller the others: over a box its ends are known exactly. With
y = x · r the derivative is Jᵀg = r g − f y Σ (y r g), where |y| ≤ f^(−1/2), however small x may become.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.ir import building, ops
from mlflow_lipschitz.engine.ir.graph import GraphBuilder, Node
from mlflow_lipschitz.engine.rules.identity import IdentityRule
from mlflow_lipschitz.engine.rules.weights import Weights

_ULP = 2.0**-52
_UNDERFLOW = 2.0**-960
_TOO_SMALL = 2.0**-900


class NormalizedRule(IdentityRule):
    """y = x₀ · x₁, computed by x₂."""

    linear_in = ((2, 1.0),)

    def evaluate(self, op: Any, weights: Weights, *inputs: Tensor) -> Tensor:
        return inputs[2]

    def interval(self, op: Any, weights: Weights, *inputs: Interval) -> Interval:
        x, _, composed = inputs
        squares = Interval(_smallest_square(x), torch.maximum(x.lower * x.lower, x.upper * x.upper))
        near, far = _of_the_others(op, squares.lower, -1), _of_the_others(op, squares.upper, 1)
        low = _value(op, x.lower, torch.where(x.lower < 0, near, far), -1)
        high = _value(op, x.upper, torch.where(x.upper > 0, near, far), 1)
        known = Interval.enclosing(low, high)
        farthest = op.factor**-0.5 * (1 + 16 * _ULP)
        return composed.intersect(Interval(known.lower.clamp(min=-farthest), known.upper.clamp(max=farthest)))

    def vjp(self, builder: GraphBuilder, node: Node, cotangent: int) -> tuple[tuple[int, int], ...]:
        op, name = node.op, node.name
        assert isinstance(op, ops.Normalized)
        x, r, _ = node.inputs
        value = builder.index_of(node)
        straight = builder.add(ops.Multiply(), r, cotangent, name=name)
        along = builder.add(ops.Sum(op.axes), builder.add(ops.Multiply(), value, straight, name=name), name=name)
        weighted = builder.add(ops.ScaleShift(scale=ops.frozen_array(op.factor)), along, name=name)
        spread = builder.add(ops.Expand(node.shape), weighted, name=name)
        bent = builder.add(ops.Multiply(), value, spread, name=name)
        return ((x, building.difference(builder, straight, bent, name=name)),)


def _smallest_square(x: Interval) -> Tensor:
    least = torch.minimum(x.lower.abs(), x.upper.abs())
    return torch.where((x.lower <= 0) & (x.upper >= 0), 0.0, least * least)


def _of_the_others(op: ops.Normalized, squares: Tensor, side: int) -> Tensor:
    """Per entry, the sum of all squares but its own: rounded down (side −1, never below 0) or up (side 1)."""
    total = squares.sum([2 + axis for axis in op.axes], keepdim=True)
    terms = squares[0, 0].numel() + 8
    return (total - squares + side * (2 * terms * _ULP * total + _UNDERFLOW)).clamp(min=0)


def _value(op: ops.Normalized, at: Tensor, others: Tensor, side: int) -> Tensor:
    """at / √(f (at² + others) + ε), rounded down or up; unknown where the root's argument may have underflowed, or overflowed."""
    size = op.factor * (at * at + others) + op.epsilon
    value = at / torch.sqrt(size)
    end = value + side * (32 * _ULP * value.abs() + _UNDERFLOW)
    return torch.where((size > _TOO_SMALL) & size.isfinite(), end, side * torch.inf)
