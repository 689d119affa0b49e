"""The few rows that a reader should look at first, with the points that were found near them."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mlflow_lipschitz.certify.attained import Change, Perturbations, Steepest, nearest_change, steepest
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.gate.verdict import Verdict
from mlflow_lipschitz.pipeline.question import Question
from mlflow_lipschitz.report.insight import Found, WorstRow
from mlflow_lipschitz.rows import AuditedRows

SHOWN = 5

_ORDER = {"error": 0, "violated": 1, "undecided": 2, "certified": 3}


def worst_rows(
    graph: Graph,
    rows: AuditedRows,
    question: Question,
    table: BoundsTable,
    judged: tuple[Verdict, Perturbations],
) -> tuple[WorstRow, ...]:
    """The rows that failing checks name, then the worst of the others, at most SHOWN; and what happens near each."""
    verdict, perturbations = judged
    chosen = ranking(question, table, verdict)[:SHOWN]
    points = rows.points[chosen]
    labels = None
    if question.output == "margin" or question.max_radius is not None:
        outputs = evaluate(graph, points).flatten(1)
        labels = outputs.argmax(dim=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).long()
    steep = steepest(graph, points, question.region(points), perturbations, question.output, labels)
    change = None
    if question.max_radius is not None and labels is not None:
        change = nearest_change(graph, points, labels.numpy(), perturbations, within=question.max_radius)
    columns, reach = table.columns, question.radius.reshape(-1)
    judges_radius = question.max_radius is not None
    return tuple(
        WorstRow(
            point_id=str(columns["point_id"][row]),
            status=str(columns["status"][row]),
            lower=max(float(columns["lipschitz_lower"][row]), float(steep.slope[i])),
            upper=float(columns["lipschitz_upper"][row]),
            radius=float(columns["radius"][row]) if judges_radius else None,
            point=points[i].reshape(-1),
            reach=reach,
            found=_found(i, steep, change, labels),
            missing=_missing(i, change, question),
        )
        for i, row in enumerate(chosen)
    )


def ranking(question: Question, table: BoundsTable, verdict: Verdict) -> list[int]:
    """Row positions, those first that a reader should look at."""
    columns = table.columns
    position = {str(point): i for i, point in enumerate(columns["point_id"])}
    named = [position[check.worst_point_id] for check in verdict.failed if check.worst_point_id in position]
    status = np.array([_ORDER[str(word)] for word in columns["status"]])
    by_radius = question.max_radius is not None and not question.lipschitz_limits
    badness = columns["radius"] if by_radius else -columns["lipschitz_upper"]
    return list(dict.fromkeys([*named, *np.lexsort((badness, status)).tolist()]))


def _found(i: int, steep: Steepest, change: Change | None, labels: Tensor | None) -> tuple[Found, ...]:
    found = []
    if change is not None and labels is not None and change.found[i]:
        what = f"class {change.decision[i]} instead of {labels[i]}, at a distance of {change.distance[i]:.4g}"
        found.append(Found("another decision", what, change.point[i].reshape(-1)))
    if steep.slope[i] > 0:
        what = f"the output changes by {steep.slope[i]:.4g} per unit of perturbation"
        found.append(Found("steepest point", what, steep.point[i].reshape(-1)))
    return tuple(found)


def _missing(i: int, change: Change | None, question: Question) -> str:
    if change is None or change.found[i]:
        return ""
    return f"No other decision was found within a distance of {question.max_radius:g}; that proves nothing beyond the radius."
