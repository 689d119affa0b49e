"""Why nothing can be said of a served program: which node, and the reason."""

from __future__ import annotations

import numpy as np

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, Node
from mlflow_lipschitz.engine.served.formats import Format
from mlflow_lipschitz.engine.served.libraries import assumed
from mlflow_lipschitz.engine.served.rules import COPYING, ERROR_RULES


def obstacle(graph: Graph, form: Format) -> str:
    """Why nothing can be said of a program that serves this graph, wherever its input is; empty where nothing stands in the way."""
    steps = graph.served or graph
    return next((reason for node in steps.nodes if (reason := node_obstacle(node, form))), "")


def node_obstacle(node: Node, form: Format) -> str:
    """Why nothing is known of the served value of a node; empty where something is."""
    op, reason = node.op, ""
    if isinstance(op, ops.Input) or (node.unserved and isinstance(op, COPYING)):
        return ""
    if node.unserved:
        reason = node.unserved
    elif type(op) not in ERROR_RULES:
        reason = "how a served program rounds there is not modeled"
    elif isinstance(op, ops.Elementwise) and not assumed(op, form):
        reason = f"of the curve {op.curve}{op.parameters or ''} no library's accuracy is assumed"
    elif not _representable(op, form):
        reason = f"its constants exceed the largest number of {form.name}"
    return reason and f"{type(op).__name__} {node.name!r}: {reason}"


def _representable(op: ops.Op, form: Format) -> bool:
    inner = op.inner if isinstance(op, ops.Adjoint) else op
    constants = [getattr(inner, name, None) for name in ("weight", "bias", "scale", "shift")]
    return all(bool(np.all(np.abs(c) <= form.largest)) for c in constants if c is not None)
