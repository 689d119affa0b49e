"""Which nodes get a backward pass per entry: as many as can be afforded, the narrow ones first.

A kink is worth a pass only where it is unstable; a smooth op is imprecise at every entry. Where those are too many (attention,
normalization), narrow nodes are refined, and forward linear forms carry what they know through the wide ones between them.
"""

from __future__ import annotations

import math
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.rules.affine_maps import affine_map, is_affine_map
from mlflow_lipschitz.engine.rules.registry import SOURCES, rule_for

# Backward passes for smooth entries, per point and objective: without forward forms all are made, with them only the loose ones.
_AFFORDABLE_ROWS = 8192
_LOOSE_ROWS = 2 * _AFFORDABLE_ROWS
# The largest set of forward forms of one node, in numbers.
_LARGEST_FORM = 1 << 24


@dataclass(frozen=True)
class Plan:
    """`left_out` are nodes that smooth ops read and that get no backward pass; `forward`: linear forms are carried instead."""

    left_out: AbstractSet[int]
    forward: bool


def plan_of(graph: Graph, settled: AbstractSet[int]) -> Plan:
    """The plan for a graph, of which the nodes `settled` need no refinement."""
    inputs = math.prod(graph.input_shape)
    widest = max(math.prod(node.shape) for node in graph.nodes)
    sizes = sorted((math.prod(graph.nodes[i].shape), i) for i in _smooth_origins(graph) - settled)
    if sum(size for size, _ in sizes) <= _AFFORDABLE_ROWS or inputs * widest > _LARGEST_FORM:
        return Plan(frozenset(), forward=False)
    rows, left_out = 0, set()
    for size, origin in sizes:
        rows += size
        if rows > _LOOSE_ROWS:
            left_out.add(origin)
    return Plan(frozenset(left_out), forward=True)


def is_smooth(op: ops.Op) -> bool:
    """Whether the op is curved everywhere, so that all its entries are imprecise at any radius."""
    return not isinstance(op, SOURCES) and rule_for(op).is_smooth(op)


def copies_behind(graph: Graph, index: int) -> tuple[list[int], int]:
    """The nodes from this one back that only copy entries, and the one they copy from."""
    copies = []
    while _copies(graph, index):
        copies.append(index)
        (index,) = graph.nodes[index].inputs
    return copies, index


def _smooth_origins(graph: Graph) -> set[int]:
    """Nodes that compute what smooth ops read; a curve's own range is exact already."""
    origins = set()
    for node in graph.nodes:
        if is_smooth(node.op):
            for position in rule_for(node.op).operands(node.op, len(node.inputs)):
                origins.add(copies_behind(graph, node.inputs[position])[1])
    return {i for i in origins if not isinstance(graph.nodes[i].op, (*SOURCES, ops.Elementwise))}


def _copies(graph: Graph, index: int) -> bool:
    """Whether every entry of the node is an entry of its one input, or its negative, or constant."""
    op, inputs = graph.nodes[index].op, graph.nodes[index].inputs
    return is_affine_map(op) and affine_map(op).terms(op, graph.nodes[inputs[0]].shape) == 0
