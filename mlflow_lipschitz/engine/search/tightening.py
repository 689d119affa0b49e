"""Ranges of intermediate values, each entry with slopes of its own.

One set of slopes for all entries serves none of them well (α-CROWN, Xu et al., ICLR 2021): every loose entry becomes a row that is
bounded from above and below by itself. What later ranges are made of is tightened first.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.axes import entries
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.adam import Adam
from mlflow_lipschitz.engine.propagation.backward import upper_bounds
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.pre_activation import inherited_bounds
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.propagation.slopes import families_of, relaxed
from mlflow_lipschitz.engine.rules.registry import SOURCES, rule_for
from mlflow_lipschitz.engine.search.splits import depend_on_objective

# A range of this relative width is what rounding left of a single number.
_EXACT = 2.0**-40


@dataclass(frozen=True)
class Pass:
    """`steps` gradient steps for each entry, of length `rate` and then `decay` times the last.

    `rows` are how many entries are worked on at once; no such batch is begun after the `deadline`.
    """

    steps: int
    rate: float
    decay: float
    rows: int
    deadline: float


def tightened(
    problem: Problem, ranges: Sequence[Interval], effort: Pass, *, only: Tensor, objective: bool
) -> list[Interval]:
    """The ranges, each no wider than before.

    Args:
        problem: what is bounded.
        ranges: per node, (points, 1 or objectives, *shape).
        only: (points,) mask of the points that are worth the work.
        objective: whether to tighten the nodes that depend on the objective, or the others.
    """
    known, graph = list(ranges), problem.graph
    after = depend_on_objective(graph)
    for target in _operands(graph):
        if (target in after) != objective:
            continue
        wanted = (loose_entries(graph, known, target) & only[:, None, None]).nonzero()
        for rows in wanted.split(effort.rows) if len(wanted) else ():
            if time.monotonic() >= effort.deadline:
                return known
            known[target] = _tightened_entries(problem, known, target, rows, effort)
    return known


def _operands(graph: Graph) -> list[int]:
    """The nodes that relaxations depend on, in order; a curve's range over its argument is exact already."""
    found: set[int] = set()
    for node in graph.nodes:
        if not isinstance(node.op, SOURCES):
            found.update(node.inputs[p] for p in rule_for(node.op).operands(node.op, len(node.inputs)))
    return sorted(i for i in found if not isinstance(graph.nodes[i].op, (*SOURCES, ops.Elementwise)))


def loose_entries(graph: Graph, known: Sequence[Interval], target: int) -> Tensor:
    """(points, objectives, entries) mask of the entries that some relaxation depends on."""
    width = entries(known[target].upper - known[target].lower, 2)
    mask = torch.zeros_like(width, dtype=torch.bool)
    for node in graph.nodes:
        for position, source in enumerate(node.inputs):
            if source != target or isinstance(node.op, SOURCES):
                continue
            wanted = rule_for(node.op).imprecise(node.op, position, *(known[i] for i in node.inputs))
            if wanted is not None:
                wanted = entries(wanted, 2)
                mask = mask | (wanted.any(1, keepdim=True) if mask.shape[1] == 1 else wanted)
    size = entries(torch.maximum(known[target].upper.abs(), known[target].lower.abs()), 2)
    return mask & (width > _EXACT * size)


def _tightened_entries(problem: Problem, known: list[Interval], target: int, rows: Tensor, effort: Pass) -> Interval:
    point, objective, entry = (torch.cat([column, column]) for column in rows.unbind(1))
    part = problem.select(point, objective)
    bounds = inherited_bounds(
        part, {i: _row(x, point, objective) for i, x in enumerate(known)}, stop=target, coupled=True
    )
    shape = problem.graph.nodes[target].shape
    sign = torch.ones(len(entry), dtype=torch.float64, device=entry.device)
    sign[len(rows) :] = -1.0
    units = torch.zeros((len(entry), torch.Size(shape).numel()), dtype=torch.float64, device=entry.device)
    coeffs = units.scatter(1, entry[:, None], sign[:, None]).reshape(-1, 1, 1, *shape)
    upper = _optimized(part, bounds, target, coeffs, effort)
    high, low = upper[: len(rows)], -upper[len(rows) :]
    interval = known[target]
    index = tuple(rows.unbind(1))
    uppers, lowers = entries(interval.upper, 2).clone(), entries(interval.lower, 2).clone()
    uppers[index] = torch.minimum(uppers[index], high)
    lowers[index] = torch.maximum(lowers[index], low)
    return Interval(lowers.reshape(interval.lower.shape), uppers.reshape(interval.upper.shape))


def _row(x: Interval, point: Tensor, objective: Tensor) -> Interval:
    p = point if x.lower.shape[0] > 1 else torch.zeros_like(point)
    o = objective if x.lower.shape[1] > 1 else torch.zeros_like(objective)
    return Interval(x.lower[p, o][:, None], x.upper[p, o][:, None])


def _optimized(problem: Problem, bounds: Sequence[NodeBounds], target: int, coeffs: Tensor, effort: Pass) -> Tensor:
    """(rows,) upper bounds of coeffs · value, the best of all steps; every row has slopes of its own."""
    families = families_of(problem.graph, bounds, coupled=True)
    leaves = [weight.detach().clone().requires_grad_() for family in families.values() for weight in family.start]
    chosen = dict(zip(families, zip(leaves[::2], leaves[1::2], strict=True), strict=True))
    adam = Adam(leaves, [(0.0, 1.0)] * len(leaves), effort.rate, effort.decay)
    best: Tensor | None = None
    for step in range(effort.steps + 1):
        with torch.enable_grad():
            bound = upper_bounds(problem, relaxed(problem.graph, bounds, families, chosen), target, coeffs)[:, 0, 0]
            total = bound.sum()  # rows share no slopes, so their sum separates
        best = bound.detach() if best is None else torch.minimum(best, bound.detach())
        if step == effort.steps or not total.requires_grad or time.monotonic() >= effort.deadline:
            break
        adam.step(torch.autograd.grad(total, leaves, allow_unused=True))
    assert best is not None
    return best
