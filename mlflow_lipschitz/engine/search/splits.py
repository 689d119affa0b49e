"""Parts of a region: cut by conditions on single entries of single nodes, z ≥ place or z ≤ place.

Both halves of a cut are closed, so together they cover the region; a Clarke derivative that jumps at the cut takes, in each half,
the values of that side. Every element of the Clarke Jacobian is a convex combination of limits from one side or the other, and
what is maximised is convex in each derivative, so the halves cover the Jacobian too.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.rounding import next_down, next_up
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.rules.curve_enclosure import curve_interval
from mlflow_lipschitz.engine.rules.curves.table import facts_of


def depend_on_objective(graph: Graph) -> set[int]:
    """The nodes behind the `Cotangent`, and itself."""
    found: set[int] = set()
    for index, node in enumerate(graph.nodes):
        if isinstance(node.op, ops.Cotangent) or found.intersection(node.inputs):
            found.add(index)
    return found


@dataclass(frozen=True)
class Layout:
    """Numbers the entries of the nodes that may be cut, one after the other.

    Where the `region` itself is cut there is one such node, the input.
    """

    graph: Graph
    nodes: tuple[int, ...]
    region: bool = False

    @staticmethod
    def of(graph: Graph) -> Layout:
        """Every node that a curve reads, of the model itself: once its patterns are fixed, so is its Jacobian."""
        after = depend_on_objective(graph)
        curves = (n for i, n in enumerate(graph.nodes) if i not in after and isinstance(n.op, ops.Elementwise))
        read = {node.inputs[0] for node in curves}
        return Layout(graph, tuple(sorted(read)))

    @staticmethod
    def of_region(graph: Graph) -> Layout:
        """The input, where so few entries move that cutting it makes all else small."""
        return Layout(graph, (next(i for i, node in enumerate(graph.nodes) if isinstance(node.op, ops.Input)),), True)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(self.graph.nodes[i].shape) for i in self.nodes)

    def nodes_of(self, splits: Splits) -> list[int]:
        """The nodes that some part was cut at."""
        cut = torch.unique(splits.entry).tolist()
        ends = list(itertools.accumulate(self.sizes))
        return sorted({self.nodes[bisect.bisect_right(ends, entry)] for entry in cut if entry >= 0})

    def located(self, entry: int) -> tuple[int, int]:
        """The graph node of an entry, and its number among that node's own. Raises IndexError when there is no such entry."""
        for node, size in zip(self.nodes, self.sizes, strict=True):
            if entry < size:
                return node, entry
            entry -= size
        raise IndexError("the layout has no such entry")

    def flat(self, values: Mapping[int, Tensor]) -> Tensor:
        """(parts, all entries) of tensors (parts, 1, *shape) per node."""
        return torch.cat([values[i].flatten(1) for i in self.nodes], 1)

    def per_node(self, values: Tensor) -> dict[int, Tensor]:
        """(parts, 1, *shape) per node, of (parts, all entries)."""
        pieces = values.split(self.sizes, 1)
        return {
            i: piece.reshape(len(piece), 1, *self.graph.nodes[i].shape)
            for i, piece in zip(self.nodes, pieces, strict=True)
        }


@dataclass(frozen=True)
class Splits:
    """Conditions per part, all (parts, depth): on which entry of the layout, where, and whether above; entry −1 is none."""

    entry: Tensor
    place: Tensor
    above: Tensor

    @staticmethod
    def none(parts: int, device: torch.device) -> Splits:
        return Splits(
            torch.zeros((parts, 0), dtype=torch.int64, device=device),
            torch.zeros((parts, 0), dtype=torch.float64, device=device),
            torch.zeros((parts, 0), dtype=torch.bool, device=device),
        )

    def select(self, index: Tensor) -> Splits:
        return Splits(self.entry[index], self.place[index], self.above[index])

    def cut(self, entry: Tensor, places: Tensor) -> Splits:
        """Parts of every part, (parts,) and rising (parts, cuts): below the first place for all, then between the first two, ….

        Returns:
            ((cuts + 1) · parts, depth + 1 or, with several cuts, + 2).
        """
        pieces, count = [], places.shape[1]
        for piece in range(count + 1):
            ends = [(piece - 1, True)] * (piece > 0) + [(piece, False)] * (piece < count)
            added = [
                (entry, places[:, which], torch.full_like(entry, above, dtype=torch.bool)) for which, above in ends
            ]
            columns = zip(self._all(), *added, strict=True)
            pieces.append(Splits(*(torch.cat([old, *(x[:, None] for x in new)], 1) for old, *new in columns)))
        return Splits.joined(pieces)

    @staticmethod
    def joined(pieces: list[Splits]) -> Splits:
        depth = max(piece.entry.shape[1] for piece in pieces)
        grown = [piece._deep(depth) for piece in pieces]
        return Splits(*(torch.cat(columns) for columns in zip(*(piece._all() for piece in grown), strict=True)))

    def clamps(self, layout: Layout) -> Interval:
        """(parts, all entries): where the conditions leave each entry."""
        parts, total = len(self.entry), sum(layout.sizes)
        low = torch.full((parts, total + 1), -torch.inf, dtype=torch.float64, device=self.entry.device)
        high = torch.full_like(low, torch.inf)
        index = torch.where(self.entry < 0, total, self.entry)  # conditions that are none go to a column of their own
        low = low.scatter_reduce(1, index, torch.where(self.above, self.place, -torch.inf), "amax")
        high = high.scatter_reduce(1, index, torch.where(self.above, torch.inf, self.place), "amin")
        return Interval(low[:, :total], high[:, :total])

    def _all(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.entry, self.place, self.above

    def _deep(self, depth: int) -> Splits:
        missing = (0, depth - self.entry.shape[1])
        pad = torch.nn.functional.pad
        return Splits(pad(self.entry, missing, value=-1), pad(self.place, missing), pad(self.above, missing))


def conditions(layout: Layout, clamps: Interval) -> dict[int, Interval]:
    """Per node, the ranges that the conditions say: those of the nodes cut, and of the jumping derivatives that read them."""
    low, high = layout.per_node(clamps.lower), layout.per_node(clamps.upper)
    known = {index: Interval(low[index], high[index]) for index in layout.nodes}
    for index, node in enumerate(layout.graph.nodes):
        if isinstance(node.op, ops.Elementwise) and facts_of(node.op.curve, node.op.parameters).jumps:
            beyond = _beyond(known[node.inputs[0]], node.op)
            if beyond is not None:
                known[index] = beyond if index not in known else known[index].intersect(beyond)
    return known


def _beyond(z: Interval, op: ops.Elementwise) -> Interval | None:
    """The range of a piecewise constant derivative strictly inside the conditions on its argument."""
    facts = facts_of(op.curve, op.parameters)
    if not facts.flat:
        return None
    inside = Interval(next_up(z.lower), next_down(z.upper))
    empty = inside.lower > inside.upper
    return curve_interval(
        facts, Interval(torch.where(empty, z.lower, inside.lower), torch.where(empty, z.upper, inside.upper))
    )
