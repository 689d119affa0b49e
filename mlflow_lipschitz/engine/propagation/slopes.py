"""Optimised relaxations of one objective: projected sign gradient steps over the free slopes, each half as long.

Every slope in [0, 1] is sound, so every iterate is a bound and the smallest one is kept (α-CROWN, Xu et al., ICLR 2021, for the
free parameters of McCormick planes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.backward import upper_bounds
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.rules.registry import SOURCES, rule_for

# From the middle, the first step already reaches the end its gradient points to; optima of such planes mostly sit there.
_START, _RATE = 0.5, 0.5

Slopes = dict[int, tuple[Tensor, Tensor]]


def optimized_upper_bounds(
    problem: Problem, bounds: Sequence[NodeBounds], target: int, coeffs: Tensor, *, steps: int
) -> Tensor:
    """As `upper_bounds`, the best of `steps` settings of the free slopes; one pass when nothing is free."""
    slopes = _free_slopes(problem.graph, bounds)
    if not slopes or steps == 0:
        return upper_bounds(problem, bounds, target, coeffs)
    best: Tensor | None = None
    leaves = [torch.full_like(tensor, _START).requires_grad_() for pair in slopes.values() for tensor in pair]
    chosen = dict(zip(slopes, zip(leaves[::2], leaves[1::2], strict=True), strict=True))
    for step in range(steps):
        last = step == steps - 1
        with torch.set_grad_enabled(not last):
            bound = upper_bounds(problem, _with_slopes(problem.graph, bounds, chosen), target, coeffs)
        best = bound.detach() if best is None else torch.minimum(best, bound.detach())
        if last or not bound.requires_grad:  # a target that no free slope reaches has nothing to gain
            break
        bound.backward(torch.ones_like(bound))  # points and objectives share no slopes, so their sum separates
        _improve(leaves, _RATE / 2**step)
    assert best is not None
    return best


def _improve(leaves: list[Tensor], rate: float) -> None:
    with torch.no_grad():
        for leaf in leaves:
            if leaf.grad is not None:  # a slope the target does not depend on has none
                leaf.sub_(rate * leaf.grad.nan_to_num_(0.0, 0.0, 0.0).sign()).clamp_(0.0, 1.0)
                leaf.grad = None


def _free_slopes(graph: Graph, bounds: Sequence[NodeBounds]) -> Slopes:
    slopes: Slopes = {}
    for index, node in enumerate(graph.nodes):
        if isinstance(node.op, SOURCES) or bounds[index].relaxation is None:
            continue
        free = rule_for(node.op).free_slopes(node.op, *(bounds[i].interval for i in node.inputs))
        if free is not None:
            slopes[index] = free
    return slopes


def _with_slopes(graph: Graph, bounds: Sequence[NodeBounds], slopes: Slopes) -> list[NodeBounds]:
    changed = list(bounds)
    for index, pair in slopes.items():
        node = graph.nodes[index]
        inputs = [bounds[i].interval for i in node.inputs]
        relaxation = rule_for(node.op).relaxation(node.op, *inputs, slopes=pair)
        assert relaxation is not None
        changed[index] = replace(bounds[index], relaxation=relaxation, magnitude=relaxation.magnitude(*inputs).detach())
    return changed
