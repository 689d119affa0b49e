"""ONNX model → engine graph, by one table: operator → function.

The table is exact or it refuses. Nodes whose inputs are all constants are folded; the batch, axis 0 of the
input, is never mixed, and nothing may depend on how many rows it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.ir.ops import Input, Reshape
from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends import (
    lowering_arithmetic,
    lowering_elementwise,
    lowering_linear,
    lowering_ml,
    lowering_shape,
    lowering_spatial,
)
from mlflow_lipschitz.frontends.batch_length import BatchRows, is_symbolic, shape_constant
from mlflow_lipschitz.frontends.constants import DEPENDS_ON_ROWS, as_constant, fold
from mlflow_lipschitz.frontends.lowering_context import BATCH_REMEDY, Call, Value, Variable, refusal
from mlflow_lipschitz.frontends.preparation import (
    ModelInput,
    model_input,
    needed_nodes,
    opset_of,
    output_name,
    prepared,
)

Row = Callable[[Call], "Value | tuple[Variable | None, ...]"]


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
    ("", lowering_linear.ROWS),
    ("", lowering_spatial.ROWS),
    ("", lowering_shape.ROWS),
    ("", lowering_elementwise.ROWS),
    ("ai.onnx.ml", lowering_ml.ROWS),
)

ARITHMETIC = ("Add", "Sub", "Mul", "Div")

REMEDIES = {
    "Softmax": "export the model without its final softmax: its logits are what is certified",
    "LogSoftmax": "export the model without its final log-softmax: its logits are what is certified",
    "ArgMax": "choose an output with scores instead of labels",
    "Sign": "a jump has no Lipschitz constant: replace it by a continuous function such as tanh",
    "ZipMap": lowering_ml.SCORES_REMEDY,
    "Normalizer": lowering_ml.SCORES_REMEDY,
}


def lower(model: onnx.ModelProto, output: str | int | None = None) -> Graph:
    """The function of one sample that `model` computes for every row of a batch.

    Args:
        model: one tensor input, float32 or float64, batch on axis 0; initializers loaded (external data too).
        output: name or position of the output to lower; the first one when None.

    Returns:
        A graph from the sample shape to a vector of outputs (an output of another shape is flattened), whose
        `output_names` are `logit[i]` when the ONNX output is called logit or logits, and `output[i]` otherwise.

    Raises:
        UnsupportedOperator: naming the node, its origin in the user's model, the reason and a remedy.
        UsageError: no such output.
        AuditError: not a valid ONNX model.
    """
    model = prepared(model)
    source = model_input(model)
    name = output_name(model, output)
    return _lowered(model, source, name)


def _lowered(model: onnx.ModelProto, source: ModelInput, output: str) -> Graph:
    builder = GraphBuilder()
    values: dict[str, Value | BatchRows] = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    values[source.name] = Variable(builder.add(Input(source.shape), name=source.name), source.shape)
    consumers = count_consumers(model)
    for node in needed_nodes(model.graph, output):
        inputs = tuple(_read(values, name, node) if name else None for name in node.input)
        call = Call(node, inputs, builder, consumers, source.length, opset_of(model))
        outputs = zip(node.output, lower_node(call), strict=False)
        values.update((name, value) for name, value in outputs if value is not None)
    return _finished(builder, values.get(output), output)


def _read(values: Mapping[str, Value | BatchRows], name: str, node: onnx.NodeProto) -> Value | BatchRows:
    if name not in values:
        raise refusal(node, f"it reads {name!r}, a label or a mask, which has no derivative", lowering_ml.SCORES_REMEDY)
    return values[name]


def _finished(builder: GraphBuilder, result: Value | BatchRows | None, output: str) -> Graph:
    if not isinstance(result, Variable):
        raise UnsupportedOperator(
            "Output",
            output,
            reason="it is a label or does not depend on the input",
            remedy="choose an output with scores: the `output` argument takes its name or position",
        )
    size = int(np.prod(result.shape, dtype=int))
    if len(result.shape) != 1:
        result = Variable(builder.add(Reshape((size,)), result.index, name=output), (size,))
    stem = "logit" if output in ("logit", "logits") else "output"
    return builder.build(result.index, tuple(f"{stem}[{i}]" for i in range(size)))


# What Python and NumPy raise when shapes, axes or attributes make no sense together.
_MISFITS = (ValueError, IndexError, KeyError, TypeError, AttributeError, ArithmeticError, MemoryError)


def lower_node(call: Call) -> tuple[Value | BatchRows | None, ...]:
    """Outputs of one node: folded when all inputs are constants, a shape if it asks for one, by the table otherwise.

    Raises:
        UnsupportedOperator: it cannot be lowered, also where its inputs and attributes contradict each other.
    """
    try:
        return _lowered_node(call)
    except _MISFITS as error:  # the one place: a node that makes no sense is the model's error and is named as such
        reason = f"{type(error).__name__}: {error}"
        if any(is_symbolic(value) for value in call.inputs):
            raise refusal(call.node, f"{DEPENDS_ON_ROWS} ({error})", BATCH_REMEDY) from error
        remedy = "check the model with onnx.checker and export it again"
        raise refusal(call.node, f"its inputs and attributes do not fit together ({reason})", remedy) from error


def _lowered_node(call: Call) -> tuple[Value | BatchRows | None, ...]:
    node = call.node
    if any(isinstance(value, BatchRows) for value in call.inputs):
        return _lower_with_rows(call)
    if node.op_type == "Shape" and _domain(node) == "":
        return (_shape(call),)
    if not any(isinstance(value, Variable) for value in call.inputs):
        folded = fold(call) if _domain(node) == "" else None
        if folded is None:
            call.refuse("constants are not folded through this operator", "export the model with its constants folded")
        return folded
    row = TABLE.get((_domain(node), node.op_type))
    if row is None:
        raise refusal(node, "no lowering for this operator", REMEDIES.get(node.op_type, ""))
    if node.op_type not in ("Reshape", "Expand") and any(is_symbolic(value) for value in call.inputs):
        call.refuse(DEPENDS_ON_ROWS, BATCH_REMEDY)
    result = row(replace(call, inputs=tuple(as_constant(v) if isinstance(v, np.ndarray) else v for v in call.inputs)))
    return result if isinstance(result, tuple) else (result,)


def _lower_with_rows(call: Call) -> tuple[Value | BatchRows | None, ...]:
    """A node that reads a constant equal for all rows: it may compute entry by entry, or join it with a variable."""
    variable = any(isinstance(value, Variable) for value in call.inputs)
    if call.node.op_type not in (*ARITHMETIC, "Concat") or (call.node.op_type == "Concat" and not variable):
        call.refuse(DEPENDS_ON_ROWS, BATCH_REMEDY)
    plain = replace(call, inputs=tuple(v.row if isinstance(v, BatchRows) else v for v in call.inputs))
    if variable:
        return lower_node(plain)
    rank = max(value.row.ndim for value in call.inputs if isinstance(value, BatchRows))
    (result,) = fold(plain) or (None,)
    if not isinstance(result, np.ndarray) or result.ndim != rank or result.shape[0] != 1:
        call.refuse(DEPENDS_ON_ROWS, BATCH_REMEDY)
    return (BatchRows(result),)


def count_consumers(model: onnx.ModelProto) -> Counter[str]:
    """How many nodes and model outputs read each name."""
    counts = Counter(name for node in model.graph.node for name in node.input)
    counts.update(value.name for value in model.graph.output)
    return counts


def _domain(node: onnx.NodeProto) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def _shape(call: Call) -> np.ndarray:
    value = call.input(0)
    full = [call.batch, *value.shape] if isinstance(value, Variable) else [*call.constant(0, "its input").shape]
    return shape_constant(full[call.attribute("start", 0) : call.attribute("end")])
