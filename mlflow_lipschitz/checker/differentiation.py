"""Jᵀc as a graph, written down a second time: the chain rule read from the meaning of each op (Clarke 1983, as an inclusion).

The result is compared with the graph that a certificate is about, node by node: one that was differentiated wrongly is refused.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np

from mlflow_lipschitz.checker import curves
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder, Node

_SUMS = {"l1": "abs", "l2": "square"}


def gradient_graph(graph: Graph, scale: np.ndarray | None) -> Graph:
    """(inputs,) entries of Jᵀc, each times its entry of `scale`; c is the `Cotangent`, of the flat output's shape."""
    if len(graph.output_shape) != 1:
        flat = GraphBuilder(graph)
        graph = flat.build(flat.add(ops.Reshape((math.prod(graph.output_shape),)), graph.output))
    builder = _Builder(graph)
    gradients = {graph.output: builder.add(ops.Cotangent(graph.output_shape))}
    for index in range(graph.output, -1, -1):
        node = graph.nodes[index]
        if index not in gradients or isinstance(node.op, ops.Input):
            continue
        for source, added in _pulled_back(builder, index, node, gradients.pop(index)):
            known = gradients.get(source)
            gradients[source] = added if known is None else builder.add(ops.Add(), known, added)
    gradient = gradients.get(graph.input)
    if gradient is None:
        gradient = builder.add(ops.ScaleShift(scale=_number(0.0)), graph.input)
    differentiated = builder.build(gradient)
    builder = _Builder(differentiated)
    gradient = differentiated.output
    if not all(_is_finite(node.op) for node in graph.nodes):  # what has no value has no derivative
        gradient = builder.add(ops.ScaleShift(scale=_number(np.nan)), gradient)
    if scale is not None:
        gradient = builder.add(
            ops.ScaleShift(scale=ops.frozen_array(np.broadcast_to(scale, graph.input_shape))), gradient
        )
    return builder.build(builder.add(ops.Reshape((math.prod(graph.input_shape),)), gradient))


def norm_graph(graph: Graph, scale: np.ndarray | None, dual: str) -> Graph:
    """One entry: Σ |gᵢ| for `l1`, Σ gᵢ² for `l2`; for `linf` the gradient itself."""
    gradient = gradient_graph(graph, scale)
    if dual == "linf":
        return gradient
    builder = GraphBuilder(gradient)
    return builder.build(builder.add(ops.Sum((0,)), builder.add(ops.Elementwise(_SUMS[dual]), gradient.output)))


