"""Append to a graph what is asked about it: a flat output, the gradient as a vector, a norm of the gradient, one signed entry."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.transforms.clarke_jacobian import clarke_jacobian


def flat_output(graph: Graph) -> Graph:
    """The same graph with its output as a vector."""
    if len(graph.output_shape) == 1:
        return graph
    builder = GraphBuilder(graph)
    flat = builder.add(ops.Reshape((math.prod(graph.output_shape),)), graph.output)
    return builder.build(flat, graph.output_names)


def gradient_graph(graph: Graph, feature_scale: np.ndarray | None = None) -> Graph:
    """Jᵀc as a vector; entry i is multiplied by feature_scale[i] (a gradient per unit of that scale).

    Of a graph with a constant that is infinite or no number, nothing is known of the gradient either.
    """
    jacobian = clarke_jacobian(flat_output(graph))
    builder, gradient = GraphBuilder(jacobian), jacobian.output
    if not all(_is_finite(node.op) for node in graph.nodes):
        # A bias drops out of the derivative, but what has no value has none.
        gradient = builder.add(ops.ScaleShift(scale=ops.frozen_array(np.nan)), gradient)
    if feature_scale is not None:
        scale = np.broadcast_to(np.asarray(feature_scale, dtype=np.float64), graph.input_shape)
        gradient = builder.add(ops.ScaleShift(scale=ops.frozen_array(scale)), gradient)
    return builder.build(builder.add(ops.Reshape((math.prod(graph.input_shape),)), gradient))


def summed(gradient: Graph, curve: str) -> Graph:
    """Σ curve(gᵢ) of a gradient graph, one entry: `abs` gives ‖g‖₁, `square` gives ‖g‖₂²."""
    builder = GraphBuilder(gradient)
    terms = builder.add(ops.Elementwise(curve), gradient.output)
    return builder.build(builder.add(ops.Sum((0,)), terms))


def signed_entry(gradient: Graph, index: int, sign: float) -> Graph:
    """sign · gᵢ of a gradient graph, one entry."""
    builder = GraphBuilder(gradient)
    entry = builder.add(ops.Select(0, (index,)), gradient.output)
    return builder.build(builder.add(ops.ScaleShift(scale=ops.frozen_array(sign)), entry))


def _is_finite(op: ops.Op) -> bool:
    """Whether all of an op's constants are numbers; a curve's parameters may be infinite, as the ends of a clip."""
    held = [getattr(op, field.name) for field in fields(op) if field.name != "parameters"]
    inner = all(_is_finite(value) for value in held if isinstance(value, ops.Op))
    return inner and all(bool(np.isfinite(value).all()) for value in held if isinstance(value, (np.ndarray, float)))
