"""Optimised relaxations of one objective: gradient steps over the free slopes.

Every weight in [0, 1] is sound, so every iterate is a bound and the smallest one is kept (α-CROWN, Xu et al., ICLR 2021, for the
free parameters of McCormick planes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.backward import upper_bounds
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.rules.registry import SOURCES, rule_for
from mlflow_lipschitz.engine.rules.relaxation import Family

# From the middle, the first step already reaches the end its gradient points to; optima of such planes mostly sit there.
_START, _RATE = 0.5, 0.5

Families = dict[int, Family]
Weights = Mapping[int, tuple[Tensor, Tensor]]


def optimized_upper_bounds(
    problem: Problem, bounds: Sequence[NodeBounds], target: int, coeffs: Tensor, *, steps: int
) -> tuple[Tensor, Sequence[NodeBounds]]:
    """As `upper_bounds`, the best of `steps` settings of the planes around products; one pass when there are none.

    Signed steps, each half as long as the one before.

    Returns:
        the bounds, and those of the nodes with the planes that led to the first row's.
    """
    families = families_of(problem.graph, bounds, only=ops.Multiply)
    if not families or steps == 0:
        return upper_bounds(problem, bounds, target, coeffs), bounds
    best: Tensor | None = None
    leaves = [
        torch.full_like(weight, _START).requires_grad_() for family in families.values() for weight in family.start
    ]
    chosen = dict(zip(families, zip(leaves[::2], leaves[1::2], strict=True), strict=True))
    kept = [leaf.detach().clone() for leaf in leaves]
    for step in range(steps):
        last = step == steps - 1
        with torch.set_grad_enabled(not last):
            bound = upper_bounds(problem, relaxed(problem.graph, bounds, families, chosen), target, coeffs)
        if best is not None:
            better = (bound.detach() < best)[..., 0]
            kept = [_where(better, leaf.detach(), old) for leaf, old in zip(leaves, kept, strict=True)]
        best = bound.detach() if best is None else torch.minimum(best, bound.detach())
        if last or not bound.requires_grad:  # a target that no free slope reaches has nothing to gain
            break
        bound.backward(torch.ones_like(bound))  # points and objectives share no slopes, so their sum separates
        _improve(leaves, _RATE / 2**step)
    assert best is not None
    pairs = dict(zip(families, zip(kept[::2], kept[1::2], strict=True), strict=True))
    return best, relaxed(problem.graph, bounds, families, pairs)


def _where(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """(points, objectives) choice between weights (points, objectives or 1, *shape)."""
    if new.shape[1] == 1:
        better = better.all(1, keepdim=True)
    return torch.where(better.reshape(*better.shape, *(1,) * (new.dim() - 2)), new, old)


def families_of(
    graph: Graph, bounds: Sequence[NodeBounds], only: type[ops.Op] = ops.Op, *, coupled: bool = False
) -> Families:
    """The relaxations to choose from, per node that linear forms pass through.

    With `coupled`, planes around products with a derivative that jumps may follow the derivative too, instead of its range alone.
    """
    families: Families = {}
    for index, node in enumerate(graph.nodes[: len(bounds)]):
        if isinstance(node.op, SOURCES) or bounds[index].relaxation is None or not isinstance(node.op, only):
            continue
        op = ops.Multiply() if coupled and isinstance(node.op, ops.Multiply) else node.op
        family = rule_for(op).family(op, *(bounds[i].interval for i in node.inputs))
        if family is not None:
            families[index] = family
    return families


def relaxed(graph: Graph, bounds: Sequence[NodeBounds], families: Families, weights: Weights) -> list[NodeBounds]:
    """The bounds with the relaxations that the weights pick."""
    changed = list(bounds)
    for index, pair in weights.items():
        relaxation = families[index].at(pair)
        inputs = [bounds[i].interval for i in graph.nodes[index].inputs]
        changed[index] = replace(bounds[index], relaxation=relaxation, magnitude=relaxation.magnitude(*inputs).detach())
    return changed


def _improve(leaves: list[Tensor], rate: float) -> None:
    with torch.no_grad():
        for leaf in leaves:
            if leaf.grad is not None:  # a slope the target does not depend on has none
                leaf.sub_(rate * leaf.grad.nan_to_num_(0.0, 0.0, 0.0).sign()).clamp_(0.0, 1.0)
                leaf.grad = None
