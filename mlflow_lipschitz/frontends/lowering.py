"""ONNX model → engine graph, by one table: operator → function.

The table is exact or it refuses. Nodes whose inputs are all constants are folded. Tensors are lowered whole, for one row
where the batch is free; that rows do not influence each other is proved on the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.ir.ops import Expand, Input, Reshape, Select
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends import (
    lowering_arithmetic,
    lowering_attention,
    lowering_choice,
    lowering_elementwise,
    lowering_indexing,
    lowering_microsoft,
    lowering_ml,
    lowering_normalization,
    lowering_products,
    lowering_quantized,
    lowering_recurrent,
    lowering_reductions,
    lowering_resampling,
    lowering_selection,
    lowering_shape,
    lowering_softmax,
    lowering_spatial,
)
from mlflow_lipschitz.frontends.constants import as_constant, fold
from mlflow_lipschitz.frontends.lowering_context import MASK_REMEDY, Call, Pieces, Value, Variable, refusal
from mlflow_lipschitz.frontends.node_order import computed_nodes, count_consumers, is_decided, needed_nodes
from mlflow_lipschitz.frontends.preparation import (
    ModelInput,
    model_input,
    opset_of,
    output_name,
    prepared,
)
from mlflow_lipschitz.frontends.quantization import Quantized, handed_on
from mlflow_lipschitz.frontends.remedies import REMEDIES
from mlflow_lipschitz.frontends.row_independence import LoweredModel, require_independent_rows
from mlflow_lipschitz.frontends.served_steps import JOINED, unserved_reason

Row = Callable[[Call], "Value | tuple[Value | None, ...]"]


def _table(*families: tuple[str, Mapping[str, Any]]) -> dict[tuple[str, str], Row]:
    table: dict[tuple[str, str], Row] = {}
    for domain, rows in families:
        for op_type, row in rows.items():
            if (domain, op_type) in table:
                raise ValueError(f"two lowerings of {domain}::{op_type}")
            table[domain, op_type] = row
    return table


TABLE = _table(
    ("", lowering_arithmetic.ROWS),
    ("", lowering_reductions.ROWS),
    ("", lowering_choice.ROWS),
    ("", lowering_products.ROWS),
    ("", lowering_normalization.ROWS),
    ("", lowering_softmax.ROWS),
    ("", lowering_attention.ROWS),
    ("", lowering_recurrent.ROWS),
    ("", lowering_spatial.ROWS),
    ("", lowering_selection.ROWS),
    ("", lowering_resampling.ROWS),
    ("", lowering_shape.ROWS),
    ("", lowering_indexing.ROWS),
    ("", lowering_elementwise.ROWS),
    ("", lowering_quantized.ROWS),
    ("com.microsoft", lowering_microsoft.ROWS),
    ("ai.onnx.ml", lowering_ml.ROWS),
)

# The rows that know quantized integers; all others may at most hand them on.
_OF_INTEGERS = {("", name) for name in lowering_quantized.ROWS} | {
    ("com.microsoft", name) for name in lowering_microsoft.ROWS
}


def lower(model: onnx.ModelProto, output: str | int | None = None) -> Graph:
    """The function of one sample that `model` computes for every row of a batch.

    Args:
        model: one tensor input, float32 or float64, batch on axis 0; initializers loaded (external data too).
        output: name or position of the output to lower; the first one when None.

    Returns:
        A graph from the sample shape to a vector of outputs (an output of another shape is flattened), whose
        `output_names` are `logit[i]` when the ONNX output is called logit or logits, and `output[i]` otherwise. Where it joins
        what a served program computes step by step, `served` is the graph of those steps.

    Raises:
        UnsupportedOperator: naming the node, its origin in the user's model, the reason and a remedy; also where a row of
            the batch influences the output of another one.
        UsageError: no such output.
        AuditError: not a valid ONNX model.
    """
    model = prepared(model, TABLE)
    source, name = model_input(model), output_name(model, output)
    if source.batch in (None, 1):
        return _with_served_steps(model, source, name, 1)
    try:
        return _with_served_steps(model, source, name, 1)
    except UnsupportedOperator:  # the length of the batch may stand in the model: then all its rows are computed
        return _with_served_steps(model, source, name, source.batch)


def _with_served_steps(model: onnx.ModelProto, source: ModelInput, output: str, rows: int) -> Graph:
    """The graph, and beside it the one that joins nothing, unless it would say as little about the served program's rounding."""
    graph = _lowered(model, source, output, rows)
    if {node.unserved for node in graph.nodes} - {""} != {JOINED}:
        return graph
    builder, one_row = _started(source)
    start = _batch(builder, source, one_row, rows)
    try:
        values = lower_values(model, output, source, builder, start, as_served=True)
    except (
        UnsupportedOperator
    ):  # what is only known of the joined steps, that a value is always a number, is no reason to refuse
        return graph
    return replace(graph, served=_finished(builder, values[output], output, rows))


def _started(source: ModelInput) -> tuple[GraphBuilder, int]:
    """A graph with its input, and the node of the input as a batch of one row."""
    builder = GraphBuilder()
    sample = builder.add(Input(source.shape), name=source.name)
    return builder, builder.add(Reshape((1, *source.shape)), sample, name=source.name)


def _batch(builder: GraphBuilder, source: ModelInput, one_row: int, rows: int) -> Variable:
    """The model's input: one row, or equal rows."""
    whole = (rows, *source.shape)
    return Variable(one_row if rows == 1 else builder.add(Expand(whole), one_row, name=source.name), whole)


