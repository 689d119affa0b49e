"""Bounds of every node in one sweep: intervals everywhere, backward linear propagation where it can matter.

It can matter at the inputs of nonlinear ops, and there only for the entries whose relaxation depends on them (unstable units).
The rows are gathered per point and padded to the batch's widest; finding that width is the one host read per refined node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.axes import entries
from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.backward import concretize, upper_form
from mlflow_lipschitz.engine.propagation.forward import ForwardSweep
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.propagation.plan import copies_behind, is_smooth, plan_of
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.rules.affine_maps import affine_map, is_affine_map
from mlflow_lipschitz.engine.rules.registry import SOURCES, rule_for

# Each coefficient is off by at most its number of products times 2⁻¹⁰⁷⁴ where they underflow; this covers 2⁷⁴ of them.
_COEFFICIENT = 2.0**-1000


@dataclass(frozen=True)
class Refinement:
    """How pre-activation bounds are tightened. `chunk_size` is how many linear forms (points × objectives × rows) are in flight."""

    chunk_size: int


def bound_nodes(
    problem: Problem,
    refinement: Refinement | None,
    known: Mapping[int, Interval] | None = None,
    watched: Mapping[int, Tensor] | None = None,
) -> list[NodeBounds]:
    """Bounds of every node of the graph, in order. Without a refinement: plain interval propagation.

    `known` are ranges that hold already; an interval that comes out empty says that the region is. `watched` are masks over nodes'
    entries to refine although no relaxation depends on them.
    """
    graph = problem.graph
    linked = _linked(graph)
    bounds: list[NodeBounds] = []
    sweep = None if refinement is None else _Sweep(problem, refinement, bounds, watched or {})
    for index, node in enumerate(graph.nodes):
        if isinstance(node.op, SOURCES):
            bounds.append(NodeBounds(problem.given(node.op)))
        else:
            if sweep is not None:
                for position in rule_for(node.op, node.name).operands(node.op, len(node.inputs)):
                    sweep.refine_operand(index, position)
            bounds.append(_bound_node(problem, bounds, index, passes=sweep is not None and index in linked))
        if known is not None and index in known:
            bounds[index] = bounds[index].with_interval(bounds[index].interval.intersect(known[index]))
        if sweep is not None:
            sweep.carry_forward(index, tighten=index in linked)
    return bounds


def inherited_bounds(
    problem: Problem, known: Mapping[int, Interval], stop: int | None = None, *, coupled: bool = False
) -> list[NodeBounds]:
    """Bounds of every node from ranges that hold already and what intervals make of them, with relaxations over both.

    Of the nodes after `stop` there are none. With `coupled`, also the factors that products usually replace by their range have
    relaxations.
    """
    linked = _linked(problem.graph)
    bounds: list[NodeBounds] = []
    for index, node in enumerate(problem.graph.nodes):
        if stop is not None and index > stop:
            break
        if isinstance(node.op, SOURCES):
            bounds.append(NodeBounds(problem.given(node.op)))
        else:
            bounds.append(_bound_node(problem, bounds, index, passes=coupled or index in linked))
        if index in known:
            bounds[index] = bounds[index].with_interval(bounds[index].interval.intersect(known[index]))
    return bounds


def refine_node(problem: Problem, bounds: list[NodeBounds], target: int, refinement: Refinement) -> Interval:
    """The node's interval with every entry refined by its own linear form."""
    known = bounds[target].interval
    everything = torch.ones_like(known.lower[:, :1], dtype=torch.bool)
    return _refined(problem, bounds, target, everything, refinement, None)


