"""Points found near rows: inside the region, with the slope or decision that is said of them, never beyond a certified bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mlflow_lipschitz.certify import certified_radius, certify_lipschitz
from mlflow_lipschitz.certify.attained import Perturbations, nearest_change, steepest
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.propagation.interpreter import evaluate

NORMS = ["linf", "l2", "l1"]
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
DUALS = {"linf": 1, "l2": 2, "l1": np.inf}


def network(seed: int, outputs: int, inputs: int = 3) -> Graph:
    rng = np.random.default_rng(seed)
    builder = GraphBuilder()
    x = builder.add(ops.Input((inputs,)))
    hidden = builder.add(
        ops.Linear(ops.frozen_array(rng.normal(size=(8, inputs))), ops.frozen_array(rng.normal(size=8))), x
    )
    active = builder.add(ops.Elementwise("tanh"), hidden)
    return builder.build(builder.add(ops.Linear(ops.frozen_array(rng.normal(size=(outputs, 8)))), active))


def space(norm: str, inputs: int = 3) -> Perturbations:
    unit = np.array([1.0, 0.5, 2.0])[:inputs]
    return Perturbations(norm, unit, (np.full(inputs, -2.0), np.full(inputs, 2.0)))


def decisions(graph: Graph, points: np.ndarray) -> np.ndarray:
    out = evaluate(graph, points).numpy()
    return out.argmax(1) if out.shape[1] > 1 else (out[:, 0] > 0).astype(np.int64)


def gradient(graph: Graph, point: np.ndarray, output: int) -> np.ndarray:
    weights = [np.array(node.op.weight) for node in graph.nodes if isinstance(node.op, ops.Linear)]
    hidden = weights[0] @ point + np.array(graph.nodes[1].op.bias)  # type: ignore[attr-defined]
    return np.asarray(weights[1][output] * (1 - np.tanh(hidden) ** 2) @ weights[0])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(3))
def test_the_steepest_point_is_in_the_region_and_as_steep_as_said(norm: str, seed: int) -> None:
    graph, around = network(seed, 2), space(norm)
    points = np.random.default_rng(seed + 10).uniform(-1, 1, (4, 3))
    region = around.ball(torch.from_numpy(points), torch.full((4,), 0.3, dtype=torch.float64))
    found = steepest(graph, points, region, around, 1)
    bound = certify_lipschitz(graph, points, region, norm=norm, outputs=1, feature_scale=around.unit, device="cpu")
    distance = np.linalg.norm((found.point - points) / around.unit, ord=ORDERS[norm], axis=1)
    assert (distance <= 0.3 * (1 + 1e-9)).all()
    assert (found.slope <= bound.upper[:, 0]).all()
    for point, slope in zip(found.point, found.slope, strict=True):
        actual = np.linalg.norm(gradient(graph, point, 1) * around.unit, ord=DUALS[norm])
        assert slope <= actual * (1 + 1e-12)
        assert slope == pytest.approx(actual, rel=1e-6)


def test_of_several_differences_the_steepest_counts() -> None:
    graph, around = network(3, 3), space("linf")
    points = np.zeros((2, 3))
    region = around.ball(torch.from_numpy(points), torch.full((2,), 0.1, dtype=torch.float64))
    labels = decisions(graph, points)
    found = steepest(graph, points, region, around, "margin", labels)
    bound = certify_lipschitz(
        graph, points, region, outputs="margin", labels=labels, feature_scale=around.unit, device="cpu"
    )
    assert (found.slope <= bound.upper.max(1)).all()
    assert (found.slope >= bound.lower.max(1) * 0.9).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_another_decision_that_is_found_is_one_and_lies_beyond_the_certified_radius(norm: str, outputs: int) -> None:
    graph, around = network(outputs, outputs), space(norm)
    points = np.random.default_rng(0).uniform(-1, 1, (6, 3))
    labels = decisions(graph, points)
    found = nearest_change(graph, points, labels, around, within=2.0)
    assert found.found.any()
    certified = certified_radius(
        graph, points, labels, norm=norm, max_radius=2.0, feature_scale=around.unit, domain=around.domain, device="cpu"
    )
    distance = np.linalg.norm((found.point - points) / around.unit, ord=ORDERS[norm], axis=1)
    hit = found.found
    assert (decisions(graph, found.point)[hit] == found.decision[hit]).all()
    assert (found.decision[hit] != labels[hit]).all()
    assert (distance[hit] <= found.distance[hit]).all()
    assert (found.distance[hit] >= certified.radius[hit]).all()
    assert (np.abs(found.point) <= 2.0).all()
    assert np.isinf(found.distance[~hit]).all()


def line(weight: list[float], bias: float) -> Graph:
    builder = GraphBuilder()
    x = builder.add(ops.Input((len(weight),)))
    return builder.build(builder.add(ops.Linear(ops.frozen_array([weight]), ops.frozen_array([bias])), x))


@pytest.mark.parametrize(("norm", "distance"), [("linf", 0.25), ("l2", 1 / np.sqrt(10)), ("l1", 1 / 3)])
def test_the_nearest_change_of_a_line_is_found_at_its_distance(norm: str, distance: float) -> None:
    around = Perturbations(norm, np.ones(2), (np.full(2, -9.0), np.full(2, 9.0)))
    found = nearest_change(line([1.0, 3.0], 1.0), np.zeros((1, 2)), np.array([1]), around, within=3.0)
    assert found.found.all()
    assert found.decision.tolist() == [0]
    assert distance <= found.distance[0]
    assert found.distance[0] <= distance * (1.5 if norm == "l1" else 1.2)


def test_where_nothing_changes_nothing_is_found() -> None:
    around = Perturbations("linf", np.ones(2), (np.full(2, -9.0), np.full(2, 9.0)))
    found = nearest_change(line([0.1, 0.1], 5.0), np.zeros((1, 2)), np.array([1]), around, within=3.0)
    assert (found.found.tolist(), found.decision.tolist(), found.distance.tolist()) == ([False], [1], [np.inf])
    assert (found.point == 0).all()
