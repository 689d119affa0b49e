"""Best-first branch and bound, anytime: at any moment the bounds so far hold.

The parts of all rows share one frontier and fill each batch together; a row that is decided leaves it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mlflow_lipschitz.engine.search.bounding import PIECES, Effort, affordable, bound_parts, settle
from mlflow_lipschitz.engine.search.frontier import Frontier
from mlflow_lipschitz.engine.search.parts import PartBounds, Rows
from mlflow_lipschitz.engine.search.splits import Layout, Splits

Reach = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


# Memory of the frontier: some hundred bytes a part.
_MOST_PARTS = 1 << 20


@dataclass(frozen=True)
class Limits:
    """When to stop: `seconds` for all rows together; a row also when upper ≤ (1 + gap) · lower, or when its threshold is decided.

    `batch` parts are cut at once; none of a row once so many `parts` of it were bounded. Rows that are judged `together` have a
    number in common: it is enough that one of them is above its threshold. `stop` is asked after every batch.
    """

    seconds: float
    gap: float = 0.0
    thresholds: Tensor | None = None
    batch: int = 64
    parts: int = 1 << 20
    together: Tensor | None = None
    stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Found:
    """Per row: the certified `upper` bound, the largest value `lower` seen, where (rows, *input shape), how many parts.

    `leaves` are the parts that cover the regions, if they were to be kept.
    """

    upper: Tensor
    lower: Tensor
    at: Tensor
    parts: int
    leaves: Frontier | None = None


def search(
    rows: Rows,
    start: tuple[Tensor, Tensor, Tensor],
    reach: Reach,
    effort: Effort,
    limits: Limits,
) -> Found:
    """Tighten upper bounds by cutting regions, as long as it pays.

    Args:
        rows: what is maximised, one region per row.
        start: (rows,) upper bounds and (rows,) values known to be reached, and where.
        reach: for rows and corners of their boxes: rigorous lower bounds of the maximised value, at which points of the regions.
        effort: how much work goes into one part.
        limits: when to stop.
    """
    upper, lower, at = (x.clone() for x in start)
    graph = rows.problem.graph
    layout = Layout.of_region(graph) if effort.cuts == "region" else Layout.of(graph)
    batch = min(limits.batch, affordable(rows, layout, effort))
    if batch == 0 or not layout.nodes:  # too large to be cut, or affine: one pass was exact
        return Found(upper, lower, at, 0)
    deadline, cuts = time.monotonic() + limits.seconds, PIECES - 1 if layout.region else 1
    settled = torch.full_like(upper, -torch.inf)  # the largest bound among parts that need no further cut
    owner, inherited = torch.arange(len(upper), device=upper.device), upper
    splits, counts = Splits.none(len(upper), upper.device), torch.zeros_like(upper, dtype=torch.int64)
    frontier, leaves = Frontier.empty(upper.device, cuts), []
    while True:
        for piece in torch.arange(len(owner), device=upper.device).split(2 * batch):
            who, which = owner[piece], splits.select(piece)
            got = bound_parts(rows, layout, who, which, effort)
            _record(lower, at, who, *reach(who, got.corner))
            bound = _settled(rows, layout, (who, which), got, (lower, at, reach), effort)
            bound = torch.minimum(bound, inherited[piece])
            frontier = frontier.joined(Frontier(who, which, bound, got.entry, got.places, got.promise > 0))
        counts.index_add_(0, owner, torch.ones_like(owner))
        decided = _decided(frontier, lower, limits) | (counts[frontier.owner] >= limits.parts)
        settled = settled.scatter_reduce(0, frontier.owner[decided], frontier.upper[decided], "amax")
        leaves += [frontier.select(decided.nonzero()[:, 0])] if effort.keep else []
        frontier = frontier.select((~decided).nonzero()[:, 0])
        over = time.monotonic() >= deadline or len(frontier.owner) >= _MOST_PARTS or limits.stop()
        if len(frontier.owner) == 0 or over:
            break
        chosen, frontier = frontier.taken(_priority(frontier, lower), batch)
        owner, inherited = chosen.owner.repeat(cuts + 1), chosen.upper.repeat(cuts + 1)
        splits = chosen.splits.cut(chosen.entry, chosen.places)
    remaining = settled.scatter_reduce(0, frontier.owner, frontier.upper, "amax")
    kept = frontier.joined(*leaves) if effort.keep else None
    return Found(torch.maximum(torch.minimum(upper, remaining), lower), lower, at, int(counts.sum()), kept)


def _settled(
    rows: Rows,
    layout: Layout,
    parts: tuple[Tensor, Splits],
    got: PartBounds,
    seen: tuple[Tensor, Tensor, Reach],
    effort: Effort,
) -> Tensor:
    """The parts' bounds, those in which nothing is left to cut settled exactly; what they reach is recorded."""
    (owner, splits), (lower, at, reach) = parts, seen
    last = ((got.promise <= 0) & (got.upper > lower[owner])).nonzero()[:, 0]
    if len(last) == 0 or splits.entry.shape[1] == 0 or layout.region:
        return got.upper
    bound, point = settle(rows, layout, owner[last], splits.select(last), effort)
    _record(lower, at, owner[last], *reach(owner[last], point))
    return got.upper.index_copy(0, last, torch.minimum(got.upper[last], bound))


def _record(lower: Tensor, at: Tensor, owner: Tensor, value: Tensor, tried: Tensor) -> None:
    """Keep, per row, the largest value seen and where, in place."""
    value = torch.where(value.isnan(), -torch.inf, value)
    best = torch.full_like(lower, -torch.inf).scatter_reduce(0, owner, value, "amax")
    winner = (value == best[owner]) & (value > lower[owner])
    at[owner[winner]] = tried[winner]
    torch.maximum(lower, best, out=lower)


def _decided(frontier: Frontier, lower: Tensor, limits: Limits) -> Tensor:
    """Which parts need no further cut: none helps, or the bound is close enough, or on its side of the threshold."""
    known = lower[frontier.owner]
    decided = ~frontier.open | (frontier.upper <= known + limits.gap * known.abs())
    if limits.thresholds is not None:
        above = lower > limits.thresholds
        if limits.together is not None:
            above = torch.isin(limits.together, limits.together[above])
        decided = decided | (frontier.upper <= limits.thresholds[frontier.owner]) | above[frontier.owner]
    return decided


def _priority(frontier: Frontier, lower: Tensor) -> Tensor:
    """How far a part's bound is above what its row is known to reach, relatively: the worst row comes first."""
    known = lower[frontier.owner]
    return (frontier.upper - known) / known.abs().clamp(min=1e-300)
