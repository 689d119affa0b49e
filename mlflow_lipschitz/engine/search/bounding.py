"""The bound of a part, and which cut of it promises most.

A part inherits the ranges of the whole, is dropped where its conditions contradict each other, and is otherwise bounded anew: the
conditions stabilise kinks, and every range behind them shrinks. The gradient of the bound says how much of it is owed to the room
between each pair of planes, through all the ranges that depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.axes import entries
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.propagation.backward import concretize, upper_bounds, upper_form
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes, inherited_bounds
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.search.feasibility import Contradictions, conditions_of, contradictions
from mlflow_lipschitz.engine.search.linear_programs import settled
from mlflow_lipschitz.engine.search.promise import promises, sensitivity
from mlflow_lipschitz.engine.search.splits import Layout, Splits, conditions
from mlflow_lipschitz.engine.search.tightening import loose_entries

# Float64 numbers that the forms of a batch of parts may take; most parts are empty, so it is rarely a quarter of them.
_MOST_ENTRIES = 1 << 31
# A region is cut into so many pieces at once: there are few of them, and a batch of them costs little more than one.
PIECES = 8


@dataclass(frozen=True)
class Effort:
    """How much work goes into one part: linear forms in flight, and steps spent on proving it empty.

    Cuts are made through values inside the network; with `region`, through the region.
    """

    refinement: Refinement
    steps: int = 5
    region: bool = False


@dataclass(frozen=True)
class Rows:
    """What is maximised: coefficients (rows, 1, 1, *shape) on the node `target` of a problem with one point per row.

    `ranges` hold per node over the whole region, (rows, 1, *shape).
    """

    problem: Problem
    ranges: Sequence[Interval]
    target: int
    coeffs: Tensor

    def select(self, owner: Tensor) -> Rows:
        """A row for every number."""
        ranges = [Interval(x.lower[owner], x.upper[owner]) for x in self.ranges]
        problem = self.problem.select(owner, torch.zeros_like(owner))
        return replace(self, problem=problem, ranges=ranges, coeffs=self.coeffs[owner])


@dataclass(frozen=True)
class PartBounds:
    """Per part: `upper`, −∞ where it is empty; a corner to try; the most promising cuts, (parts, cuts) `places` of one entry.

    `promise` is 0 where no cut can help: every curve is a line there.
    """

    upper: Tensor
    corner: Tensor
    promise: Tensor
    entry: Tensor
    places: Tensor


def affordable(rows: Rows, layout: Layout) -> int:
    """How many parts fit into memory at once; 0 where a single one does not.

    The gradient of a part's bound keeps the linear forms of all its refined entries, at every node they pass.
    """
    size = sum(math.prod(node.shape) for node in rows.problem.graph.nodes)
    if layout.region:  # without a gradient the chunk size bounds them
        return max(1, _MOST_ENTRIES // (16 * size))
    loose = sum(int(loose_entries(rows.problem.graph, rows.ranges, i).sum(-1).amax()) for i in layout.nodes)
    # From above and from below, and as often for the Jacobian as for the values.
    return int(_MOST_ENTRIES // (4 * max(1, loose) * size))


def bound_parts(rows: Rows, layout: Layout, owner: Tensor, splits: Splits, effort: Effort) -> PartBounds:
    """Bound parts of the rows' regions; `owner` (parts,) is the row of each."""
    if layout.region:
        return _bound_pieces(rows.select(owner), layout, splits, effort)
    part, count = rows.select(owner), len(owner)
    known = _known(part, layout, splits)
    held = conditions_of(layout, splits)
    inherited = inherited_bounds(part.problem, known, stop=max(held, default=0))
    excluded = contradictions(part.problem, inherited, held, steps=effort.steps)
    live = (~(excluded.proved | _empty(inherited))).nonzero()[:, 0]
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
    share = (box.upper - box.lower) / (whole.upper - whole.lower)
    widest, entry = share.nan_to_num(0.0).flatten(1).max(1)
    first, last = (end.flatten(1).gather(1, entry[:, None]) for end in (box.lower, box.upper))
    step = torch.arange(1, PIECES, dtype=torch.float64, device=entry.device) / PIECES
    places = first * (1 - step) + last * step
    ends = torch.cat([first, places, last], 1)
    apart = (ends[:, 1:] > ends[:, :-1]).all(1)  # else there are too few numbers between the ends
    return PartBounds(concretize(problem, form)[:, 0, 0], corner, torch.where(apart, widest, 0.0), entry, places)


def settle(rows: Rows, layout: Layout, owner: Tensor, splits: Splits) -> Contradictions:
    """Parts in which every curve is a line: which are empty, and a point inside each of the others."""
    part = rows.select(owner)
    held = conditions_of(layout, splits)
    bounds = inherited_bounds(part.problem, _known(part, layout, splits), stop=max(held, default=0))
    return settled(part.problem, bounds, held)


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
    upper = torch.where(_empty(bounds), -torch.inf, bound.detach())
    promise, place = promises(layout, bounds, felt)
    most, entry = promise.max(1)
    return upper, most, entry, place.gather(1, entry[:, None])[:, 0]


def _known(part: Rows, layout: Layout, splits: Splits) -> dict[int, Interval]:
    known = dict(enumerate(part.ranges))
    for index, interval in conditions(layout, splits.clamps(layout)).items():
        known[index] = known[index].intersect(interval)
    return known


def _empty(bounds: Sequence[NodeBounds]) -> Tensor:
    """(parts,) whether some value has no range left."""
    crossed = [entries(node.interval.lower > node.interval.upper, 1).any(-1) for node in bounds]
    return torch.stack([mask.expand(max(len(m) for m in crossed)) for mask in crossed]).any(0)


def _leaf(values: Tensor) -> Tensor:
    return values.clone().requires_grad_()


def _settled(node: NodeBounds) -> NodeBounds:
    return node.with_interval(Interval(node.interval.lower.detach(), node.interval.upper.detach()))
