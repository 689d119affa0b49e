"""What the checker derives is never below the exact value: whatever slopes, cuts and multipliers a certificate proposes."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from mlflow_lipschitz.checker.arithmetic import Arithmetic
from mlflow_lipschitz.checker.derivation import (
    DUAL,
    Subject,
    derivative_range,
    lipschitz_problem,
    lipschitz_upper,
    mislabeled,
    radius_holds,
)
from mlflow_lipschitz.checker.differentiation import gradient_graph, norm_graph
from mlflow_lipschitz.checker.forms import Problem
from mlflow_lipschitz.checker.planes import Planes, planes_of
from mlflow_lipschitz.checker.propagation import behind_objective, bound_nodes
from mlflow_lipschitz.checker.regions import Region
from mlflow_lipschitz.engine.ir import building, ops
from mlflow_lipschitz.engine.ir.graph import Graph, GraphBuilder
from tests.cases import DIFFERENTIABLE, draw, points_of
from tests.exact import node_values, number, one_sided

Arrays = dict[str, np.ndarray]
STRANGE = (np.nan, np.inf, -np.inf, 1e308, -1e200, 5e-324, 0.0, 1.0)
PLACES = (0.0, 0.125, -0.125, 0.25, 1.0, -1.0, 1e3, -1e3, 5e-324, -5e-324)
FLOATS, EXACT = Arithmetic(), Arithmetic(True)


def stated(points: Any, radius: float = 0.1, **changed: Any) -> Arrays:
    points = np.asarray(points, dtype=np.float64)
    shape = points.shape[1:]
    whole = np.full(shape, np.inf)
    region = {"radius_per_feature": np.full(shape, radius), "domain_lower": -whole, "domain_upper": whole}
    return {"points": points, "feature_scale": np.ones(shape), **region, **changed}


def numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Some of them none, infinite, or of another size altogether."""
    return np.where(
        rng.random(shape) < 0.1, rng.choice(STRANGE, shape), rng.normal(size=shape) * rng.choice([0, 1, 10], shape)
    )


def proposed_slopes(rng: np.random.Generator, graph: Graph, count: int, kind: str) -> Arrays:
    """For every plane around a curve or a product."""
    found: Arrays = {}
    for index, node in enumerate(graph.nodes):
        if isinstance(node.op, ops.Elementwise | ops.Multiply):
            operands = (0,) if isinstance(node.op, ops.Elementwise) else ((1,), (0, 1))[rng.integers(2)]
            for folder in ("slopes", "last"):
                for side in ("above", "below"):
                    for operand in operands:
                        found[f"{kind}/{folder}/{index}/{side}/{operand}"] = numbers(rng, count, 1, *node.shape)
    return found


def proposed_trees(rng: np.random.Generator, graph: Graph, values: list[np.ndarray], count: int, kind: str) -> Arrays:
    """Cuts of anything the model computes: at kinks, at values that occur, far away, twice; and any multipliers."""
    assert graph.cotangent is not None
    cuts: list[tuple[int, int, float]] = []
    for _ in range(count):
        depths = [0]
        while depths:
            depth = depths.pop()
            if depth == 3 or rng.random() < 0.3:
                cuts.append((-1, 0, 0.0))
                continue
            node = int(rng.integers(graph.cotangent))
            entry = int(rng.integers(np.prod(graph.nodes[node].shape, dtype=int)))
            place = float(values[node][entry]) if rng.random() < 0.3 else float(rng.choice(PLACES))
            again = bool(cuts) and cuts[-1][0] >= 0 and rng.random() < 0.2
            cuts.append(cuts[-1] if again else (node, entry, place))
            depths += [depth + 1, depth + 1]
    columns = dict(zip(("node", "entry", "place"), (np.array(c) for c in zip(*cuts, strict=True)), strict=True))
    inner, leaves = np.flatnonzero(columns["node"] >= 0), np.flatnonzero(columns["node"] < 0)
    if inner.size:
        chosen = rng.choice(inner, 4)
        columns |= {"beta_at": rng.choice(leaves, 4), "beta": numbers(rng, 4)}
        columns |= {f"beta_{part}": columns[part][chosen] for part in ("node", "entry")}
    return {f"{kind}/tree/{name}": column for name, column in columns.items()}


