"""The larger of two values, max(a, b) = b + relu(a − b), and what its Clarke derivative leaves over.

Both ops are affine in inputs that other nodes relax: the excess relu(a − b), and the share s·g of a cotangent that goes to a. So
one kink with one factor s ∈ [0, 1] is all there is to relax, refine and split; their intervals see more than the identity does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.rounding import next_down, next_up
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import GraphBuilder, Node
from mlflow_lipschitz.engine.ir.ops import Op
from mlflow_lipschitz.engine.rules.affine import AddRule
from mlflow_lipschitz.engine.rules.elementwise import ElementwiseRule
from mlflow_lipschitz.engine.rules.identity import IdentityRule
from mlflow_lipschitz.engine.rules.product import MultiplyRule
from mlflow_lipschitz.engine.rules.weights import Weights
from mlflow_lipschitz.errors import UnsupportedOperator


class MaximumRule(IdentityRule):
    """y = max(x₀, x₁), with x₂ = relu(x₀ − x₁)."""

    linear_in = ((1, 1.0), (2, 1.0))

    def evaluate(self, op: Op, weights: Weights, *inputs: Tensor) -> Tensor:
        return torch.maximum(inputs[0], inputs[1])

    def interval(self, op: Op, weights: Weights, *inputs: Interval) -> Interval:
        a, b, excess = inputs
        larger = Interval(torch.maximum(a.lower, b.lower), torch.maximum(a.upper, b.upper))
        return AddRule().interval(op, weights, b, excess).intersect(larger)

    def vjp(self, builder: GraphBuilder, node: Node, cotangent: int) -> tuple[tuple[int, int], ...]:
        a, b, excess = node.inputs
        ((_, share),) = ElementwiseRule().vjp(builder, builder.node(excess), cotangent)
        step = builder.node(share).inputs[0]
        return (a, share), (b, builder.add(ops.Remainder(), share, step, cotangent, name=node.name))


class RemainderRule(IdentityRule):
    """y = (1 − x₁) · x₂, with x₀ = x₁ · x₂ and x₁ ∈ [0, 1]."""

    linear_in = ((2, 1.0), (0, -1.0))

    def evaluate(self, op: Op, weights: Weights, *inputs: Tensor) -> Tensor:
        return (1 - inputs[1]) * inputs[2]

    def interval(self, op: Op, weights: Weights, *inputs: Interval) -> Interval:
        """As a product, so that a sign that the cotangent has for certain survives rounding."""
        share, step, whole = inputs
        low, high = 1 - step.upper, 1 - step.lower
        rest = Interval(
            torch.where((step.upper == 0) | (step.upper == 1), low, next_down(low)).clamp(0, 1),
            torch.where((step.lower == 0) | (step.lower == 1), high, next_up(high)).clamp(0, 1),
        )
        product = MultiplyRule().interval(op, weights, rest, whole)
        return product.intersect(AddRule().interval(op, weights, whole, Interval(-share.upper, -share.lower)))

    def vjp(self, builder: GraphBuilder, node: Node, cotangent: int) -> tuple[tuple[int, int], ...]:
        raise UnsupportedOperator(
            "Remainder", node.name, reason="it is part of a derivative, which has none of its own"
        )
