"""Elementwise curves: one rule for every row of curves/table.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.linear_form import LinearForm
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import GraphBuilder, Node, Shape
from mlflow_lipschitz.engine.ir.ops import Op
from mlflow_lipschitz.engine.rules.curve_enclosure import (
    curve_interval,
    curve_relaxation,
    is_affine_on,
    parallel_lines,
)
from mlflow_lipschitz.engine.rules.curve_family import CurveFamily
from mlflow_lipschitz.engine.rules.curves.facts import CurveFacts
from mlflow_lipschitz.engine.rules.curves.table import CURVES, facts_of
from mlflow_lipschitz.engine.rules.forward import through_planes
from mlflow_lipschitz.engine.rules.relaxation import Relaxation
from mlflow_lipschitz.engine.rules.weights import Weights
from mlflow_lipschitz.errors import UnsupportedOperator


class EnclosedOp:
    """What every op with a linear relaxation has in common: its backward step is the relaxation's."""

    def rounding_terms(self, op: Op, shapes: tuple[Shape, ...]) -> int:
        return 10  # per operand: mean and half difference of two slopes, two products, a sum

    def magnitude(self, op: Op, weights: Weights, *inputs: Interval) -> Tensor:
        raise TypeError(f"{type(op).__name__} is relaxed; its magnitude is its relaxation's")

    def backward(self, op: Op, weights: Weights, coeffs: Tensor, shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        raise TypeError(f"{type(op).__name__} is relaxed; its backward step is its relaxation's")

    def offset(self, op: Op, weights: Weights, coeffs: Tensor, shapes: tuple[Shape, ...]) -> Tensor | None:
        raise TypeError(f"{type(op).__name__} is relaxed; its offset is its relaxation's")


class RelaxedOp(EnclosedOp):
    """An op between two planes."""

    def relaxation(self, op: Op, *inputs: Interval) -> Relaxation:
        raise NotImplementedError(type(op).__name__)

    def parallel(self, op: Op, *inputs: Interval) -> Relaxation:
        """Two planes with one slope per operand; those of `relaxation` where they are so already."""
        return self.relaxation(op, *inputs)

    def is_smooth(self, op: Op) -> bool:
        return False

    def forward(
        self, op: Op, weights: Weights, inputs: Sequence[Interval], forms: Sequence[LinearForm], reach: Tensor
    ) -> LinearForm:
        return through_planes(self.parallel(op, *inputs), forms, reach)


class ElementwiseRule(RelaxedOp):
    """y = f(x) entry by entry."""

    def operands(self, op: Op, arity: int) -> tuple[int, ...]:
        return (0,)

    def evaluate(self, op: Any, weights: Weights, *inputs: Tensor) -> Tensor:
        return _facts(op).value(inputs[0])

    def interval(self, op: Any, weights: Weights, *inputs: Interval) -> Interval:
        return curve_interval(_facts(op), inputs[0])

    def imprecise(self, op: Any, position: int, *inputs: Interval) -> Tensor:
        return ~is_affine_on(_facts(op), inputs[0])

    def relaxation(self, op: Any, *inputs: Interval) -> Relaxation:
        return curve_relaxation(_facts(op), inputs[0])

    def family(self, op: Any, *inputs: Interval) -> CurveFamily | None:
        # Of a curve known only by the bound of its bend there are no pieces to search.
        return None if _facts(op).bend is not None else CurveFamily.of(_facts(op), inputs[0])

    def parallel(self, op: Any, *inputs: Interval) -> Relaxation:
        return parallel_lines(_facts(op), inputs[0])

    def is_smooth(self, op: Any) -> bool:
        return _facts(op).curved

    def vjp(self, builder: GraphBuilder, node: Node, cotangent: int) -> tuple[tuple[int, int], ...]:
        assert isinstance(node.op, ops.Elementwise)
        curve, parameters = _facts(node.op).derivative
        if curve not in CURVES:
            raise UnsupportedOperator(node.op.curve, node.name, reason="this curve has no Clarke derivative here")
        (source,) = node.inputs
        derivative = builder.add(ops.Elementwise(curve, parameters), source, name=node.name)
        # A smooth derivative moves with its argument and is worth following; a kink's jumps, and is not.
        product = ops.Multiply(linear_in=(1,)) if facts_of(curve, parameters).flat else ops.Multiply()
        return ((source, builder.add(product, derivative, cotangent, name=node.name)),)


def supported_curve(op: ops.Elementwise) -> bool:
    """Whether a model may contain the curve (derivative curves and the norms' curves are internal as well)."""
    return op.curve in CURVES and _facts(op).derivative[0] in CURVES


def _facts(op: ops.Elementwise) -> CurveFacts:
    return facts_of(op.curve, op.parameters)
