"""The figures of a report that the bounds table does not hold, computed from the graph on a few rows.

Nothing is judged by them: where one cannot be computed, the report says why, and the audit goes on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mlflow_lipschitz.certify.attained import Perturbations
from mlflow_lipschitz.certify.layers import layer_facts
from mlflow_lipschitz.engine.ir.graph import Graph
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.gate.figures import REGRESSIONS
from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.gate.verdict import Verdict
from mlflow_lipschitz.pipeline.baseline import Baseline
from mlflow_lipschitz.pipeline.measure import Arrays
from mlflow_lipschitz.pipeline.question import MonotoneQuestion, Question
from mlflow_lipschitz.pipeline.worst_rows import worst_rows
from mlflow_lipschitz.policy import AuditPolicy
from mlflow_lipschitz.report.insight import (
    BROKEN,
    OPEN,
    PROVED,
    Absent,
    Compared,
    Comparison,
    Insight,
    LayerTable,
    RadiusCurve,
    Response,
    Sensitivity,
)
from mlflow_lipschitz.rows import AuditedRows

AVERAGED_ROWS, GRID, SPANS = 64, 33, 40
LAYER_ROWS, LAYERS = 16, 40
SENSITIVITIES = 24
RADII = 101

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Audited:
    """What was measured, all in one: the arguments of every figure."""

    graph: Graph
    rows: AuditedRows
    question: Question
    arrays: Arrays
    table: BoundsTable
    policy: AuditPolicy


def insight_of(
    audited: Audited, verdict: Verdict, baseline: Baseline, metrics: Mapping[str, float], device: str = "auto"
) -> Insight:
    """Every figure, or the reason why there is none."""
    question, shape = audited.question, audited.rows.input_shape
    perturbations = Perturbations(question.norm, question.unit, question.domain)
    return Insight(
        radius_curve=_or_absent(lambda: radius_curve(audited)),
        responses=_or_absent(lambda: responses(audited)),
        sensitivities=_or_absent(lambda: sensitivities(audited)),
        worst=_or_absent(
            lambda: worst_rows(audited.graph, audited.rows, question, audited.table, (verdict, perturbations))
        ),
        comparison=comparison(audited.policy, baseline, metrics),
        layers=_or_absent(lambda: layers(audited, device)),
        feature_names=audited.rows.feature_names,
        image=_image(shape),
    )


def _or_absent(work: Callable[[], T | Absent]) -> T | Absent:
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - a figure decides nothing: an audit must not fail for want of one
        _log.warning("a figure of the report could not be computed", exc_info=True)
        return Absent(f"it could not be computed: {type(error).__name__}: {error}")


def _image(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(channels, height, width) where the input looks like an image of a size that can be drawn."""
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= 4 and max(shape[1:]) <= 32:
        return (shape[0], shape[1], shape[2])
    return None


def radius_curve(audited: Audited) -> RadiusCurve | Absent:
    """The certified fraction against the radius, from the table's radii alone."""
    if audited.question.max_radius is None:
        return Absent("no check asks for a radius, and the judged output is no decision (model.output: margin)")
    radius = audited.table.columns["radius"]
    largest = float(radius.max(initial=0.0))
    steps = np.linspace(0.0, largest or audited.question.max_radius, RADII)
    asked = [check.min for check in audited.policy.checks if check.type == "radius_at_least"]
    radii = np.unique(np.concatenate([steps, [r for r in (*asked, audited.question.size) if r <= 2 * steps[-1]]]))
    # At radius 0 a decision counts only where some radius is certified at all.
    held = (radius[:, None] >= radii) & (radius[:, None] > 0)
    right, told = _decided_rightly(audited)
    return RadiusCurve(
        radii=radii,
        certified=held.mean(axis=0),
        right=None if right is None else (held & right[:, None]).mean(axis=0),
        accuracy=None if right is None else float(right.mean()),
        labels=told,
    )


def _decided_rightly(audited: Audited) -> tuple[np.ndarray | None, str]:
    """(P,) whether the decision is the row's label, if the labels can be told; and where they are from, or why not."""
    labels, column = audited.rows.labels, audited.policy.inputs.points.stratify
    if labels is None:
        return None, "No labels are known: inputs.points.stratify names no column of labels."
    name = f"column {column!r}" if column else "the labels in the data"
    if column in audited.rows.feature_names:
        return None, f"No accuracy: {name}, which the rows are drawn by, is an input of the model and no label."
    classes = max(2, math.prod(audited.graph.output_shape))
    try:
        numbers = np.asarray(labels, dtype=np.float64)
    except (TypeError, ValueError):
        return None, f"No accuracy: {name} holds no class indices."
    if not np.isin(numbers, np.arange(classes)).all():
        return None, f"No accuracy: {name} holds something else than class indices 0 to {classes - 1}."
    return numbers == audited.arrays["labels"], f"Accuracy is counted against {name}."


def responses(audited: Audited) -> dict[str, Response] | Absent:
    """Partial dependence of every feature with a `monotone` check, by check id."""
    if not audited.question.monotone:
        return Absent("no check asks for a direction (type: monotone)")
    return {asked.check_id: _response(audited, i, asked) for i, asked in enumerate(audited.question.monotone)}