class _Sweep:
    """One pass over the graph: `bounds` so far, tightened in place."""

    def __init__(
        self, problem: Problem, refinement: Refinement, bounds: list[NodeBounds], watched: Mapping[int, Tensor]
    ) -> None:
        self._problem, self._refinement, self._bounds, self._watched = problem, refinement, bounds, watched
        self._settled = settled = _exact_by_intervals(problem)
        self._done: dict[int, Tensor] = {}
        self._plan = plan_of(problem.graph, settled)
        self._forward = ForwardSweep(problem) if self._plan.forward else None

    def carry_forward(self, index: int, *, tighten: bool) -> None:
        """Carry linear forms on to the node, and take what they say of its range."""
        if self._forward is None:
            return
        node, bounds = self._problem.graph.nodes[index], self._bounds
        if isinstance(node.op, SOURCES):
            self._forward.start(index)
            return
        self._forward.advance(index, *(bounds[i].interval for i in node.inputs))
        # A curve's range over its argument is exact already.
        if tighten and not isinstance(node.op, ops.Elementwise):
            bounds[index] = bounds[index].with_interval(bounds[index].interval.intersect(self._forward.interval(index)))

    def refine_operand(self, consumer: int, position: int) -> None:
        """Tighten one input of a node, which comes next in the sweep, where that node's relaxation depends on it.

        What is refined is the node behind pure copies: of an entry that an `Expand` repeats, once is enough.
        """
        nodes, bounds = self._problem.graph.nodes, self._bounds
        node = nodes[consumer]
        source = node.inputs[position]
        copies, origin = copies_behind(self._problem.graph, source)
        # A curve's range over its refined argument is exact already.
        if origin in self._settled or isinstance(nodes[origin].op, (*SOURCES, ops.Elementwise)):
            return
        smooth = is_smooth(node.op)
        if smooth and origin in self._plan.left_out:
            return
        mask = rule_for(node.op).imprecise(node.op, position, *(bounds[i].interval for i in node.inputs))
        if mask is None:
            return
        for index in copies:
            mask = self._before_copying(index, mask | self._watched[index] if index in self._watched else mask)
        if smooth and self._forward is not None:
            if (
                bounds[origin].relaxation is not None
            ):  # what is loose there is its own enclosure: no pass would change it
                return
            mask = mask & self._forward.is_loose(origin, bounds[origin].interval)
        self._refine(origin, mask | self._watched[origin] if origin in self._watched else mask)
        for index in reversed(copies):
            inputs = [bounds[i].interval for i in nodes[index].inputs]
            interval = rule_for(nodes[index].op).interval(nodes[index].op, self._problem.weights[index], *inputs)
            bounds[index] = bounds[index].with_interval(interval.intersect(bounds[index].interval))
            if self._forward is not None:
                self._forward.advance(index, *inputs)

    def _refine(self, target: int, mask: Tensor) -> None:
        """Refine the wanted entries that were not refined before: nothing a linear form passes has changed since."""
        if self._bounds[target].interval.lower.shape[1] == 1:
            mask = mask.any(1, keepdim=True)
        done = self._done.get(target)
        wanted = mask if done is None else mask & ~done
        interval = _refined(self._problem, self._bounds, target, wanted, self._refinement, self._forward)
        self._bounds[target] = self._bounds[target].with_interval(interval)
        self._done[target] = mask if done is None else mask | done

    def _before_copying(self, index: int, mask: Tensor) -> Tensor:
        """Which entries of a copying node's input end up in the wanted entries of its output."""
        graph, weights = self._problem.graph, self._problem.weights[index]
        node = graph.nodes[index]
        shape = graph.nodes[node.inputs[0]].shape
        return affine_map(node.op).transpose(node.op, weights.full, mask.to(torch.float64), shape) != 0


def _bound_node(problem: Problem, bounds: Sequence[NodeBounds], index: int, *, passes: bool) -> NodeBounds:
    node, weights = problem.graph.nodes[index], problem.weights[index]
    rule = rule_for(node.op, node.name)
    inputs = [bounds[i].interval for i in node.inputs]
    interval = rule.interval(node.op, weights, *inputs)
    if not passes:
        return NodeBounds(interval)
    relaxation = rule.relaxation(node.op, *inputs)
    reach = [entries(x.magnitude, 2).amax(-1) for x in inputs]
    underflow = _COEFFICIENT * (1 + sum(reach[1:], reach[0]))
    if relaxation is None:
        return NodeBounds(interval, None, rule.magnitude(node.op, weights, *inputs), underflow)
    return NodeBounds(interval, relaxation, relaxation.magnitude(*inputs), underflow)


