"""Which nodes of a model are computed, in order: those its output needs, and of an If the branch that constants choose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx
from onnx import helper

from mlflow_lipschitz.frontends.values import Value


def computed_nodes(nodes: Iterable[onnx.NodeProto], values: Mapping[str, Value]) -> Iterator[onnx.NodeProto]:
    """The nodes one after another; behind an If whose condition is a constant follow those of the chosen branch.

    Args:
        nodes: in topological order.
        values: what each name stands for; filled by the caller while it iterates, so that a condition is there in time.
    """
    for node in nodes:
        yield node
        if is_decided(node, values):
            branch = _branch(node, "then_branch" if np.asarray(values[node.input[0]]).all() else "else_branch")
            # Two branches may call different things by one name.
            branch = _renamed(branch, {name: f"{node.output[0]}/{name}" for name in _names_made(branch)})
            for tensor in branch.initializer:
                yield helper.make_node("Constant", [], [tensor.name], value=tensor)
            yield from computed_nodes(branch.node, values)
            for inner, outer in zip(branch.output, node.output, strict=True):
                yield helper.make_node("Identity", [inner.name], [outer])


def is_decided(node: onnx.NodeProto, values: Mapping[str, Value]) -> bool:
    """Whether the node is an If whose condition is a constant."""
    return node.op_type == "If" and node.domain in ("", "ai.onnx") and isinstance(values.get(node.input[0]), np.ndarray)


def _branch(node: onnx.NodeProto, name: str) -> onnx.GraphProto:
    return next(attribute.g for attribute in node.attribute if attribute.name == name)


def _names_made(graph: onnx.GraphProto) -> list[str]:
    return [
        *(tensor.name for tensor in graph.initializer),
        *(name for node in graph.node for name in node.output if name),
    ]


def _renamed(graph: onnx.GraphProto, names: Mapping[str, str]) -> onnx.GraphProto:
    """A copy with other names for what it makes, also where graphs inside it read that."""
    copy = onnx.GraphProto()
    copy.CopyFrom(graph)
    for named in (*copy.initializer, *copy.output):
        named.name = names.get(named.name, named.name)
    for node in copy.node:
        for listed in (node.input, node.output):
            listed[:] = [names.get(name, name) for name in listed]
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                inner.CopyFrom(_renamed(inner, names))
    return copy


def needed_nodes(graph: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    """Nodes that `output` depends on, in the graph's (topological) order."""
    needed, nodes = {output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(_names_read(node))
            nodes.append(node)
    return nodes[::-1]


def count_consumers(graph: onnx.GraphProto) -> Counter[str]:
    """How many nodes and outputs read each name, those of branches and loops too."""
    counts = Counter(name for node in graph.node for name in _names_read(node))
    counts.update(value.name for value in graph.output)
    return counts


def _names_read(node: onnx.NodeProto) -> list[str]:
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names.extend(name for inner in graph.node for name in _names_read(inner))
            names.extend(value.name for value in graph.output)
    return names
