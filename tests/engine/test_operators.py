"""Every operator row, as a small network: values, derivatives and norms stay inside their bounds, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlflow_lipschitz.certify import certify_lipschitz, certify_monotonicity
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes, refine_node
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.engine.rules.elementwise import supported_curve
from tests import cases, properties
from tests.engine.test_curves import ROWS
from tests.exact import value_and_jacobian

seeds = st.integers(0, 2**32 - 1)
radii = st.sampled_from(cases.RADII)
rows = pytest.mark.parametrize("name", cases.CASES)
differentiable_rows = pytest.mark.parametrize("name", cases.DIFFERENTIABLE)


def inside(box: Box, row: int, seed: int, count: int = 6) -> np.ndarray:
    lower, upper = box.lower[row].numpy(), box.upper[row].numpy()
    return cases.points_of(np.random.default_rng(seed), lower, upper, count)


@rows
@given(seed=seeds, radius=radii)
def test_values_lie_within_their_intervals(name: str, seed: int, radius: float) -> None:
    graph, points = cases.draw(name, seed)
    box = Box.around(points, radius)
    problem = Problem.of(graph, box)
    with torch.no_grad():
        plain = bound_nodes(problem, None)[graph.output].interval
        bounds = bound_nodes(problem, Refinement(7))
        tight = refine_node(problem, bounds, graph.output, Refinement(7))
    slack = 1e-12 * (1 + plain.magnitude)  # of tightness, not of soundness: tighter inputs may round a last digit up
    assert bool((tight.upper <= plain.upper + slack).all() and (tight.lower >= plain.lower - slack).all())
    for row in range(len(points)):
        for point in inside(box, row, seed):
            properties.values_lie_within(graph, tight.lower[row, 0].numpy(), tight.upper[row, 0].numpy(), point)


@differentiable_rows
@given(seed=seeds, radius=radii)
def test_derivatives_lie_within_their_bounds(name: str, seed: int, radius: float) -> None:
    graph, points = cases.draw(name, seed)
    box = Box.around(points, radius)
    certificate = certify_monotonicity(graph, points, box, output=1, device="cpu")
    for row in range(len(points)):
        for point in (points[row], *inside(box, row, seed)):
            properties.derivatives_lie_within(graph, certificate, row, point)


@differentiable_rows
@given(seed=seeds, radius=radii, norm=st.sampled_from(["linf", "l2", "l1"]))
def test_lipschitz_constants_are_not_exceeded(name: str, seed: int, radius: float, norm: str) -> None:
    graph, points = cases.draw(name, seed)
    box = Box.around(points, radius)
    certificate = certify_lipschitz(graph, points, box, norm=norm, device="cpu")
    assert not np.isnan(certificate.upper).any()
    assert (certificate.lower <= certificate.upper).all()
    for row in range(len(points)):
        for point in (points[row], *inside(box, row, seed)):
            properties.lipschitz_is_not_exceeded(graph, certificate, row, point)


@differentiable_rows
@given(seed=seeds)
def test_evaluation_and_derivative_are_the_exact_ones_at_smooth_points(name: str, seed: int) -> None:
    graph, points = cases.draw(name, seed)
    point = points[0] + np.random.default_rng(seed).random(graph.input_shape) / 64
    values, jacobian = value_and_jacobian(graph, point)
    np.testing.assert_allclose(evaluate(graph, point[None])[0].numpy(), values.astype(float), rtol=1e-9, atol=1e-12)
    certificate = certify_monotonicity(graph, point[None], Box(point[None], point[None]), output=0, device="cpu")
    slopes = jacobian[0].astype(float).reshape(graph.input_shape)
    np.testing.assert_allclose(certificate.lower[0], slopes, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(certificate.upper[0], slopes, rtol=1e-9, atol=1e-9)


MODEL_CURVES = {name for name, parameters in ROWS if supported_curve(ops.Elementwise(name, parameters))}


def test_every_op_that_a_model_can_hold_has_a_case() -> None:
    from mlflow_lipschitz.engine.rules.registry import RULES

    graphs = [build(np.random.default_rng(0)) for build in cases.CASES.values()]
    held = {type(node.op) for graph in graphs for node in graph.nodes}
    # A Remainder arises in the Jacobian of a Maximum, never in a model.
    assert set(RULES) - held == {ops.Remainder}
    curves = [node.op for g in graphs for node in g.nodes if isinstance(node.op, ops.Elementwise)]
    assert {op.curve for op in curves if supported_curve(op)} >= MODEL_CURVES