@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize("name", list(DIFFERENTIABLE))
def test_nothing_that_is_proposed_makes_a_bound_too_small(name: str, seed: int) -> None:
    rng = np.random.default_rng([seed, list(DIFFERENTIABLE).index(name)])
    graph, points = draw(name, seed, 1)
    norm = ("linf", "l2", "l1")[rng.integers(3)]
    here = stated(points, float(rng.choice([0.0, 0.125, 1.0])))
    values = node_values(graph, points[0])
    searched = np.array([[0, rng.integers(points[0].size), sign] for sign in (1, -1)])
    here |= proposed_slopes(rng, norm_graph(graph, here["feature_scale"], DUAL[norm]), 1, "lipschitz")
    here |= proposed_slopes(rng, gradient_graph(graph, None), 1, "derivative")
    here |= proposed_trees(rng, norm_graph(graph, here["feature_scale"], DUAL[norm]), values, 1, "lipschitz")
    here |= proposed_trees(rng, gradient_graph(graph, None), values, 2, "derivative") | {
        "derivative/searched": searched
    }
    subject = Subject(graph, norm, int(rng.integers(2)) if graph.output_shape == (2,) else 0)
    with np.errstate(all="ignore"):
        upper, (low, high) = lipschitz_upper(subject, here)[0], derivative_range(subject, here)
    exact = number(graph)
    reach = here["radius_per_feature"] if norm == "linf" else here["radius_per_feature"] / (2 * points[0].size)
    for x in points_of(rng, points[0] - reach, points[0] + reach, 3):
        for jacobian in one_sided(graph, x):
            row = [abs(g) for g in jacobian[int(subject.output)]]
            size = {"linf": sum(row), "l2": sum(g * g for g in row), "l1": max(row)}[norm]
            if np.isfinite(upper):
                assert size <= exact(float(upper)) ** (2 if norm == "l2" else 1)
            for g, ends in zip(jacobian[int(subject.output)], zip(low[0], high[0], strict=True), strict=True):
                assert not np.isfinite(ends[0]) or exact(float(ends[0])) <= g
                assert not np.isfinite(ends[1]) or g <= exact(float(ends[1]))


def line(*weights: float) -> Graph:
    """Of one input, a weight after the other."""
    builder = GraphBuilder()
    x = builder.add(ops.Input((1,)))
    for weight in weights:
        x = builder.add(ops.Linear(ops.frozen_array([[weight]])), x)
    return builder.build(x)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(
    "weights", [(1e308, 1e308, 1e-200, 1e-200), (1e-200, 1e-200, 1e308, 1e308), (5e-324, 5e-324, 1e308, 1e308, 1e308)]
)
def test_a_product_that_underflows_is_not_zero(norm: str, weights: tuple[float, ...]) -> None:
    truth = abs(np.prod([Fraction(w) for w in weights]))
    subject = Subject(line(*weights), norm, 0)
    with np.errstate(all="ignore"):
        upper, (low, high) = lipschitz_upper(subject, stated([[0.5]]))[0], derivative_range(subject, stated([[0.5]]))
    assert upper == np.inf or Fraction(upper) >= truth
    assert low[0, 0] == -np.inf or Fraction(low[0, 0]) <= truth
    assert high[0, 0] == np.inf or Fraction(high[0, 0]) >= truth


@pytest.mark.parametrize("rounding", [FLOATS, EXACT])
def test_weights_are_multiplied_without_a_loss(rounding: Arithmetic) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        weights = rng.normal(size=3)
        truth = abs(np.prod([Fraction(w) for w in weights]))
        for norm in DUAL:
            upper = lipschitz_upper(Subject(line(*weights), norm, 0, rounding), stated([[0.5]]))[0]
            assert truth <= Fraction(upper) <= truth * (1 + Fraction(1, 2**40))


@pytest.mark.parametrize("name", ["transposed conv2d", "conv1d with leading axes", "multiply", "maximum over windows"])
def test_a_fraction_never_becomes_a_float(name: str) -> None:
    """A sum or a product of the two is a float64, rounded; so is a quotient of whole numbers."""
    graph, points = draw(name, 3, 1)
    problem, owner = lipschitz_problem(Subject(graph, "linf", 0, EXACT), stated(points))
    bounds, _ = bound_nodes(problem, owner)
    for node in bounds.values():
        planes = node.planes
        slopes = (*planes.above, *planes.below) if isinstance(planes, Planes) else ()
        for values in (node.lower, node.upper, *slopes):
            assert all(isinstance(x, Fraction) or np.isinf(x) for x in values.ravel().tolist())


def test_a_product_of_what_is_unbounded_is_unknown_to_fractions_as_well() -> None:
    ranges = [
        tuple(EXACT.array(np.array([[end]])) for end in ends) for ends in ((1.0, np.inf), (1.0, 1.0), (-np.inf, np.inf))
    ]
    for x in ranges:
        for y in ranges:
            slopes = ((np.zeros((1, 1)), np.ones((1, 1))),) * 2
            with np.errstate(all="ignore"):
                planes: Any = planes_of(ops.Multiply(), [x, y], slopes, EXACT)
            if x != ranges[1]:
                assert planes.above_offset[0, 0] == np.inf and planes.below_offset[0, 0] <= 0


def test_slopes_for_other_operands_on_each_side_are_refused() -> None:
    """An offset that was worked out with a slope that is left out afterwards held for nothing."""
    two = tuple((np.full((1, 1), low), np.full((1, 1), high)) for low, high in ((1.0, 2.0), (3.0, 4.0)))
    one, both = (np.full((1, 1), 1.0),), (np.full((1, 1), -5.0), np.full((1, 1), 1.0))
    for slopes in ((one, both), (both, one)):
        with pytest.raises(ValueError, match="other operands"):
            planes_of(ops.Multiply(linear_in=(1,)), list(two), slopes, FLOATS)
    for followed in ((0,), (), (1, 0)):
        with pytest.raises(ValueError, match="follow"):
            planes_of(ops.Multiply(linear_in=followed), list(two), None, FLOATS)
    with pytest.raises(ValueError):
        planes_of(ops.Elementwise("relu"), [two[0]], ((np.zeros((2, 1)),), (np.zeros((2, 1)),)), FLOATS)


