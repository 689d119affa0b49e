"""The table of supported nodes for a model that looks some of its inputs up: the lookups first, then what is certified."""

from __future__ import annotations

import onnx

from mlflow_lipschitz.errors import UnsupportedOperator
from mlflow_lipschitz.frontends.discrete import divide
from mlflow_lipschitz.frontends.discrete_columns import REAL, Table
from mlflow_lipschitz.frontends.origins import node_origin
from mlflow_lipschitz.frontends.support import NodeSupport, support_table
from mlflow_lipschitz.frontends.values import node_name

_LOOKED_UP = "runs once per row, before the perturbation begins: what it reads does not move"


def support_of_all(model: onnx.ModelProto, example: Table | None = None) -> list[NodeSupport]:
    """A row per node of any model, in the model's order. Never raises because of an operator.

    Args:
        model: any ONNX model.
        example: rows as the model takes them; needed where text is looked up.

    Raises:
        AuditError: not a valid ONNX model.
        UsageError: an example is needed.
    """
    real = [value.name for value in model.graph.output if value.type.tensor_type.elem_type in REAL]
    try:
        divided = divide(model, example, real[0] if real else None)
    except UnsupportedOperator as error:
        note = ". ".join(part for part in (error.reason, error.remedy) if part)
        return [NodeSupport(error.node, error.operator, error.origin, "unsupported", note)]
    behind = [(node.op_type, node.output) for node in divided.body.graph.node]  # constants are on both sides
    lookups = [] if divided.head is None else [n for n in divided.head.nodes if (n.op_type, n.output) not in behind]
    rows = [NodeSupport(node_name(n), n.op_type, node_origin(n), "exact", _LOOKED_UP) for n in lookups]
    return rows + support_table(divided.body)
