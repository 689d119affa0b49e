"""Which nodes of a model can be certified, and how: the answer to "what do I have to change?", all nodes at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx

from mlflow_lipschitz.engine.ir.graph import GraphBuilder
from mlflow_lipschitz.engine.ir.ops import Input, Op
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends.constants import FOLDS
from mlflow_lipschitz.frontends.lowering import TABLE, lower, lower_node
from mlflow_lipschitz.frontends.lowering_context import Call, Value, Variable, node_name
from mlflow_lipschitz.frontends.node_order import computed_nodes, count_consumers, is_decided
from mlflow_lipschitz.frontends.origins import node_origin
from mlflow_lipschitz.frontends.preparation import ModelInput, model_input, opset_of, prepared
from mlflow_lipschitz.frontends.tightness import ALWAYS_RELAXED, PRODUCTS, Verdict, cost


@dataclass(frozen=True)
class NodeSupport:
    """One node of the ONNX model: its name, operator, origin in the user's model ("" if unknown), verdict and a note."""

    node: str
    op_type: str
    origin: str
    verdict: Verdict
    note: str


def support_table(model: onnx.ModelProto) -> list[NodeSupport]:
    """A row per node, in the model's order. Never raises because of an operator.

    Behind an unsupported node the walk goes on with the shape that ONNX infers for its output; where none can be inferred,
    the nodes behind it are judged by their operator alone, and their note says so.

    Raises:
        AuditError: not a valid ONNX model.
    """
    model = prepared(model, TABLE)
    try:
        source = model_input(model)
    except UnsupportedOperator as error:
        return [NodeSupport(error.node, error.operator, error.origin, "unsupported", f"{error.reason}. {error.remedy}")]
    rows = _Walk(model, source).judge_all(model.graph.node)
    return rows if any(row.verdict == "unsupported" for row in rows) else _as_a_whole(model, rows)


def _as_a_whole(model: onnx.ModelProto, rows: list[NodeSupport]) -> list[NodeSupport]:
    """The rows, with the one marked that keeps the model as a whole from being audited: a node that mixes rows of a batch."""
    try:
        lower(model)
    except UnsupportedOperator as error:
        note = ". ".join(part for part in (error.reason, error.remedy) if part)
        refused = NodeSupport(error.node, error.operator, error.origin, "unsupported", note)
        same = [row.node == error.node and row.op_type == error.operator for row in rows]
        return [refused if it else row for it, row in zip(same, rows, strict=True)] + ([] if any(same) else [refused])
    return rows


class _Recorder(GraphBuilder):
    """A builder that remembers what was added since it was last asked."""

    def __init__(self) -> None:
        super().__init__()
        self._added: list[Op] = []

    def add(self, op: Op, *inputs: int, name: str = "") -> int:
        self._added.append(op)
        return super().add(op, *inputs, name=name)

    def take_added(self) -> list[Op]:
        added, self._added = self._added, []
        return added


class _Walk:
    """The values seen so far while the nodes are tried one after another."""

    def __init__(self, model: onnx.ModelProto, source: ModelInput) -> None:
        self._opset, self._floats, self._consumers = opset_of(model), source.floats, count_consumers(model.graph)
        self._builder = _Recorder()
        self._values: dict[str, Value] = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        rows = source.batch or 1
        whole = (rows, *source.shape)
        self._values[source.name] = Variable(self._builder.add(Input(whole)), whole)
        self._shapes = _inferred_shapes(model, rows)

    def judge_all(self, nodes: Iterable[onnx.NodeProto]) -> list[NodeSupport]:
        return [self._judge(node) for node in computed_nodes(nodes, self._values)]

    def _judge(self, node: onnx.NodeProto) -> NodeSupport:
        if is_decided(node, self._values):
            return _row(node, "exact", "a constant chooses the branch, whose nodes follow")
        if any(name and name not in self._values for name in node.input):
            return self._judge_by_operator(node)
        inputs = tuple(self._values[name] if name else None for name in node.input)
        call = Call(node, inputs, self._builder, self._consumers, self._opset, self._floats)
        self._builder.take_added()
        try:
            outputs = lower_node(call)
        except UnsupportedOperator as error:
            for name in node.output:
                self._assume(name)
            return _row(node, "unsupported", ". ".join(part for part in (error.reason, error.remedy) if part))
        named = zip(node.output, outputs, strict=False)
        self._values.update((name, value) for name, value in named if value is not None)
        return _row(node, *cost(self._builder.take_added()))

    def _assume(self, name: str) -> None:
        """Go on behind an unsupported node with a value of the shape ONNX infers, if it infers one."""
        shape = self._shapes.get(name)
        if shape is not None:
            self._values[name] = Variable(self._builder.add(Input(shape)), shape)

    def _judge_by_operator(self, node: onnx.NodeProto) -> NodeSupport:
        if (node.domain, node.op_type) not in TABLE and node.op_type not in FOLDS:
            return _row(node, "unsupported", "no lowering for this operator")
        constants = any(isinstance(self._values.get(name), np.ndarray) for name in node.input)
        relaxed = node.op_type in ALWAYS_RELAXED or (node.op_type in PRODUCTS and not constants)
        verdict: Verdict = "relaxed" if relaxed else "exact"
        return _row(node, verdict, "judged by its operator alone: it reads the output of an unsupported node")


def _row(node: onnx.NodeProto, verdict: Verdict, note: str) -> NodeSupport:
    return NodeSupport(node_name(node), node.op_type, node_origin(node), verdict, note)


def _inferred_shapes(model: onnx.ModelProto, rows: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the intermediate values whose every axis but the batch is known, for a batch of `rows`."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, ValueError):
        return {}
    shapes = {}
    for value in (*graph.value_info, *graph.output):
        dims = list(value.type.tensor_type.shape.dim)
        if dims and all(dim.dim_value > 0 for dim in dims[1:]):
            shapes[value.name] = (dims[0].dim_value or rows, *(dim.dim_value for dim in dims[1:]))
    return shapes
