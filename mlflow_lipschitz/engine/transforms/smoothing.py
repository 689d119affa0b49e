"""A graph whose jumps are softened: useless for a bound, useful to climb a gradient norm that is flat almost everywhere."""

from __future__ import annotations

import numpy as np
import torch

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.rules.curves.table import facts_of


def has_jumps(graph: Graph) -> bool:
    """Whether the graph holds a Clarke derivative that jumps, whose own gradient misses the jump."""
    return any(_jumps(node.op) for node in graph.nodes)


def smoothed(graph: Graph, width: float) -> Graph:
    """The graph with every jump replaced by a rise of the same height: f(z) + height · (sigmoid(z / width) − step(z))."""
    builder = GraphBuilder()
    place: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        sources = tuple(place[i] for i in node.inputs)
        if _jumps(node.op):
            place[index] = _softened(builder, node.op, sources[0], width)
        else:
            place[index] = builder.add(node.op, *sources, name=node.name)
    return builder.build(place[graph.output])


def _softened(builder: GraphBuilder, op: ops.Op, source: int, width: float) -> int:
    assert isinstance(op, ops.Elementwise)
    facts = facts_of(op.curve, op.parameters)
    result = None if facts.flat else builder.add(op, source)
    for at, height in facts.jumps:
        shifted = builder.add(ops.ScaleShift(shift=_scalar(-at)), source) if at else source
        scaled = builder.add(ops.ScaleShift(scale=_scalar(1 / width)), shifted)
        rise = builder.add(ops.Elementwise("sigmoid"), scaled)
        part = builder.add(ops.ScaleShift(_scalar(height)), rise)
        if not facts.flat:
            missing = builder.add(ops.Elementwise("step", (0.0, -height)), shifted)
            part = builder.add(ops.Add(), part, missing)
        result = part if result is None else builder.add(ops.Add(), result, part)
    assert result is not None
    if not facts.flat:
        return result
    start = facts.value(torch.tensor(facts.jumps[0][0] - 1.0, dtype=torch.float64))  # left of the first jump
    return builder.add(ops.ScaleShift(shift=ops.frozen_array(start.numpy())), result)


def _jumps(op: ops.Op) -> bool:
    return isinstance(op, ops.Elementwise) and bool(facts_of(op.curve, op.parameters).jumps)


def _scalar(value: float) -> np.ndarray:
    return ops.frozen_array(np.array(value))
