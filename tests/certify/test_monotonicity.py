"""Signs of derivatives: what is certified holds in exact arithmetic, what is disproved is attained, and a search decides more."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_lipschitz.certify import Budget, certify_monotonicity, find_violation
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.errors import UsageError
from tests.properties import derivatives_lie_within
from tests.searching import CURVES, convolution, inside, network, read_twice, regions

seeds = st.integers(0, 10**6)
BUDGETS = [None, Budget(1e6, parts_per_point=20)]


def check(graph: Graph, seed: int, radius: float, budget: Budget | None) -> None:
    points = np.random.default_rng(seed).integers(-12, 13, (2, *graph.input_shape)) / 8
    region = list(regions(points, radius))[seed % 4]
    output = seed % int(np.prod(graph.output_shape))
    found = certify_monotonicity(graph, points, region, output=output, budget=budget, device="cpu")
    assert (found.lower <= found.upper).all()
    for x in inside(region, seed, 6):
        for row in range(len(points)):
            derivatives_lie_within(graph, found, row, x[row].numpy())


@pytest.mark.parametrize("budget", BUDGETS, ids=["default", "budget"])
@pytest.mark.parametrize("curve", CURVES, ids=[name for name, _ in CURVES])
@given(seed=seeds, radius=st.sampled_from([0.0, 0.125, 1.0]))
def test_derivatives_lie_within_their_ranges(curve: Any, budget: Budget | None, seed: int, radius: float) -> None:
    check(network(seed, curve), seed, radius, budget)


@pytest.mark.parametrize("budget", BUDGETS, ids=["default", "budget"])
@pytest.mark.parametrize("build", [convolution, read_twice])
@given(seed=seeds, radius=st.sampled_from([0.125, 1.0]))
def test_so_they_do_with_shared_values(build: Any, budget: Budget | None, seed: int, radius: float) -> None:
    check(build(seed), seed, radius, budget)


def deep(seed: int, inputs: int, width: int, curve: str) -> Graph:
    rng = np.random.default_rng(seed)
    builder, before = GraphBuilder(), inputs
    x = builder.add(ops.Input((inputs,)))
    for _ in range(3):
        weight, bias = rng.normal(size=(width, before)) / np.sqrt(before), rng.normal(size=width) / 2
        x = builder.add(ops.Linear(ops.frozen_array(weight), ops.frozen_array(bias)), x)
        x, before = builder.add(ops.Elementwise(curve), x), width
    return builder.build(builder.add(ops.Linear(ops.frozen_array(rng.normal(size=(1, width)))), x))


def one_by_one(features: int, points: int) -> tuple[np.ndarray, Box, np.ndarray]:
    """Every point with one feature moving over [0, 1], all pairs in one batch: points, regions, and which feature moves."""
    x = np.random.default_rng(1).random((points, features)).repeat(features, axis=0)
    moving = np.tile(np.arange(features), points)
    lower, upper = x.copy(), x.copy()
    lower[np.arange(len(x)), moving], upper[np.arange(len(x)), moving] = 0.0, 1.0
    return x, Box(lower, upper), moving


@pytest.mark.parametrize("curve", ["relu", "tanh"])
def test_a_feature_that_moves_alone_is_decided(curve: str) -> None:
    graph = deep(0, 6, 24, curve)
    points, region, moving = one_by_one(6, 8)
    pairs = np.arange(len(points)), moving
    found = certify_monotonicity(graph, points, region, device="cpu")
    sign, low, high = found.sign[pairs], found.attained_lower[pairs], found.attained_upper[pairs]
    assert ((sign != 0) | ((low < 0) & (high > 0))).all()
    assert 0 < (sign == 0).sum() < len(sign)  # both answers occur
    without = certify_monotonicity(graph, points, region, features=[], device="cpu")
    assert (without.sign[pairs] != 0).sum() < (sign != 0).sum()  # one pass would not have been enough
    for row in (sign == 0).nonzero()[0]:
        own = Box(region.lower[row : row + 1], region.upper[row : row + 1])
        for direction in ("increasing", "decreasing"):
            where = {"feature": int(moving[row]), "direction": direction}
            assert find_violation(graph, points[row : row + 1], own, **where).found.all()


@pytest.mark.parametrize("curve", ["relu", "tanh"])
def test_a_budget_decides_more(curve: str) -> None:
    graph = deep(0, 8, 16, curve)
    points = np.random.default_rng(0).normal(size=(4, 8))
    region = Box.around(points, 0.2)
    plain, spent = (
        certify_monotonicity(graph, points, region, budget=budget, device="cpu")
        for budget in (None, Budget(1e6, parts_per_point=100))
    )
    assert (spent.lower >= plain.lower).all() and (spent.upper <= plain.upper).all()
    assert (spent.attained_lower <= plain.attained_lower).all()
    assert (spent.sign != 0).sum() > (plain.sign != 0).sum()
    one = certify_monotonicity(
        graph, points, region, features=[2], budget=Budget(1e6, parts_per_point=100), device="cpu"
    )
    others = np.arange(8) != 2
    np.testing.assert_array_equal(one.lower[:, others], plain.lower[:, others])


def test_a_derivative_that_touches_zero_stays_bounded() -> None:
    """The derivative of x · clip(x, 0, 1) is zero for x ≤ 0 and 2x above: no piece shows it, and the search ends."""
    builder = GraphBuilder()
    x = builder.add(ops.Input((1,)))
    graph = builder.build(builder.add(ops.Multiply(), x, builder.add(ops.Elementwise("clip", (0.0, 1.0)), x)))
    found = certify_monotonicity(graph, [[0.0]], Box([[-1.0]], [[1.0]]), device="cpu")
    assert found.lower[0, 0] <= 0 <= found.upper[0, 0]
    assert found.upper[0, 0] >= 2.0


def chain(*layers: ops.Op) -> Graph:
    builder = GraphBuilder()
    x = builder.add(ops.Input((layers[0].weight.shape[1],)) if isinstance(layers[0], ops.Linear) else ops.Input((1,)))
    for layer in layers:
        x = builder.add(layer, x)
    return builder.build(x)


def layer(weight: list[list[float]], bias: list[float] | None = None) -> ops.Linear:
    return ops.Linear(ops.frozen_array(weight), None if bias is None else ops.frozen_array(bias))


def test_a_derivative_that_is_zero_on_some_pieces_keeps_its_sign() -> None:
    relu = ops.Elementwise("relu")
    flat = chain(ops.Elementwise("square"), ops.ScaleShift(shift=ops.frozen_array(-1.0)), relu)
    falling = certify_monotonicity(flat, [[-1.0]], Box([[-3.0]], [[0.5]]), device="cpu")
    assert falling.sign[0, 0] == -1
    twice = chain(layer([[1], [-1]], [0, -0.4]), relu, layer([[1, 1], [1, -2]], [-0.3, 0.0]), relu, layer([[1, 0]]))
    assert certify_monotonicity(twice, [[1.0]], Box([[-0.2]], [[3.0]]), device="cpu").sign[0, 0] == 1


def test_a_neighbor_of_which_more_moves_changes_nothing() -> None:
    graph = deep(3, 4, 12, "tanh")
    points = np.random.default_rng(3).normal(size=(2, 4))
    reach = np.array([[0.4, 0.4, 0, 0], [0.4, 0.4, 0.4, 0.4]])
    alone = certify_monotonicity(graph, points[:1], Box(points[:1] - reach[:1], points[:1] + reach[:1]), device="cpu")
    both = certify_monotonicity(graph, points, Box(points - reach, points + reach), device="cpu")
    np.testing.assert_array_equal(both.sign[0], alone.sign[0])
    np.testing.assert_allclose(both.lower[0], alone.lower[0], rtol=1e-9)


def test_a_feature_that_is_asked_for_is_searched_though_it_stays() -> None:
    graph = deep(0, 3, 12, "tanh")
    points = np.random.default_rng(0).normal(size=(1, 3))
    signs = []
    for last in (0.0, 1e-9):
        reach = np.array([[0.3, 0.3, last]])
        region = Box(points - reach, points + reach)
        signs.append(certify_monotonicity(graph, points, region, features=[2], device="cpu").sign[0, 2])
    assert signs[0] != 0 or signs[1] == 0  # the smaller region is not the worse one


@pytest.mark.parametrize("features", [[-1], [2], [0, 5]])
def test_a_feature_that_is_none_is_refused(features: list[int]) -> None:
    graph = deep(0, 2, 3, "relu")
    with pytest.raises(UsageError, match="feature"):
        certify_monotonicity(graph, [[0.0, 0.0]], Box([[0.0, 0.0]], [[1.0, 1.0]]), features=features, device="cpu")


def test_the_same_question_gets_the_same_answer() -> None:
    graph = deep(5, 3, 12, "tanh")
    points = np.random.default_rng(0).normal(size=(5, 3))
    asked = [certify_monotonicity(graph, points, Box.around(points, 0.8), device="cpu") for _ in range(2)]
    for name, row in itertools.product(("lower", "upper", "attained_lower", "attained_upper"), range(5)):
        np.testing.assert_array_equal(getattr(asked[0], name)[row], getattr(asked[1], name)[row])
