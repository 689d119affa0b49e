"""Models that round their activations: values within half a step, radii through the margin alone, no slope at all."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlflow_lipschitz.certify import certified_radius, certify_lipschitz, certify_monotonicity, find_violation
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.domains.rounding import next_down, next_up
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem
from mlflow_lipschitz.errors import UnsupportedOperator

TINY = 5e-324


def rounded(step: Any, inputs: int = 1) -> Graph:
    builder = GraphBuilder()
    op = ops.Rounding(ops.frozen_array(step))
    return builder.build(builder.add(op, builder.add(ops.Input((inputs,))), name="q"))


def test_ties_go_to_the_even_multiple() -> None:
    x = np.array([[0.25], [0.75], [1.25], [-0.25], [-0.75], [0.3]])
    assert evaluate(rounded(0.5), x)[:, 0].tolist() == [0.0, 1.0, 1.0, 0.0, -1.0, 0.5]


def test_a_step_per_entry() -> None:
    assert evaluate(rounded([0.5, 4.0, 0.125], 3), [[1.3, 1.3, 1.3]])[0].tolist() == [1.5, 0.0, 1.25]


@given(
    step=st.one_of(st.sampled_from([TINY, 3 * TINY, 0.1, 1e300]), st.floats(1e-3, 1e3)),
    ends=st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)),
)
def test_the_interval_holds_half_a_step_more_on_either_side(step: float, ends: tuple[float, float]) -> None:
    low, high = sorted(ends)
    with torch.no_grad():
        got = bound_nodes(Problem.of(rounded(step), Box([[low]], [[high]])), None)[-1].interval
    assert Fraction(float(got.lower)) <= Fraction(low) - Fraction(step) / 2
    assert Fraction(float(got.upper)) >= Fraction(high) + Fraction(step) / 2


def test_a_linear_form_follows_the_value_through_the_rounding() -> None:
    # x - round(x) is within half a step wherever x is; as intervals alone it is as wide as the box.
    builder = GraphBuilder()
    x = builder.add(ops.Input((1,)))
    q = builder.add(ops.Rounding(ops.frozen_array(0.5)), x)
    rest = builder.add(ops.Add(), x, builder.add(ops.ScaleShift(scale=ops.frozen_array(-1.0)), q))
    graph = builder.build(builder.add(ops.Elementwise("relu"), rest))
    with torch.no_grad():
        got = bound_nodes(Problem.of(graph, Box([[-5.0]], [[5.0]])), Refinement(8))
    assert 0.25 <= float(got[graph.output].interval.upper) < 0.26


@pytest.mark.parametrize("step", [0.0, -1.0, np.inf, np.nan])
def test_a_step_that_is_no_step_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match="step"):
        rounded(step)


def test_steps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="step"):
        rounded([0.5, 0.5], 1)


def quantized_classifier(step: float) -> Graph:
    """Two classes, told apart by the sign of x₀ + x₁, through a rounded hidden layer."""
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    hidden = builder.add(ops.Rounding(ops.frozen_array(step)), builder.add(ops.Elementwise("relu"), _mixed(builder, x)))
    return builder.build(builder.add(ops.Linear(np.array([[1.0, -1.0], [-1.0, 1.0]])), hidden))


def _mixed(builder: GraphBuilder, x: int) -> int:
    return builder.add(ops.Linear(np.array([[1.0, 1.0], [-1.0, -1.0]])), x)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_radii_come_from_the_margin(norm: str) -> None:
    step = 0.125
    got = certified_radius(quantized_classifier(step), [[1.0, 1.0], [1.0, 1.0]], [0, 1], norm=norm, device="cpu")
    assert got.status.tolist() == ["certified", "violated"]
    # Unrounded, class 0 wins while x₀ + x₁ > 0: 1 away (l∞), √2 (l2) or 2 (l1), all searched up to 1; rounding costs a step.
    assert 0.75 < got.radius[0] <= 1.0


CALLS: dict[str, Callable[[Graph, list[list[float]], Box], Any]] = {
    "lipschitz": lambda g, x, box: certify_lipschitz(g, x, box, device="cpu"),
    "monotonicity": lambda g, x, box: certify_monotonicity(g, x, box, device="cpu"),
    "violation": lambda g, x, box: find_violation(g, x, box, feature=0, direction="increasing"),
}


@pytest.mark.parametrize("asked", CALLS)
def test_a_slope_that_does_not_exist_is_refused_with_a_way_out(asked: str) -> None:
    with pytest.raises(UnsupportedOperator, match=r"'q'.*no Lipschitz constant.*certify a radius"):
        CALLS[asked](rounded(0.5), [[1.0]], Box([[0.0]], [[2.0]]))


def test_a_neighbor_moves_with_its_number() -> None:
    values = torch.tensor([0.0, -1.5, 1e308, 5e-324], dtype=torch.float64, requires_grad=True)
    for neighbor in (next_up(values), next_down(values)):
        assert torch.equal(torch.autograd.grad(neighbor.sum(), values)[0], torch.ones(4, dtype=torch.float64))
    with torch.no_grad():
        assert bool((next_up(values) > values).all()) and bool((next_down(values) < values).all())
