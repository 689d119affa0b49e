"""Rows on their way to the model: read as the model takes them, and then brought to where the certified graph begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mlflow_lipschitz.audited_rows import AuditedRows, spread
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.frontends.discrete import DividedModel, divide
from mlflow_lipschitz.frontends.lowering import lower
from mlflow_lipschitz.frontends.row_layout import row_layout
from mlflow_lipschitz.frontends.to_onnx import to_onnx
from mlflow_lipschitz.pipeline.outputs import entry_names, judged_output
from mlflow_lipschitz.registry.pull import PulledModel, load_model_object
from mlflow_lipschitz.rows import Data, load_rows

if TYPE_CHECKING:
    from onnx import ModelProto

    from mlflow_lipschitz.policy import AuditPolicy


def rows_for(pulled: PulledModel, data: Data, policy: AuditPolicy | None) -> AuditedRows:
    """The rows of `data`, checked against what the model does with each column.

    Raises:
        InvalidData: see `load_rows`.
        UnsupportedOperator: the model uses a column in a way that cannot be certified.
    """
    layout = row_layout(pulled.model)
    return load_rows(data, pulled.signature, policy, pulled.fitted_names or layout.names, layout)


@dataclass(frozen=True)
class TracedModel:
    """What is certified of a model.

    Attributes:
        model: as ONNX, from the points to the model's outputs.
        graph: of the audited output.
        output: name of that output.
        entries: names of its entries.
        rows: as points of the graph.
    """

    model: ModelProto
    graph: Graph
    output: str
    entries: tuple[str, ...]
    rows: AuditedRows


def traced_model(pulled: PulledModel, rows: AuditedRows, policy: AuditPolicy) -> TracedModel:
    """Export and lower the model up to the output that the policy names, and bring the rows to where the graph begins.

    Raises:
        UnsupportedOperator, FidelityError: the model cannot be exported or lowered.
        UsageError: it has several outputs, and the policy names none.
        InvalidData: a row that the model's lookups refuse.
    """
    example = rows.points[:2] if rows.raw is None else rows.raw
    model = to_onnx(load_model_object(pulled), example)
    output = judged_output(model, pulled.output_names, policy.model.output)
    divided = divide(model, example, output, rows.point_ids[: len(example)].tolist())
    graph = lower(divided.body, output)
    entries = entry_names(graph, model, output, pulled.output_names, policy.model.output)
    return TracedModel(divided.body, graph, output, entries, encoded(rows, divided))


def encoded(rows: AuditedRows, divided: DividedModel) -> AuditedRows:
    """The rows as points of the certified graph: what the model looks up for them, beside their real columns.

    Raises:
        InvalidData: a row that the model's lookups refuse.
    """
    if not divided.parts:
        return rows
    table = rows.points if rows.raw is None else rows.raw
    points, fixed = divided.points(table, rows.point_ids.tolist()), divided.fixed
    named = dict(zip(rows.feature_names, rows.scale.reshape(-1), strict=True))
    unread = set(rows.fixed_names)
    # A real column keeps the spread of all rows that were read; an embedding has that of the audited ones.
    own = spread(points).reshape(-1)
    scale = np.array([named.get(name, own[i]) for i, name in enumerate(divided.names)]).reshape(fixed.shape)
    fixed = fixed | np.array([name in unread for name in divided.names]).reshape(fixed.shape)
    return replace(
        rows,
        points=points,
        feature_names=divided.names,
        scale=np.where(fixed, 0.0, scale),
        raw=divided.columns.as_served(table),
        fixed=fixed,
        looked_up=divided.sources,
    )
