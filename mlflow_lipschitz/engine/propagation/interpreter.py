"""Run a graph on points in float64: what the bounds are about."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.rules.registry import rule_for
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
    values: list[Tensor] = []
    for index, node in enumerate(graph.nodes):
        if isinstance(node.op, ops.Input):
            values.append(x)
        elif isinstance(node.op, ops.Cotangent):
            assert cotangent is not None
            values.append(cotangent)
        else:
            rule = rule_for(node.op, node.name)
            values.append(rule.evaluate(node.op, weights[index], *(values[i] for i in node.inputs)))
    return values[graph.output]
