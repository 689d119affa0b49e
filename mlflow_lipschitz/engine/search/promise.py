"""Where a cut promises most: at the entries whose curves leave the most room between their planes, weighed by the bound."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.node_bounds import NodeBounds
from mlflow_lipschitz.engine.rules.curves.facts import CurveFacts
from mlflow_lipschitz.engine.rules.curves.table import facts_of
from mlflow_lipschitz.engine.rules.relaxation import Relaxation
from mlflow_lipschitz.engine.search.splits import Layout

Sensitivity = dict[int, Tensor]  # node → (parts, 1, *shape)


def sensitivity(bounds: Sequence[NodeBounds], total: Tensor) -> Sensitivity:
    """How strongly a sum of bounds depends on the planes of every relaxation, through all that was made of them."""
    watched = [i for i, node in enumerate(bounds) if isinstance(node.relaxation, Relaxation)]
    planes = [bounds[i].relaxation for i in watched]
    sides = [side for p in planes if isinstance(p, Relaxation) for side in (p.lower_offset, p.upper_offset)]
    moving = [side for side in sides if side.requires_grad]
    if not moving or not total.requires_grad:
        return {}
    slopes = iter(torch.autograd.grad(total, moving, allow_unused=True))
    found = [next(slopes) if side.requires_grad else None for side in sides]
    result = {}
    for index, low, high in zip(watched, found[::2], found[1::2], strict=True):
        parts = [side.abs() for side in (low, high) if side is not None]
        if parts:
            result[index] = sum(parts[1:], parts[0])
    return result


def promises(layout: Layout, bounds: Sequence[NodeBounds], sensitivity: Sensitivity) -> tuple[Tensor, Tensor]:
    """Per part and entry of the layout: what a cut there would take off the bound, roughly, and where to cut.

    A product counts for the curves behind its factors: a cut of those makes it (nearly) linear.
    """
    graph = layout.graph
    gains = {i: torch.zeros_like(bounds[i].interval.lower) for i in layout.nodes}
    for index, weight in sensitivity.items():
        planes = bounds[index].relaxation
        assert isinstance(planes, Relaxation)
        loss = weight * _room(planes, [bounds[i].interval for i in graph.nodes[index].inputs])
        for origin in _origins(graph, index):
            if origin in gains:
                gains[origin] = gains[origin] + loss
    places = {i: _place(graph, i, bounds[i].interval) for i in layout.nodes}
    gain, place = layout.flat(gains), layout.flat(places)
    z = Interval(
        *(layout.flat({i: getattr(bounds[i].interval, end) for i in layout.nodes}) for end in ("lower", "upper"))
    )
    bent = layout.flat({i: _is_bent(graph, i, bounds[i].interval) for i in layout.nodes})
    inside = (place > z.lower) & (place < z.upper) & bent
    return torch.where(inside, gain.nan_to_num(0.0, 0.0, 0.0), 0.0), place


def widest_bend(layout: Layout, bounds: Sequence[NodeBounds]) -> tuple[Tensor, Tensor, Tensor]:
    """Per part the entry of the layout whose range reaches farthest to both sides of where a curve bends: how far (0 for none),
    which entry, and where."""
    graph = layout.graph
    places = {i: _place(graph, i, bounds[i].interval) for i in layout.nodes}
    reach = {}
    for i in layout.nodes:
        z = bounds[i].interval
        both = torch.minimum(z.upper - places[i], places[i] - z.lower)
        reach[i] = torch.where(_is_bent(graph, i, z), both, 0.0).clamp(min=0.0)
    most, entry = layout.flat(reach).max(1)
    return most, entry, layout.flat(places).gather(1, entry[:, None])


def _room(planes: Relaxation, inputs: Sequence[Interval]) -> Tensor:
    """The distance of the two planes in the middle of the inputs' ranges."""
    room = planes.upper_offset.detach() - planes.lower_offset.detach()
    for position, low, high in zip(planes.operands, planes.lower_slopes, planes.upper_slopes, strict=True):
        middle = inputs[position].lower / 2 + inputs[position].upper / 2
        room = room + (high.detach() - low.detach()) * middle
    return room


def _origins(graph: Graph, index: int) -> set[int]:
    """The nodes whose cut would help: what a curve reads; for a product, what the curves among its factors read."""
    node = graph.nodes[index]
    if isinstance(node.op, ops.Elementwise):
        return {node.inputs[0]}
    factors = [graph.nodes[i] for i in node.inputs]
    return {factor.inputs[0] for factor in factors if isinstance(factor.op, ops.Elementwise)}


def _place(graph: Graph, index: int, z: Interval) -> Tensor:
    """The kink nearest to the middle of the range; the middle where there is none inside."""
    middle = z.lower / 2 + z.upper / 2
    best, nearest = middle, torch.full_like(middle, torch.inf)
    for kink in _kinks(graph, index):
        distance = torch.where((z.lower < kink) & (z.upper > kink), (middle - kink).abs(), torch.inf)
        best, nearest = torch.where(distance < nearest, kink, best), torch.minimum(distance, nearest)
    return best


def _is_bent(graph: Graph, index: int, z: Interval) -> Tensor:
    """Where some curve over the range is no line: else all that a cut could take away is what rounding added."""
    curves = [n.op for n in graph.nodes if n.inputs[:1] == (index,) and isinstance(n.op, ops.Elementwise)]
    bent = torch.full_like(z.lower, any(facts_of(c.curve, c.parameters).curved for c in curves), dtype=torch.bool)
    for kink in _kinks(graph, index):
        bent = bent | ((z.lower < kink) & (z.upper > kink))
    return bent


def _kinks(graph: Graph, index: int) -> list[float]:
    readers = (node.op for node in graph.nodes if node.inputs[:1] == (index,) and isinstance(node.op, ops.Elementwise))
    places: dict[float, None] = {}
    for op in readers:
        facts: CurveFacts = facts_of(op.curve, op.parameters)
        if not facts.curved:
            places.update(dict.fromkeys(piece.end for piece in facts.pieces[:-1]))
    return list(places)
