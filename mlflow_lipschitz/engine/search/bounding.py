"""The bound of a part, and which cut of it promises most.

A part inherits the ranges of the whole, is dropped where its conditions contradict each other, and is otherwise bounded anew: the
conditions stabilise kinks, and every range behind them shrinks. The gradient of the bound says how much of it is owed to the room
between each pair of planes, through all the ranges that depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.propagation.backward import concretize, upper_bounds, upper_form
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes, inherited_bounds
from mlflow_lipschitz.engine.search.feasibility import conditions_of, contradictions
from mlflow_lipschitz.engine.search.linear_programs import extreme, settled
from mlflow_lipschitz.engine.search.multiplier_bounds import bound_by_multipliers
from mlflow_lipschitz.engine.search.parts import PartBounds, Rows, are_empty, highest, known_ranges
from mlflow_lipschitz.engine.search.promise import promises, sensitivity
from mlflow_lipschitz.engine.search.splits import Layout, Splits
from mlflow_lipschitz.engine.search.tightening import loose_entries

# Float64 numbers that the forms of a batch of parts may take; most parts are empty, so it is rarely a quarter of them.
_MOST_ENTRIES = 1 << 31
_NUMBERS_PER_ENTRY = 64
# A region is cut into so many pieces at once: there are few of them, and a batch of them costs little more than one.
PIECES = 8


@dataclass(frozen=True)
class Effort:
    """How a part is bounded, and how much work goes into it.

    Attributes:
        refinement: linear forms in flight.
        steps: gradient steps spent on multipliers.
        keep: whether to keep the parts that were not cut any further, as evidence.
        cuts: `ranges`, cuts are made through values inside the network and every range behind them is made anew: best where what is
            maximised is a Jacobian. `multipliers`, they are, and weigh in by multipliers alone: cheap, and best for values.
            `region`, cuts are made through the region.
    """

    refinement: Refinement
    steps: int = 5
    cuts: Literal["ranges", "multipliers", "region"] = "ranges"
    keep: bool = False


def affordable(rows: Rows, layout: Layout, effort: Effort) -> int:
    """How many parts fit into memory at once; 0 where a single one does not.

    Where ranges are made anew, the gradient of a part's bound keeps the linear forms of all its refined entries, at every node they
    pass; else a part has one form.
    """
    size = sum(math.prod(node.shape) for node in rows.problem.graph.nodes)
    if effort.cuts != "ranges":
        return max(1, _MOST_ENTRIES // (_NUMBERS_PER_ENTRY * size))
    loose = sum(int(loose_entries(rows.problem.graph, rows.ranges, i).sum(-1).amax()) for i in layout.nodes)
    # From above and from below, and as often for the Jacobian as for the values.
    return int(_MOST_ENTRIES // (4 * max(1, loose) * size))


def bound_parts(rows: Rows, layout: Layout, owner: Tensor, splits: Splits, effort: Effort) -> PartBounds:
    """Bound parts of the rows' regions; `owner` (parts,) is the row of each."""
    if layout.region:
        return _bound_pieces(rows.select(owner), layout, splits, effort)
    if effort.cuts == "multipliers":
        return bound_by_multipliers(rows.select(owner), layout, splits, effort.steps)
    part, count = rows.select(owner), len(owner)
    known = known_ranges(part, layout, splits)
    held = conditions_of(layout, splits)
    inherited = inherited_bounds(part.problem, known, stop=max(held, default=0))
    excluded = contradictions(part.problem, inherited, held, steps=effort.steps)
    live = (~(excluded.proved | are_empty(inherited))).nonzero()[:, 0]
    upper = torch.full((count,), -torch.inf, dtype=torch.float64, device=owner.device)
    promise, place = torch.zeros_like(upper), torch.zeros_like(upper)
    entry = torch.zeros_like(owner)
    if len(live):
        chosen = {index: Interval(x.lower[live], x.upper[live]) for index, x in known.items()}
        cut = {index: (condition.sign != 0)[live] for index, condition in held.items()}
        found = _bound(part.select(live), layout, (chosen, cut), effort)
        upper[live], promise[live], entry[live], place[live] = found
    return PartBounds(upper, excluded.corner, promise, entry, place[:, None])


