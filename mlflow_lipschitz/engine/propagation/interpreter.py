"""Run a graph on points in float64: what the bounds are about."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.rules.registry import SOURCES, rule_for
from mlflow_lipschitz.engine.rules.weights import Weights, weights_of


def evaluate(graph: Graph, points: Any) -> Tensor:
    """Values of the graph's output.

    Args:
        points: (points, *input shape), NumPy or torch.

    Returns:
        (points, *output shape) float64.

    Raises:
        ValueError: the points do not have the graph's input shape.
    """
    x = points if isinstance(points, Tensor) else torch.from_numpy(np.array(points))
    if tuple(x.shape[1:]) != graph.input_shape:
        raise ValueError(f"points of shape {tuple(x.shape[1:])}, the graph takes {graph.input_shape}")
    values = run(graph, weights_of(graph, x.device), x.to(torch.float64)[:, None], None)
    return values[:, 0]


def run(graph: Graph, weights: tuple[Weights, ...], x: Tensor, cotangent: Tensor | None) -> Tensor:
    """Values for (points, 1 or objectives, *input shape) inputs and (1 or points, objectives, *output shape) cotangents."""
    values: dict[int, Tensor] = {}
    for index, node in enumerate(graph.nodes):
        if isinstance(node.op, ops.Input):
            values[index] = x
        elif isinstance(node.op, ops.Cotangent):
            assert cotangent is not None
            values[index] = cotangent
        else:
            rule = rule_for(node.op, node.name)
            values[index] = rule.evaluate(node.op, weights[index], *(values[i] for i in node.inputs))
        for source in graph.last_uses[index]:
            del values[source]
    return values[graph.output]


def enclose(problem: Problem) -> Interval:
    """Interval propagation of the output alone: as `bound_nodes` without a refinement, in the memory of what is still needed."""
    graph = problem.graph
    known: dict[int, Interval] = {}
    for index, node in enumerate(graph.nodes):
        if isinstance(node.op, SOURCES):
            known[index] = problem.given(node.op)
        else:
            rule = rule_for(node.op, node.name)
            known[index] = rule.interval(node.op, problem.weights[index], *(known[i] for i in node.inputs))
        for source in graph.last_uses[index]:
            del known[source]
    return known[graph.output]
