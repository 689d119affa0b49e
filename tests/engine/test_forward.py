"""Forward linear propagation: the same properties as without it, over the whole table of operators; and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlflow_lipschitz.engine.domains.region import Box, LpBall
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.propagation import plan
from mlflow_lipschitz.engine.propagation.forward import ForwardSweep
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.transforms.objectives import gradient_graph
from tests import cases, properties

seeds = st.integers(0, 2**32 - 1)
rows = pytest.mark.parametrize("name", cases.CASES)


@pytest.fixture(autouse=True)
def everything_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """No backward pass for smooth entries is affordable, and any graph is worth linear forms."""
    monkeypatch.setattr(plan, "_AFFORDABLE_ROWS", -1)
    monkeypatch.setattr(plan, "_LOOSE_ROWS", 8)


@rows
@given(seed=seeds, radius=st.sampled_from(cases.RADII), norm=st.sampled_from([None, 1, 2]))
def test_values_lie_within_their_intervals(name: str, seed: int, radius: float, norm: int | None) -> None:
    graph, points = cases.draw(name, seed)
    region = Box.around(points, radius) if norm is None else LpBall(points, radius, norm)
    problem = Problem.of(graph, region)
    with torch.no_grad():
        plain = bound_nodes(problem, None)[graph.output].interval
        tight = bound_nodes(problem, Refinement(7))[graph.output].interval
    assert bool((tight.upper <= plain.upper).all() and (tight.lower >= plain.lower).all())
    lower, upper = region.box.lower.numpy(), region.box.upper.numpy()
    for row in range(len(points)):
        for point in cases.points_of(np.random.default_rng(seed), lower[row], upper[row], 6):
            if norm is None or np.linalg.norm((point - points[row]).reshape(-1), norm) <= radius:
                properties.values_lie_within(graph, tight.lower[row, 0].numpy(), tight.upper[row, 0].numpy(), point)


@rows
@given(seed=seeds, radius=st.sampled_from(cases.RADII))
def test_derivatives_lie_within_their_bounds(name: str, seed: int, radius: float) -> None:
    from mlflow_lipschitz.certify import certify_monotonicity

    graph, points = cases.draw(name, seed)
    if any(isinstance(node.op, ops.Rounding) for node in graph.nodes):
        return
    box = Box.around(points, radius)
    certificate = certify_monotonicity(graph, points, box, output=1, device="cpu")
    for row in range(len(points)):
        inside = cases.points_of(np.random.default_rng(seed), box.lower[row].numpy(), box.upper[row].numpy(), 6)
        for point in (points[row], *inside):
            properties.derivatives_lie_within(graph, certificate, row, point)


def chain(layers: int) -> Graph:
    """Rotations with a smooth curve between them: intervals grow with every layer, linear forms hardly."""
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    turn = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    for _ in range(layers):
        x = builder.add(ops.Elementwise("sin"), builder.add(ops.Linear(ops.frozen_array(turn)), x))
    return builder.build(builder.add(ops.Linear(ops.frozen_array(turn)), x))


def test_forms_follow_the_input_through_many_layers() -> None:
    graph, points = chain(12), np.array([[0.3, -0.2]])
    problem = Problem.of(graph, Box.around(points, 1e-3))
    with torch.no_grad():
        plain, got = (bound_nodes(problem, r)[graph.output].interval for r in (None, Refinement(8)))
    assert float((got.upper - got.lower).max()) < 0.2 * float((plain.upper - plain.lower).max())


def test_the_form_of_a_linear_graph_is_the_graph() -> None:
    weight = np.array([[1.0, -2.0], [0.5, 4.0]])
    builder = GraphBuilder()
    x = builder.add(ops.Linear(ops.frozen_array(weight)), builder.add(ops.Input((2,))))
    graph = builder.build(builder.add(ops.Linear(ops.frozen_array(weight)), x))
    sweep = ForwardSweep(Problem.of(graph, Box([[-1.0, -1.0]], [[1.0, 1.0]])))
    sweep.start(0)
    bounds = bound_nodes(Problem.of(graph, Box([[-1.0, -1.0]], [[1.0, 1.0]])), None)
    for index in (1, 2):
        sweep.advance(index, bounds[index - 1].interval)
    got = sweep.interval(2)
    reach = np.abs(weight @ weight).sum(1)
    assert np.all(got.upper.numpy()[0, 0] >= reach) and np.all(got.lower.numpy()[0, 0] <= -reach)
    np.testing.assert_allclose(got.upper.numpy()[0, 0], reach, rtol=1e-12)


def test_narrow_nodes_are_refined_first_and_wide_ones_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = gradient_graph(chain(3))
    monkeypatch.setattr(plan, "_AFFORDABLE_ROWS", 10_000)
    assert not plan.plan_of(graph, frozenset()).forward
    monkeypatch.setattr(plan, "_AFFORDABLE_ROWS", 3)
    monkeypatch.setattr(plan, "_LOOSE_ROWS", 4)
    made = plan.plan_of(graph, frozenset())
    assert made.forward and made.left_out
    monkeypatch.setattr(plan, "_LARGEST_FORM", 1)
    assert not plan.plan_of(graph, frozenset()).forward
