"""Product of two variable values.

For x ∈ [xₗ, xᵤ] the product lies between min(xₗ y, xᵤ y), concave in y, and max(xₗ y, xᵤ y), convex in y. The chords of those
two over y's interval are the lines used (Shi et al., NeurIPS 2022, §3.3, for a Clarke derivative x ∈ [0, 1]; here for any x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.rounding import product_bounds
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import GraphBuilder, Node
from mlflow_lipschitz.engine.ir.ops import Op
from mlflow_lipschitz.engine.rules.elementwise import RelaxedOp
from mlflow_lipschitz.engine.rules.relaxation import Relaxation
from mlflow_lipschitz.engine.rules.weights import Weights

_ULP = 2.0**-52
_UNDERFLOW = 2.0**-960


@dataclass(frozen=True)
class McCormick:
    """Planes around x·y: above and below, the two of McCormick's (1976) mixed by a weight."""

    x: Interval
    y: Interval

    @property
    def start(self) -> tuple[Tensor, Tensor]:
        """The mixture in which the plane does not depend on x, where there is one: best when nothing is known of x."""
        x, y = self.x, self.y
        weight = torch.broadcast_to(
            -y.lower / (y.upper - y.lower), torch.broadcast_shapes(x.lower.shape, y.lower.shape)
        )
        weight = torch.where(weight.isfinite(), weight.clamp(0, 1), 0.5)
        return weight, weight

    def at(self, weights: tuple[Tensor, Tensor]) -> Relaxation:
        above, below = weights
        upper_slopes, upper_offset = _plane_above(self.x, self.y, above)
        (slope_x, slope_y), offset = _plane_above(_mirrored(self.x), self.y, below)
        # −(−x) y: the slope on x keeps its sign, the one on y and the offset change it.
        # Of one weight come one and the same slope on x, above and below: no need to tell them apart later.
        below_x = upper_slopes[0] if above is below else slope_x
        return Relaxation((0, 1), (below_x, -slope_y), -offset, upper_slopes, upper_offset)


class MultiplyRule(RelaxedOp):
    """y = x₀ x₁."""

    def operands(self, op: Any, arity: int) -> tuple[int, ...]:
        return op.linear_in

    def evaluate(self, op: Op, weights: Weights, *inputs: Tensor) -> Tensor:
        return inputs[0] * inputs[1]

    def interval(self, op: Op, weights: Weights, *inputs: Interval) -> Interval:
        x, y = inputs
        corners = [product_bounds(a, b) for a in (x.lower, x.upper) for b in (y.lower, y.upper)]
        low, high = corners[0]
        for corner_low, corner_high in corners[1:]:
            low, high = torch.minimum(low, corner_low), torch.maximum(high, corner_high)
        return Interval.enclosing(low, high)

    def imprecise(self, op: Op, position: int, *inputs: Interval) -> Tensor:
        """A constant first factor makes the product linear in the second, whatever that one's range."""
        return inputs[0].lower < inputs[0].upper

    def relaxation(self, op: Any, *inputs: Interval) -> Relaxation:
        x, y = inputs
        if op.linear_in == (1,):
            upper_slope, upper_offset = _chord_above(x, y)
            slope, offset = _chord_above(_mirrored(x), y)
            return Relaxation((1,), (-slope,), -offset, (upper_slope,), upper_offset)
        family = McCormick(x, y)
        return family.at(family.start)

    def family(self, op: Any, *inputs: Interval) -> McCormick | None:
        return None if op.linear_in == (1,) else McCormick(*inputs)

    def parallel(self, op: Any, *inputs: Interval) -> Relaxation:
        """The planes through the middle of McCormick's: their slopes are the other factor's center."""
        half = torch.full_like(inputs[0].lower, 0.5)
        return McCormick(*inputs).at((half, half))

    def is_smooth(self, op: Any) -> bool:
        return op.linear_in == (0, 1)

    def vjp(self, builder: GraphBuilder, node: Node, cotangent: int) -> tuple[tuple[int, int], ...]:
        first, second = node.inputs
        left = builder.add(ops.Multiply(), second, cotangent, name=node.name)
        right = builder.add(ops.Multiply(), first, cotangent, name=node.name)
        return (first, left), (second, right)


def _mirrored(x: Interval) -> Interval:
    """−x: min(xₗ y, xᵤ y) = −max(−xₗ y, −xᵤ y)."""
    return Interval(-x.upper, -x.lower)


def _plane_above(x: Interval, y: Interval, weight: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Slopes (on x, on y) and offset of a plane above x·y: McCormick's two planes mixed, weight ∈ [0, 1] on the second.

    The two are xᵤ y + yₗ x − xᵤ yₗ and xₗ y + yᵤ x − xₗ yᵤ. Whatever the slopes came out as, the offset covers the four corners,
    where a bilinear function less a plane has its maximum over a box.
    """
    slope_x = (1 - weight) * y.lower + weight * y.upper
    slope_y = (1 - weight) * x.upper + weight * x.lower
    gaps = [_corner_gap(a, b, slope_x, slope_y) for a in (x.lower, x.upper) for b in (y.lower, y.upper)]
    offset = torch.maximum(torch.maximum(gaps[0], gaps[1]), torch.maximum(gaps[2], gaps[3]))
    return (slope_x, slope_y), offset


def _corner_gap(a: Tensor, b: Tensor, slope_x: Tensor, slope_y: Tensor) -> Tensor:
    product, on_x, on_y = a * b, slope_x * a, slope_y * b
    size = product.abs() + on_x.abs() + on_y.abs()
    return product - on_x - on_y + 4 * _ULP * size + _UNDERFLOW


def _chord_above(x: Interval, y: Interval) -> tuple[Tensor, Tensor]:
    """Slope and offset of the chord of max(xₗ y, xᵤ y) over y's interval; any slope is valid, the offset is rounded up."""
    at_low = torch.maximum(x.lower * y.lower, x.upper * y.lower)
    at_high = torch.maximum(x.lower * y.upper, x.upper * y.upper)
    slope = (at_high - at_low) / (y.upper - y.lower)
    slope = torch.where(slope.isfinite(), slope, torch.where(y.lower + y.upper > 0, x.upper, x.lower))
    gap_low = _gap(at_low, slope * y.lower)
    gap_high = _gap(at_high, slope * y.upper)
    constant = x.lower == x.upper
    offset = torch.where(constant, 0.0, torch.maximum(gap_low, gap_high))
    return torch.where(constant, x.lower, slope), offset


def _gap(value: Tensor, line: Tensor) -> Tensor:
    return value - line + 4 * _ULP * (value.abs() + line.abs()) + _UNDERFLOW
