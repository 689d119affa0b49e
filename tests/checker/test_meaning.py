"""The checker's bounds of every operator hold exactly: values and derivatives that are met lie inside, in either arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_lipschitz.checker.arithmetic import FLOATS, Arithmetic
from mlflow_lipschitz.checker.derivation import DUAL, Subject, derivative_range, lipschitz_upper
from mlflow_lipschitz.checker.propagation import Problem, bound_entries, bound_nodes
from mlflow_lipschitz.checker.regions import Region
from mlflow_lipschitz.engine.ir.graph import Graph
from tests import cases
from tests.exact import is_smooth, node_values, number, value_and_jacobian

RADIUS = 0.25
EVERYWHERE = (-np.inf, np.inf)


def stated(points: np.ndarray, radius: float) -> dict[str, np.ndarray]:
    one = np.ones(points.shape[1:])
    ends = {"domain_lower": -np.inf * one, "domain_upper": np.inf * one}
    return {"points": points, "radius_per_feature": radius * one, "feature_scale": 0.5 * one, **ends}


def met(points: np.ndarray, norm: str, row: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Inputs of a region: its point, and others most of which are at its boundary."""
    steps = rng.integers(-4, 5, (3, *points.shape[1:])) / 4.0
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    size = np.array([max(1.0, float(np.linalg.norm(step.ravel(), order))) for step in steps])
    steps = steps / size.reshape(-1, *(1,) * (steps.ndim - 1)) * (1 - 2.0**-40)
    return [points[row], *(points[row] + RADIUS * steps)]


def drawn(name: str) -> tuple[Graph, np.ndarray]:
    graph, points = cases.draw(name, 3)
    return graph, points[:2]


@pytest.mark.parametrize("name", cases.CASES)
def test_every_node_of_every_operator_lies_within_its_range(name: str) -> None:
    graph, points = drawn(name)
    region = Region.around(points, RADIUS, "linf", EVERYWHERE)
    problem, rng = Problem(graph, region, None), np.random.default_rng(0)
    with np.errstate(all="ignore"):
        bounds, _ = bound_nodes(problem, None)
        last = bound_entries(problem)
    for row in range(len(points)):
        for place in met(points, "linf", row, rng):
            values = node_values(graph, place)
            for index, node in bounds.items():
                assert (node.lower[row].ravel() <= values[index]).all() and (
                    values[index] <= node.upper[row].ravel()
                ).all()
            assert (last[0][row].ravel() <= values[graph.output]).all()
            assert (values[graph.output] <= last[1][row].ravel()).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", cases.DIFFERENTIABLE)
def test_every_derivative_and_norm_lies_within_its_bounds(name: str, norm: str) -> None:
    graph, points = drawn(name)
    subject, asked, rng = Subject(graph, norm, 1), stated(points, RADIUS), np.random.default_rng(1)
    with np.errstate(all="ignore"):
        low, high = derivative_range(subject, asked)
        upper = lipschitz_upper(subject, asked)
    exact = number(graph)
    for row in range(len(points)):
        for place in met(points, norm, row, rng):
            gradient = value_and_jacobian(graph, place)[1][1]
            assert (low[row] <= gradient).all() and (gradient <= high[row]).all()
            sizes = [abs(entry) / 2 for entry in gradient]
            if np.isinf(upper[row]):
                continue
            if DUAL[norm] == "l2":
                assert sum(entry * entry for entry in sizes) <= exact(float(upper[row])) ** 2
            else:
                assert (sum(sizes) if norm == "linf" else max(sizes)) <= exact(float(upper[row]))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", [name for name in cases.DIFFERENTIABLE if not is_smooth(cases.draw(name, 3)[0])])
def test_rationals_lead_to_bounds_that_are_no_looser(name: str, norm: str) -> None:
    graph, points = drawn(name)
    asked = stated(points, RADIUS)
    with np.errstate(all="ignore"):
        floats = lipschitz_upper(Subject(graph, norm, 1, FLOATS), asked)
        rationals = lipschitz_upper(Subject(graph, norm, 1, Arithmetic(True)), asked)
    assert (rationals <= floats).all()
    # Rounding errors are small: bounds in float64 say about the same.
    assert (floats <= rationals * (1 + 1e-9) + 1e-12).all()
