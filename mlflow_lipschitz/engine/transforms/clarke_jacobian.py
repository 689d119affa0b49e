"""The Clarke Jacobian as a graph: reverse-mode differentiation that appends nodes.

At a kink the derivative curve's value is the whole Clarke interval, so bounds of the new graph bound every element of the
generalized Jacobian (Clarke 1983; chain rule as an inclusion; Shi et al., NeurIPS 2022, §3.1).
"""

from __future__ import annotations

import numpy as np

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.rules.registry import SOURCES, rule_for


def clarke_jacobian(graph: Graph) -> Graph:
    """Graph whose output is Jᵀc, of the input's shape; c is its new `Cotangent` node, of the output's shape.

    Raises:
        UnsupportedOperator: a node on the way has no derivative rule.
    """
    builder, gradients = _differentiated(graph)
    if graph.input not in gradients:  # the output does not depend on the input: its Jacobian is zero
        zero = ops.ScaleShift(scale=ops.frozen_array(np.zeros(())))
        gradients[graph.input] = builder.add(zero, graph.input)
    return builder.build(gradients[graph.input])


def node_derivatives(graph: Graph) -> tuple[Graph, dict[int, int]]:
    """The graph with all its nodes, its derivatives appended; and per node the output depends on, the node of its derivative.

    The derivative of a node is that of c · output by the node's value, what comes before the node left as it is.

    Raises:
        UnsupportedOperator: a node on the way has no derivative rule.
    """
    builder, gradients = _differentiated(graph)
    return builder.whole(len(builder) - 1), gradients


def _differentiated(graph: Graph) -> tuple[GraphBuilder, dict[int, int]]:
    """The nodes of all derivatives appended, and per node which one is its own."""
    builder = _Differentiating(graph)
    gradients = {graph.output: builder.add(ops.Cotangent(graph.output_shape))}
    for index in range(graph.output, -1, -1):
        node = graph.nodes[index]
        if index not in gradients or isinstance(node.op, SOURCES):
            continue
        for source, gradient in rule_for(node.op, node.name).vjp(builder, node, gradients[index]):
            known = gradients.get(source)
            gradients[source] = gradient if known is None else builder.add(ops.Add(), known, gradient)
    return builder, gradients


class _Differentiating(GraphBuilder):
    """Appends to a graph; a curve of a value that is there already (the derivative of exp is exp) is not bounded twice."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._curves = {_key(node.op, node.inputs): i for i, node in enumerate(graph.nodes) if _is_curve(node.op)}

    def add(self, op: ops.Op, *inputs: int, name: str = "") -> int:
        if not _is_curve(op):
            return super().add(op, *inputs, name=name)
        known = self._curves.get(_key(op, inputs))
        if known is None:
            known = self._curves[_key(op, inputs)] = super().add(op, *inputs, name=name)
        return known


def _is_curve(op: ops.Op) -> bool:
    return isinstance(op, ops.Elementwise)


def _key(op: ops.Op, inputs: tuple[int, ...]) -> tuple[str, tuple[float, ...], tuple[int, ...]]:
    assert isinstance(op, ops.Elementwise)
    return op.curve, op.parameters, inputs
