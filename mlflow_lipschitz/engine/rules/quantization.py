"""Rounding to multiples of a step, as quantized models do between their layers.

What is relied on is |y − x| ≤ step / 2 alone, not where the jumps are: the served program computes x in its own arithmetic and may
round a near tie the other way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.rounding import next_down, next_up
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import GraphBuilder, Node
from mlflow_lipschitz.engine.ir.ops import Op
from mlflow_lipschitz.engine.rules.elementwise import RelaxedOp
from mlflow_lipschitz.engine.rules.relaxation import Relaxation
from mlflow_lipschitz.engine.rules.weights import Weights
from mlflow_lipschitz.errors import UnsupportedOperator


class RoundingRule(RelaxedOp):
    """y = x, give or take half a step."""

    def operands(self, op: Op, arity: int) -> tuple[int, ...]:
        return (0,)

    def evaluate(self, op: Op, weights: Weights, *inputs: Tensor) -> Tensor:
        assert weights.full is not None
        return torch.round(inputs[0] / weights.full) * weights.full

    def interval(self, op: Any, weights: Weights, *inputs: Interval) -> Interval:
        half = _half(op, inputs[0].lower)
        return Interval(next_down(inputs[0].lower - half), next_up(inputs[0].upper + half))

    def imprecise(self, op: Op, position: int, *inputs: Interval) -> None:
        """The band is as wide wherever the operand lies."""
        return None

    def family(self, op: Op, *inputs: Interval) -> None:
        return None

    def relaxation(self, op: Any, *inputs: Interval) -> Relaxation:
        half = _half(op, inputs[0].lower).expand(1, 1, *inputs[0].lower.shape[2:])
        one = torch.ones_like(half)
        return Relaxation((0,), (one,), -half, (one,), half)

    def vjp(self, builder: GraphBuilder, node: Node, cotangent: int) -> tuple[tuple[int, int], ...]:
        raise UnsupportedOperator(
            "Rounding",
            node.name,
            reason="a value that is rounded jumps: it has no Lipschitz constant and no slope",
            remedy="certify a radius instead, or audit the model as it was before quantization",
        )


def _half(op: ops.Rounding, like: Tensor) -> Tensor:
    """Half a step, rounded up: of the smallest numbers, half is not always a number."""
    return next_up(torch.as_tensor(op.step / 2, dtype=torch.float64, device=like.device))