class _Builder(GraphBuilder):
    """Of one curve of one value there is one node."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._known = {
            self._key(n.op, n.inputs): i for i, n in enumerate(graph.nodes) if isinstance(n.op, ops.Elementwise)
        }

    def add(self, op: ops.Op, *inputs: int, name: str = "") -> int:
        if not isinstance(op, ops.Elementwise):
            return super().add(op, *inputs, name=name)
        key = self._key(op, inputs)
        if key not in self._known:
            self._known[key] = super().add(op, *inputs, name=name)
        return self._known[key]

    @staticmethod
    def _key(op: Any, inputs: tuple[int, ...]) -> tuple[Any, ...]:
        return op.curve, op.parameters, inputs


def _pulled_back(b: _Builder, index: int, node: Node, g: int) -> list[tuple[int, int]]:
    """(input, its share of the gradient g) for every input through which the node's value depends on the model's input."""
    op, inputs = node.op, node.inputs
    if isinstance(op, ops.Add):
        return [(inputs[0], g), (inputs[1], g)]
    if isinstance(op, ops.Elementwise):
        return [(inputs[0], _through_curve(b, node, g))]
    if isinstance(op, ops.Multiply):
        x, y = inputs
        return [(x, b.add(ops.Multiply(), y, g)), (y, b.add(ops.Multiply(), x, g))]
    if isinstance(op, ops.MatMul):
        x, y = inputs
        left = b.add(ops.MatMul(), g, _swapped(b, y))
        return [(x, left), (y, b.add(ops.MatMul(), _swapped(b, x), g))]
    if isinstance(op, ops.Concat):
        ends = np.cumsum([0, *(b.shape(i)[op.axis] for i in inputs)]).tolist()
        pieces = [b.add(ops.Select(op.axis, tuple(range(*ends[k : k + 2]))), g) for k in range(len(inputs))]
        return list(zip(inputs, pieces, strict=True))
    if isinstance(op, ops.Maximum | ops.LogSoftmax | ops.Normalized):
        return _through_identity(b, index, node, g)
    if isinstance(op, ops.Adjoint):
        cleared = {
            name: 0.0 if name == "value" else None for name in ("bias", "shift", "value") if hasattr(op.inner, name)
        }
        return [(inputs[0], b.add(replace(op.inner, **cleared), g))]
    if isinstance(op, (ops.Remainder, ops.Rounding)):
        raise ValueError(f"{type(op).__name__} has no derivative")
    return [(inputs[0], b.add(ops.Adjoint(op, b.shape(inputs[0])), g))]


def _through_identity(b: _Builder, index: int, node: Node, g: int) -> list[tuple[int, int]]:
    if isinstance(node.op, ops.Maximum):
        share = _through_curve(b, b.node(node.inputs[2]), g)
        rest = b.add(ops.Remainder(), share, b.node(share).inputs[0], g)
        return [(node.inputs[0], share), (node.inputs[1], rest)]
    through = _through_log_softmax if isinstance(node.op, ops.LogSoftmax) else _through_normalized
    return [(node.inputs[0], through(b, index, node, g))]


def _through_curve(b: _Builder, node: Node, g: int) -> int:
    assert isinstance(node.op, ops.Elementwise)
    name, parameters = curves.derivative(node.op.curve, node.op.parameters)
    slope = b.add(ops.Elementwise(name, parameters), node.inputs[0])
    followed = (1,) if curves.is_flat(name, parameters) else (0, 1)
    return b.add(ops.Multiply(linear_in=followed), slope, g)


def _through_log_softmax(b: _Builder, index: int, node: Node, g: int) -> int:
    """g − p Σ g with p = exp(y), of the entries that are kept."""
    share = b.add(ops.Elementwise("exp"), index)
    kept = getattr(node.op, "kept")  # noqa: B009 — the op is of a union type
    if kept is not None:
        share = b.add(ops.ScaleShift(scale=kept), share)
    total = b.add(ops.Expand(node.shape), b.add(ops.Sum((len(node.shape) - 1,)), g))
    return _minus(b, g, b.add(ops.Multiply(), share, total))


def _through_normalized(b: _Builder, index: int, node: Node, g: int) -> int:
    """r g − f y Σ (y r g)."""
    op: Any = node.op
    straight = b.add(ops.Multiply(), node.inputs[1], g)
    along = b.add(ops.Sum(op.axes), b.add(ops.Multiply(), index, straight))
    weighted = b.add(ops.ScaleShift(scale=_number(op.factor)), along)
    return _minus(b, straight, b.add(ops.Multiply(), index, b.add(ops.Expand(node.shape), weighted)))


def _minus(b: _Builder, x: int, y: int) -> int:
    return b.add(ops.Add(), x, b.add(ops.ScaleShift(scale=_number(-1.0)), y))


def _swapped(b: _Builder, x: int) -> int:
    rank = len(b.shape(x))
    return b.add(ops.Transpose((*range(rank - 2), rank - 1, rank - 2)), x)


def _is_finite(op: ops.Op) -> bool:
    held = [getattr(op, field.name) for field in fields(op) if field.name != "parameters"]
    numbers = [np.isfinite(value).all() for value in held if isinstance(value, np.ndarray | float)]
    return all(numbers) and all(_is_finite(value) for value in held if isinstance(value, ops.Op))


def _number(value: float) -> np.ndarray:
    return ops.frozen_array(np.array(value))
