"""The graph every model becomes: frozen nodes in topological order.

A value in the graph has a *shape without the batch axes*; points, objectives and rows are leading axes that the algorithms
add. A graph has one `Input` (the audited point), one output, and, after differentiation, one `Cotangent` (the objective).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from mlflow_lipschitz.engine.ir.ops import Adjoint, Cotangent, Input, Op

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One application of an op. `inputs` are indices into `Graph.nodes`; `name` is the node's name in the user's model.

    `unserved` says why a served program may compute the node in other steps than this one, where it may: of the function it says
    nothing, of rounding errors everything.
    """

    op: Op
    inputs: tuple[int, ...]
    shape: Shape
    name: str = ""
    unserved: str = ""


@dataclass(frozen=True)
class Graph:
    """A model as nodes in topological order.

    `output` is the index of the output node. `output_names` has one name per entry of a vector output, or is empty.
    `served` is the same function in the steps that a served program takes, where this graph joins some of them; a graph that is
    derived from this one is given none.
    """

    nodes: tuple[Node, ...]
    output: int
    output_names: tuple[str, ...] = ()
    served: Graph | None = field(default=None, compare=False, repr=False)

    @property
    def input(self) -> int:
        """Index of the one `Input` node."""
        return next(i for i, node in enumerate(self.nodes) if isinstance(node.op, Input))

    @property
    def cotangent(self) -> int | None:
        """Index of the `Cotangent` node, or None when the graph has not been differentiated."""
        return next((i for i, node in enumerate(self.nodes) if isinstance(node.op, Cotangent)), None)

    @property
    def input_shape(self) -> Shape:
        return self.nodes[self.input].shape

    @property
    def output_shape(self) -> Shape:
        return self.nodes[self.output].shape

    @cached_property
    def last_uses(self) -> tuple[tuple[int, ...], ...]:
        """Per node, the nodes whose values nothing after it needs; the output is needed to the end."""
        reader = {source: index for index, node in enumerate(self.nodes) for source in node.inputs}
        reader[self.output] = len(self.nodes)
        uses: list[list[int]] = [[] for _ in range(len(self.nodes) + 1)]
        for source, index in reader.items():
            uses[index].append(source)
        return tuple(tuple(use) for use in uses[:-1])

    def with_output(self, output: int) -> Graph:
        """The same graph with another node as its output, without the nodes that output does not need."""
        return _pruned(replace(self, output=output, output_names=(), served=None))

    def content_hash(self) -> str:
        """SHA-256 over every op, constant and edge: two graphs with one hash compute the same function.

        Names, and what is known of the served program's steps, do not count.
        """
        digest = hashlib.sha256()
        for node in self.nodes:
            digest.update(repr((type(node.op).__name__, node.inputs, node.shape)).encode())
            _hash_op(digest, node.op)
        digest.update(str(self.output).encode())
        return digest.hexdigest()


class GraphBuilder:
    """Collects nodes; `build` freezes them. The only mutable thing of the IR, and it never leaves its function."""

    def __init__(self, graph: Graph | None = None) -> None:
        self._nodes: list[Node] = list(graph.nodes) if graph else []

    def add(self, op: Op, *inputs: int, name: str = "") -> int:
        """Append a node and return its index. Raises ValueError when the op does not fit its inputs' shapes."""
        shape = op.output_shape(*(self._nodes[i].shape for i in inputs))
        self._nodes.append(Node(op, inputs, tuple(int(n) for n in shape), name))
        return len(self._nodes) - 1

    def __len__(self) -> int:
        return len(self._nodes)

    def node(self, index: int) -> Node:
        return self._nodes[index]

    def mark_unserved(self, indices: Iterable[int], reason: str) -> None:
        """Say of nodes, where nothing is said yet, why a served program may compute them in other steps."""
        for index in indices:
            if not self._nodes[index].unserved:
                self._nodes[index] = replace(self._nodes[index], unserved=reason)

    def index_of(self, node: Node) -> int:
        """Index of this very node."""
        return next(i for i, known in enumerate(self._nodes) if known is node)

    def shape(self, index: int) -> Shape:
        return self._nodes[index].shape

    def build(self, output: int, output_names: tuple[str, ...] = ()) -> Graph:
        """Freeze. Nodes the output does not need are dropped (the `Input` always stays)."""
        return _pruned(Graph(tuple(self._nodes), output, output_names))

    def whole(self, output: int) -> Graph:
        """Freeze with every node, so that indices stay what they are."""
        return Graph(tuple(self._nodes), output)


def _pruned(graph: Graph) -> Graph:
    needed = {graph.output} | {i for i, n in enumerate(graph.nodes) if isinstance(n.op, (Input, Cotangent))}
    for i in range(len(graph.nodes) - 1, -1, -1):
        if i in needed:
            needed.update(graph.nodes[i].inputs)
    position = {old: new for new, old in enumerate(sorted(needed))}
    nodes = tuple(
        replace(graph.nodes[old], inputs=tuple(position[i] for i in graph.nodes[old].inputs)) for old in sorted(needed)
    )
    return Graph(nodes, position[graph.output], graph.output_names)


def _hash_op(digest: Any, op: Op) -> None:
    for part in fields(op):
        value = getattr(op, part.name)
        digest.update(part.name.encode())
        if isinstance(value, np.ndarray):
            digest.update(repr(value.shape).encode() + np.ascontiguousarray(value).tobytes())
        elif part.name == "inner" and isinstance(op, Adjoint):
            digest.update(type(value).__name__.encode())
            _hash_op(digest, value)
        else:
            digest.update(repr(value).encode())
