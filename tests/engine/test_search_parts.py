"""Parts of a region: what holds a point is not proved empty, its bound covers the point, and a contradiction is found out."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mlflow_lipschitz.engine.domains.interval import Interval
from mlflow_lipschitz.engine.domains.region import Box
from mlflow_lipschitz.engine.ir import ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from mlflow_lipschitz.engine.propagation.pre_activation import bound_nodes, inherited_bounds
from mlflow_lipschitz.engine.search.bounding import Effort, bound_parts
from mlflow_lipschitz.engine.search.feasibility import conditions_of, contradictions
from mlflow_lipschitz.engine.search.parts import Rows
from mlflow_lipschitz.engine.search.splits import Layout, Splits, conditions
from tests.exact import is_smooth, node_values, number, value_and_jacobian
from tests.properties import oracle_error
from tests.searching import (
    CURVES,
    EFFORT,
    REFINEMENT,
    convolution,
    inside,
    network,
    reached,
    read_twice,
    regions,
    rows_of,
)

seeds = st.integers(0, 10**6)
radii = st.sampled_from([0.0, 2.0**-20, 0.125, 1.0, 4.0])
PLACES = (0.0, -0.25, 0.5, -3.0, 3.0)  # where the curves jump


class Coin:
    """Which one-sided derivative a kink takes: tossed anew at every kink."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def __bool__(self) -> bool:
        return bool(self._rng.integers(2))


def values_at(rows: Rows, layout: Layout, x: Tensor) -> Interval:
    """(rows, all entries): where the values that may be cut surely are at single points (rows, *input shape).

    Exact wherever fractions can tell: only then does a point lie on both sides of a cut.
    """
    at = bound_nodes(rows.problem.with_region(Box(x, x)), None)
    wide = Interval(
        *(layout.flat({i: getattr(at[i].interval, end) for i in layout.nodes}) for end in ("lower", "upper"))
    )
    model = Graph(layout.graph.nodes[: max(layout.nodes) + 1], max(layout.nodes))
    if is_smooth(model):
        return wide
    every = [node_values(model, row.numpy()) for row in x]
    exact = [[v for i in layout.nodes for v in values[i]] for values in every]
    near = torch.tensor([[float(v) for v in row] for row in exact], dtype=torch.float64)
    hit = torch.tensor([[Fraction(float(v)) == v for v in row] for row in exact])
    return Interval(torch.where(hit, near, wide.lower), torch.where(hit, near, wide.upper))


def cuts_around(seed: int, rows: Rows, layout: Layout, z: Interval, depth: int) -> Splits:
    """Conditions that the points with the values z fulfil: at jumps, in the middle, at the very value."""
    rng = np.random.default_rng(seed)
    count, total = z.lower.shape
    middle = layout.flat({i: rows.ranges[i].lower / 2 + rows.ranges[i].upper / 2 for i in layout.nodes})
    entry = torch.from_numpy(rng.integers(0, total, (count, depth)))
    low, high, center = z.lower.gather(1, entry), z.upper.gather(1, entry), middle.gather(1, entry)
    options = torch.stack([*(torch.full_like(low, place) for place in PLACES), center, low])
    place = options.gather(0, torch.from_numpy(rng.integers(0, len(options), (1, count, depth))))[0]
    heads = torch.from_numpy(rng.integers(0, 2, (count, depth)) == 1)
    may_be_above, may_be_below = place <= low, place >= high
    above = torch.where(may_be_above & may_be_below, heads, may_be_above)
    return Splits(torch.where(may_be_above | may_be_below, entry, -1), place, above)