def _refined(
    problem: Problem,
    bounds: Sequence[NodeBounds],
    target: int,
    mask: Tensor,
    refinement: Refinement,
    forward: ForwardSweep | None,
) -> Interval:
    known = _per_point(bounds[target].interval, mask.shape[0])
    wanted = entries(mask, 2)
    widest = int(wanted.sum(-1).max())  # the one host read: the number of rows shapes the tensors
    if widest == 0:
        return known
    shape = problem.graph.nodes[target].shape
    rows = _rows(wanted, widest)
    step = max(1, refinement.chunk_size // (2 * known.lower.shape[0] * known.lower.shape[1]))
    lower, upper = entries(known.lower, 2), entries(known.upper, 2)
    for start in range(0, widest, step):
        chunk = rows[..., start : start + step]
        form = upper_form(problem, bounds, target, _signed_unit_rows(chunk, shape))
        high, low = concretize(problem, form).split(chunk.shape[-1], 2)
        place = chunk.expand(lower.shape[0], lower.shape[1], -1)
        # Rows that only fill up the batch are not used: a point's bounds do not depend on its neighbors.
        meant = wanted.expand(lower.shape).gather(2, place)
        high, low = torch.where(meant, high, torch.inf), torch.where(meant, -low, -torch.inf)
        upper = upper.scatter(2, place, torch.minimum(upper.gather(2, place), high))
        lower = lower.scatter(2, place, torch.maximum(lower.gather(2, place), low))
        if forward is not None:
            forward.replace(target, place, form)
    return Interval(lower.reshape(known.lower.shape), upper.reshape(known.upper.shape))


def _per_point(interval: Interval, points: int) -> Interval:
    """The interval with a row per point: a function of the objective alone has one for all."""
    shape = (max(points, interval.lower.shape[0]), *interval.lower.shape[1:])
    return Interval(interval.lower.expand(shape), interval.upper.expand(shape))


def _rows(wanted: Tensor, widest: int) -> Tensor:
    """(points or 1, objectives or 1, widest) entry indices, the wanted ones first; in order when all are wanted."""
    if widest == wanted.shape[-1]:
        return torch.arange(widest, device=wanted.device)[None, None]
    return wanted.to(torch.float32).topk(widest, dim=-1).indices


def _signed_unit_rows(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Linear forms +eᵢ, then −eᵢ, for the chosen entries: (points or 1, objectives or 1, 2 · rows, *shape)."""
    size = torch.Size(shape).numel()
    units = torch.zeros(*rows.shape, size, dtype=torch.float64, device=rows.device).scatter(3, rows[..., None], 1.0)
    return torch.cat([units, -units], 2).reshape(*rows.shape[:2], 2 * rows.shape[2], *shape)


def _linked(graph: Graph) -> set[int]:
    """Nodes that some linear form passes through: closed under the operands that relaxations depend on."""
    seeds = {graph.output}
    for node in graph.nodes:
        if not isinstance(node.op, SOURCES):
            seeds.update(node.inputs[p] for p in rule_for(node.op, node.name).operands(node.op, len(node.inputs)))
    return seeds


def _exact_by_intervals(problem: Problem) -> set[int]:
    """Nodes whose interval is already the exact range, entry by entry, up to rounding.

    That holds for an affine op of independent entries (a box), and for affine functions of the fixed objective.
    """
    graph = problem.graph
    independent: set[int] = set()
    constant: set[int] = set()
    exact: set[int] = set()
    for index, node in enumerate(graph.nodes):
        if isinstance(node.op, ops.Input) and isinstance(problem.region, Box):
            independent.add(index)
        elif isinstance(node.op, ops.Cotangent):
            constant.add(index)
        elif is_affine_map(node.op):
            (source,) = node.inputs
            if source in constant:
                constant.add(index)
            elif source in independent:
                exact.add(index)
                shape = graph.nodes[source].shape
                diagonal = isinstance(node.op, ops.ScaleShift) or affine_map(node.op).terms(node.op, shape) == 0
                if diagonal and not isinstance(node.op, ops.Expand | ops.Adjoint | ops.Select):
                    independent.add(index)
    return exact | constant | independent
