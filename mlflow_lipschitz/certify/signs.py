"""Which derivatives keep one sign: branch and bound over those that a propagation pass leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.certify.branching import Bracket, rows_at, spend, with_tighter_values
from mlflow_lipschitz.certify.budget import Budget
from mlflow_lipschitz.engine.attack.ascent import enclose_at
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.search.bounding import Effort
from mlflow_lipschitz.engine.search.evidence import SearchEvidence

# Regions in which no more entries than this move are cut themselves; through others, values inside the network are.
_FEW = 3
# Without a budget, so many pieces of a region that is open in some sign; no limit of time, so that results repeat.
_PIECES = 64
_FOREVER = 1e9


@dataclass(frozen=True)
class Searched:
    """How regions were cut for some (point, entry, sign of the derivative that was maximised), each (searches,); a tree each."""

    point: np.ndarray
    entry: np.ndarray
    sign: np.ndarray
    trees: SearchEvidence

    @staticmethod
    def joined(parts: Sequence[Searched]) -> Searched:
        point, entry, sign = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("point", "entry", "sign")
        )
        return Searched(point, entry, sign, SearchEvidence.joined([part.trees for part in parts]))


@dataclass(frozen=True)
class Slopes:
    """Derivatives (points, entries): their `certified` range, and the least and largest that are `attained`.

    `searched` is what searches left as evidence, if that was to be kept.
    """

    certified: Interval
    attained: Interval
    searched: tuple[Searched, ...] = ()


def decided(
    problem: Problem,
    ranges: Sequence[Interval],
    known: Slopes,
    asked: tuple[Tensor | None, Budget | None],
    effort: Effort,
) -> Slopes:
    """The slopes after a search for the signs that are open.

    Args:
        problem: its graph's output are the derivatives, of one objective.
        ranges: per node, over the whole regions.
        asked: (entries,) which derivatives the search is about, None for those by entries that move; and its budget.
        effort: how much work goes into one part; where to cut is decided here.
    """
    wanted, budget = asked
    moves = _moves(problem)
    few = _are_few(moves)
    ways: list[tuple[Literal["region", "ranges"], Tensor]] = [("region", few), ("ranges", ~few)]
    for cuts, points in ways:
        if cuts == "ranges" and budget is None:
            continue
        open_ = _open(known) & (moves if wanted is None else wanted) & points[:, None]
        point, entry = open_.nonzero().unbind(1)
        if len(point):
            known = _searched(problem, ranges, known, ((point, entry), budget), replace(effort, cuts=cuts))
    return known


def _searched(
    problem: Problem,
    ranges: Sequence[Interval],
    known: Slopes,
    asked: tuple[tuple[Tensor, Tensor], Budget | None],
    effort: Effort,
) -> Slopes:
    """The slopes after a search for the signs of these points and entries."""
    (point, entry), budget = asked
    # A derivative seen above zero can only be shown to be nowhere below it.
    sign = torch.where(known.attained.upper[point, entry] > 0, -1.0, 1.0).to(torch.float64)
    points = len(point.unique())
    if budget is None:
        limits = Budget(_FOREVER, 0.0, 0.0, _PIECES * len(point) // points)
    else:
        limits = Budget(budget.seconds_per_point, 0.0, 0.0, budget.parts_per_point)
    size = problem.graph.output_shape[0]
    coeffs = torch.zeros((len(point), size), dtype=torch.float64, device=problem.device)
    coeffs = coeffs.scatter(1, entry[:, None], sign[:, None])[:, None, None]
    if effort.cuts == "ranges":
        ranges, limits = with_tighter_values(problem, ranges, point.unique(), limits, effort)
    rows = rows_at(problem, ranges, (point, torch.zeros_like(point)), coeffs)
    start = Bracket(
        torch.where(sign > 0, known.certified.upper[point, entry], -known.certified.lower[point, entry]),
        torch.where(sign > 0, known.attained.upper[point, entry], -known.attained.lower[point, entry]),
        rows.problem.region.box.lower.clone(),
    )
    found = spend(rows, start, limits, points, effort)
    known = _with(known, (point, entry), sign, found)
    if found.evidence is None:
        return known
    places = (point.cpu().numpy(), entry.cpu().numpy(), sign.cpu().numpy())
    return replace(known, searched=(*known.searched, Searched(*places, found.evidence)))


def sought(problem: Problem, x: Tensor) -> Tensor:
    """Points of the regions, (points, *input shape), where a one-entry output is above zero, as far as there are any.

    Args:
        x: points to return where it is so already, or where too much moves to cut regions into pieces.
    """
    points = torch.arange(problem.region.points, device=problem.device)
    seen = enclose_at(problem, x[None, :, None]).lower[0, :, 0, 0]
    index = (~(seen > 0) & _are_few(_moves(problem))).nonzero()[:, 0]
    if len(index) == 0:
        return x
    ranges = [node.interval for node in bound_nodes(problem, None)]
    ones = torch.ones((len(index), 1, 1, 1), dtype=torch.float64, device=problem.device)
    rows = rows_at(problem, ranges, (points[index], torch.zeros_like(index)), ones)
    start = Bracket(torch.full_like(seen[index], torch.inf), seen[index], x[index])
    effort = Effort(Refinement(_PIECES * len(index)), cuts="region")
    found = spend(rows, start, Budget(_FOREVER, 0.0, 0.0, _PIECES), len(index), effort)
    return x.index_copy(0, index, found.at)


def _moves(problem: Problem) -> Tensor:
    """(points, entries) which entries of the input move."""
    box = problem.region.box
    return (box.lower < box.upper).flatten(1)


def _are_few(moves: Tensor) -> Tensor:
    """(points,) where regions themselves can be cut."""
    return moves.sum(1) <= _FEW


def _open(known: Slopes) -> Tensor:
    """Neither sign is certified, and not both are disproved."""
    certified = (known.certified.lower >= 0) | (known.certified.upper <= 0)
    return ~certified & ~((known.attained.lower < 0) & (known.attained.upper > 0))


def _with(known: Slopes, index: tuple[Tensor, Tensor], sign: Tensor, found: Bracket) -> Slopes:
    """What was found of sign · derivative, put in."""
    up = sign > 0
    ends = [known.certified.lower, known.certified.upper, known.attained.lower, known.attained.upper]
    lower, upper, least, largest = (end.clone() for end in ends)
    upper[index] = torch.where(up, torch.minimum(upper[index], found.upper), upper[index])
    lower[index] = torch.where(up, lower[index], torch.maximum(lower[index], -found.upper))
    largest[index] = torch.where(up, torch.maximum(largest[index], found.lower), largest[index])
    least[index] = torch.where(up, least[index], torch.minimum(least[index], -found.lower))
    return replace(known, certified=Interval(lower, upper), attained=Interval(least, largest))