def _response(audited: Audited, position: int, asked: MonotoneQuestion) -> Response:
    rows, question, index = audited.rows, audited.question, asked.feature
    points = rows.points.reshape(len(rows), -1)
    low, high = (end.reshape(-1)[index] for end in question.domain)
    at, reach = points[:, index], float(question.radius.reshape(-1)[index])
    proved = audited.table.proved_monotone(rows.feature_names[index], asked.direction)
    state = np.where(audited.arrays[f"violation_{position}"], BROKEN, np.where(proved, PROVED, OPEN))
    grid = np.linspace(max(at.min() - reach, low), min(at.max() + reach, high), GRID)
    order = np.argsort(at, kind="stable")
    averaged = order[_spread(len(order), AVERAGED_ROWS)]
    curves = _moved(audited, averaged, index, np.broadcast_to(grid, (len(averaged), GRID)))
    # Rows at which the direction is wrong come first: they are what a reader looks for.
    broken = order[state[order] == BROKEN]
    chosen = broken[_spread(len(broken), SPANS // 2)]
    others = order[~np.isin(order, chosen)]
    chosen = np.concatenate([chosen, others[_spread(len(others), SPANS - len(chosen))]])
    ends = at[chosen, None] + reach * np.array([-1.0, 0.0, 1.0])
    spans = np.clip(ends, low, high)
    return Response(
        feature=rows.feature_names[index],
        direction=asked.direction,
        grid=grid,
        mean=curves.mean(axis=0),
        low=np.quantile(curves, 0.1, axis=0),
        high=np.quantile(curves, 0.9, axis=0),
        averaged=len(averaged),
        at=at,
        state=state,
        spans=spans,
        outputs=_moved(audited, chosen, index, spans),
        span_state=state[chosen],
    )


def _moved(audited: Audited, chosen: np.ndarray, index: int, values: np.ndarray) -> np.ndarray:
    """(rows, values) the judged output of the `chosen` rows with one entry set to each of (rows, values)."""
    rows = audited.rows
    points = np.repeat(rows.points.reshape(len(rows), -1)[chosen], values.shape[1], axis=0)
    points[:, index] = values.reshape(-1)
    output = evaluate(audited.graph, points.reshape(-1, *rows.input_shape)).flatten(1)
    assert isinstance(audited.question.output, int)  # a margin has no monotone checks
    return output[:, audited.question.output].numpy().reshape(values.shape)


def _spread(total: int, most: int) -> np.ndarray:
    """At most `most` positions, evenly over `total`, both ends among them."""
    return np.unique(np.linspace(0, max(total - 1, 0), min(total, most)).round().astype(int))[:total]


def sensitivities(audited: Audited) -> tuple[Sensitivity, ...] | Absent:
    """The features the output reacts to most, per unit of perturbation; those that do not move come last."""
    if audited.question.output == "margin":
        return Absent("a margin is the smallest of several differences and has no single derivative in a feature")
    columns, names = audited.table.columns, audited.table.feature_names
    if not names:
        return Absent("the model has more than 64 inputs and no check names one")
    unit = dict(zip(audited.rows.feature_names, audited.question.unit.reshape(-1).tolist(), strict=True))
    found = [
        Sensitivity(
            name,
            float(columns[f"sensitivity_upper:{name}"].max()),
            float(columns[f"sensitivity_lower:{name}"].max()),
            unit[name],
        )
        for name in names
    ]
    return tuple(sorted(found, key=lambda s: (s.unit == 0, -s.upper * s.unit if s.unit else -s.upper))[:SENSITIVITIES])


def layers(audited: Audited, device: str) -> LayerTable:
    """Norms and unstable shares of the layers; of a deep model those with the most unstable units and largest norms."""
    order = np.argsort(audited.table.columns["lipschitz_upper"], kind="stable")
    chosen = np.sort(order[_spread(len(order), LAYER_ROWS)])
    found = layer_facts(audited.graph, audited.question.region(audited.rows.points[chosen]), device=device)
    ranked = sorted(range(len(found)), key=lambda i: (-(found[i].unstable or 0.0), -(found[i].norm or 0.0)))
    shown = tuple(found[i] for i in sorted(ranked[:LAYERS]))
    return LayerTable(shown, len(found), len(chosen))


def comparison(policy: AuditPolicy, baseline: Baseline, metrics: Mapping[str, float]) -> Comparison | Absent:
    """The attested figures of the baseline beside this audit's."""
    if policy.model.baseline is None:
        return Absent("the policy names no baseline (model.baseline)")
    if baseline.problem:
        return Absent(baseline.problem)
    if not baseline.bounds:
        return Absent("no check compares with the baseline (type: no_regression)")
    figures = []
    for what in REGRESSIONS.values():
        theirs, now = baseline.bounds.get(what.metric), metrics.get(what.metric)
        if theirs is None and now is None:
            continue
        known = theirs is not None and now is not None and theirs != now
        better = ((now > theirs) == what.larger_is_better) if known and now is not None and theirs is not None else None
        figures.append(Compared(what.metric, theirs, now, better))
    return Comparison(policy.model.baseline, tuple(figures))