def _bound_pieces(part: Rows, layout: Layout, splits: Splits, effort: Effort) -> PartBounds:
    """As `bound_parts`, where the conditions are about the input: nothing is empty, and the widest entry is cut."""
    clamps = splits.clamps(layout)
    (low,), (high,) = (list(layout.per_node(end).values()) for end in (clamps.lower, clamps.upper))
    whole = part.problem.region.box
    problem = part.problem.with_region(part.problem.region.cut(low[:, 0], high[:, 0]))
    bounds = bound_nodes(problem, effort.refinement, dict(enumerate(part.ranges)))
    form = upper_form(problem, bounds, part.target, part.coeffs)
    box = problem.region.box
    corner = box.lower if form.coeffs is None else torch.where(form.coeffs[:, 0, 0] > 0, box.upper, box.lower)
    share = (box.upper / 2 - box.lower / 2) / (whole.upper / 2 - whole.lower / 2)
    widest, entry = share.nan_to_num(0.0).flatten(1).max(1)
    first, last = (end.flatten(1).gather(1, entry[:, None]) for end in (box.lower, box.upper))
    step = torch.arange(1, PIECES, dtype=torch.float64, device=entry.device) / PIECES
    places = first * (1 - step) + last * step
    ends = torch.cat([first, places, last], 1)
    apart = (ends[:, 1:] > ends[:, :-1]).all(1)  # else there are too few numbers between the ends
    bound = torch.minimum(concretize(problem, form)[:, 0, 0], _by_interval(part, bounds))
    return PartBounds(bound, corner, torch.where(apart, widest, 0.0), entry, places)


def settle(rows: Rows, layout: Layout, owner: Tensor, splits: Splits, effort: Effort) -> tuple[Tensor, Tensor]:
    """Parts in which every curve is a line: (parts,) bounds, −∞ where they are empty, and a point to try in each of the others."""
    part = rows.select(owner)
    held, known = conditions_of(layout, splits), known_ranges(part, layout, splits)
    if effort.cuts == "multipliers":
        bounds = inherited_bounds(part.problem, known, stop=part.target)
        return extreme(part.problem, bounds, held, (part.target, part.coeffs))
    bounds = inherited_bounds(part.problem, known, stop=max(held, default=0))
    found = settled(part.problem, bounds, held)
    return torch.where(found.proved, -torch.inf, torch.inf).to(torch.float64), found.corner


def _bound(
    part: Rows, layout: Layout, facts: tuple[dict[int, Interval], dict[int, Tensor]], effort: Effort
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(parts,) upper bounds, and the promise, entry and place of the best cut; `facts` are ranges, and which entries were cut."""
    known, cut = facts
    with torch.enable_grad():
        leaves = {index: Interval(_leaf(x.lower), _leaf(x.upper)) for index, x in known.items()}
        bounds = bound_nodes(part.problem, effort.refinement, leaves, cut)
        bound = upper_bounds(part.problem, bounds, part.target, part.coeffs)[:, 0, 0]
        felt = sensitivity(bounds, bound.sum())
    bounds = [_settled(node) for node in bounds]
    upper = torch.where(are_empty(bounds), -torch.inf, torch.minimum(bound.detach(), _by_interval(part, bounds)))
    promise, place = promises(layout, bounds, felt)
    most, entry = promise.max(1)
    return upper, most, entry, place.gather(1, entry[:, None])[:, 0]


def _by_interval(part: Rows, bounds: Sequence[NodeBounds]) -> Tensor:
    """What the target's own interval says: an exact zero stays one there."""
    z = bounds[part.target].interval
    return highest(part.coeffs[:, 0, 0], Interval(z.lower[:, 0], z.upper[:, 0]))


def _leaf(values: Tensor) -> Tensor:
    return values.clone().requires_grad_()


def _settled(node: NodeBounds) -> NodeBounds:
    return node.with_interval(Interval(node.interval.lower.detach(), node.interval.upper.detach()))
