"""Spend a budget: tighter ranges first, then branch and bound over all points and objectives together."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mlflow_lipschitz.certify.budget import Budget
from mlflow_lipschitz.engine.attack.ascent import enclose_at
from mlflow_lipschitz.engine.attack.sampling import clip
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.propagation.backward import upper_bounds
from mlflow_lipschitz.engine.propagation.plan import is_smooth
from mlflow_lipschitz.engine.propagation.pre_activation import bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.search.bounding import Effort
from mlflow_lipschitz.engine.search.evidence import SearchEvidence, evidence_of
from mlflow_lipschitz.engine.search.parts import Rows, lowest
from mlflow_lipschitz.engine.search.search import Limits, search
from mlflow_lipschitz.engine.search.tightening import Pass, tightened

# A share of the budget for ranges with slopes of their own, half of it for those that all objectives have in common; what it does
# not use is left to the search. Cutting helps little where curves bend all along: there, most of it goes into the ranges.
_TIGHTENING, _TIGHTENING_SMOOTH = 0.2, 0.85
_STEPS, _RATE, _DECAY = 15, 0.2, 0.9
# Of many parts, each has few forms: more of them at once pay for the same overhead.
MORE_FORMS = 4


@dataclass(frozen=True)
class Bracket:
    """lower ≤ the largest value of a one-entry graph output ≤ upper, per point and objective; `at` is where lower is reached.

    `evidence` says how the regions were cut, if that was to be kept: a tree for every row.
    """

    upper: Tensor
    lower: Tensor
    at: Tensor
    evidence: SearchEvidence | None = None


def narrowed(problem: Problem, ranges: Sequence[Interval], start: Bracket, budget: Budget, effort: Effort) -> Bracket:
    """Narrow the bracket as far as the budget goes.

    Args:
        problem: a graph with one entry.
        ranges: per node, over the whole regions.
        start: (points, objectives) each, `at` (points, objectives, *input shape).
    """
    open_rows = _undecided(start, budget).nonzero()
    if len(open_rows) == 0:
        return start
    index, points = tuple(open_rows.unbind(1)), open_rows[:, 0].unique()
    ranges, budget = with_tighter_values(problem, ranges, points, budget, effort)
    ones = torch.ones((len(open_rows), 1, 1, 1), dtype=torch.float64, device=problem.device)
    rows = rows_at(problem, ranges, index, ones)
    known = Bracket(start.upper[index], start.lower[index], start.at[index])
    found = spend(rows, known, budget, len(points), effort, together=index[0])
    evidence = None
    if found.evidence is not None:
        evidence = found.evidence.spread(start.upper.numel(), (index[0] * start.upper.shape[1] + index[1]).tolist())
    result = Bracket(start.upper.clone(), start.lower.clone(), start.at.clone(), evidence)
    result.upper[index], result.lower[index], result.at[index] = found.upper, found.lower, found.at
    return result


def with_tighter_values(
    problem: Problem, ranges: Sequence[Interval], points: Tensor, budget: Budget, effort: Effort
) -> tuple[list[Interval], Budget]:
    """Ranges of what does not depend on the objective, tightened once for all objectives of these points; what is left to spend."""
    begun = time.monotonic()
    only = torch.zeros(problem.region.points, dtype=torch.bool, device=problem.device)
    only[points] = True
    seconds = budget.seconds_per_point * len(points)
    ranges = tightened(
        problem, ranges, _pass(effort, begun + _share(problem) / 2 * seconds), only=only, objective=False
    )
    spent = (time.monotonic() - begun) / len(points)
    return ranges, replace(budget, seconds_per_point=max(0.0, budget.seconds_per_point - spent))


def _share(problem: Problem) -> float:
    smooth = any(is_smooth(node.op) for node in problem.graph.nodes)
    return _TIGHTENING_SMOOTH if smooth else _TIGHTENING


def _pass(effort: Effort, deadline: float) -> Pass:
    return Pass(_STEPS, _RATE, _DECAY, max(16, effort.refinement.chunk_size // 8), deadline)


def spend(
    rows: Rows, start: Bracket, budget: Budget, points: int, effort: Effort, *, together: Tensor | None = None
) -> Bracket:
    """Narrow the bracket of every row, (rows,) and (rows, *input shape), with the budget of so many points.

    Of rows with a number in `together`, (rows,), one above the threshold is enough.
    """
    seconds = budget.seconds_per_point * points
    begun = time.monotonic()
    upper = start.upper
    if effort.cuts != "region":
        rows, tighter = _with_tighter_ranges(rows, effort, begun + _share(rows.problem) * seconds)
        upper = torch.minimum(upper, tighter)
    left = max(0.0, begun + seconds - time.monotonic())
    limit = None if budget.threshold is None else torch.full_like(upper, budget.threshold)
    # Every row has its own, so that a point's bounds do not depend on its neighbors.
    most = sys.maxsize if budget.parts_per_point is None else budget.parts_per_point * points // len(upper)
    found = search(
        rows,
        (upper, start.lower, start.at),
        lambda owner, x: _reached(rows, owner, x),
        effort,
        Limits(left, budget.target_gap, limit, parts=most, together=together),
    )
    evidence = None if found.leaves is None else evidence_of(rows, found.leaves, effort)
    return Bracket(found.upper, found.lower, found.at, evidence)


def _undecided(bracket: Bracket, budget: Budget) -> Tensor:
    wide = bracket.upper > bracket.lower + budget.target_gap * bracket.lower.abs()
    if budget.threshold is None:
        return wide
    above = (bracket.lower > budget.threshold).any(1, keepdim=True)
    return wide & (bracket.upper > budget.threshold) & ~above


def rows_at(
    problem: Problem, ranges: Sequence[Interval], places: tuple[Tensor, ...], coeffs: Tensor, target: int | None = None
) -> Rows:
    """A row for each of the coefficients (rows, 1, 1, *shape) on a node, by default the last, and its (point, objective)."""
    point, objective = places

    def of(values: Tensor) -> Tensor:
        p = point if values.shape[0] > 1 else torch.zeros_like(point)
        o = objective if values.shape[1] > 1 else torch.zeros_like(objective)
        return values[p, o][:, None]

    gathered = [Interval(of(x.lower), of(x.upper)) for x in ranges]
    return Rows(problem.select(point, objective), gathered, problem.graph.output if target is None else target, coeffs)


def _with_tighter_ranges(rows: Rows, effort: Effort, deadline: float) -> tuple[Rows, Tensor]:
    """The rows with ranges tightened until the deadline, and (rows,) upper bounds made of them."""
    every = torch.ones(len(rows.coeffs), dtype=torch.bool, device=rows.coeffs.device)
    ranges = tightened(rows.problem, rows.ranges, _pass(effort, deadline), only=every, objective=True)
    bounds = bound_nodes(rows.problem, effort.refinement, dict(enumerate(ranges)))
    upper = upper_bounds(rows.problem, bounds, rows.target, rows.coeffs)[:, 0, 0]
    return replace(rows, ranges=[node.interval for node in bounds]), upper


def _reached(rows: Rows, owner: Tensor, corner: Tensor) -> tuple[Tensor, Tensor]:
    """Rigorous lower bounds of coeffs · value, at points of the regions next to the corners."""
    problem = rows.problem.select(owner, torch.zeros_like(owner))
    x = clip(problem.region, corner[None])[0]
    value = enclose_at(problem, x[None, :, None])
    coeffs = rows.coeffs[owner][:, 0, 0]
    ends = Interval(value.lower[0, :, 0], value.upper[0, :, 0])
    return lowest(coeffs, ends), x
