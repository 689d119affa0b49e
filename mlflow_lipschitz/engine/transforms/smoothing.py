"""A graph whose jumps are softened: useless for a bound, useful to climb a gradient norm that is flat almost everywhere."""

from __future__ import annotations

import numpy as np

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder


def has_jumps(graph: Graph) -> bool:
    """Whether the graph holds a Clarke derivative that jumps, whose own gradient is zero almost everywhere."""
    return any(_is_step(node.op) for node in graph.nodes)


def smoothed(graph: Graph, width: float) -> Graph:
    """The graph with every jump from `left` to `right` replaced by left + (right − left) · sigmoid(z / width)."""
    builder = GraphBuilder()
    place: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        sources = tuple(place[i] for i in node.inputs)
        if not _is_step(node.op):
            place[index] = builder.add(node.op, *sources, name=node.name)
            continue
        assert isinstance(node.op, ops.Elementwise)
        left, right = node.op.parameters
        scaled = builder.add(ops.ScaleShift(scale=_scalar(1 / width)), *sources)
        rise = builder.add(ops.Elementwise("sigmoid"), scaled)
        place[index] = builder.add(ops.ScaleShift(_scalar(right - left), _scalar(left)), rise)
    return builder.build(place[graph.output])


def _is_step(op: ops.Op) -> bool:
    return isinstance(op, ops.Elementwise) and op.curve == "step"


def _scalar(value: float) -> np.ndarray:
    return ops.frozen_array(np.array(value))