def check_parts_around_points(graph: Graph, seed: int, radius: float) -> None:
    points = np.random.default_rng(seed).integers(-12, 13, (2, *graph.input_shape)) / 8
    chosen = seed % 4
    for region in list(regions(points, radius))[chosen : chosen + 1]:
        rows = rows_of(graph, region, ("abs", "square")[seed // 4 % 2])
        layout, count = Layout.of(rows.problem.graph), len(rows.coeffs)
        for x in inside(rows.problem.region, seed, 2):
            splits = cuts_around(seed, rows, layout, values_at(rows, layout, x), 4)
            known = dict(enumerate(rows.ranges))
            for index, interval in conditions(layout, splits.clamps(layout)).items():
                known[index] = known[index].intersect(interval)
            held = conditions_of(layout, splits)
            bounds = inherited_bounds(rows.problem, known)
            assert not contradictions(rows.problem, bounds, held, steps=6).proved.any(), (x, splits)
            got = bound_parts(rows, layout, torch.arange(count), splits, EFFORT)
            value, _ = reached(rows, torch.arange(count), x)
            assert bool((got.upper >= value).all()), (x, splits, got.upper, value)
            box = rows.problem.region.box
            assert bool(((box.lower <= got.corner) & (got.corner <= box.upper)).all())


@pytest.mark.parametrize("curve", CURVES, ids=[name for name, _ in CURVES])
@given(seed=seeds, radius=radii, coarsely=st.booleans())
def test_a_part_that_holds_a_point_is_not_proved_empty(curve: Any, seed: int, radius: float, coarsely: bool) -> None:
    with torch.no_grad():
        check_parts_around_points(network(seed, curve, coarsely=coarsely), seed, radius)


@pytest.mark.parametrize("build", [convolution, read_twice])
@given(seed=seeds, radius=radii)
def test_so_it_is_with_shared_values_and_the_larger_of_two(build: Any, seed: int, radius: float) -> None:
    with torch.no_grad():
        check_parts_around_points(build(seed), seed, radius)


def exact_norms(graph: Graph, x: np.ndarray, side: Any) -> list[Any]:
    """ℓ1 norms of one element of the Clarke set, per output, less what the oracle may be off by."""
    _, jacobian = value_and_jacobian(graph, x, side)
    return [sum(abs(g) - oracle_error(g) for g in row) for row in jacobian]


def check_halves_cover(graph: Graph, seed: int, radius: float, sides: list[Any]) -> None:
    """All 2³ parts that three cuts at jumps make, of a region whose points lie on the kinks' grid."""
    rng = np.random.default_rng(seed)
    points = rng.integers(-4, 5, (1, *graph.input_shape)) / 4
    rows = rows_of(graph, Box.around(points, radius))
    layout, count = Layout.of(rows.problem.graph), len(rows.coeffs)
    owner, splits = torch.arange(count), Splits.none(count, torch.device("cpu"))
    for _ in range(3):
        entry = torch.full((len(owner),), int(rng.integers(sum(layout.sizes))))
        splits = splits.cut(entry, torch.full((len(owner), 1), float(rng.choice(PLACES)), dtype=torch.float64))
        owner = torch.cat([owner, owner])
    upper = bound_parts(rows, layout, owner, splits, EFFORT).upper
    covered = torch.full((count,), -torch.inf, dtype=torch.float64).scatter_reduce(0, owner, upper, "amax")
    exact = number(graph)
    for x in [points[0], *inside(rows.problem.region, seed, 3)[:, 0].numpy()]:
        for side in sides:
            for bound, norm in zip(covered.tolist(), exact_norms(graph, x, side), strict=True):
                assert bound == np.inf or exact(bound) >= norm, (x, bound)


@pytest.mark.parametrize("curve", CURVES[:6], ids=[name for name, _ in CURVES[:6]])
@given(seed=seeds, radius=st.sampled_from([0.0, 0.25, 1.0]))
def test_both_halves_cover_every_choice_at_every_kink(curve: Any, seed: int, radius: float) -> None:
    with torch.no_grad():
        check_halves_cover(network(seed, curve), seed, radius, [0, 1, *(Coin(seed + k) for k in range(2))])


@given(seed=seeds, radius=st.sampled_from([0.0, 0.25, 1.0]))
def test_both_halves_cover_limits_from_either_side_of_a_value_read_twice(seed: int, radius: float) -> None:
    with torch.no_grad():
        check_halves_cover(read_twice(seed), seed, radius, [0, 1])


def stacked(first: list[list[float]], second: list[list[float]], bias: list[float]) -> Graph:
    builder = GraphBuilder()
    x = builder.add(ops.Linear(ops.frozen_array(first)), builder.add(ops.Input((len(first[0]),))))
    y = builder.add(
        ops.Linear(ops.frozen_array(second), ops.frozen_array(bias)), builder.add(ops.Elementwise("relu"), x)
    )
    last = np.ones((1, len(second)))
    return builder.build(builder.add(ops.Linear(ops.frozen_array(last)), builder.add(ops.Elementwise("relu"), y)))


def proved(graph: Graph, cuts: list[tuple[int, float, bool]], lower: float = -1.0, upper: float = 1.0) -> bool:
    size = graph.input_shape
    rows = rows_of(graph, Box(np.full((1, *size), lower), np.full((1, *size), upper)))
    layout = Layout.of(rows.problem.graph)
    entry, place, above = (torch.tensor([column]) for column in zip(*cuts, strict=True))
    splits = Splits(entry, place.to(torch.float64), above)
    with torch.no_grad():
        got = bound_parts(rows, layout, torch.zeros(1, dtype=torch.int64), splits, Effort(REFINEMENT, steps=20))
    return bool(got.upper == -torch.inf)


SUM = [[1.0, 1.0], [1.0, -1.0], [-1.0, 0.0]]
LAYERS = stacked(SUM, [[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0]], [0.0, -0.25])


@pytest.mark.parametrize(
    "cuts",
    [
        [(0, 0.5, True), (1, 0.5, True), (2, 0.0, True)],  # x + y ≥ ½, x − y ≥ ½, x ≤ 0
        [(0, 0.25, True), (3, 0.125, False)],  # a ≥ ¼, a⁺ + b⁺ ≤ ⅛: across layers
        [(3, 0.5, True), (4, -0.5, True)],  # s ≥ ½, −s − ¼ ≥ −½: both on the second layer
        [(0, -0.25, False), (1, -0.25, False), (3, 0.25, True)],  # both units off, and yet a sum
    ],
)
def test_conditions_that_contradict_each_other_are_found_out(cuts: list[tuple[int, float, bool]]) -> None:
    assert proved(LAYERS, cuts)


@pytest.mark.parametrize(
    "cuts",
    [
        [(0, 0.5, True), (1, 0.5, True), (2, -0.5, True)],  # just x = ½, y = 0
        [(0, 2.0, True)],  # just the corner
        [(0, 0.25, True), (3, 0.25, False), (1, 0.0, False)],  # a⁺ + b⁺ is no more than a⁺
        [(3, 0.0, False), (0, 0.0, True), (1, 0.0, True)],  # the origin alone
        [(3, 0.0, True), (3, 0.0, False), (0, 0.0, False)],  # both sides of one place
    ],
)
def test_conditions_that_just_meet_are_not(cuts: list[tuple[int, float, bool]]) -> None:
    assert not proved(LAYERS, cuts)


def test_where_conditions_are_left_without_a_place_nothing_is_proved() -> None:
    assert not proved(LAYERS, [(-1, 0.0, False)])


def test_a_value_without_axes_can_be_cut() -> None:
    builder = GraphBuilder()
    one = builder.add(ops.Linear(ops.frozen_array([[1.0, -1.0]])), builder.add(ops.Input((2,))))
    bare = builder.add(ops.Elementwise("relu"), builder.add(ops.Reshape(()), one))
    graph = builder.build(builder.add(ops.Reshape((1,)), bare))
    assert proved(graph, [(0, 2.5, True)]) and not proved(graph, [(0, 2.0, True)])


def test_a_cut_of_a_copy_is_kept() -> None:
    """A curve that reads a copy of a layer: the condition on the copy survives the layer's refinement."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    x = builder.add(ops.Input((2,)))
    x = builder.add(ops.Elementwise("relu"), builder.add(ops.Linear(ops.frozen_array(rng.normal(size=(4, 2)))), x))
    layer = builder.add(ops.Linear(ops.frozen_array(rng.normal(size=(4, 4)))), x)
    copy = builder.add(ops.Reshape((2, 2)), layer)
    y = builder.add(ops.Reshape((4,)), builder.add(ops.Elementwise("relu"), copy))
    graph = builder.build(builder.add(ops.Linear(ops.frozen_array(rng.normal(size=(1, 4)))), y))
    rows = rows_of(graph, Box.around([[0.0, 0.0]], 1.0))
    layout = Layout.of(rows.problem.graph)
    assert layout.nodes[-1] == copy
    splits = Splits.none(1, torch.device("cpu")).cut(torch.tensor([4]), torch.zeros(1, 1, dtype=torch.float64))
    with torch.no_grad():
        for half, (low, high) in enumerate([(-np.inf, 0.0), (0.0, np.inf)]):
            part = conditions(layout, splits.select(torch.tensor([half])).clamps(layout))
            known = {i: rows.ranges[i].intersect(interval) for i, interval in part.items()}
            bounds = bound_nodes(rows.problem, EFFORT.refinement, known)
            got = bounds[copy].interval
            assert low <= float(got.lower[0, 0, 0, 0]) and float(got.upper[0, 0, 0, 0]) <= high
