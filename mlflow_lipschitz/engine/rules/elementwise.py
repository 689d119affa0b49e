"""Elementwise curves: one rule for every row of curves/table.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import GraphBuilder, Node, Shape
from mlflow_lipschitz.engine.ir.ops import Op
from mlflow_lipschitz.engine.rules.curve_enclosure import curve_interval, curve_relaxation, is_affine_on
from mlflow_lipschitz.engine.rules.curves.facts import CurveFacts
from mlflow_lipschitz.engine.rules.curves.table import CURVES, facts_of
from mlflow_lipschitz.engine.rules.relaxation import Relaxation
from mlflow_lipschitz.engine.rules.weights import Weights
from mlflow_lipschitz.errors import UnsupportedOperator


class RelaxedOp:
    """What every op with a linear relaxation has in common: its backward step is the relaxation's."""

    def rounding_terms(self, op: Op, shapes: tuple[Shape, ...]) -> int:
        return 10  # per operand: mean and half difference of two slopes, two products, a sum

    def magnitude(self, op: Op, weights: Weights, *inputs: Interval) -> Tensor:
        raise TypeError(f"{type(op).__name__} is relaxed; its magnitude is its relaxation's")

    def backward(self, op: Op, weights: Weights, coeffs: Tensor, shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        raise TypeError(f"{type(op).__name__} is relaxed; its backward step is its relaxation's")

    def offset(self, op: Op, weights: Weights, coeffs: Tensor, shapes: tuple[Shape, ...]) -> Tensor | None:
        raise TypeError(f"{type(op).__name__} is relaxed; its offset is its relaxation's")


class ElementwiseRule(RelaxedOp):
    """y = f(x) entry by entry."""

    def operands(self, op: Op, arity: int) -> tuple[int, ...]:
        return (0,)

    def evaluate(self, op: Any, weights: Weights, *inputs: Tensor) -> Tensor:
        return _facts(op).value(inputs[0])

    def interval(self, op: Any, weights: Weights, *inputs: Interval) -> Interval:
        return curve_interval(_facts(op), inputs[0])

    def imprecise(self, op: Any, *inputs: Interval) -> Tensor:
        return ~is_affine_on(_facts(op), inputs[0])

    def free_slopes(self, op: Op, *inputs: Interval) -> None:
        return None

    def relaxation(self, op: Any, *inputs: Interval, slopes: tuple[Tensor, Tensor] | None = None) -> Relaxation:
        return curve_relaxation(_facts(op), inputs[0])

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
