"""Log softmax: its range over a box of scores, and its derivative through the softmax itself.

The composition x − log Σ exp(x) counts every score's own range twice; here it cancels. Jᵀg = g − p Σ g with p = softmax(x) ≤ 1,
where differentiating the composition would multiply exp(x), up to the largest, with 1 / Σ exp(x), up to the largest.
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
# An exponential that does not underflow has an argument of at most 745 in size, off by half an ulp, and errs by some itself.
_EXPONENTIAL = 1024
_UNDERFLOW = 2.0**-960
_TOO_SMALL = 2.0**-900


class LogSoftmaxRule(IdentityRule):
    """y = x₀ − log Σ exp(x₀), computed by x₁."""

    linear_in = ((1, 1.0),)

    def evaluate(self, op: Any, weights: Weights, *inputs: Tensor) -> Tensor:
        x = inputs[0]
        return x - torch.logsumexp(_kept(weights, x, -torch.inf), -1, keepdim=True)

    def interval(self, op: Any, weights: Weights, *inputs: Interval) -> Interval:
        x, composed = inputs
        largest = _kept(weights, x.upper, -torch.inf).amax(-1, keepdim=True)
        lower, upper = x.lower - largest, x.upper - largest  # what all scores have in common cancels
        low = _end(weights, lower, upper, up=False)
        high = _end(weights, upper, lower, up=True).clamp(max=0)
        known = Interval.enclosing(low, high)
        if weights.full is None:
            return composed.intersect(known)
        inside = composed.intersect(known)
        kept = weights.full > 0
        return Interval(
            torch.where(kept, inside.lower, composed.lower), torch.where(kept, inside.upper, composed.upper)
        )

    def vjp(self, builder: GraphBuilder, node: Node, cotangent: int) -> tuple[tuple[int, int], ...]:
        assert isinstance(node.op, ops.LogSoftmax)
        share = builder.add(ops.Elementwise("exp"), builder.index_of(node), name=node.name)
        if node.op.kept is not None:
            share = builder.add(ops.ScaleShift(scale=node.op.kept), share, name=node.name)
        total = builder.add(ops.Sum((len(node.shape) - 1,)), cotangent, name=node.name)
        spread = builder.add(ops.Expand(node.shape), total, name=node.name)
        common = builder.add(ops.Multiply(), share, spread, name=node.name)
        return ((node.inputs[0], building.difference(builder, cotangent, common, name=node.name)),)


def _kept(weights: Weights, x: Tensor, otherwise: float) -> Tensor:
    return x if weights.full is None else torch.where(weights.full > 0, x, otherwise)


def _end(weights: Weights, own: Tensor, others: Tensor, *, up: bool) -> Tensor:
    """own − log(exp(own) + Σ exp(others) over the other entries), rounded up or down; unknown where all underflows."""
    rest = _without_own(_kept(weights, torch.exp(others), 0.0))
    total = rest + torch.exp(own)
    # Rounding of differences from the largest, of exponentials, and of their sum.
    error = (_EXPONENTIAL + 2 * own.shape[-1]) * _ULP * total + _UNDERFLOW
    value = total + (-error if up else error)
    end = own - torch.log(value)
    slack = 8 * _ULP * (own.abs() + end.abs())
    known = (value > _TOO_SMALL) & value.isfinite()
    return torch.where(known, end + slack if up else end - slack, torch.inf if up else -torch.inf)


def _without_own(terms: Tensor) -> Tensor:
    """Per entry, the sum of all the others of its row: none is added first and taken away again, which would cancel."""
    before = torch.cumsum(terms, -1).roll(1, -1)
    after = torch.cumsum(terms.flip(-1), -1).flip(-1).roll(-1, -1)
    before[..., 0], after[..., -1] = 0.0, 0.0
    return before + after