@pytest.mark.parametrize("rounding", [FLOATS, EXACT])
@pytest.mark.parametrize("place", [0.5, 0.75])
def test_planes_hold_at_the_place_of_a_cut(rounding: Arithmetic, place: float) -> None:
    """On either side of a kink the derivative has the values of that side, at the kink itself as well."""
    builder = GraphBuilder()
    x = builder.add(ops.Input((1,)))
    graph = builder.build(builder.add(ops.Elementwise("window", (0.5, 0.75)), x))
    region = Region.around(np.array([[0.625]]), np.array([0.25]), "linf", (-np.inf, np.inf))
    for low, high in ((-np.inf, place), (place, np.inf)):
        held = np.array([[low]]), np.array([[high]])
        problem = Problem(graph, region.cut(*held), None, rounding, held={0: held})
        planes: Any = bound_nodes(problem, None)[0][1].planes
        inside = 1 if (low, high) in ((-np.inf, 0.75), (0.5, np.inf)) else 0
        at = Fraction(place)
        above, below = (Fraction(x[0, 0]) for x in (planes.above[0], planes.below[0]))
        assert above * at + Fraction(planes.above_offset[0, 0]) >= inside
        assert below * at + Fraction(planes.below_offset[0, 0]) <= inside


def test_a_gradient_may_not_be_cut() -> None:
    graph = norm_graph(line(2.0), None, "l1")
    tree = {"node": np.array([graph.output, -1, -1]), "entry": np.zeros(3), "place": np.array([-1.0, 0.0, 0.0])}
    assert graph.output in behind_objective(graph)
    with pytest.raises(ValueError, match="no cut"):
        lipschitz_upper(
            Subject(line(2.0), "linf", 0), stated([[0.5]]) | {f"lipschitz/tree/{k}": v for k, v in tree.items()}
        )


def test_a_point_outside_its_domain_is_refused() -> None:
    """The way from the point to its region would leave the region, along which the slope is not bounded."""
    for norm in DUAL:
        with pytest.raises(ValueError, match="excludes a point"):
            lipschitz_upper(Subject(line(1.0), norm, 0), stated([[0.0]], 1.0, domain_lower=np.array([0.5])))


def test_a_radius_that_underflows_is_still_one() -> None:
    """f(x) = 1e300 x − 1e-90 changes its sign at 1e-390, which no float64 is."""
    builder = GraphBuilder()
    x = builder.add(ops.Input((1,)))
    steep = builder.add(ops.Linear(ops.frozen_array([[-1e300]]), ops.frozen_array([1e-90])), x)
    graph = builder.build(steep)
    here = stated([[0.0]], labels=np.array([1]), feature_scale=np.array([1e-195]))
    assert radius_holds(Subject(graph, "linf", 0), here, np.array([1e-194])).tolist() == [False]
    assert radius_holds(Subject(graph, "linf", 0), here, np.array([0.0])).tolist() == [True]


def test_a_radius_times_a_unit_is_not_rounded_down() -> None:
    """The decision changes at 0.2 ulp(1) less than the radius reaches: seen from −1, where floats are far closer together."""
    ulp, radii = 2.0**-52, np.random.default_rng(0).uniform(0.5, 1.0, 1000)
    units = 1 / radii * (1 + 8 * ulp)
    lost = np.array([float(Fraction(r) * Fraction(u) - Fraction(r * u)) for r, u in zip(radii, units, strict=True)])
    pick = int(lost.argmax())
    assert lost[pick] > 0.4 * ulp
    radius, unit = radii[pick], units[pick]
    change = float(Fraction(radius * unit) - 1) + lost[pick] / 2
    assert Fraction(radius) * Fraction(unit) - 1 > Fraction(change)
    builder = GraphBuilder()
    moved = builder.add(
        ops.Linear(ops.frozen_array([[-1.0]]), ops.frozen_array([change])), builder.add(ops.Input((1,)))
    )
    here = stated([[-1.0]], labels=np.array([1]), feature_scale=np.array([unit]))
    assert not radius_holds(Subject(builder.build(moved), "linf", 0), here, np.array([radius]))[0]
    assert radius_holds(Subject(builder.build(moved), "linf", 0), here, np.array([radius * (1 - 1e-9)]))[0]


def test_only_a_label_that_is_wrong_for_sure_is_mislabeled() -> None:
    builder = GraphBuilder()
    x = builder.add(ops.Input((3,)))
    graph = builder.build(building.maximum(builder, x, x))
    points = [[2.0, 1.0, 0.0], [2.0, 2.0, 0.0], [0.0, 1.0, 2.0]]
    for labels, wrong in (([0, 0, 2], []), ([0, 1, 2], []), ([1, 1, 0], [0, 2]), ([2, 2, 2], [0, 1])):
        found = mislabeled(Subject(graph, "linf", "margin"), stated(points, labels=np.array(labels)))
        assert np.flatnonzero(found).tolist() == wrong