def _lowered(model: onnx.ModelProto, source: ModelInput, output: str, rows: int) -> Graph:
    """The graph of a sample, as a batch of one row or of equal rows, and the proof that it is that of every row of a batch."""
    builder, one_row = _started(source)
    start = _batch(builder, source, one_row, rows)
    values = lower_values(model, output, source, builder, start)
    graph = _finished(builder, values[output], output, rows)
    if source.batch != 1:
        nodes = list(computed_nodes(needed_nodes(model.graph, output), values))
        lowered = LoweredModel(nodes, output, source.batch, values, graph)
        require_independent_rows(lowered, lambda several, start: lower_values(model, output, source, several, start))
    return graph


def lower_values(
    model: onnx.ModelProto,
    output: str,
    source: ModelInput,
    builder: GraphBuilder,
    start: Variable,
    *,
    as_served: bool = False,
) -> dict[str, Value]:
    """What the names that `output` needs stand for when the model's input is `start`, (rows, *sample shape).

    With `as_served`, nothing is joined that a served program computes step by step.

    Raises:
        UnsupportedOperator: a node cannot be lowered, or the output does not depend on the input.
    """
    values: dict[str, Value] = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    values[source.name] = start
    consumers = count_consumers(model.graph)
    for node in computed_nodes(needed_nodes(model.graph, output), values):
        if is_decided(node, values):
            continue
        inputs = tuple(_read(values, name, node) if name else None for name in node.input)
        call = Call(node, inputs, builder, consumers, opset_of(model), source.floats, as_served)
        outputs = zip(node.output, lower_node(call), strict=False)
        values.update((name, value) for name, value in outputs if value is not None)
    result = values.get(output)
    if isinstance(result, Pieces):
        reason, remedy = "it is a sequence of tensors", "choose an output that is one tensor, or concatenate the pieces"
        raise UnsupportedOperator("Output", output, reason=reason, remedy=remedy)
    if not isinstance(result, Variable) or isinstance(result, Quantized):
        raise UnsupportedOperator(
            "Output",
            output,
            reason="it is a label, holds quantized integers or does not depend on the input",
            remedy="choose an output with scores: the `output` argument takes its name or position",
        )
    return values


def _read(values: Mapping[str, Value], name: str, node: onnx.NodeProto) -> Value:
    if name not in values:
        raise refusal(node, f"it reads {name!r}, a label or a mask, which has no derivative", lowering_ml.SCORES_REMEDY)
    return values[name]


def _finished(builder: GraphBuilder, result: Value, output: str, rows: int) -> Graph:
    """The graph that ends in a vector of outputs: those of the first of several equal rows."""
    assert isinstance(result, Variable)
    if result.masked is not None:
        raise UnsupportedOperator("Output", output, reason="it holds minus infinity", remedy=MASK_REMEDY)
    index = result.index
    if rows != 1:
        index = builder.add(Select(0, (0,)), index, name=output)
    size = math.prod(builder.shape(index))
    stem = "logit" if output in ("logit", "logits") else "output"
    index = builder.add(Reshape((size,)), index, name=output)
    return builder.build(index, tuple(f"{stem}[{i}]" for i in range(size)))


# What Python and NumPy raise when shapes, axes or attributes make no sense together.
_MISFITS = (ValueError, IndexError, KeyError, TypeError, AttributeError, ArithmeticError, MemoryError)


def lower_node(call: Call) -> tuple[Value | None, ...]:
    """Outputs of one node: folded when all inputs are constants, a shape if it asks for one, by the table otherwise.

    Raises:
        UnsupportedOperator: it cannot be lowered, also where its inputs and attributes contradict each other.
    """
    try:
        return _lowered_node(call)
    except _MISFITS as error:  # the one place: a node that makes no sense is the model's error and is named as such
        reason = f"{type(error).__name__}: {error}"
        remedy = "check the model with onnx.checker and export it again"
        raise refusal(call.node, f"its inputs and attributes do not fit together ({reason})", remedy) from error


def _lowered_node(call: Call) -> tuple[Value | None, ...]:
    node = call.node
    if not any(isinstance(value, Variable) for value in call.inputs):
        folded = fold(call) if _domain(node) == "" or node.op_type == "DequantizeLinear" else None
        if folded is None:
            call.refuse("constants are not folded through this operator", "export the model with its constants folded")
        return folded
    row = TABLE.get((_domain(node), node.op_type))
    if row is None:
        raise refusal(node, "no lowering for this operator", REMEDIES.get(node.op_type, ""))
    _refuse_other_types(call)
    call = replace(call, inputs=tuple(as_constant(v) if isinstance(v, np.ndarray) else v for v in call.inputs))
    integers = any(isinstance(value, Quantized) for value in call.inputs)
    if integers and (_domain(node), node.op_type) not in _OF_INTEGERS:
        return handed_on(call, row)
    before = len(call.builder)
    result = row(call)
    if reason := unserved_reason(node, call.attribute("mode", "nearest")):
        call.builder.mark_unserved(range(before, len(call.builder)), reason)
    return result if isinstance(result, tuple) else (result,)


# Operators whose result has the type of one input, and that may read another type beside it: they round to it.
_TYPED_BY = {"Pow": 0, "CastLike": 1}


def _refuse_other_types(call: Call) -> None:
    """Refuse to compute with the input in another type than the model's real ones: rounding to integers jumps."""
    position = _TYPED_BY.get(call.node.op_type)
    given = None if position is None else call.input(position)
    if isinstance(given, np.ndarray) and given.dtype not in (np.float32, np.float64):
        call.refuse(
            f"it rounds a value that depends on the input to {given.dtype}", "keep the model in float32 or float64"
        )


def _domain(node: onnx.NodeProto) -> str:
    return "" if node.domain == "ai.onnx" else node.domain
