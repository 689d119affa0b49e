"""Values made of several nodes: the numbers themselves, and bounds that are as good as the identity behind them allows."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlflow_lipschitz.certify import certify_lipschitz, certify_monotonicity
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import building, ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.propagation.interpreter import evaluate
from mlflow_lipschitz.engine.propagation.pre_activation import Refinement, bound_nodes
from mlflow_lipschitz.engine.propagation.problem import Problem

numbers = st.floats(-1e300, 1e300)


def of_two(which: str) -> Graph:
    """max or min of the two entries of the input."""
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    a, b = (builder.add(ops.Select(0, (i,)), x) for i in (0, 1))
    return builder.build({"max": building.maximum, "min": building.minimum}[which](builder, a, b, name="m"))


def over(shape: tuple[int, ...], axis: int, which: str) -> Graph:
    builder = GraphBuilder()
    x = builder.add(ops.Input(shape))
    return builder.build({"max": building.maximum_over, "min": building.minimum_over}[which](builder, x, axis))


@pytest.mark.parametrize("which", ["max", "min"])
@given(a=numbers, b=numbers)
def test_the_value_is_one_of_the_two(which: str, a: float, b: float) -> None:
    assert float(evaluate(of_two(which), [[a, b]])) == {"max": max, "min": min}[which](a, b)


@pytest.mark.parametrize("which", ["max", "min"])
@given(ends=st.tuples(numbers, numbers, numbers, numbers))
def test_the_interval_is_the_exact_range(which: str, ends: tuple[float, float, float, float]) -> None:
    lower, upper = np.sort(np.reshape(ends, (2, 2)), axis=0)
    pick = {"max": max, "min": min}[which]
    box = Box(lower[None], upper[None])
    for refinement in (None, Refinement(8)):
        with torch.no_grad():
            got = bound_nodes(Problem.of(of_two(which), box), refinement)[-1].interval
        assert (float(got.lower), float(got.upper)) == (pick(*lower.tolist()), pick(*upper.tolist()))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 13])
@pytest.mark.parametrize("which", ["max", "min"])
def test_along_an_axis_of_any_length(length: int, which: str) -> None:
    x = np.random.default_rng(length).normal(size=(4, 2, length, 3))
    expected = {"max": np.max, "min": np.min}[which](x, axis=2, keepdims=True)
    np.testing.assert_array_equal(evaluate(over((2, length, 3), 1, which), x).numpy(), expected)


@pytest.mark.parametrize("axis", [-1, 1])
def test_an_axis_that_is_not_there_is_refused(axis: int) -> None:
    with pytest.raises(ValueError, match="axis"):
        over((3,), axis, "max")


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="axis"):
        over((2, 0), 1, "max")


def test_every_node_carries_the_name_it_was_given() -> None:
    for which in ("max", "min"):
        computed = [n for n in of_two(which).nodes if not isinstance(n.op, (ops.Input, ops.Select))]
        assert computed and all(node.name == "m" for node in computed)


def test_a_tie_is_the_whole_clarke_set_and_no_more() -> None:
    at = Box([[1.0, 1.0]], [[1.0, 1.0]])
    for which in ("max", "min"):
        got = certify_monotonicity(of_two(which), [[1.0, 1.0]], at, device="cpu")
        np.testing.assert_array_equal(got.lower, [[0.0, 0.0]])
        assert ((got.upper >= 1.0) & (got.upper <= 1 + 1e-12)).all() and (got.sign == 1).all()
        # One factor splits the gradient: its l1 norm is 1, not 2.
        assert 1.0 <= certify_lipschitz(of_two(which), [[1.0, 1.0]], at, device="cpu").upper.item() <= 1 + 1e-12


def test_the_larger_of_two_nearly_equal_values_keeps_its_slope() -> None:
    # max(x + 1e16, x + 1e16 + 2): as floats the difference is exact, and the second always wins.
    builder = GraphBuilder()
    x = builder.add(ops.Input((1,)))
    a, b = (builder.add(ops.ScaleShift(shift=ops.frozen_array([s])), x) for s in (1e16, 1e16 + 2))
    graph = builder.build(building.maximum(builder, a, b))
    got = certify_monotonicity(graph, [[0.5]], Box([[0.0]], [[1.0]]), device="cpu")
    assert Fraction(float(got.lower[0, 0])) <= 1 <= Fraction(float(got.upper[0, 0]))


@given(seed=st.integers(0, 2**32 - 1), radius=st.sampled_from([0.0, 0.25, 2.0]))
def test_a_monotone_network_of_minima_and_maxima_is_certified_to_rise(seed: int, radius: float) -> None:
    # Sill's min-max networks: nonnegative weights, groups of units, the largest of the groups' smallest.
    rng = np.random.default_rng(seed)
    builder = GraphBuilder()
    weight, bias = rng.integers(0, 4, (12, 3)) / 3, rng.integers(-3, 4, 12) / 3
    units = builder.add(ops.Linear(weight, bias), builder.add(ops.Input((3,))))
    smallest = building.minimum_over(builder, builder.add(ops.Reshape((4, 3)), units), 1)
    graph = builder.build(building.maximum_over(builder, smallest, 0))
    points = rng.integers(-4, 5, (2, 3)) / 4
    got = certify_monotonicity(graph, points, Box.around(points, radius), device="cpu")
    assert (got.sign == 1).all()
