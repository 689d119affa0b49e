"""The two models on either side of the frontier, as ONNX models of their own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mlflow_lipschitz.frontends.discrete_frontier import Frontier, names_read

POINTS = "points"


@dataclass(frozen=True)
class Part:
    """One tensor that the body reads: a real input, an embedding, or an encoding that does not move.

    Attributes:
        tensor: its name in the model.
        shape: sample shape, without the batch.
        element_type: FLOAT or DOUBLE.
        names: one per entry, in the order of the flattened sample.
        sources: the columns, or discrete inputs, it was looked up by; empty for a real input.
        moves: False for an encoding.
    """

    tensor: str
    shape: tuple[int, ...]
    element_type: int
    names: tuple[str, ...]
    sources: tuple[str, ...]
    moves: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def head_model(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], wanted: Sequence[str]) -> onnx.ModelProto:
    """The part of `model` that makes the tensors `wanted`; its inputs are all inputs of the model."""
    needed = _needed(nodes, wanted, stop=set())
    outputs = [helper.make_empty_tensor_value_info(name) for name in wanted]
    return _model(model, list(model.graph.input), needed, outputs)


def body_model(
    model: onnx.ModelProto,
    front: Frontier,
    parts: Sequence[Part],
    shapes: Mapping[str, tuple[int, ...]],
    batch: int | None,
) -> onnx.ModelProto:
    """The part of `model` behind `parts`, with one real input: the one part as it is, or all of them flattened in a row.

    Args:
        model: with the outputs that the body is to have.
        front: which of its nodes are behind the parts.
        shapes: sample shapes of the fixed tensors whose shape the body asks for.
        batch: fixed length of the batch, None when it is free.
    """
    kind = TensorProto.DOUBLE if any(p.element_type == TensorProto.DOUBLE for p in parts) else TensorProto.FLOAT
    name = _fresh(POINTS, model)
    shape: tuple[int, ...] = (sum(part.size for part in parts),)
    added, constants = _taken_apart(parts, name, kind)
    if len(parts) == 1:
        name, shape, added, constants = parts[0].tensor, parts[0].shape, [], []
    for node in front.shapes:
        added += _shape_nodes(node, shapes[node.input[0]], name)
    outputs = list(model.graph.output)
    nodes = _needed([*added, *front.body], [value.name for value in outputs], stop={name})
    body = _model(model, [helper.make_tensor_value_info(name, kind, [batch or "batch", *shape])], nodes, outputs)
    body.graph.initializer.extend(constants)
    return body


def _shape_nodes(node: onnx.NodeProto, dims: Sequence[int], points: str) -> list[onnx.NodeProto]:
    """Nodes that make what the Shape `node` makes, for a tensor (rows, *dims), asking `points` for the number of rows."""
    start, end = (next((a.i for a in node.attribute if a.name == name), None) for name in ("start", "end"))
    axes = list(range(len(dims) + 1))[start:end]
    output = node.output[0]
    fixed = np.array([dims[axis - 1] for axis in axes if axis > 0], dtype=np.int64)
    rest = helper.make_node("Constant", [], [f"{output}/sample"], value=numpy_helper.from_array(fixed))
    rest.name = f"{output}/sample"
    if 0 not in axes:
        return [rest, helper.make_node("Identity", [rest.output[0]], [output], name=node.name)]
    first = helper.make_node("Constant", [], [f"{output}/first"], value=numpy_helper.from_array(np.zeros(1, np.int64)))
    whole = helper.make_node("Shape", [points], [f"{output}/points"], name=f"{output}/points")
    rows = helper.make_node(
        "Gather", [whole.output[0], first.output[0]], [f"{output}/rows"], name=f"{output}/rows", axis=0
    )
    joined = helper.make_node("Concat", [rows.output[0], rest.output[0]], [output], name=node.name, axis=0)
    return [rest, first, whole, rows, joined]


def _taken_apart(parts: Sequence[Part], points: str, kind: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes that make every part from its entries of the flattened points."""
    nodes, constants, start = [], [], 0
    for part in parts:
        entries, shape = f"{part.tensor}/entries", f"{part.tensor}/shape"
        constants.append(numpy_helper.from_array(np.arange(start, start + part.size, dtype=np.int64), entries))
        nodes.append(helper.make_node("Gather", [points, entries], [f"{part.tensor}/flat"], axis=1))
        last = nodes[-1].output[0]
        if len(part.shape) != 1:
            dims = np.array([0, *part.shape] if part.shape else [-1], dtype=np.int64)
            constants.append(numpy_helper.from_array(dims, shape))
            nodes.append(helper.make_node("Reshape", [last, shape], [f"{part.tensor}/shaped"]))
            last = nodes[-1].output[0]
        cast = part.element_type != kind
        nodes.append(helper.make_node("Cast", [last], [part.tensor], to=part.element_type) if cast else
                     helper.make_node("Identity", [last], [part.tensor]))  # fmt: skip
        start += part.size
    for node in nodes:
        node.name = node.output[0]
    return nodes, constants


def _needed(nodes: Sequence[onnx.NodeProto], wanted: Iterable[str], stop: set[str]) -> list[onnx.NodeProto]:
    """Nodes that the tensors `wanted` depend on, in order, without those that make the tensors in `stop`."""
    needed, kept = set(wanted) - stop, []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(name for name in names_read(node) if name not in stop)
            kept.append(node)
    return kept[::-1]


def _model(
    model: onnx.ModelProto,
    inputs: Sequence[onnx.ValueInfoProto],
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A copy of `model` with another graph: these nodes, and the constants they read."""
    used = {name for node in nodes for name in names_read(node)} | {value.name for value in outputs}
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del (
        made.graph.node[:],
        made.graph.input[:],
        made.graph.output[:],
        made.graph.value_info[:],
        made.graph.initializer[:],
    )
    made.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in used)
    constants = {tensor.name for tensor in made.graph.initializer}
    made.graph.input.extend(value for value in inputs if value.name not in constants)
    made.graph.node.extend(nodes)
    made.graph.output.extend(outputs)
    return made


def _fresh(name: str, model: onnx.ModelProto) -> str:
    taken = {part for node in model.graph.node for part in (*node.input, *node.output)}
    taken |= {value.name for value in model.graph.input}
    while name in taken:
        name += "_"
    return name
