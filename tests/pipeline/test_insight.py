"""The figures of a report, from real bounds of small graphs; and the reasons where there are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.gate.table import BoundsTable
from mlflow_lipschitz.gate.verdict import Verdict, judge
from mlflow_lipschitz.pipeline import insight as module
from mlflow_lipschitz.pipeline.baseline import Baseline
from mlflow_lipschitz.pipeline.insight import (
    Audited,
    comparison,
    insight_of,
    layers,
    radius_curve,
    responses,
    sensitivities,
)
from mlflow_lipschitz.pipeline.measure import MeasureOptions, measure
from mlflow_lipschitz.pipeline.question import question_of
from mlflow_lipschitz.pipeline.row_bounds import table_columns
from mlflow_lipschitz.pipeline.worst_rows import ranking
from mlflow_lipschitz.policy import load_policy
from mlflow_lipschitz.report.insight import BROKEN, PROVED, Absent
from mlflow_lipschitz.rows import AuditedRows

POLICY = """
apiVersion: mlflow-lipschitz/v1
kind: AuditPolicy
metadata: {{name: small, version: 1}}
model: {{output: {output}}}
inputs: {{points: {{stratify: {stratify}}}, domain: {{a: [-5, 5]}}}}
perturbation: {{norm: linf, radius: 0.25}}
engine: {{budget_per_point_s: null}}
checks:
{checks}
"""
UP = (
    "  - {id: up, type: monotone, feature: b, direction: increasing}\n  - {id: steady, type: lipschitz_at_most, max: 5}"
)
HOLDS = "  - {id: holds, type: radius_at_least, min: 0.1}"


def kink() -> Graph:
    """f(a, b) = 2a + |b|: rises with b only where b > 0."""
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    hidden = builder.add(ops.Linear(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])), x, name="split")
    active = builder.add(ops.Elementwise("relu"), hidden)
    return builder.build(builder.add(ops.Linear(np.array([[2.0, -2.0, 1.0, 1.0]])), active, name="sum"))


def classes() -> Graph:
    """Two classes: the first where a > b."""
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    return builder.build(builder.add(ops.Linear(np.eye(2)), x))


def audited(
    directory: Path, graph: Graph, points: list[tuple[float, float]], checks: str, output: str = "0", **more: object
) -> Audited:
    policy = load_policy(POLICY.format(output=output, checks=checks, stratify=more.pop("stratify", "null")))
    array = np.array(points, dtype=np.float64)
    ids = np.array([f"p{i}" for i in range(len(array))])
    rows = replace(AuditedRows(array, ("a", "b"), ids, array.std(axis=0)), **more)  # type: ignore[arg-type]
    names = tuple(f"y{i}" for i in range(graph.output_shape[0]))
    question = question_of(policy, rows, names)
    arrays = measure(graph, rows, question, directory, MeasureOptions())
    table = BoundsTable.from_columns(*table_columns(rows, question, arrays))
    return Audited(graph, rows, question, arrays, table, policy)


def verdict_of(found: Audited) -> Verdict:
    return judge(found.table, found.policy, expected_points=len(found.rows), seconds_total=1.0)


POINTS = [(2.0, 2.0), (1.0, -3.0), (0.5, 1.0)]


def test_every_figure_of_a_blocked_model_is_there(tmp_path: Path) -> None:
    found = audited(tmp_path, kink(), POINTS, UP)
    insight = insight_of(found, verdict_of(found), Baseline(), {}, "cpu")
    assert isinstance(insight.radius_curve, Absent)
    assert isinstance(insight.comparison, Absent)
    assert not isinstance(insight.responses, Absent)
    assert not isinstance(insight.worst, Absent)
    assert not isinstance(insight.layers, Absent)
    assert insight.worst[0].point_id == "p1"  # the row that the failing check names
    assert insight.worst[0].found[0].kind == "steepest point"
    assert insight.worst[0].lower == pytest.approx(3.0)
    assert [layer.name for layer in insight.layers.layers] == ["split", "sum"]
    assert insight.image is None


def test_the_response_is_the_functions_and_says_what_is_proved(tmp_path: Path) -> None:
    found = responses(audited(tmp_path, kink(), POINTS, UP))
    assert not isinstance(found, Absent)
    response = found["up"]
    a = np.array([p[0] for p in POINTS])
    np.testing.assert_allclose(response.mean, np.mean(2 * a) + np.abs(response.grid))
    assert response.state.tolist() == [PROVED, BROKEN, PROVED]
    assert (response.grid[0], response.grid[-1]) == (-3.25, 2.25)
    shown = {tuple(span): tuple(out) for span, out in zip(response.spans, response.outputs, strict=True)}
    assert shown[(-3.25, -3.0, -2.75)] == pytest.approx((5.25, 5.0, 4.75))
    assert (response.low <= response.high).all()


def test_many_rows_are_thinned_with_the_broken_ones_first(tmp_path: Path) -> None:
    points = [(0.0, float(b)) for b in np.linspace(1.0, 9.0, 150)] + [(0.0, -4.0)]
    found = responses(audited(tmp_path, kink(), points, UP))
    assert not isinstance(found, Absent)
    response = found["up"]
    assert (len(response.at), len(response.spans), response.averaged) == (151, module.SPANS, module.AVERAGED_ROWS)
    assert response.span_state[0] == BROKEN


def test_sensitivities_are_sorted_by_what_a_perturbation_moves(tmp_path: Path) -> None:
    found = sensitivities(audited(tmp_path, kink(), POINTS, UP))
    assert not isinstance(found, Absent)
    assert [f.feature for f in found] == ["a", "b"]
    assert [f.upper for f in found] == pytest.approx([2.0, 1.0])
    assert all(f.lower <= f.upper for f in found)


def test_the_radius_curve_falls_from_all_rows_to_none(tmp_path: Path) -> None:
    points = [(1.0, 0.0), (0.0, 0.5), (0.3, 0.2)]
    curve = radius_curve(audited(tmp_path, classes(), points, HOLDS, output="margin"))
    assert not isinstance(curve, Absent)
    # The decision changes where both entries meet: half the distance of the two.
    exact = [np.mean([r <= abs(a - b) / 2 for a, b in points]) for r in curve.radii]
    assert (curve.certified <= exact).all()
    assert curve.certified[0] == 1.0
    assert (np.diff(curve.certified) <= 0).all()
    assert curve.right is None
    assert curve.labels.startswith("No labels are known")
    assert 0.1 in curve.radii


@pytest.mark.parametrize(
    ("labels", "accuracy", "told"),
    [
        ([0, 1, 1], 2 / 3, "Accuracy is counted against column 'y'"),
        (["x", "y", "z"], None, "holds no class indices"),
        ([0, 1, 5], None, "something else than class indices 0 to 1"),
        ([0.5, 1, 0], None, "something else than class indices"),
    ],
)
def test_accuracy_is_told_only_of_labels(
    tmp_path: Path, labels: list[object], accuracy: float | None, told: str
) -> None:
    points = [(1.0, 0.0), (0.0, 0.5), (0.3, 0.2)]
    found = audited(tmp_path, classes(), points, HOLDS, output="margin", labels=np.array(labels), stratify="y")
    curve = radius_curve(found)
    assert not isinstance(curve, Absent)
    assert told in curve.labels
    assert curve.accuracy == (None if accuracy is None else pytest.approx(accuracy))
    if curve.right is not None:
        assert (curve.right <= curve.certified).all()
        assert curve.right[0] == pytest.approx(accuracy)


def test_a_feature_that_rows_are_drawn_by_is_no_label(tmp_path: Path) -> None:
    found = audited(
        tmp_path, classes(), [(1.0, 0.0), (0.0, 1.0)], HOLDS, output="margin", labels=np.array([0, 1]), stratify="a"
    )
    curve = radius_curve(found)
    assert not isinstance(curve, Absent)
    assert curve.accuracy is None
    assert "is an input of the model" in curve.labels


def test_a_margin_has_no_sensitivity_and_finds_other_decisions(tmp_path: Path) -> None:
    found = audited(tmp_path, classes(), [(1.0, 0.5), (0.0, 3.0)], HOLDS, output="margin")
    insight = insight_of(found, verdict_of(found), Baseline(), {}, "cpu")
    assert isinstance(insight.sensitivities, Absent)
    assert "margin" in insight.sensitivities.reason
    assert not isinstance(insight.worst, Absent)
    rows = {row.point_id: row for row in insight.worst}
    assert rows["p0"].found[0].kind == "another decision"
    assert rows["p1"].missing.startswith("No other decision was found within a distance of 1")
    assert rows["p0"].radius is not None
    assert rows["p0"].radius <= 0.25


def test_a_figure_that_fails_has_its_reason_and_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    found = audited(tmp_path, kink(), POINTS, UP)
    monkeypatch.setattr(module, "layer_facts", broken)
    insight = insight_of(found, verdict_of(found), Baseline(), {}, "cpu")
    assert isinstance(insight.layers, Absent)
    assert insight.layers.reason == "it could not be computed: MemoryError: no room"
    assert not isinstance(insight.worst, Absent)


def test_deep_models_show_the_layers_that_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAYERS", 1)
    found = layers(audited(tmp_path, kink(), [(0.0, 0.1)], UP), "cpu")
    assert (len(found.layers), found.total, found.rows) == (1, 2, 1)
    assert found.layers[0].name == "split"


def test_rows_are_ranked_named_ones_first_then_the_worst(tmp_path: Path) -> None:
    found = audited(tmp_path, kink(), POINTS, UP)
    order = ranking(found.question, found.table, verdict_of(found))
    assert sorted(order) == [0, 1, 2]
    assert order[0] == 1


def test_the_baseline_is_compared_figure_by_figure(tmp_path: Path) -> None:
    policy = audited(tmp_path, kink(), POINTS, UP).policy
    named = policy.model_copy(update={"model": policy.model.model_copy(update={"baseline": "models:/m@champion"})})
    bounds = {"lipschitz/upper_max": 4.0, "lipschitz/radius_median": 0.5, "lipschitz/certified_fraction": 1.0}
    now = {"lipschitz/upper_max": 3.0, "lipschitz/radius_median": 0.4, "lipschitz/certified_fraction": 1.0}
    found = comparison(named, Baseline(bounds=bounds), now)
    assert not isinstance(found, Absent)
    assert {f.metric: f.better for f in found.figures} == {
        "lipschitz/upper_max": True,
        "lipschitz/radius_median": False,
        "lipschitz/certified_fraction": None,
    }
    problem = comparison(named, Baseline(problem="nobody vouches"), now)
    assert problem == Absent("nobody vouches")
    assert isinstance(comparison(policy, Baseline(), now), Absent)


@pytest.mark.parametrize(
    ("shape", "image"),
    [
        ((8, 8), (1, 8, 8)),
        ((3, 16, 16), (3, 16, 16)),
        ((10,), None),
        ((5, 8, 8), None),
        ((1, 64, 64), None),
        ((3, 2), None),
    ],
)
def test_what_can_be_drawn_as_a_picture(shape: tuple[int, ...], image: tuple[int, int, int] | None) -> None:
    assert module._image(shape) == image
