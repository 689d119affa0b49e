"""Branch and bound: what it says holds, at any moment; what it finishes is exact; when it stops is as it was asked to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from mlflow_lipschitz.certify import Budget, certify_lipschitz
from mlflow_lipschitz.certify.budget import check_budget
from mlflow_lipschitz.engine.domains.region import Box, LpBall
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.errors import UsageError
from tests.exact import number, one_sided
from tests.properties import dual_norm_exceeds
from tests.searching import CURVES, convolution, inside, network, reached, read_twice, regions, rows_of, searched

seeds = st.integers(0, 10**6)


def jacobians(graph: Graph, points: torch.Tensor) -> Iterator[tuple[int, np.ndarray]]:
    """The exact ones at every point, with its number."""
    for row, point in enumerate(points.numpy()):
        for jacobian in one_sided(graph, point):
            yield row, jacobian


def check_search(graph: Graph, seed: int, radius: float) -> None:
    points = np.random.default_rng(seed).integers(-12, 13, (2, *graph.input_shape)) / 8
    region = list(regions(points, radius))[seed % 4]
    norm = ("abs", "square")[seed // 4 % 2]
    rows = rows_of(graph, region, norm)
    found = searched(rows, 12)
    assert bool((found.lower <= found.upper).all())
    box = rows.problem.region.box
    assert bool(((box.lower <= found.at) & (found.at <= box.upper)).all())
    if isinstance(region, LpBall):
        ball = rows.problem.region
        norms = torch.where(ball.radius > 0, (found.at - ball.center) / ball.radius, 0.0).flatten(1).norm(dim=1)
        assert bool((norms <= 1).all())
    exact, outputs = number(graph), len(rows.coeffs) // len(points)
    for x in inside(region, seed, 4):
        for row, jacobian in jacobians(graph, x):
            for output in range(outputs):
                bound, gradient = float(found.upper[row * outputs + output]), jacobian[output]
                if norm == "abs":
                    assert not dual_norm_exceeds(bound, gradient, "linf", exact), (x[row], output)
                else:
                    assert bound == np.inf or exact(bound) >= sum(g * g for g in gradient) * (1 - exact(2.0**-300))
    everyone = torch.arange(len(rows.coeffs))
    # Batches of another size round otherwise.
    np.testing.assert_allclose(reached(rows, everyone, found.at)[0], found.lower, rtol=1e-9)


@pytest.mark.parametrize("curve", CURVES, ids=[name for name, _ in CURVES])
@given(seed=seeds, radius=st.sampled_from([0.0, 0.125, 1.0]), coarsely=st.booleans())
def test_what_a_search_says_holds(curve: Any, seed: int, radius: float, coarsely: bool) -> None:
    check_search(network(seed, curve, coarsely=coarsely), seed, radius)


@pytest.mark.parametrize("build", [convolution, read_twice])
@given(seed=seeds, radius=st.sampled_from([0.0, 0.125, 1.0]))
def test_it_holds_with_shared_values_and_the_larger_of_two(build: Any, seed: int, radius: float) -> None:
    check_search(build(seed), seed, radius)


def patterns(graph: Graph, center: np.ndarray, radius: float) -> list[np.ndarray]:
    """The gradients of the linear pieces of a one-output ReLU network that lie in a box, each by a linear program."""
    layers = [node.op for node in graph.nodes if isinstance(node.op, ops.Linear)]
    sizes = [len(layer.weight) for layer in layers[:-1]]
    found = []
    for signs in itertools.product((0.0, 1.0), repeat=sum(sizes)):
        a, b, rows, start = np.eye(len(center)), np.zeros(len(center)), [], 0
        for layer in layers[:-1]:
            a, b = layer.weight @ a, layer.weight @ b + layer.bias
            on = np.array(signs[start : start + len(b)])
            rows.extend((-s * a[i], s * b[i]) for i, s in enumerate(2 * on - 1))
            a, b, start = on[:, None] * a, on * b, start + len(b)
        # The room that all conditions leave: −s a·x + t ≤ s b.
        matrix = np.array([[*left, 1.0] for left, _ in rows])
        limits = [(c - radius, c + radius) for c in center] + [(None, 1.0)]
        solved = linprog([0.0] * len(center) + [-1.0], matrix, [right for _, right in rows], bounds=limits)
        if solved.status == 0 and -solved.fun > 1e-9:
            found.append(layers[-1].weight[0] @ a)
    return found


def check_exact(norm: str, seed: int, sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    builder, before = GraphBuilder(), 2
    x = builder.add(ops.Input((2,)))
    for after in (*sizes, 1):
        weight, bias = rng.normal(size=(after, before)), rng.normal(size=after) / 2
        x, before = builder.add(ops.Linear(ops.frozen_array(weight), ops.frozen_array(bias)), x), after
        x = x if after == 1 else builder.add(ops.Elementwise("relu"), x)
    graph, center = builder.build(x), rng.normal(size=2) / 2
    gradients = patterns(graph, center, 1.0)
    best = max(float(np.abs(g).sum() if norm == "abs" else (g * g).sum()) for g in gradients)
    found = searched(rows_of(graph, Box.around([center], 1.0), norm), 4096, batch=64)
    assert best <= float(found.upper) * (1 + 1e-12)
    assert float(found.lower) <= best * (1 + 1e-12) + 1e-280
    assert (
        float(found.upper) <= best * (1 + 1e-6) + 1e-280
    )  # completeness: last, so that an expected failure is this one


@pytest.mark.parametrize("norm", ["abs", "square"])
@given(seed=seeds, sizes=st.sampled_from([(4,), (3, 3), (2, 2, 2)]))
def test_a_search_that_ends_is_exact(norm: str, seed: int, sizes: tuple[int, ...]) -> None:
    check_exact(norm, seed, sizes)


@pytest.mark.parametrize(("seed", "sizes"), [(1, (4,)), (8, (4,)), (3, (2, 2, 2))])
def test_it_is_exact_where_patterns_just_miss_the_region(seed: int, sizes: tuple[int, ...]) -> None:
    check_exact("abs", seed, sizes)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@given(seed=seeds)
def test_a_budget_never_makes_a_bound_worse(norm: str, seed: int) -> None:
    graph = network(seed, CURVES[seed % len(CURVES)], coarsely=bool(seed % 2))
    points = np.random.default_rng(seed).integers(-12, 13, (2, *graph.input_shape)) / 8
    region = list(regions(points, 0.5))[seed % 4]
    scale = np.arange(1, 1 + points.shape[1]) / 2
    plain = certify_lipschitz(graph, points, region, norm=norm, feature_scale=scale)
    spent = certify_lipschitz(graph, points, region, norm=norm, feature_scale=scale, budget=Budget(0.05))
    assert (spent.upper <= plain.upper).all() and (spent.lower <= spent.upper).all()
    assert (spent.lower >= plain.lower).all()
    exact = number(graph)
    for x in inside(region, seed, 4):
        for row, jacobian in jacobians(graph, x):
            for bound, gradient in zip(spent.upper[row], jacobian, strict=True):
                scaled = gradient * np.array([exact(float(s)) for s in scale])
                assert not dual_norm_exceeds(float(bound), scaled, norm, exact)


def test_what_has_nothing_to_cut_is_as_before() -> None:
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    x = builder.add(ops.Linear(ops.frozen_array(rng.normal(size=(2, 3)))), builder.add(ops.Input((3,))))
    affine = builder.build(x)
    stable = builder.build(
        builder.add(ops.Elementwise("relu"), builder.add(ops.ScaleShift(shift=ops.frozen_array(99.0)), x))
    )
    for graph in (affine, stable):
        points = rng.normal(size=(2, 3))
        plain, spent = (
            certify_lipschitz(graph, points, Box.around(points, 1.0), budget=budget) for budget in (None, Budget(0.2))
        )
        assert (spent.upper <= plain.upper).all() and (spent.lower <= spent.upper).all()
        weight = graph.nodes[1].op.weight
        np.testing.assert_allclose(spent.upper, [np.abs(weight).sum(1)] * 2, rtol=1e-12)


def test_a_curve_that_reads_the_input_and_one_that_reads_a_curve() -> None:
    builder = GraphBuilder()
    x = builder.add(ops.Elementwise("abs"), builder.add(ops.Input((2,))))
    x = builder.add(ops.Elementwise("clip", (0.25, 0.5)), x)
    graph = builder.build(builder.add(ops.Sum((0,)), x))
    found = searched(rows_of(graph, Box([[-1.0, 0.3], [-0.2, -0.2]], [[1.0, 1.0], [0.2, 0.2]])), 256)
    np.testing.assert_allclose(found.upper[0], 2.0, rtol=1e-12)
    assert 0 <= float(found.upper[1]) < 1e-280  # what is added for products that might underflow


@pytest.mark.parametrize("reach", [1e6, 1e150, 1e300])
def test_huge_ranges_say_little_but_nothing_wrong(reach: float) -> None:
    for curve in CURVES:
        graph = network(3, curve)
        region = Box(np.full((1, *graph.input_shape), -reach), np.full((1, *graph.input_shape), reach))
        found = searched(rows_of(graph, region), 8)
        assert bool((found.lower <= found.upper).all()) and not bool(found.upper.isnan().any())
        for x in inside(region, 0, 6):
            near = x / reach  # the kinks are near the origin
            values, _ = reached(
                rows_of(graph, region), torch.arange(len(found.upper)), near.expand(len(found.upper), -1)
            )
            assert bool((found.upper >= values).all())


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.001, 1.2, 3.0])
def test_a_search_stops_when_it_knows_the_side_of_a_threshold(factor: float) -> None:
    graph = network(1, coarsely=False)
    rows = rows_of(graph, Box.around(np.zeros((1, *graph.input_shape)), 2.0))
    whole, first = searched(rows, 4096), searched(rows, 0)
    limit = float(whole.upper.max()) * factor
    found = searched(rows, 4096, threshold=limit)
    assert found.parts <= whole.parts and bool((found.upper >= whole.lower).all())
    if factor >= 1:
        assert bool((found.upper <= limit).all())
    if limit >= float(first.upper.max()):
        assert found.parts == len(rows.coeffs)
    below = searched(rows, 4096, threshold=float(first.lower.min()) / 2)
    assert bool((below.lower > float(first.lower.min()) / 2).all()) and below.parts == len(rows.coeffs)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("factor", [-1.0, 0.7, 1.3])
def test_a_budget_says_on_which_side_of_its_threshold_the_constant_lies(norm: str, factor: float) -> None:
    graph = network(1, coarsely=False)
    points = np.zeros((1, *graph.input_shape))
    region = Box.around(points, 1.0)
    exactly = certify_lipschitz(graph, points, region, norm=norm, outputs=0, budget=Budget(20.0, 0.0))
    np.testing.assert_allclose(exactly.upper, exactly.lower, rtol=1e-6)
    limit = factor * float(exactly.upper.max())
    found = certify_lipschitz(graph, points, region, norm=norm, outputs=0, budget=Budget(20.0, 0.0, limit))
    assert (found.upper <= limit).all() if factor > 1 else (found.lower > limit).all()


def test_a_gap_is_kept() -> None:
    graph = network(1, coarsely=False)
    points = np.zeros((1, *graph.input_shape))
    for norm in ("linf", "l2"):
        found = certify_lipschitz(graph, points, Box.around(points, 1.0), norm=norm, budget=Budget(20.0, 0.25))
        assert (found.upper <= 1.25 * found.lower * (1 + 1e-12)).all()


@pytest.mark.parametrize(("large", "small"), [(1e150, 1e-180), (1e100, 1e-240), (1e150, 1e-200)])
def test_units_of_very_different_size_crash_no_solver(large: float, small: float) -> None:
    builder = GraphBuilder()
    weight, bias = [[large, large], [small, -small], [large, -large]], [large / 4, small / 4, 0.0]
    x = builder.add(ops.Linear(ops.frozen_array(weight), ops.frozen_array(bias)), builder.add(ops.Input((2,))))
    last = ops.Linear(ops.frozen_array([[1 / large, 1.0, 0.5 / large]]))
    graph = builder.build(builder.add(last, builder.add(ops.Elementwise("relu"), x)))
    points = np.zeros((1, 2))
    found = certify_lipschitz(graph, points, Box.around(points, 1.0), budget=Budget(1e6, 0.0, None, 64), device="cpu")
    assert found.lower[0, 0] <= found.upper[0, 0]
    assert found.upper[0, 0] >= 2.0  # where both large units are active: (1 + ½) + (1 − ½)


def test_a_limit_whose_square_overflows_is_a_limit() -> None:
    graph = network(1, coarsely=False)
    points = np.zeros((1, *graph.input_shape))
    found = certify_lipschitz(graph, points, Box.around(points, 1.0), norm="l2", budget=Budget(1.0, 0.0, 1e200))
    assert (found.upper <= 1e200).all()


def test_the_same_limits_give_the_same_numbers() -> None:
    graph = network(2, ("tanh", ()), coarsely=False)
    rows = rows_of(graph, Box.around(np.zeros((2, *graph.input_shape)), 1.5))
    first, second = (searched(rows, 40) for _ in range(2))
    assert first.parts == second.parts > len(rows.coeffs)
    assert all(torch.equal(a, b) for a, b in zip(first_numbers(first), first_numbers(second), strict=True))


def first_numbers(found: Any) -> tuple[torch.Tensor, ...]:
    return found.upper, found.lower, found.at


@given(seed=seeds)
def test_a_point_does_not_depend_on_its_neighbors(seed: int) -> None:
    graph = network(seed, coarsely=False)
    points = np.random.default_rng(seed).normal(size=(3, *graph.input_shape))
    outputs = int(np.prod(graph.output_shape))
    together = searched(rows_of(graph, Box.around(points, 0.5)), 10**6, batch=64)
    for row in range(3):
        alone = searched(rows_of(graph, Box.around(points[row : row + 1], 0.5)), 10**6, batch=64)
        own = slice(row * outputs, (row + 1) * outputs)
        np.testing.assert_allclose(alone.upper, together.upper[own], rtol=1e-9)


@pytest.mark.parametrize(
    "bad",
    [
        {"seconds_per_point": -1.0},
        {"seconds_per_point": float("nan")},
        {"seconds_per_point": float("inf")},
        {"target_gap": -0.1},
        {"target_gap": float("nan")},
        {"target_gap": float("inf")},
        {"threshold": float("nan")},
        {"threshold": float("inf")},
    ],
)
def test_a_budget_is_made_of_numbers(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        Budget(**bad)


def test_a_number_is_no_budget() -> None:
    check_budget(None)
    check_budget(Budget())
    with pytest.raises(UsageError, match=r"Budget\(seconds_per_point"):
        check_budget(5.0)


def test_a_budget_of_no_time_still_gives_a_bound() -> None:
    graph = network(5)
    points = np.zeros((2, *graph.input_shape))
    plain, spent = (
        certify_lipschitz(graph, points, Box.around(points, 1.0), budget=b) for b in (None, Budget(0.0, 0.0))
    )
    assert (spent.upper <= plain.upper).all() and np.isfinite(spent.upper).all()
